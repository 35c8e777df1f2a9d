// SPDX-License-Identifier: MIT

package reconcile

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// Store is the durable state as far as GitHub may know better.
type Store interface {
	// Unsettled returns the jobs of an owner that are not completed, and the runners
	// that are not over or have moved after since.
	Unsettled(ctx context.Context, owner string, since time.Time) ([]fleet.Job, []fleet.Runner, error)
	// Repositories returns the repositories of an owner of which a delivery told after
	// since, each with the time of the newest.
	Repositories(ctx context.Context, owner string, since time.Time) (map[fleet.Scope]time.Time, error)
	// StandingNames returns, in lower case, every name that was asked of GitHub for a
	// runner that is not over.
	StandingNames(ctx context.Context) (map[string]bool, error)
	// RegistrationLost notes that GitHub has a runner's registration no more.
	RegistrationLost(ctx context.Context, id fleet.RunnerID, attempt int) error
	// Changed returns a channel that is closed at the next change.
	Changed() <-chan struct{}
}

// GitHub answers questions. Its errors are those of package fleet; whatever it lists
// is complete as far as GitHub's lists are, or an error. Each call is made by the meter of
// its context.
type GitHub interface {
	// ActiveJobs returns the jobs of a repository's runs that are not over.
	ActiveJobs(ctx context.Context, repo fleet.Scope) ([]fleet.JobNews, error)
	Job(ctx context.Context, repo fleet.Scope, id fleet.JobID) (fleet.JobNews, bool, error)
	// Covered returns the repositories that the installation of a scope covers.
	Covered(ctx context.Context, scope fleet.Scope) ([]fleet.Scope, error)
	Registrations(ctx context.Context, scope fleet.Scope) ([]fleet.Listed, error)
	Registration(ctx context.Context, scope fleet.Scope, id int64) (fleet.Listed, bool, error)
	Unregister(ctx context.Context, ref fleet.RegistrationRef) error
}

// Config wires a Reconciler. Store, GitHub, Learn and Ours have no default.
type Config struct {
	Store  Store
	GitHub GitHub
	// Learn stores GitHub's answers about jobs of one repository.
	Learn func(ctx context.Context, repo fleet.Scope, answers []fleet.JobNews) error
	Pools []fleet.Pool
	// Ours reports whether a registration's name bears this site's id.
	Ours func(name string) bool
	// Every is the time between two looks at a repository of which something was heard
	// lately, and at the registrations of a scope. 0 means 5 min.
	Every time.Duration
	// Percent is the share of each installation's rate limit that all of this may take. 0
	// means 30. Where that is too little, everything is looked at less often.
	Percent int
	// Absence is how long something has to be missing, at every look, before it counts
	// as gone: one answer of GitHub's proves nothing. 0 means 3 min.
	Absence time.Duration
	// HostDeadline is how long agents have after the start to report the registrations
	// that they hold: before, nothing is swept. 0 means 1 min.
	HostDeadline time.Duration
	Wake         func() // called when Fresh changes; must not block. nil: nobody
	Log          *slog.Logger
}

// Reconciler compares the books with GitHub now and then, and at once where they are
// in doubt.
type Reconciler struct {
	c        Config
	started  time.Time
	watchers []*watcher
}

// New returns a Reconciler that Run starts.
func New(c Config) *Reconciler {
	c.Percent = cmp.Or(c.Percent, 30)
	c.Every, c.Absence, c.HostDeadline = cmp.Or(c.Every, 5*time.Minute), cmp.Or(c.Absence, 3*time.Minute), cmp.Or(c.HostDeadline, time.Minute)
	if c.Wake == nil {
		c.Wake = func() {}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	r := &Reconciler{c: c, started: time.Now()}
	byOwner := map[string]*watcher{}
	for _, p := range c.Pools {
		for _, s := range p.Scopes {
			owner := strings.ToLower(s.Owner)
			w := byOwner[owner]
			if w == nil {
				w = &watcher{anew: make(chan struct{}, 1), Reconciler: r, owner: owner, chores: map[string]*chore{}, wrong: map[string]bool{}, budget: &budget{share: float64(c.Percent) / 100}}
				byOwner[owner] = w
				r.watchers = append(r.watchers, w)
			}
			if !slices.ContainsFunc(w.scopes, func(have fleet.Scope) bool { return have.Key() == s.Key() }) {
				w.scopes = append(w.scopes, s)
			}
		}
	}
	return r
}

// patience is for how many periods missing knowledge counts as missing. After that,
// what deliveries tell has to do: GitHub may be down for long.
const patience = 3

// Fresh reports whether GitHub's lists of jobs were read since the start, as far as
// GitHub lets them be read.
func (r *Reconciler) Fresh() bool {
	if time.Since(r.started) >= patience*r.c.Every {
		return true
	}
	for _, w := range r.watchers {
		if !w.fresh.Load() {
			return false
		}
	}
	return true
}

// Run works until ctx ends, and returns when no call is under way any more. Each owner
// is one installation of the App, and is asked one thing at a time.
func (r *Reconciler) Run(ctx context.Context) error {
	enough := time.AfterFunc(time.Until(r.started.Add(patience*r.c.Every)), r.c.Wake)
	defer enough.Stop()
	var all sync.WaitGroup
	for _, w := range r.watchers {
		all.Go(func() { w.run(ctx) })
	}
	all.Wait()
	return nil
}

// Anew has everything looked at as at the start: what an installation of the App covers
// is other than before, and while it was suspended GitHub told of nothing. It never blocks.
func (r *Reconciler) Anew() {
	for _, w := range r.watchers {
		select {
		case w.anew <- struct{}{}:
		default:
		}
	}
}

// watcher asks about one owner.
type watcher struct {
	*Reconciler
	owner  string
	scopes []fleet.Scope // of the pools
	budget *budget
	fresh  atomic.Bool
	anew   chan struct{} // holds one element when everything is to be looked at again

	// Of the one goroutine that runs it:
	chores   map[string]*chore
	planned  time.Time                 // when the chores were gathered
	paused   time.Time                 // nothing is asked before: GitHub's rate limit
	rested   time.Time                 // no chore is begun before: the rate limit of lists
	asked    map[fleet.JobID]time.Time // when jobs in doubt were asked for
	askAfter time.Time                 // no single job is asked for before: that went wrong
	wrong    map[string]bool           // what goes wrong, and is in the log
	covered  []fleet.Scope             // the repositories of the installation that a pool serves
	held     bool                      // a look was put off for the budget
	late     bool                      // so much that the log says so
}

// breath is the shortest time between two looks at the books. What is in doubt is so
// for seconds, and no job waits for it.
const breath = 2 * time.Second

func (w *watcher) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		changed := w.c.Store.Changed()
		began := time.Now()
		next := w.step(ctx)
		timer.Reset(max(0, time.Until(next)))
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			continue
		case <-w.anew:
			w.chores, w.covered, w.planned = map[string]*chore{}, nil, time.Time{}
			continue
		case <-changed:
		}
		timer.Reset(max(0, time.Until(began.Add(breath))))
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
	}
}

// step settles what is in doubt, does the one chore that is most overdue, and says
// when to go on.
func (w *watcher) step(ctx context.Context) (next time.Time) {
	now := time.Now()
	if now.Before(w.paused) {
		return w.paused
	}
	jobs, runners, err := w.c.Store.Unsettled(ctx, w.owner, now.Add(-lately))
	if err == nil && !now.Before(w.planned.Add(w.c.Every)) {
		err = w.plan(ctx, now, jobs)
	}
	if w.note(ctx, "reading what is unsettled", err); err != nil {
		return now.Add(10 * time.Second)
	}
	ask, next := doubts(now, w.c.Pools, jobs, runners, w.askedAt)
	switch {
	case len(ask) == 0:
	case now.Before(w.askAfter):
		next = earlier(next, w.askAfter)
	default:
		w.forgetAsked(jobs)
		err := w.ask(fleet.WithMeter(ctx, w.budget.doubts()), ask)
		until, over := putOff(err)
		switch {
		case over:
			w.askAfter = until
		case err != nil:
			w.askAfter = now.Add(time.Minute)
		}
		if !over {
			w.note(ctx, "asking for jobs in doubt", err)
		}
		return now // the books are others now
	}
	next = earlier(next, w.planned.Add(w.c.Every))
	c := w.due(now)
	if c == nil {
		return next
	}
	if at := slices.MaxFunc([]time.Time{c.next, w.rested}, time.Time.Compare); at.After(now) {
		return earlier(next, at)
	}
	if ready := w.budget.ready(now); ready.After(now) {
		w.held = true
		return earlier(next, ready)
	}
	w.punctual(now, c)
	w.do(ctx, c)
	return now
}

// punctual says in the log when looks come much later than they are meant to because of
// the budget, and when they do no more.
func (w *watcher) punctual(now time.Time, c *chore) {
	behind := now.Sub(c.next)
	switch {
	case !c.done || w.late && behind > c.every/4:
	case w.late:
		w.late, w.held = false, false
		w.c.Log.Info("GitHub's lists are read as often as configured again", "owner", w.owner)
	case w.held && behind > c.every:
		w.late = true
		w.c.Log.Warn("GitHub's lists are read less often than configured, to keep to the share of its rate limit", "owner", w.owner, "what", c.what, "late", behind.Round(time.Second))
	}
}

// askedAt is when a job was last asked for.
func (w *watcher) askedAt(j fleet.Job) time.Time {
	if at := w.asked[j.ID]; at.After(j.AskedAt) {
		return at
	}
	return j.AskedAt
}

// forgetAsked forgets when jobs were asked for that are completed.
func (w *watcher) forgetAsked(open []fleet.Job) {
	kept := map[fleet.JobID]time.Time{}
	for _, j := range open {
		if at, ok := w.asked[j.ID]; ok {
			kept[j.ID] = at
		}
	}
	w.asked = kept
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// chore is something to look at every now and then.
type chore struct {
	what  string
	every time.Duration
	jobs  bool // it is what Fresh waits for
	look  func(context.Context) (again time.Time, err error)
	next  time.Time
	done  bool // once since the start, or refused
	fails bool // and the log says so
}

// due returns the chore that comes first: of those that are late, the one that is so by
// most of its own period, so that where there is too much to do all are late alike.
func (w *watcher) due(now time.Time) *chore {
	var first *chore
	for _, c := range w.chores {
		if first == nil || c.before(first, now) {
			first = c
		}
	}
	return first
}

func (c *chore) before(d *chore, now time.Time) bool {
	late, later := now.Sub(c.next), now.Sub(d.next)
	if late < 0 || later < 0 {
		return c.next.Before(d.next) || c.next.Equal(d.next) && c.what < d.what
	}
	a, b := float64(late)/float64(c.every), float64(later)/float64(d.every)
	return a > b || a == b && (c.every < d.every || c.every == d.every && c.what < d.what)
}

// do carries out a chore. What GitHub refuses is asked again as if it had answered;
// any other failure sooner.
func (w *watcher) do(ctx context.Context, c *chore) {
	again, err := c.look(fleet.WithMeter(ctx, w.budget.looks()))
	if ctx.Err() != nil {
		return
	}
	now := time.Now()
	if until, over := putOff(err); over { // what was read is not paid for again
		c.next, w.held = until, true
		return
	}
	c.next = now.Add(c.every)
	if err == nil {
		if !again.IsZero() {
			c.next = earlier(c.next, again)
		}
		if c.fails {
			w.c.Log.Info("GitHub answers again", "what", c.what)
		}
		c.done, c.fails = true, false
		w.refresh()
		return
	}
	if !c.fails {
		w.c.Log.Warn("GitHub could not be asked; it is tried again", "what", c.what, "error", err)
	}
	c.fails = true
	switch limited := (*fleet.RateLimited)(nil); {
	case errors.As(err, &limited):
		c.next, w.rested = limited.Until, limited.Until // a limit of lists need not be one of single questions
	case errors.Is(err, fleet.ErrRefused):
		c.done = true
		w.refresh()
	default:
		c.next = now.Add(min(c.every, time.Minute))
	}
}

// refresh notes whether all that can be known of jobs is known.
func (w *watcher) refresh() {
	for _, c := range w.chores {
		if c.jobs && !c.done {
			return
		}
	}
	if !w.fresh.Swap(true) {
		w.c.Wake()
	}
}

// note logs what goes wrong outside of any chore, once until it goes well.
func (w *watcher) note(ctx context.Context, what string, err error) {
	if limited := (*fleet.RateLimited)(nil); errors.As(err, &limited) {
		w.paused = limited.Until
	}
	if err != nil && !w.wrong[what] && ctx.Err() == nil {
		w.c.Log.Warn("GitHub and the books could not be compared; it is tried again", "owner", w.owner, "what", what, "error", err)
	}
	w.wrong[what] = err != nil
}
