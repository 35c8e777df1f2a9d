// SPDX-License-Identifier: MIT

package rollout_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/rollout"
	"github.com/minifleet/minifleet/store"
)

const (
	stable = "gs://b/mac:stable"
	other  = "gs://b/other:stable"
)

func digest(letter string) string { return "sha256:" + strings.Repeat(letter, 64) }
func at(letter string) string     { return "gs://b/mac@" + digest(letter) }

// bucket is a place of images: what each reference names, or why it cannot be read.
type bucket struct {
	mu    sync.Mutex
	names map[string]string
	fails map[string]error
	hangs map[string]bool
	asked map[string]int
	times []time.Time // when stable was read
}

func newBucket() *bucket {
	return &bucket{names: map[string]string{stable: digest("a")}, fails: map[string]error{}, hangs: map[string]bool{}, asked: map[string]int{}}
}

func (b *bucket) set(reference, digest string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.names[reference], b.fails[reference] = digest, err
}

func (b *bucket) Resolve(ctx context.Context, reference string) (string, error) {
	b.mu.Lock()
	b.asked[reference]++
	if reference == stable {
		b.times = append(b.times, time.Now())
	}
	hangs, err, name := b.hangs[reference], b.fails[reference], b.names[reference]
	b.mu.Unlock()
	if hangs {
		<-ctx.Done()
		return "", ctx.Err()
	}
	return name, err
}

// memory is a store without a database: one that has one needs real time.
type memory struct {
	mu    sync.Mutex
	all   map[string]fleet.Rollout
	fails error
}

func (m *memory) get(pool string) fleet.Rollout {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.all[pool]
}

func (m *memory) ConfigureRollouts(_ context.Context, pools []fleet.Pool) error {
	m.all = map[string]fleet.Rollout{}
	for _, p := range pools {
		if fleet.RemoteImage(p.Image) {
			m.all[p.Name] = fleet.NewRollout(p.Name, p.Image, time.Now())
		}
	}
	return nil
}

func (m *memory) each(reference string, next func(fleet.Rollout) fleet.Rollout) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for pool, r := range maps.Clone(m.all) {
		if r.Reference == reference && m.fails == nil {
			m.all[pool] = next(r)
		}
	}
	return m.fails
}

func (m *memory) ImageResolved(_ context.Context, reference, digest string) error {
	return m.each(reference, func(r fleet.Rollout) fleet.Rollout { return r.Resolved(digest, time.Now()) })
}

func (m *memory) ImageUnresolved(_ context.Context, reference, why string) error {
	return m.each(reference, func(r fleet.Rollout) fleet.Rollout { return r.Unresolved(why, time.Now()) })
}

func (m *memory) ChangeRollout(_ context.Context, pool string, next func(fleet.Rollout, time.Time) (fleet.Rollout, error)) (fleet.Rollout, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := next(m.all[pool], time.Now())
	if err == nil {
		m.all[pool] = r
	}
	return r, err
}

func pools(images ...string) (list []fleet.Pool) {
	for i, image := range images {
		list = append(list, fleet.Pool{Name: string(rune('a' + i)), Image: image})
	}
	return list
}

// start runs a tracker until the test ends.
func start(t *testing.T, s rollout.Store, r rollout.Resolver, list []fleet.Pool, log *slog.Logger) *rollout.Tracker {
	t.Helper()
	k, err := rollout.New(rollout.Config{Store: s, Resolver: r, Pools: list, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Configure(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return k
}

func pass(d time.Duration) {
	time.Sleep(d) // of the bubble's own time
	synctest.Wait()
}

func TestTagsAreFollowed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, b := &memory{}, newBucket()
		b.names[other] = digest("f")
		start(t, s, b, pools(stable, stable, other, "local", "gs://b/mac@"+digest("e")), nil)
		synctest.Wait()
		if s.get("a").Current != at("a") || s.get("b").Current != at("a") || s.get("c").Current != "gs://b/other@"+digest("f") || s.get("e").Current != at("e") {
			t.Fatalf("%+v", s.all)
		}
		if len(s.all) != 4 || b.asked[stable] != 1 || len(b.asked) != 2 {
			t.Errorf("%d rollouts, asked %v: one question a reference, none for what has a digest or is a name", len(s.all), b.asked)
		}
		b.set(stable, digest("b"), nil)
		pass(59 * time.Second)
		if s.get("a").Next != "" {
			t.Error("read before its time")
		}
		pass(time.Second)
		if s.get("a").Next != at("b") || s.get("b").Next != at("b") || s.get("a").Current != at("a") {
			t.Errorf("%+v", s.get("a"))
		}
	})
}

// A tag that cannot be read is asked for ever more seldom, is told of once, and harms no
// other reference; when it can be read all is as if nothing had been.
func TestFailures(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, b := &memory{}, newBucket()
		b.fails[stable] = errors.New("403 Forbidden\x1b[31m " + strings.Repeat("x", 2000))
		b.names[other] = digest("f")
		var said bytes.Buffer
		start(t, s, b, pools(stable, other), slog.New(slog.NewTextHandler(&said, nil)))
		pass(time.Hour)
		r := s.get("a")
		if !strings.HasPrefix(r.Error, "403 Forbidden [31m xxx") || len(r.Error) > 600 || r.Current != "" {
			t.Errorf("%.80q, %d bytes, current %q", r.Error, len(r.Error), r.Current)
		}
		if n := len(b.times); n < 10 || n > 40 {
			t.Errorf("asked %d times in an hour", n)
		}
		for i := 8; i < len(b.times); i++ {
			if d := b.times[i].Sub(b.times[i-1]); d < 150*time.Second || d > 5*time.Minute {
				t.Errorf("asked again after %s", d)
			}
		}
		if d := b.times[1].Sub(b.times[0]); d > 5*time.Second {
			t.Errorf("asked again after %s the first time", d)
		}
		if n := strings.Count(said.String(), "cannot be read"); n != 1 {
			t.Errorf("told %d times: %.400s", n, said.String())
		}
		if b.asked[other] != 61 || s.get("b").Current == "" {
			t.Errorf("the other reference was asked for %d times", b.asked[other])
		}
		b.set(stable, digest("a"), nil)
		pass(5 * time.Minute)
		if r := s.get("a"); r.Error != "" || r.Current != at("a") {
			t.Errorf("%+v", r)
		}
	})
}

// A bucket that does not answer is given up after the timeout.
func TestTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, b := &memory{}, newBucket()
		b.hangs[stable] = true
		start(t, s, b, pools(stable), nil)
		pass(30 * time.Second)
		if r := s.get("a"); !strings.Contains(r.Error, "no answer within 30s") {
			t.Errorf("%q", r.Error)
		}
	})
}

// late is a bucket whose answers can take a while on their way.
type late struct {
	*bucket
	takes atomic.Int64
}

func (l *late) Resolve(ctx context.Context, reference string) (string, error) {
	takes := time.Duration(l.takes.Load())
	digest, err := l.bucket.Resolve(ctx, reference)
	time.Sleep(takes) // of the bubble's own time
	return digest, err
}

// What was read of a tag before it moved, and comes late, undoes nothing of what an operator
// had taken of it since.
func TestOldAnswer(t *testing.T) {
	t.Parallel()
	for _, now := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s, b := &memory{}, &late{bucket: newBucket()}
			k := start(t, s, b, pools(stable), nil)
			synctest.Wait()
			b.takes.Store(int64(10 * time.Second))
			pass(time.Minute) // the tag is being read
			b.takes.Store(0)
			b.set(stable, digest("b"), nil)
			want, err := k.Take(t.Context(), "a", "", now)
			if err != nil || fleet.ImageDigest(want.Current) != digest("b") && fleet.ImageDigest(want.Next) != digest("b") {
				t.Fatalf("%+v, %v", want, err)
			}
			pass(10 * time.Second)
			if got := s.get("a"); got.Current != want.Current || got.Next != want.Next || got.Tagged != digest("b") {
				t.Errorf("at once: %t: the operator was told\n%+v\nand it became\n%+v", now, want, got)
			}
		})
	}
}

// What is no digest is never taken for one.
func TestForeignAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, b := &memory{}, newBucket()
		b.names[stable] = "latest"
		start(t, s, b, pools(stable), nil)
		synctest.Wait()
		if r := s.get("a"); !strings.Contains(r.Error, `"latest" is not the digest`) || r.Current != "" {
			t.Errorf("%+v", r)
		}
	})
}

// A store that is down is asked again soon, and what was read is not lost.
func TestStoreDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, b := &memory{fails: errors.New("disk full")}, newBucket()
		start(t, s, b, pools(stable), nil)
		synctest.Wait()
		if s.get("a").Current != "" {
			t.Fatal("stored all the same")
		}
		s.mu.Lock()
		s.fails = nil
		s.mu.Unlock()
		pass(5 * time.Second)
		if s.get("a").Current != at("a") {
			t.Errorf("%+v", s.get("a"))
		}
	})
}

// An operator's acts, on the real store.
func TestOperator(t *testing.T) {
	t.Parallel()
	s, err := store.Open(t.Context(), store.Config{Path: filepath.Join(t.TempDir(), "x.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	b := newBucket()
	k, err := rollout.New(rollout.Config{Store: s, Resolver: b, Pools: pools(stable, "local")})
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Configure(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	want := func(what string, r fleet.Rollout, err error, current, next, held string) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		letter := func(image string) string {
			if image == "" {
				return ""
			}
			return fleet.ImageDigest(image)[7:8]
		}
		if letter(r.Current) != current || letter(r.Next) != next || letter(r.Held) != held {
			t.Fatalf("%s: %s %s %s, want %s %s %s", what, letter(r.Current), letter(r.Next), letter(r.Held), current, next, held)
		}
		all, err := s.Rollouts(ctx)
		if err != nil || all["a"] != r {
			t.Fatalf("%s: stored %+v, answered %+v, %v", what, all["a"], r, err)
		}
	}
	r, err := k.Take(ctx, "a", "", false)
	want("the first", r, err, "a", "", "")
	b.set(stable, digest("b"), nil)
	r, err = k.Take(ctx, "a", "", false)
	want("the tag", r, err, "a", "b", "")
	r, err = k.Promote(ctx, "a")
	want("promote", r, err, "b", "", "")
	r, err = k.Back(ctx, "a", digest("b"))
	want("back", r, err, "a", "", "b")
	if _, err = k.Back(ctx, "a", digest("b")); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("back once more: %v", err)
	}
	if _, err = k.Back(ctx, "a", ""); !errors.Is(err, fleet.ErrNoPrevious) {
		t.Errorf("back from the first: %v", err)
	}
	if _, err = k.Promote(ctx, "a"); !errors.Is(err, fleet.ErrNoRollout) {
		t.Errorf("promote nothing: %v", err)
	}
	if err := s.ImageResolved(ctx, stable, digest("b")); err != nil {
		t.Fatal(err)
	}
	r, err = k.Take(ctx, "a", "", false)
	want("what was left is asked for", r, err, "a", "b", "")
	r, err = k.Back(ctx, "a", "")
	want("what is rolled out is given up", r, err, "a", "", "b")
	b.set("gs://b/mac@"+digest("c"), digest("c"), nil)
	r, err = k.Take(ctx, "a", digest("c"), true)
	want("a digest, at once", r, err, "c", "", "")
	r, err = k.Take(ctx, "a", digest("c"), true)
	want("what serves", r, err, "c", "", "")
	if err := s.ImageResolved(ctx, stable, digest("b")); err != nil {
		t.Fatal(err)
	}
	all, err := s.Rollouts(ctx)
	want("the tag did not move", all["a"], err, "c", "", "")

	b.set("gs://b/mac@"+digest("d"), "", errors.New("404"))
	if _, err = k.Take(ctx, "a", digest("d"), false); !errors.Is(err, fleet.ErrNoImage) || !strings.Contains(err.Error(), "404") {
		t.Errorf("a digest that there is not: %v", err)
	}
	if _, err = k.Take(ctx, "none", "", false); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("no such pool: %v", err)
	}
	if _, err = k.Back(ctx, "b", ""); !errors.Is(err, fleet.ErrLocalImage) {
		t.Errorf("a local image: %v", err)
	}
}

func TestNewWants(t *testing.T) {
	t.Parallel()
	if _, err := rollout.New(rollout.Config{}); err == nil {
		t.Error("a tracker without a store")
	}
}
