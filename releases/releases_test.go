// SPDX-License-Identifier: MIT

package releases_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/internal/leakcheck"
	"github.com/minifleet/minifleet/releases"
	"github.com/minifleet/minifleet/store"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

// offers is a GitHub that offers versions, and may know their dates.
type offers struct {
	mu      sync.Mutex // guards the rest
	offered []string
	dated   []fleet.RunnerRelease
	err     error
	asked   int
}

func (o *offers) OfferedRunners(context.Context, fleet.Scope) ([]string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asked++
	return o.offered, o.err
}

func (o *offers) RunnerReleases(context.Context, fleet.Scope) ([]fleet.RunnerRelease, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.dated == nil {
		return nil, errors.New("this server does not have them")
	}
	return o.dated, nil
}

func (o *offers) change(f func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f()
}

// books has the runners of pools beside the real store's releases.
type books struct {
	*store.Store
	mu      sync.Mutex // guards runners
	runners map[string]fleet.PoolRunner
}

func (b *books) PoolRunners(context.Context) (map[string]fleet.PoolRunner, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.runners), nil
}

func (b *books) says(p fleet.PoolRunner) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.runners[p.Pool] = p
}

func open(t *testing.T, path string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const day = 24 * time.Hour

// words are what was logged, for one goroutine to take from another.
type words struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (w *words) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

func (w *words) take() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer w.b.Reset()
	return w.b.String()
}

// A runner grows old while a controller watches it, over a restart of that, and is replaced.
func TestAlarmAtBothEdges(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	synctest.Test(t, func(t *testing.T) {
		var log words
		github := &offers{offered: []string{"2.336.0"}}
		b := &books{Store: open(t, path), runners: map[string]fleet.PoolRunner{"mac": {Pool: "mac", Version: "2.336.0"}}}
		pools := []fleet.Pool{{Name: "mac", Scopes: []fleet.Scope{{Owner: "acme"}}}}
		var w *releases.Watch
		var stop context.CancelFunc
		done := make(chan error, 1)
		start := func() {
			var ctx context.Context
			ctx, stop = context.WithCancel(t.Context())
			w = releases.New(releases.Config{Store: b, GitHub: github, Pools: pools, Refresh: 6 * time.Hour, Look: 6 * time.Hour, Log: slog.New(slog.NewTextHandler(&log, nil))})
			go func() { done <- w.Run(ctx) }()
		}
		end := func() {
			stop()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		after := func(d time.Duration, want ...string) {
			t.Helper()
			time.Sleep(d) // virtual
			synctest.Wait()
			said := log.take()
			if (said == "") != (len(want) == 0) {
				t.Errorf("said %q, want %q", said, want)
			}
			for _, part := range want {
				if !strings.Contains(said, part) {
					t.Errorf("said %q, want %q", said, part)
				}
			}
		}
		start()
		after(3 * day) // nothing is newer
		github.change(func() { github.offered = []string{"2.337.0"} })
		after(19 * day)
		// A restart forgets nothing, and a third version changes nothing of the first newer one's date.
		end()
		if err := b.Store.Close(); err != nil {
			t.Fatal(err)
		}
		b.Store = open(t, path)
		github.change(func() { github.offered = []string{"2.338.0"} })
		start()
		after(12 * time.Hour)
		after(day, "WARN", "grows old", "version=2.336.0", "newest=2.338.0")
		after(9 * day)
		after(day, "ERROR", "too old", "refused=false")
		asked := 0
		github.change(func() { asked = github.asked })
		if asked < 30*4 || asked > 36*4 {
			t.Errorf("GitHub was asked %d times in 33 days", asked)
		}
		b.says(fleet.PoolRunner{Pool: "mac", Version: "2.336.0", RefusedAt: time.Now()})
		after(6*time.Hour, "ERROR", "too old", "refused=true") // what was feared has come
		b.says(fleet.PoolRunner{Pool: "mac", Version: "2.338.0"})
		after(6*time.Hour, "INFO", "recent again")
		b.says(fleet.PoolRunner{Pool: "mac", Version: "2.338.0", RefusedAt: time.Now()})
		after(6*time.Hour, "ERROR", "refused=true")
		github.change(func() { github.err = errors.New("GitHub is away") })
		after(7*time.Hour, "WARN", "not known", "GitHub is away")
		after(day) // said once
		end()
		if err := b.Store.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// Dates that GitHub tells count, and replace what was guessed at the first sight.
func TestDatesOfReleases(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	synctest.Test(t, func(t *testing.T) {
		s := open(t, path)
		now := time.Now()
		if err := s.LearnReleases(t.Context(), []fleet.RunnerRelease{{Version: "2.337.0"}}); err != nil {
			t.Fatal(err)
		}
		b := &books{Store: s, runners: map[string]fleet.PoolRunner{"mac": {Version: "2.330.0"}}}
		github := &offers{offered: []string{"2.337.0"}, dated: []fleet.RunnerRelease{{Version: "2.337.0", At: now.Add(-3 * day)}, {Version: "2.331.0", At: now.Add(-35 * day)}}}
		w := releases.New(releases.Config{Store: b, GitHub: github, Pools: []fleet.Pool{{Name: "mac", Scopes: []fleet.Scope{{Owner: "acme"}}}}})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.Run(ctx) }()
		synctest.Wait()
		h, err := w.Health(ctx)
		if got := h["mac"]; err != nil || got.Age != fleet.RunnerTooOld || got.Newest != "2.337.0" || !got.BehindSince.Equal(now.Add(-35*day).Truncate(time.Microsecond)) {
			t.Errorf("%+v, %v", got, err)
		}
		if text := w.Sentence("mac", h["mac"]); !strings.Contains(text, "35 days ago") || !strings.Contains(text, "2.330.0") {
			t.Errorf("%q", text)
		}
		list, err := s.Releases(ctx)
		if err != nil || len(list) != 2 || !list[1].At.Equal(now.Add(-3*day).Truncate(time.Microsecond)) {
			t.Errorf("%+v, %v", list, err)
		}
		stop()
		<-done
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
