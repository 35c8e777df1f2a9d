// SPDX-License-Identifier: MIT

package reconcile_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/internal/leakcheck"
	"github.com/minifleet/minifleet/reconcile"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

var (
	demo = fleet.Scope{Owner: "octo", Repo: "demo"}
	labs = fleet.NewLabels("macos")
)

// world is GitHub and the books, of which a test holds the strings.
type world struct {
	t   *testing.T
	log bytes.Buffer

	mu       sync.Mutex // guards all below
	books    map[fleet.JobID]fleet.Job
	runners  []fleet.Runner
	heard    map[fleet.Scope]time.Time
	standing map[string]bool
	lost     []fleet.RunnerID
	changed  chan struct{}

	jobs     map[fleet.JobID]fleet.JobNews // at GitHub
	listed   map[fleet.JobID]bool          // of them; the others are in no list
	covered  []fleet.Scope
	regs     []fleet.Listed
	hidden   map[int64]bool // registrations that the list lacks
	fails    error          // of every call
	broken   map[fleet.JobID]error
	calls    []string // with the time since the start
	began    time.Time
	underWay int
	wakes    int
	onCall   func(what string)
}

func newWorld(t *testing.T) *world {
	return &world{
		t: t, books: map[fleet.JobID]fleet.Job{}, heard: map[fleet.Scope]time.Time{}, standing: map[string]bool{}, changed: make(chan struct{}),
		jobs: map[fleet.JobID]fleet.JobNews{}, listed: map[fleet.JobID]bool{}, hidden: map[int64]bool{}, began: time.Now(),
	}
}

// run lets a reconciler work for some time.
func (w *world) run(d time.Duration, then ...func(*reconcile.Reconciler)) {
	w.t.Helper()
	r := reconcile.New(reconcile.Config{
		Store: w, GitHub: w, Learn: w.learn, Ours: func(name string) bool { return strings.HasPrefix(name, "site-") },
		Pools: []fleet.Pool{{Name: "mac", Labels: labs, Scopes: []fleet.Scope{demo}, Image: "i"}},
		Wake:  func() { w.set(func() { w.wakes++ }) }, Log: slog.New(slog.NewTextHandler(&w.log, nil)),
	})
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	time.Sleep(d) // in a bubble: virtual
	synctest.Wait()
	for _, f := range then {
		f(r)
	}
	cancel()
	if err := <-done; err != nil {
		w.t.Error(err)
	}
}

func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// call notes a call to GitHub and lets it take a moment.
func (w *world) call(ctx context.Context, format string, args ...any) error {
	what := fmt.Sprintf(format, args...)
	w.set(func() {
		if w.underWay++; w.underWay > 1 {
			w.t.Errorf("%d calls at once of one installation", w.underWay)
		}
		w.calls = append(w.calls, fmt.Sprintf("%s %s", time.Since(w.began).Round(time.Second), what))
	})
	if w.onCall != nil {
		w.onCall(what)
	}
	select {
	case <-time.After(100 * time.Millisecond):
	case <-ctx.Done():
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.underWay--
	return errors.Join(ctx.Err(), w.fails)
}

// made returns the calls so far.
func (w *world) made() (calls []string) {
	w.set(func() { calls = slices.Clone(w.calls) })
	return calls
}

func (w *world) woken() (n int) {
	w.set(func() { n = w.wakes })
	return n
}

// count counts the calls that begin so.
func (w *world) count(prefix string) int {
	n := 0
	for _, c := range w.made() {
		if _, what, _ := strings.Cut(c, " "); strings.HasPrefix(what, prefix) {
			n++
		}
	}
	return n
}

func (w *world) ActiveJobs(ctx context.Context, repo fleet.Scope) ([]fleet.JobNews, error) {
	asked := time.Now()
	if err := w.call(ctx, "list %s", repo); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []fleet.JobNews
	for id, n := range w.jobs {
		if w.listed[id] {
			n.Asked = asked
			out = append(out, n)
		}
	}
	return out, nil
}

func (w *world) Job(ctx context.Context, _ fleet.Scope, id fleet.JobID) (fleet.JobNews, bool, error) {
	asked := time.Now()
	if err := w.call(ctx, "job %d", id); err != nil {
		return fleet.JobNews{}, false, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	n, ok := w.jobs[id]
	n.Asked = asked
	return n, ok, w.broken[id]
}

func (w *world) Covered(ctx context.Context, scope fleet.Scope) ([]fleet.Scope, error) {
	if err := w.call(ctx, "repositories %s", scope); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.covered), nil
}

func (w *world) Registrations(ctx context.Context, scope fleet.Scope) ([]fleet.Listed, error) {
	if err := w.call(ctx, "registrations %s", scope); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(w.regs), func(l fleet.Listed) bool { return w.hidden[l.ID] }), nil
}

func (w *world) Registration(ctx context.Context, _ fleet.Scope, id int64) (fleet.Listed, bool, error) {
	if err := w.call(ctx, "registration %d", id); err != nil {
		return fleet.Listed{}, false, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	i := slices.IndexFunc(w.regs, func(l fleet.Listed) bool { return l.ID == id })
	if i < 0 {
		return fleet.Listed{}, false, nil
	}
	return w.regs[i], true, nil
}

func (w *world) Unregister(ctx context.Context, ref fleet.RegistrationRef) error {
	if err := w.call(ctx, "delete %s", ref.Name); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	i := slices.IndexFunc(w.regs, func(l fleet.Listed) bool { return l.ID == ref.ID })
	if strings.HasSuffix(ref.Name, "-veto") {
		return fleet.ErrRunnerBusy
	}
	w.regs = slices.Delete(w.regs, i, i+1)
	return nil
}

func (w *world) Unsettled(_ context.Context, owner string, since time.Time) ([]fleet.Job, []fleet.Runner, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var jobs []fleet.Job
	for _, j := range w.books {
		if j.State != fleet.JobCompleted && strings.EqualFold(j.Owner, owner) {
			jobs = append(jobs, j)
		}
	}
	var runners []fleet.Runner
	for _, r := range w.runners {
		if !r.Over() || r.MovedAt.After(since) {
			runners = append(runners, r)
		}
	}
	return jobs, runners, nil
}

func (w *world) Repositories(_ context.Context, _ string, since time.Time) (map[fleet.Scope]time.Time, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[fleet.Scope]time.Time{}
	for s, at := range w.heard {
		if at.After(since) {
			out[s] = at
		}
	}
	return out, nil
}

func (w *world) StandingNames(context.Context) (map[string]bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[string]bool{}
	for n := range w.standing {
		out[n] = true
	}
	return out, nil
}

func (w *world) RegistrationLost(_ context.Context, id fleet.RunnerID, _ int) error {
	w.set(func() { w.lost = append(w.lost, id) })
	return nil
}

func (w *world) Changed() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changed
}

func (w *world) learn(_ context.Context, _ fleet.Scope, answers []fleet.JobNews) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range answers {
		w.books[n.Job.ID] = w.books[n.Job.ID].Learn(n, time.Now())
	}
	close(w.changed)
	w.changed = make(chan struct{})
	return nil
}

// told puts a job into the books by a delivery.
func (w *world) told(id fleet.JobID, e fleet.JobEvent) {
	w.set(func() { w.books[id] = w.books[id].Learn(fleet.JobNews{Event: e, Job: job(id)}, time.Now()) })
}

// at puts a job to GitHub, in its lists if it is queued or in progress.
func (w *world) at(id fleet.JobID, e fleet.JobEvent) {
	w.set(func() {
		w.jobs[id] = fleet.JobNews{Event: e, Job: job(id)}
		w.listed[id] = e != fleet.SeenCompleted
	})
}

func job(id fleet.JobID) fleet.Job {
	return fleet.Job{ID: id, RunID: 1, Owner: demo.Owner, Repo: demo.Repo, Labels: labs}
}

func (w *world) state(id fleet.JobID) fleet.JobState {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.books[id].State
}
