// SPDX-License-Identifier: MIT

package catchup_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minifleet/minifleet/catchup"
	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/internal/leakcheck"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

// attempt is one of GitHub's.
type attempt struct {
	fleet.Attempt
	gone, bare bool
	fails      int // how often reading it fails; negative: always
}

// world is GitHub and the books, of which a test holds the strings.
type world struct {
	t    *testing.T
	log  bytes.Buffer
	all  bool // pull everything
	size int  // of a page

	mu       sync.Mutex // guards all below
	attempts []*attempt // the oldest first
	onPage   func(cursor string)
	lists    []error // of the next lists
	rate     fleet.Rate
	calls    []string // with the time since the start
	began    time.Time
	redone   func(guid string) // GitHub was asked for it again

	stored   map[string]fleet.DeliveryStatus
	asked    map[string]int
	caughtUp time.Time
	taken    []string
	takes    []error // of the next takes
	notes    []error // of the next notes of how far it has come
}

// in runs a test in virtual time.
func in(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &world{
			t: t, size: 3, began: time.Now(), stored: map[string]fleet.DeliveryStatus{}, asked: map[string]int{}, redone: func(string) {},
			caughtUp: time.Now().Add(-48 * time.Hour),
		}
		time.Sleep(time.Hour)
		f(t, w)
		if t.Failed() {
			t.Logf("calls:\n  %s\nlog:\n%s", strings.Join(w.calls[max(0, len(w.calls)-50):], "\n  "), tail(w.log.String()))
		}
	})
}

func tail(s string) string { return s[max(0, len(s)-5000):] }

// run lets a new puller work for some time.
func (w *world) run(d time.Duration, then ...func(*catchup.Puller)) catchup.Counts {
	w.t.Helper()
	p := catchup.New(catchup.Config{
		GitHub: w, Store: w, Take: w.take, All: w.all, Handles: func(event string) bool { return event != "star" },
		Log: slog.New(slog.NewTextHandler(&w.log, nil)),
	})
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	time.Sleep(d)
	synctest.Wait()
	for _, f := range then {
		f(p)
	}
	cancel()
	if err := <-done; err != nil {
		w.t.Error(err)
	}
	return p.Counts()
}

// tried adds an attempt, a second after the one before it.
func (w *world) tried(guid string, edit ...func(*attempt)) *attempt {
	w.mu.Lock()
	defer w.mu.Unlock()
	a := &attempt{Attempt: fleet.Attempt{ID: int64(1000 + len(w.attempts)), GUID: guid, Event: "workflow_job", Action: "queued", At: time.Now()}}
	for _, f := range edit {
		f(a)
	}
	w.attempts = append(w.attempts, a)
	time.Sleep(time.Second)
	return a
}

func well(a *attempt)  { a.OK = true }
func again(a *attempt) { a.Redelivery = true }
func gone(a *attempt)  { a.gone = true }
func bare(a *attempt)  { a.bare = true }

func broken(times int) func(*attempt) { return func(a *attempt) { a.fails = times } }

// call notes a call to GitHub, as its meter allows.
func (w *world) call(ctx context.Context, format string, args ...any) error {
	m := fleet.MeterOf(ctx)
	if m == nil {
		w.t.Error("a call without a meter")
		return nil
	}
	if err := m.Begin(ctx); err != nil {
		return fmt.Errorf("not called: %w", err)
	}
	w.mu.Lock()
	w.calls = append(w.calls, fmt.Sprintf("%s %s", time.Since(w.began).Round(time.Second), fmt.Sprintf(format, args...)))
	rate := w.rate
	w.mu.Unlock()
	select {
	case <-time.After(10 * time.Millisecond):
	case <-ctx.Done():
	}
	m.End(false, rate, true)
	return ctx.Err()
}

// count counts the calls that begin so.
func (w *world) count(prefix string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, c := range w.calls {
		if _, what, _ := strings.Cut(c, " "); strings.HasPrefix(what, prefix) {
			n++
		}
	}
	return n
}

func next(list *[]error) error {
	if len(*list) == 0 {
		return nil
	}
	err := (*list)[0]
	*list = (*list)[1:]
	return err
}

func (w *world) Deliveries(ctx context.Context, cursor string) ([]fleet.Attempt, string, error) {
	if err := w.call(ctx, "list %s", cursor); err != nil {
		return nil, "", err
	}
	if w.onPage != nil {
		w.onPage(cursor)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := next(&w.lists); err != nil {
		return nil, "", err
	}
	before, _ := strconv.ParseInt(cursor, 10, 64)
	var page []fleet.Attempt
	for _, a := range slices.Backward(w.attempts) {
		if before != 0 && a.ID >= before {
			continue
		}
		if len(page) == w.size {
			return page, fmt.Sprint(page[w.size-1].ID), nil
		}
		page = append(page, a.Attempt)
	}
	return page, "", nil
}

func (w *world) find(id int64) *attempt {
	i := slices.IndexFunc(w.attempts, func(a *attempt) bool { return a.ID == id })
	if w.attempts[i].gone {
		return nil
	}
	return w.attempts[i]
}

func (w *world) Delivery(ctx context.Context, of fleet.Attempt) (fleet.Pulled, bool, error) {
	if err := w.call(ctx, "get %s %d", of.GUID, of.ID); err != nil {
		return fleet.Pulled{}, false, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	a := w.find(of.ID)
	switch {
	case a == nil:
		return fleet.Pulled{}, false, nil
	case a.fails != 0:
		a.fails--
		return fleet.Pulled{}, false, errors.New("bad gateway")
	case a.bare:
		return fleet.Pulled{GUID: a.GUID, Event: a.Event}, true, nil
	}
	return fleet.Pulled{GUID: a.GUID, Event: a.Event, Payload: []byte("{}")}, true, nil
}

func (w *world) Redeliver(ctx context.Context, of fleet.Attempt) (bool, error) {
	if err := w.call(ctx, "again %s %d", of.GUID, of.ID); err != nil {
		return false, err
	}
	w.mu.Lock()
	there := w.find(of.ID) != nil
	w.mu.Unlock()
	if there {
		w.redone(of.GUID)
	}
	return there, nil
}

func (w *world) take(_ context.Context, d fleet.Pulled) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := next(&w.takes); err != nil {
		return err
	}
	w.taken = append(w.taken, d.GUID)
	w.stored[d.GUID] = fleet.DeliveryProcessed
	if strings.HasPrefix(d.GUID, "odd") {
		w.stored[d.GUID] = fleet.DeliveryFailed
	}
	return nil
}

func (w *world) CaughtUp(context.Context, int64) (time.Time, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.caughtUp, nil
}

func (w *world) SetCaughtUp(_ context.Context, _ int64, at time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := next(&w.notes); err != nil {
		return err
	}
	if at.Before(w.caughtUp) {
		w.t.Errorf("the cursor goes back from %s to %s", w.caughtUp, at)
	}
	w.caughtUp = at
	return nil
}

func (w *world) SettledDeliveries(_ context.Context, guids []string) (map[string]bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(guids) > 500 {
		w.t.Errorf("%d deliveries are looked up at once", len(guids))
	}
	out := map[string]bool{}
	for _, g := range guids {
		if status, ok := w.stored[g]; ok && status != fleet.DeliveryFailed {
			out[g] = true
		}
	}
	return out, nil
}

func (w *world) Redeliveries(_ context.Context, guid string) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked[guid], nil
}

func (w *world) CountRedelivery(_ context.Context, guid string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked[guid]++
	return nil
}

func (w *world) want(guids ...string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Equal(w.taken, guids) {
		w.t.Errorf("taken %v, want %v", w.taken, guids)
	}
}
