// SPDX-License-Identifier: MIT

package tendays

import (
	"context"
	"fmt"
	"time"

	"github.com/minifleet/minifleet/autoscaler"
	"github.com/minifleet/minifleet/autoscaler/books"
	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/hosts"
	"github.com/minifleet/minifleet/reconcile"
)

// controller is one life of the controller's program: the real parts, of which this
// package plays the goroutines.
type controller struct {
	w      *world
	ctx    context.Context
	end    context.CancelFunc
	loop   *autoscaler.Loop
	lists  *reconcile.Reconciler
	server *hosts.Server
	gate   *gate

	decided time.Duration // when it decided last
	next    time.Duration // when it will
	chores  []*chore
}

// chore is what reconcile does for one owner.
type chore struct {
	step func(context.Context) time.Time
	last time.Duration
	next time.Duration
	busy bool // within a step
}

// How long what changes is gathered, to be looked at together. The programs do so when
// they are busy; here it keeps a run short.
const (
	decideEvery    = 500 * time.Millisecond
	reconcileEvery = 5 * time.Second
)

// start begins the controller's next life.
func (w *world) start() {
	c := &controller{w: w, decided: w.t - time.Hour}
	c.ctx, c.end = context.WithCancel(context.Background())
	c.gate = &gate{c: c, shut: map[*owner]time.Duration{}, strikes: map[*owner]int{}, minute: map[*owner]*points{}}
	github := api{w, c}
	store := port{w.books, c}
	c.lists = reconcile.New(reconcile.Config{
		Store: store, GitHub: github, Pools: w.pools, Learn: c.learn, Wake: c.decideSoon,
		Ours: func(name string) bool { return name[:3] == "mf-" },
	})
	c.loop = autoscaler.New(autoscaler.Config{
		Store: store, GitHub: github, Pools: w.pools, Trouble: c.gate.trouble, Policy: w.verdicts,
		Fresh: func() bool { return !c.gate.open && c.lists.Fresh() },
		Rules: autoscaler.Rules{HostDeadline: deadline, MintsPerMinute: 120},
	})
	names := 0
	var err error
	c.server, err = hosts.New(hosts.Config{
		Store: agents{b: w.books}, GitHub: github, Pools: w.pools, Live: deadline, Held: c.gate.held,
		Name: func(site, pool string) string { names++; return fmt.Sprintf("%s-%s-%d-%d", site, pool, w.t, names) },
	})
	if err != nil {
		w.fail("the controller does not start: %v", err)
	}
	w.controller, w.startedAt = c, w.t
	c.next = w.t - 1
	for _, step := range c.lists.Steps() {
		c.chores = append(c.chores, &chore{step: step, next: w.t - 1})
	}
	for _, h := range w.hosts {
		h.contact()
	}
	c.decideAt(w.t)
	for _, x := range c.chores {
		c.lookAt(x, w.t)
	}
}

// crash ends it, wherever it is.
func (w *world) crash() {
	c := w.controller
	if c == nil {
		return
	}
	w.note("controller ends", 0, 0)
	c.end()
	w.controller, w.dying = nil, false
	for _, h := range w.hosts {
		h.unseen()
	}
	w.after(max(w.downFor, time.Millisecond), w.start)
}

// changed is told by the books.
func (w *world) changed(of fleet.HostID) {
	if h := w.byHost[of]; h != nil {
		h.soon(100 * time.Millisecond)
	}
	if c := w.controller; c != nil {
		c.decideSoon()
		for _, x := range c.chores {
			c.lookAt(x, max(w.t, x.last+reconcileEvery))
		}
	}
}

func (c *controller) learn(ctx context.Context, _ fleet.Scope, answers []fleet.JobNews) error {
	for _, n := range answers {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := c.w.books.Learn(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

func (c *controller) decideSoon() { c.decideAt(max(c.w.t+10*time.Millisecond, c.decided+decideEvery)) }

// decideAt has the loop decide then, unless it will before.
func (c *controller) decideAt(at time.Duration) {
	if at = max(at, c.w.t); c.next >= c.w.t && c.next <= at {
		return
	}
	c.next = at
	c.w.after(at-c.w.t, func() {
		if c.next == at && c.w.controller == c {
			c.next = -1
			c.decide()
		}
	})
}

func (c *controller) decide() {
	w := c.w
	c.decided = w.t
	c.loop.Woken() // it is about to be
	w.fig.Decisions++
	due, deletes, err := c.loop.Step(c.ctx)
	if err != nil {
		w.fail("decide: %v", err)
	}
	for _, d := range deletes {
		w.after(w.span(100*time.Millisecond, 400*time.Millisecond, ofCall, uint64(number(d.Runner)), uint64(w.t)), func() {
			if w.controller != c {
				return
			}
			c.loop.Delete(c.ctx, d)
			if w.controller == c && c.loop.Woken() {
				c.decideSoon()
			}
		})
	}
	if !due.IsZero() {
		c.decideAt(due.Sub(w.began))
	}
}

// lookAt has reconcile go on then, unless it will before.
func (c *controller) lookAt(x *chore, at time.Duration) {
	if at = max(at, c.w.t); x.next >= c.w.t && x.next <= at {
		return
	}
	x.next = at
	c.w.after(at-c.w.t, func() {
		if x.next != at || c.w.controller != c {
			return
		}
		x.next = -1
		if x.busy {
			return // it goes on when its call is over
		}
		x.busy = true
		x.last = c.w.t
		next := x.step(c.ctx)
		if x.busy = false; c.w.controller != c {
			return
		}
		c.lookAt(x, max(next.Sub(c.w.began), c.w.t+time.Millisecond))
	})
}

// origin is how long it takes to know where a job comes from.
const origin = 3 * time.Second

// verdicts are those of the pools' policies, which refuse forks.
func (w *world) verdicts(st fleet.State) map[fleet.JobID]fleet.Verdict {
	var out map[fleet.JobID]fleet.Verdict
	for i := range st.Jobs {
		j := &st.Jobs[i]
		if !w.byID[j.ID].forked {
			continue
		}
		if out == nil {
			out = map[fleet.JobID]fleet.Verdict{}
		}
		known := w.now().Sub(j.HeardAt) >= origin
		out[j.ID] = fleet.Verdict{Pending: !known, Refused: known, Reason: "of a fork"}
	}
	return out
}

// port is the store as the controller sees it in one of its lives.
type port struct {
	*books.Books
	c *controller
}

// Changed is of no use on one goroutine.
func (port) Changed() <-chan struct{} { return nil }

// State shows hosts that are connected as heard of: their calls are not played.
func (p port) State(ctx context.Context) (fleet.State, error) {
	st, err := p.Books.State(ctx)
	for i, h := range p.c.w.hosts {
		if h.seen {
			st.Hosts[i].SeenAt = p.c.w.now().Add(24 * time.Hour)
		}
	}
	return st, err
}

func (p port) Carry(ctx context.Context, plan fleet.Plan) (fleet.Carried, error) {
	w := p.c.w
	if w.Sabotage != nil {
		w.Sabotage(&plan)
	}
	for _, a := range plan.Arms {
		if w.byID[a.Job].forked {
			w.fail("runner %s is armed for job %d, which its policy refuses", a.Runner, w.byID[a.Job].n)
		}
	}
	done, err := p.Books.Carry(ctx, plan)
	w.note("plan", done.Done, done.Void)
	if w.Say {
		w.sayPlan(plan)
	}
	return done, err
}

func (w *world) sayPlan(p fleet.Plan) {
	for _, a := range p.Places {
		w.say("  place %s: %s", a.Pool, a.Reason)
	}
	for _, a := range p.Arms {
		w.say("  arm %s for job %d in %s", a.Runner, a.Job, a.Scope)
	}
	for _, a := range p.Disarms {
		w.say("  disarm %s: %s", a.Runner, a.Reason)
	}
	for _, a := range p.Retires {
		w.say("  retire %s: %s (drain %t)", a.Runner, a.Reason, a.Drain)
	}
	for _, a := range p.Deletes {
		w.say("  delete %s: %s", a.Runner, a.Reason)
	}
}

// agents is the store as the mint flow needs it.
type agents struct {
	hosts.Store // the rest, which is not called
	b           *books.Books
}

func (a agents) Site() string { return "mf" }

func (a agents) Runner(_ context.Context, id fleet.RunnerID) (fleet.Runner, bool, error) {
	r, err := a.b.Find(id)
	if err != nil {
		return fleet.Runner{}, false, err
	}
	return *r, true, nil
}

func (a agents) BeginMint(ctx context.Context, host fleet.HostID, id fleet.RunnerID, name string) (fleet.Mint, error) {
	return a.b.BeginMint(ctx, host, id, name)
}

func (a agents) Granted(ctx context.Context, id fleet.RunnerID, attempt int, githubID int64) error {
	return a.b.Granted(ctx, id, attempt, githubID)
}

func (a agents) MintRefused(ctx context.Context, id fleet.RunnerID, attempt int, why string, lasts bool) error {
	return a.b.MintRefused(ctx, id, attempt, why, lasts)
}

func (a agents) RegistrationDeleted(ctx context.Context, id fleet.RunnerID, attempt int) error {
	return a.b.RegistrationDeleted(ctx, id, attempt)
}

func (a agents) DeleteVetoed(ctx context.Context, id fleet.RunnerID, attempt int, retry time.Time) error {
	return a.b.DeleteVetoed(ctx, id, attempt, retry)
}
