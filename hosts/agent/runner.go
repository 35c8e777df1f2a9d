// SPDX-License-Identifier: MIT

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/imagecache/archives"
)

// runner is one runner on this host. Its life is one goroutine, which alone moves it;
// the loops read view and write what is wanted.
type runner struct {
	id    string
	agent *Agent
	log   *slog.Logger

	// Guarded by agent.mu.
	desire    protocol.Desire // as wanted newest
	revision  int64           // of the desired that said so; 0 if none in this agent's life
	changed   chan struct{}   // closed and replaced when the two above change, or the lease
	view      protocol.RunnerReport
	living    bool // its goroutine runs
	over      bool // its life has ended: gone
	goneAcked bool // the controller has taken a report that says so
	delisted  bool // the controller has let it go

	// Only of the life's goroutine.
	record   record
	machine  Machine
	slot     int // its number; 0 if it has none
	mac      bool
	cold     bool              // its VM boots, whatever state is saved
	progress time.Time         // when progress was shown last
	pinned   *archives.Archive // the pool's runner, until the guest has it; nil without one
	fetched  time.Duration     // how long that took
	started  time.Time         // when the VM was, by this agent; zero for one that was adopted
	restored time.Duration     // from there to the first answer of a VM that was restored
	saving   time.Duration     // how long the VM was saved for others
	unburied *tombstone
}

// orders is what a runner has to go by at one moment.
type orders struct {
	desire   protocol.Desire
	revision int64
	lease    leaseStage
}

// stage says how much of a runner there is to lose.
type stage int

const (
	stageBooting stage = iota // nothing: it waits, is prepared or boots
	stageStandby              // a booted VM without a JIT config
	stageGiven                // the guest holds, or may hold, a JIT config
)

// leave reports whether a runner without a JIT config has to go, and for which
// failure of the host's, if for one.
func (o orders) leave(s stage) (bool, string) {
	switch {
	case s == stageGiven:
		return false, ""
	case o.desire.Wanted == protocol.WantGone:
		return true, ""
	case o.lease >= leaseLong, o.lease >= leaseEnded && s == stageBooting:
		return true, "the controller was silent for longer than its lease, so the VM, which held no JIT config, was ended"
	default:
		return false, ""
	}
}

// newRunner makes a runner known. The caller holds mu.
func (a *Agent) newRunner(id string) *runner {
	r := &runner{
		id: id, agent: a, log: a.log.With(slog.String("runner", id)), changed: make(chan struct{}),
		view: protocol.RunnerReport{ID: id},
	}
	a.runners[id] = r
	return r
}

// signal tells the life that its orders have changed. The caller holds agent.mu.
func (r *runner) signal() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// orders returns what is wanted now, and a channel that is closed when it changes.
func (r *runner) orders() (orders, <-chan struct{}) {
	r.agent.mu.Lock()
	defer r.agent.mu.Unlock()
	return orders{desire: r.desire, revision: r.revision, lease: r.agent.lease}, r.changed
}

// want takes in what the controller wants of one runner. A life that begins with it
// ends when ctx does. The caller holds a.mu.
func (a *Agent) want(ctx context.Context, d protocol.Desire, revision int64) {
	r := a.runners[d.ID]
	known := d.Wanted == protocol.WantUp || d.Wanted == protocol.WantArmed || d.Wanted == protocol.WantGone
	switch {
	case r != nil && r.over:
		r.revision = revision // it is reported gone until it is wanted no more: an id lives once
	case r != nil && !known:
		r.log.Error("an unknown wish is ignored: this agent is older than the controller", slog.String("wanted", cut(d.Wanted, 60)))
	case r != nil && r.desire == d && r.revision == revision:
	case r != nil:
		r.desire, r.revision = d, revision
		r.signal()
	case !validID(d.ID):
		a.log.Error("a runner with an impossible id is ignored", slog.String("runner", cut(d.ID, 60)))
	case d.Wanted == protocol.WantGone:
		a.newRunner(d.ID).neverWas(d, revision, "")
	case !known:
		a.newRunner(d.ID).neverWas(d, revision, fmt.Sprintf("this agent does not know how to make a runner %q: upgrade it", cut(d.Wanted, 60)))
	default:
		r = a.newRunner(d.ID)
		r.desire, r.revision = d, revision
		r.view.Pool = d.Pool
		r.start(ctx, r.begin)
	}
}

// neverWas makes a runner gone that has had no VM here. The caller holds agent.mu.
func (r *runner) neverWas(d protocol.Desire, revision int64, failure string) {
	r.over, r.desire, r.revision, r.view.Pool = true, d, revision, d.Pool
	r.view.Observed, r.view.Failure = string(fleet.ObservedGone), failure
}

// restoreGone makes a runner known by its tombstone.
func (a *Agent) restoreGone(t tombstone) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.newRunner(t.Report.ID)
	r.over, r.view = true, t.Report
	r.view.Observed, r.view.HoldsSlot = string(fleet.ObservedGone), false
}

// takeOver gives a VM that was found its owner.
func (a *Agent) takeOver(ctx context.Context, f Found, rec record, buried bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.runners[f.ID]
	if r == nil {
		r = a.newRunner(f.ID)
	}
	r.over = false
	r.desire, r.record, r.machine = rec.Desire, rec, f.Machine
	// What was wanted before is no order: the controller says it anew.
	r.desire.Wanted, r.desire.UnlessBusy = protocol.WantUp, false
	r.view.Pool, r.view.Scope, r.view.HasConfig, r.view.RunnerName = rec.Desire.Pool, rec.Desire.Scope, rec.Given, rec.RunnerName
	life := r.resume
	switch {
	case buried:
		r.view.Observed = string(fleet.ObservedDestroying)
		life = func(context.Context) ending { return ending{failure: r.view.Failure} }
	case !f.Running:
		r.view.Observed = string(fleet.ObservedDestroying)
		life = func(context.Context) ending {
			return ending{failure: "the VM ended while no agent ran: " + f.Ending}
		}
	case f.Orphan:
		life = func(context.Context) ending {
			return ending{failure: "the program that owned the VM (minifleet-vmm) died; what it left was ended"}
		}
	}
	if f.Running {
		r.slot, r.mac = a.slots.force(f.Slot, f.Mac), f.Mac
		r.view.HoldsSlot = true
		if r.view.Observed == "" {
			r.view.Observed = string(fleet.ObservedBooting)
		}
		if rec.Given {
			r.view.Observed = string(fleet.ObservedRegistering)
		}
	}
	r.log.Info("a VM of an earlier agent was found", slog.Bool("running", f.Running), slog.Bool("orphan", f.Orphan))
	r.start(ctx, life)
}

// ending says why a life goes over into teardown.
type ending struct {
	failure string // a sentence, "" if nothing failed
	result  string // of the job
	never   bool   // there was never a VM: no trace to remove
}

// errLeft is the cause with which a phase ends when the runner has to go.
type errLeft struct{ failure string }

func (errLeft) Error() string { return "the runner is not wanted any more" }

// start begins the life of a runner. The caller holds agent.mu.
func (r *runner) start(ctx context.Context, first func(context.Context) ending) {
	r.living = true
	r.agent.lives.Go(func() {
		r.live(ctx, first)
		r.agent.mu.Lock()
		defer r.agent.mu.Unlock()
		r.living = false
	})
}

// live leads a runner from its first step to gone, unless the agent stops before:
// then the VM runs on.
func (r *runner) live(ctx context.Context, first func(context.Context) ending) {
	end := first(ctx)
	if ctx.Err() == nil {
		r.teardown(ctx, end)
	}
	r.unpin()
	if r.machine != nil {
		r.machine.Release()
	}
}

// begin makes the VM of a new runner and serves it.
func (r *runner) begin(ctx context.Context) ending {
	if err := r.whileWanted(ctx, r.takeSlot); err != nil {
		return ending{failure: failureOf(err, ""), never: true}
	}
	if err := r.whileWanted(ctx, r.prepare); err != nil {
		return ending{failure: failureOf(err, "prepare the VM"), never: r.machine == nil && r.record == record{}}
	}
	took := r.machine.Took()
	r.show(fleet.ObservedBooting, func(v *protocol.RunnerReport) {
		v.HoldsSlot, v.Progress = true, ""
		v.Took.Runner, v.Took.Image, v.Took.Clone = stepIf(r.fetched), stepIf(took.Image), stepIf(took.Clone)
	})
	r.started = time.Now()
	if err := r.whileWanted(ctx, r.boot); err != nil {
		return ending{failure: failureOf(err, "start the VM")}
	}
	if end, over := r.wake(ctx); over {
		return end
	}
	return r.serve(ctx)
}

// takeSlot waits for a place.
func (r *runner) takeSlot(ctx context.Context) (err error) {
	o, _ := r.orders()
	if r.mac, err = r.agent.cfg.Machines.IsMac(ctx, o.desire.Image); err != nil {
		return err
	}
	r.slot, err = r.agent.slots.take(ctx, r.mac) // also where it is called off at this very moment
	return err
}

// whileWanted runs one step of the way to a booted VM, and calls it off when the
// runner has to go.
func (r *runner) whileWanted(ctx context.Context, step func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for {
			o, changed := r.orders()
			if gone, failure := o.leave(stageBooting); gone {
				cancel(errLeft{failure})
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
		}
	}()
	err := step(ctx)
	left, isLeft := errors.AsType[errLeft](context.Cause(ctx))
	cancel(nil)
	<-watched
	if isLeft {
		return left // whatever else the step has said: it was called off
	}
	return err
}

// failureOf turns the error of a step into the sentence that is reported.
func failureOf(err error, step string) string {
	if left, ok := errors.AsType[errLeft](err); ok {
		return left.failure
	}
	if step == "" {
		return err.Error()
	}
	return step + ": " + err.Error()
}

// prepare makes the image and the clone. The record comes first, so that no VM is
// ever without one.
func (r *runner) prepare(ctx context.Context) error {
	o, _ := r.orders()
	r.show(fleet.ObservedPreparing, nil)
	rec := record{Desire: o.desire}
	if err := r.agent.state.saveRecord(r.id, rec); err != nil {
		err = r.agent.unwritable(err)
		r.agent.trouble("state", err.Error())
		return err
	}
	crashpoint.Reached(crashpoint.RecordWritten)
	r.agent.trouble("state", "")
	r.record = rec
	if err := r.fetchRunner(ctx, rec.Desire.Runner); err != nil {
		if full(err) {
			r.agent.trouble("room", "there was no room for a pool's runner: "+err.Error())
		}
		return err
	}
	return r.clone(ctx)
}

// clone makes the VM.
func (r *runner) clone(ctx context.Context) error {
	d := r.record.Desire
	r.agent.prefetch.look() // it may fetch its image
	defer r.agent.prefetch.look()
	machine, err := r.agent.cfg.Machines.Create(ctx, Order{
		ID: r.id, Pool: d.Pool, Slot: r.slot, Mac: r.mac, Image: d.Image, Backend: d.Backend,
		Guest: d.Guest, Network: d.Network, CPUs: d.CPUs, MemoryMiB: d.MemoryMiB, Cold: r.cold,
	}, r.showProgress)
	if full(err) {
		r.agent.trouble("room", "there was no room for the last VM: "+err.Error())
	}
	if err != nil {
		return err
	}
	r.agent.trouble("room", "")
	r.machine = machine
	return ctx.Err()
}

// unwritable says of an error that it comes of the state folder.
func (a *Agent) unwritable(err error) error {
	return fmt.Errorf("the state folder of host %s cannot be written: %w", a.cfg.Name, err)
}

// progressEvery bounds how often progress alone makes a report.
const progressEvery = 2 * time.Second

func (r *runner) showProgress(text string) {
	now := time.Now()
	if now.Sub(r.progress) < progressEvery {
		return
	}
	r.progress = now
	r.show(fleet.ObservedPreparing, func(v *protocol.RunnerReport) { v.Progress = cut(text, protocol.MaxText) })
}

// show changes what is reported of the runner. An observation that cannot follow on
// the one before is not taken: a guest may say what it likes.
func (r *runner) show(o fleet.Observed, change func(*protocol.RunnerReport)) {
	r.agent.mu.Lock()
	defer r.agent.mu.Unlock()
	before := r.view
	r.view.Observed = string(fleet.Observed(before.Observed).Next(o))
	if change != nil {
		change(&r.view)
	}
	if r.view == before {
		return
	}
	if r.view.Observed != before.Observed {
		r.log.Info("runner moves", slog.String("from", before.Observed), slog.String("to", r.view.Observed), slog.String("pool", r.view.Pool))
	}
	r.agent.changed()
}
