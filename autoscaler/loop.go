// SPDX-License-Identifier: MIT

package autoscaler

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/minifleet/minifleet/fleet"
)

// Store is the durable state as the loop needs it.
type Store interface {
	State(context.Context) (fleet.State, error)
	Carry(context.Context, fleet.Plan) (fleet.Carried, error)
	RegistrationDeleted(ctx context.Context, id fleet.RunnerID, attempt int) error
	DeleteVetoed(ctx context.Context, id fleet.RunnerID, attempt int, retry time.Time) error
	DeleteFailed(ctx context.Context, id fleet.RunnerID, attempt int, retry time.Time) error
	// Changed returns a channel that is closed at the next change.
	Changed() <-chan struct{}
}

// Unregisterer deletes registrations at GitHub. It returns nil where there is none
// any more, fleet.ErrRunnerBusy for a veto and *fleet.RateLimited to be left alone.
type Unregisterer interface {
	Unregister(context.Context, fleet.RegistrationRef) error
}

// Config wires a Loop.
type Config struct {
	Store  Store
	GitHub Unregisterer
	Pools  []fleet.Pool
	Rules  Rules
	// Policy gives the pools' verdicts on queued jobs; nil allows all.
	Policy func(fleet.State) map[fleet.JobID]fleet.Verdict
	// Fresh reports whether GitHub's own lists of jobs were read since the start: until
	// then jobs may be queued or over that no delivery told of. nil: always.
	Fresh func() bool
	// Trouble says why no registration can be asked for in a scope. nil: none
	Trouble func(scope fleet.Scope) (fleet.Trouble, bool)
	// Deletes bounds the DELETE calls under way at once. 0 means 8.
	Deletes int
	// Repair is how long the loop sleeps at most without any event. 0 means 30 s.
	Repair time.Duration
	// Decided is called with the time that each decision took; must not block. nil: nobody
	Decided func(time.Duration)
	Log     *slog.Logger
}

// Loop decides again whenever something changed or is due.
type Loop struct {
	c       Config
	wake    chan struct{}
	started time.Time

	mu          sync.Mutex // guards the five below
	troubled    map[fleet.PoolScope]time.Time
	deleting    map[fleet.RunnerID]bool
	undeleted   map[fleet.RunnerID]time.Time // since when a deletion that was warned of fails
	reported    map[fleet.HostID]bool
	explanation explanation

	explaining singleflight.Group
}

// New returns a loop that Run starts.
func New(c Config) *Loop {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Deletes == 0 {
		c.Deletes = 8
	}
	if c.Fresh == nil {
		c.Fresh = func() bool { return true }
	}
	if c.Decided == nil {
		c.Decided = func(time.Duration) {}
	}
	if c.Repair == 0 {
		c.Repair = 30 * time.Second
	}
	if c.Rules.HostDeadline == 0 {
		c.Rules.HostDeadline = time.Minute
	}
	return &Loop{
		c: c, wake: make(chan struct{}, 1), started: time.Now(),
		troubled: map[fleet.PoolScope]time.Time{}, deleting: map[fleet.RunnerID]bool{}, undeleted: map[fleet.RunnerID]time.Time{},
		reported: map[fleet.HostID]bool{},
	}
}

// Reported notes that a report of a host is stored. Its first one since the controller
// began lets be decided what was put off until then.
func (l *Loop) Reported(id fleet.HostID) {
	l.mu.Lock()
	first := !l.reported[id]
	l.reported[id] = true
	l.mu.Unlock()
	if first {
		l.Wake()
	}
}

// Wake makes the loop decide again soon. It never blocks.
func (l *Loop) Wake() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Run decides until ctx ends, and returns when the calls that it began are over.
func (l *Loop) Run(ctx context.Context) error {
	var calls sync.WaitGroup
	defer calls.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		changed := l.c.Store.Changed()
		due, took, deletes, err := l.once(ctx)
		for _, d := range deletes {
			calls.Go(func() { l.delete(ctx, d) })
		}
		// What changes meanwhile is decided on together: in a storm of changes, or on a
		// very large fleet, deciding takes no more than a fifth of a processor.
		if !pause(ctx, min(4*took, longestBreath)) {
			return nil
		}
		next := l.c.Repair
		switch {
		case err != nil:
			l.c.Log.Error("decision not carried out", "error", err)
			next, changed = time.Second, nil // the store is in trouble: do not spin
		case !due.IsZero():
			next = max(0, min(next, time.Until(due)))
		}
		timer.Reset(next)
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-l.wake:
		case <-timer.C:
		}
	}
}

// longestBreath bounds the rest after a decision, which may have seemed long because the
// machine slept or had no time for it.
const longestBreath = time.Second

// once decides and records. It returns when to look again, how long it took to decide,
// and what to delete.
func (l *Loop) once(ctx context.Context) (due time.Time, took time.Duration, deletes []fleet.Deletion, err error) {
	began := time.Now()
	s, err := l.snapshot(ctx)
	if err != nil {
		return due, 0, nil, err
	}
	plan := Decide(s)
	took = time.Since(began)
	l.c.Decided(took)
	l.hold(&plan)
	if plan.Empty() {
		return plan.WakeAt, took, nil, nil
	}
	done, err := l.c.Store.Carry(ctx, plan)
	if err != nil {
		return due, took, nil, err
	}
	l.log(plan, done)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range done.Deletes {
		l.deleting[d.Runner] = true
	}
	return plan.WakeAt, took, done.Deletes, nil
}

// hold leaves out deletions that are under way, and those beyond what may be under way
// at once: no call waits for its turn, since by then its guest may have a job. The end of
// each call makes another decision.
func (l *Loop) hold(p *fleet.Plan) {
	l.mu.Lock()
	defer l.mu.Unlock()
	kept := p.Deletes[:0]
	for _, d := range p.Deletes {
		if !l.deleting[d.Runner] && len(l.deleting)+len(kept) < l.c.Deletes {
			kept = append(kept, d)
		}
	}
	p.Deletes = kept
}

func (l *Loop) snapshot(ctx context.Context) (Snapshot, error) {
	state, err := l.c.Store.State(ctx)
	if err != nil {
		return Snapshot{}, err
	}
	s := Snapshot{
		Now: time.Now(), State: state, Pools: l.c.Pools, Rules: l.c.Rules,
		Fresh: Fresh{Demand: l.c.Fresh(), Hosts: time.Since(l.started) > l.c.Rules.HostDeadline},
	}
	if !s.Fresh.Hosts {
		l.mu.Lock()
		s.Fresh.Reported = maps.Clone(l.reported)
		l.mu.Unlock()
	}
	l.troubles(&s)
	if l.c.Policy != nil {
		s.Verdicts = l.c.Policy(state)
	}
	return s, nil
}

// troubles gathers where no registration can be made, and where none could be.
func (l *Loop) troubles(s *Snapshot) {
	if l.c.Trouble == nil {
		return
	}
	s.Troubles = map[fleet.PoolScope]fleet.Trouble{}
	for _, p := range l.c.Pools {
		for _, scope := range p.Scopes {
			if t, ok := l.c.Trouble(scope); ok {
				s.Troubles[fleet.PoolScope{Pool: p.Name, Scope: scope.Key()}] = t
			}
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for at := range s.Troubles {
		l.troubled[at] = s.Now
	}
	s.Troubled = maps.Clone(l.troubled)
}

// Explain says why a queued job waits, from a decision on the present state. The
// decision is made anew when the state has changed or is a second old, once for all
// who ask at that moment.
func (l *Loop) Explain(ctx context.Context, id fleet.JobID) (fleet.Wait, bool, error) {
	waits, err := l.waits(ctx)
	w, ok := waits[id]
	return w, ok, err
}

// Waits counts the queued jobs by why they wait.
func (l *Loop) Waits(ctx context.Context) (map[fleet.WaitCode]int, error) {
	waits, err := l.waits(ctx)
	count := map[fleet.WaitCode]int{}
	for _, w := range waits {
		count[w.Code]++
	}
	return count, err
}

func (l *Loop) waits(ctx context.Context) (map[fleet.JobID]fleet.Wait, error) {
	if waits, ok := l.explained(); ok {
		return waits, nil
	}
	made, err, _ := l.explaining.Do("", func() (any, error) {
		return l.explainAll(context.WithoutCancel(ctx)) // others may wait for it too
	})
	if err != nil {
		return nil, err
	}
	return made.(map[fleet.JobID]fleet.Wait), nil
}

// explanation is the newest decision that was made for Explain.
type explanation struct {
	changed <-chan struct{} // closed when it is out of date
	at      time.Time
	waits   map[fleet.JobID]fleet.Wait
}

// explained returns the newest explanation if it still holds.
func (l *Loop) explained() (map[fleet.JobID]fleet.Wait, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.explanation
	select {
	case <-e.changed: // nil blocks: there is none yet
		return nil, false
	default:
		return e.waits, e.changed != nil && time.Since(e.at) < time.Second
	}
}

func (l *Loop) explainAll(ctx context.Context) (map[fleet.JobID]fleet.Wait, error) {
	e := explanation{changed: l.c.Store.Changed(), at: time.Now(), waits: map[fleet.JobID]fleet.Wait{}}
	s, err := l.snapshot(ctx)
	if err != nil {
		return nil, err
	}
	for _, w := range Decide(s).Waits {
		e.waits[w.Job] = w
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.explanation = e
	return e.waits, nil
}

// pause reports whether it was not cut short.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (l *Loop) log(p fleet.Plan, done fleet.Carried) {
	for _, a := range p.Rollouts {
		l.c.Log.Info("rollout", "pool", a.Pool, "what", string(a.Act), "reason", a.Reason)
	}
	for _, a := range p.Fetches {
		for _, i := range a.Images {
			if !i.Hold {
				l.c.Log.Info("fetch", "host", a.Host, "image", i.Image, "bytes_per_second", i.BytesPerSecond)
			}
		}
	}
	for _, a := range p.Places {
		l.c.Log.Info("place", "pool", a.Pool, "host", a.Host, "image", a.Image, "reason", a.Reason)
	}
	for _, a := range p.Arms {
		l.c.Log.Info("arm", "runner", a.Runner, "scope", a.Scope.String(), "job", a.Job)
	}
	for _, a := range p.Disarms {
		l.c.Log.Info("disarm", "runner", a.Runner, "reason", a.Reason)
	}
	for _, a := range p.Retires {
		l.c.Log.Info("retire", "runner", a.Runner, "reason", a.Reason, "drain", a.Drain, "failure", a.Failure)
	}
	for _, a := range p.Deletes {
		l.c.Log.Info("delete registration", "runner", a.Runner, "reason", a.Reason)
	}
	if done.Void > 0 {
		l.c.Log.Debug("part of the plan was void", "void", done.Void, "done", done.Done)
	}
}
