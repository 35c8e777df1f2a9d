// SPDX-License-Identifier: MIT

package store_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/store"
)

// Each of several changes in one commit stands and falls alone.
func TestChangesTogether(t *testing.T) {
	t.Parallel()
	errMine := errors.New("mine")
	type exec = func(query string, args ...any) error
	set := func(name string) func(exec) error {
		return func(x exec) error { return x(`INSERT INTO meta (name, value) VALUES ($1, 'x')`, name) }
	}
	fails := func(x exec) error { return errors.Join(set("half")(x), errMine) }
	here, left := context.Background(), func() context.Context {
		ctx, cancel := context.WithCancelCause(context.Background())
		cancel(errMine)
		return ctx
	}()
	type caller struct {
		ctx  context.Context
		do   func(exec) error
		fail bool
		mine bool // with the error of the test
	}
	for name, callers := range map[string][]caller{
		"all good":             {{ctx: here, do: set("a")}, {ctx: here, do: set("b")}},
		"one fails":            {{ctx: here, do: set("a")}, {ctx: here, do: fails, fail: true, mine: true}, {ctx: here, do: set("b")}},
		"one breaks a rule":    {{ctx: here, do: set("a")}, {ctx: here, do: set("site"), fail: true}, {ctx: here, do: set("b")}},
		"one caller has left":  {{ctx: here, do: set("a")}, {ctx: left, do: set("half"), fail: true, mine: true}, {ctx: here, do: set("b")}},
		"alone, it fails":      {{ctx: here, do: fails, fail: true, mine: true}},
		"alone, it has left":   {{ctx: left, do: set("half"), fail: true, mine: true}},
		"one ends them all":    {{ctx: here, do: set("a")}, {ctx: here, do: func(x exec) error { return errors.Join(x(`ROLLBACK`), errMine) }, fail: true, mine: true}, {ctx: here, do: set("b")}},
		"the last is the evil": {{ctx: here, do: set("a")}, {ctx: here, do: set("b")}, {ctx: here, do: func(x exec) error { return x(`ROLLBACK`) }, fail: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "minifleet.db")
			s := openAt(t, path, time.Now)
			var ctxs []context.Context
			var changes []func(exec) error
			for _, c := range callers {
				ctxs, changes = append(ctxs, c.ctx), append(changes, c.do)
			}
			good := 0
			for i, err := range s.Together(ctxs, changes) {
				c := callers[i]
				if !c.fail {
					good++
				}
				if (err != nil) != c.fail || c.mine && !errors.Is(err, errMine) {
					t.Errorf("change %d: %v", i, err)
				}
			}
			var kept, half int
			if err := s.Pools()["read"].QueryRowContext(t.Context(), `SELECT COUNT(*) FILTER (WHERE name IN ('a', 'b')), COUNT(*) FILTER (WHERE name = 'half') FROM meta`).Scan(&kept, &half); err != nil {
				t.Fatal(err)
			}
			if kept != good || half != 0 {
				t.Errorf("%d of %d good changes are kept, %d of the bad", kept, good, half)
			}
			if err := s.Ping(t.Context()); err != nil {
				t.Errorf("the writer is of no use afterwards: %v", err)
			}
		})
	}
}

// Callers that come while the writer is busy are all answered, each with its own truth,
// and what was answered is there after the store was opened again.
func TestManyCallers(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "minifleet.db")
	w := newWorld(t, func(t *testing.T, now func() time.Time) *store.Store { return openAt(t, path, now) })
	writer, err := w.s.Pools()["write"].Conn(t.Context()) // nothing is written while it is held
	w.must(err)
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan error, 1)
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			in := fleet.Ingest{Delivery: w.delivery(fmt.Sprint("g-", i%50), fleet.DeliveryProcessed), Job: news(fleet.JobID(i%50+1), fleet.ToldQueued, "")}
			if _, err := w.s.Ingest(w.ctx(), in); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if err := w.s.Granted(w.ctx(), "r-none", 1, 1); !errors.Is(err, fleet.ErrNotFound) {
				t.Error(err)
			}
		})
	}
	go func() { left <- w.s.Ping(ctx) }()
	leave()
	w.must(writer.Close())
	wg.Wait()
	if err := <-left; err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	w.must(w.s.Close())
	again := openAt(t, path, w.Now)
	st, err := again.State(t.Context())
	w.must(err)
	if len(st.Jobs) != 50 {
		t.Errorf("%d jobs", len(st.Jobs))
	}
}

func TestAfterClose(t *testing.T) {
	t.Parallel()
	w := newWorld(t, openSQLite)
	h := w.host("h", 1)
	w.must(w.s.Close())
	_, state := w.s.State(w.ctx())
	_, desired := w.s.Desired(w.ctx(), h)
	_, host := w.s.HostByCredential(w.ctx(), "credential-h")
	for name, err := range map[string]error{"change": w.s.Ping(w.ctx()), "state": state, "desired": desired, "host": host} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	w.must(w.s.Close())
}
