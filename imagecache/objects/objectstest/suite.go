// SPDX-License-Identifier: MIT

package objectstest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/minifleet/minifleet/imagecache/objects"
)

// Lacks says what a store's other end does not do although Cloud Storage does.
type Lacks struct {
	Metageneration   bool // it is always the same, and no condition on it is checked
	DeleteConditions bool // it deletes whatever the condition says
	TouchConditions  bool // it changes metadata whatever the condition says
	SteadyGeneration bool // a touch changes the generation
}

// Suite is what every store does. open opens an empty store, or the same again.
func Suite(t *testing.T, lacks Lacks, open func(t *testing.T) objects.Store) {
	s := suite{lacks: lacks}
	for name, test := range map[string]func(t *testing.T, s objects.Store){
		"what was put is there":     s.roundTrip,
		"names":                     s.names,
		"lists":                     s.lists,
		"conditions of a put":       s.putConditions,
		"touch":                     s.touch,
		"delete":                    s.delete,
		"an object comes back":      s.comesBack,
		"one of many wins":          s.race,
		"delete beside a touch":     s.deleteBesideTouch,
		"a reader keeps its object": s.readerKeeps,
		"a context that is over":    s.over,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

type suite struct{ lacks Lacks }

func put(t *testing.T, s objects.Store, name, content string, c objects.Condition) objects.Attributes {
	t.Helper()
	a, err := s.Put(t.Context(), name, []byte(content), c)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func get(t *testing.T, s objects.Store, name string) (string, objects.Attributes) {
	t.Helper()
	r, a, err := s.Get(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b), a
}

func (suite) roundTrip(t *testing.T, s objects.Store) {
	large := strings.Repeat("0123456789abcdef", 1<<16)
	for _, content := range []string{"", "a", large} {
		a := put(t, s, "chunks/ab/one.zst", content, objects.Condition{})
		if a.Name != "chunks/ab/one.zst" || a.Size != int64(len(content)) || a.Generation <= 0 || a.Metageneration <= 0 || a.Touched.IsZero() {
			t.Errorf("put gives %+v", a)
		}
		back, b := get(t, s, "chunks/ab/one.zst")
		if back != content || b.Size != int64(len(content)) || b.Generation != a.Generation {
			t.Errorf("%d bytes came back, %+v of %+v", len(back), b, a)
		}
		if st, err := s.Stat(t.Context(), "chunks/ab/one.zst"); err != nil || st.Size != a.Size || st.Generation != a.Generation || st.Metageneration != a.Metageneration || st.Touched.IsZero() {
			t.Errorf("stat gives %+v, %v", st, err)
		}
	}
	_, _, err := s.Get(t.Context(), "chunks/ab/two.zst")
	for _, err := range []error{
		err,
		errOf(s.Stat(t.Context(), "none")), errOf(s.Stat(t.Context(), "chunks")), errOf(s.Stat(t.Context(), "chunks/ab/one.zst/below")),
		errOf(s.Touch(t.Context(), "none", objects.Condition{})), s.Delete(t.Context(), "none", objects.Condition{}),
	} {
		if !errors.Is(err, objects.ErrNotFound) || !strings.Contains(fmt.Sprint(err), s.String()) {
			t.Errorf("an object that is not there: %v", err)
		}
	}
}

func errOf(_ objects.Attributes, err error) error { return err }

func (suite) names(t *testing.T, s objects.Store) {
	for _, name := range []string{"", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/.b", ".lock", ".tmp/a", `a\b`, "a b", "a\x00", "a\n", "ä", strings.Repeat("a/", 300) + "a", strings.Repeat("a", 300)} {
		_, put := s.Put(t.Context(), name, nil, objects.Condition{})
		_, _, got := s.Get(t.Context(), name)
		for _, err := range []error{put, got, errOf(s.Stat(t.Context(), name)), errOf(s.Touch(t.Context(), name, objects.Condition{})), s.Delete(t.Context(), name, objects.Condition{})} {
			if err == nil || errors.Is(err, objects.ErrNotFound) {
				t.Errorf("%q: %v", name, err)
			}
		}
	}
	absent := objects.Condition{Absent: true}
	if errOf(s.Touch(t.Context(), "a", absent)) == nil || s.Delete(t.Context(), "a", absent) == nil {
		t.Errorf("what is not there can be touched or deleted")
	}
}

func list(t *testing.T, s objects.Store, prefix string) []string {
	t.Helper()
	var names []string
	for a, err := range s.List(t.Context(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		if a.Generation <= 0 || a.Metageneration <= 0 || a.Touched.IsZero() || a.Size != int64(len(a.Name)) {
			t.Errorf("listed %+v", a)
		}
		names = append(names, a.Name)
	}
	return names
}

func (suite) lists(t *testing.T, s objects.Store) {
	if have := list(t, s, ""); have != nil {
		t.Errorf("an empty store has %q", have)
	}
	all := []string{"a-b/x", "a/b", "a/b-c", "a/b.d", "a/bc/d", "a0", "chunks/00/x", "tags/m/latest.json", "tags/m/v1.json", "tags/n/latest.json"}
	for _, name := range slices.Backward(all) {
		put(t, s, name, name, objects.Condition{})
	}
	for prefix, want := range map[string][]string{
		"": all, "a": all[:6], "a/": all[1:5], "a/b": all[1:5], "a/b/": nil, "a/bc": all[4:5], "tags/": all[7:], "tags/m/": all[7:9], "tags/m/latest.json": all[7:8], "x": nil, "chunks/01": nil,
	} {
		if have := list(t, s, prefix); !slices.Equal(have, want) {
			t.Errorf("with the prefix %q there are %q, want %q", prefix, have, want)
		}
	}
	for a, err := range s.List(t.Context(), "") {
		if err != nil || a.Name != all[0] {
			t.Error(a, err)
		}
		break // it can be left early
	}
}

func (suite) putConditions(t *testing.T, s objects.Store) {
	first := put(t, s, "a", "1", objects.Condition{Absent: true})
	if _, err := s.Put(t.Context(), "a", []byte("2"), objects.Condition{Absent: true}); !errors.Is(err, objects.ErrPrecondition) {
		t.Errorf("put where one is: %v", err)
	}
	second := put(t, s, "a", "2", objects.Condition{Generation: first.Generation})
	if second.Generation <= first.Generation {
		t.Errorf("the generation went from %d to %d", first.Generation, second.Generation)
	}
	if _, err := s.Put(t.Context(), "a", []byte("3"), objects.Condition{Generation: first.Generation}); !errors.Is(err, objects.ErrPrecondition) {
		t.Errorf("put over another generation: %v", err)
	}
	if _, err := s.Put(t.Context(), "b", []byte("3"), objects.Condition{Generation: first.Generation}); !errors.Is(err, objects.ErrPrecondition) {
		t.Errorf("put where none is: %v", err)
	}
	if content, _ := get(t, s, "a"); content != "2" {
		t.Errorf("%q is there", content)
	}
}

func (s suite) touch(t *testing.T, store objects.Store) {
	first := put(t, store, "a", "1", objects.Condition{})
	second, err := store.Touch(t.Context(), "a", objects.Condition{})
	if err != nil || second.Touched.Before(first.Touched) || second.Size != 1 {
		t.Errorf("%+v became %+v, %v", first, second, err)
	}
	if !s.lacks.Metageneration && second.Metageneration <= first.Metageneration {
		t.Errorf("the metageneration stays %d", second.Metageneration)
	}
	if !s.lacks.SteadyGeneration && second.Generation != first.Generation {
		t.Errorf("the generation became %d", second.Generation)
	}
	if st, err := store.Stat(t.Context(), "a"); err != nil || !s.lacks.Metageneration && st.Metageneration != second.Metageneration || !s.lacks.SteadyGeneration && st.Generation != second.Generation || !s.lacks.SteadyGeneration && st.Touched.Before(first.Touched) {
		t.Errorf("stat gives %+v, %v", st, err)
	}
	if s.lacks.TouchConditions {
		return
	}
	for _, c := range []objects.Condition{
		{Metageneration: first.Metageneration},
		{Generation: first.Generation, Metageneration: first.Metageneration},
		{Generation: first.Generation + 1},
	} {
		if _, err := store.Touch(t.Context(), "a", c); !errors.Is(err, objects.ErrPrecondition) {
			t.Errorf("touch under %+v: %v", c, err)
		}
	}
	third, err := store.Touch(t.Context(), "a", objects.Condition{Generation: second.Generation, Metageneration: second.Metageneration})
	if err != nil || third.Metageneration <= second.Metageneration {
		t.Errorf("%+v became %+v, %v", second, third, err)
	}
	over := put(t, store, "a", "2", objects.Condition{})
	if over.Generation <= third.Generation {
		t.Errorf("the generation went from %d to %d", third.Generation, over.Generation)
	}
}

func (s suite) delete(t *testing.T, store objects.Store) {
	first := put(t, store, "a/b", "1", objects.Condition{})
	if !s.lacks.DeleteConditions {
		for _, c := range []objects.Condition{{Generation: first.Generation + 1}, {Metageneration: first.Metageneration + 1}, {Generation: first.Generation, Metageneration: first.Metageneration + 1}} {
			if err := store.Delete(t.Context(), "a/b", c); !errors.Is(err, objects.ErrPrecondition) {
				t.Errorf("delete under %+v: %v", c, err)
			}
		}
		if content, _ := get(t, store, "a/b"); content != "1" {
			t.Errorf("%q is there", content)
		}
	}
	if err := store.Delete(t.Context(), "a/b", objects.Condition{Generation: first.Generation, Metageneration: first.Metageneration}); err != nil {
		t.Error(err)
	}
	if _, err := store.Stat(t.Context(), "a/b"); !errors.Is(err, objects.ErrNotFound) {
		t.Error(err)
	}
}

// comesBack: a condition on an object that was deleted does not hold for the next one.
func (s suite) comesBack(t *testing.T, store objects.Store) {
	old := put(t, store, "a", "1", objects.Condition{})
	for range 3 {
		if err := store.Delete(t.Context(), "a", objects.Condition{Generation: old.Generation}); err != nil {
			t.Fatal(err)
		}
		back := put(t, store, "a", "1", objects.Condition{Absent: true})
		if back.Generation <= old.Generation {
			t.Fatalf("the generation went from %d to %d", old.Generation, back.Generation)
		}
		if err := store.Delete(t.Context(), "a", objects.Condition{Generation: old.Generation}); !s.lacks.DeleteConditions && !errors.Is(err, objects.ErrPrecondition) {
			t.Fatalf("delete of the one before: %v", err)
		} else if err == nil {
			back = put(t, store, "a", "1", objects.Condition{})
		}
		old = back
	}
}

func (suite) race(t *testing.T, s objects.Store) {
	start := put(t, s, "a", "start", objects.Condition{})
	won := make([]error, 8)
	var wg sync.WaitGroup
	for i := range won {
		wg.Go(func() {
			_, won[i] = s.Put(t.Context(), "a", fmt.Appendf(nil, "%d", i), objects.Condition{Generation: start.Generation})
		})
	}
	wg.Wait()
	content, _ := get(t, s, "a")
	winners := 0
	for i, err := range won {
		switch {
		case err == nil && content == fmt.Sprint(i):
			winners++
		case !errors.Is(err, objects.ErrPrecondition):
			t.Errorf("put %d: %v, and %q is there", i, err, content)
		}
	}
	if winners != 1 {
		t.Errorf("%d won", winners)
	}
}

func (s suite) deleteBesideTouch(t *testing.T, store objects.Store) {
	if s.lacks.DeleteConditions || s.lacks.Metageneration {
		t.Skip("the other end knows no such conditions")
	}
	for range 20 {
		marked := put(t, store, "a", "1", objects.Condition{})
		var touched, deleted error
		var wg sync.WaitGroup
		wg.Go(func() { _, touched = store.Touch(t.Context(), "a", objects.Condition{}) })
		wg.Go(func() {
			deleted = store.Delete(t.Context(), "a", objects.Condition{Generation: marked.Generation, Metageneration: marked.Metageneration})
		})
		wg.Wait()
		switch _, err := store.Stat(t.Context(), "a"); {
		case touched == nil && errors.Is(deleted, objects.ErrPrecondition) && err == nil:
		case errors.Is(touched, objects.ErrNotFound) && deleted == nil && errors.Is(err, objects.ErrNotFound):
		default:
			t.Fatalf("touch: %v, delete: %v, stat: %v", touched, deleted, err)
		}
	}
}

// readerKeeps: what is read is one object, whatever is put in its place meanwhile.
func (suite) readerKeeps(t *testing.T, s objects.Store) {
	old := strings.Repeat("old ", 1<<20)
	put(t, s, "a", old, objects.Condition{})
	r, _, err := s.Get(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	put(t, s, "a", strings.Repeat("new ", 1<<20), objects.Condition{})
	b, err := io.ReadAll(r)
	if errors.Is(err, objects.ErrPrecondition) {
		return // as good
	}
	if err != nil || !bytes.Equal(b, []byte(old)) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

func (suite) over(t *testing.T, s objects.Store) {
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	put(t, s, "a", "1", objects.Condition{})
	_, err := s.Put(ctx, "b", nil, objects.Condition{})
	_, stat := s.Stat(ctx, "a")
	for _, err := range []error{err, stat} {
		if !errors.Is(err, why) && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	for _, err := range s.List(ctx, "") {
		if !errors.Is(err, why) {
			t.Error(err)
		}
	}
}
