// SPDX-License-Identifier: MIT

package agent

import (
	"context"
	"log/slog"
	"time"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/hosts/protocol"
)

// stopPatience is how long a VM may take to stop before it is stopped by force.
const stopPatience = 15 * time.Second

// teardown ends a runner: its VM, its slot, its files, in this order. It gives up
// only when the agent stops; the next agent goes on with what it finds.
func (r *runner) teardown(ctx context.Context, end ending) {
	as := fleet.ObservedDestroying
	switch {
	case end.failure != "":
		as = fleet.ObservedFailed
		r.log.Error("runner failed", slog.String("failure", end.failure))
	case end.result != "":
		as = fleet.ObservedFinished
	}
	r.show(as, func(v *protocol.RunnerReport) {
		v.Failure, v.Progress = cut(end.failure, protocol.MaxText), ""
		if end.result != "" {
			v.Result = end.result
		}
	})
	keep := r.keepFailure(ctx, end)
	stopping := time.Now()
	if !r.stop(ctx) {
		return
	}
	stopped := stepSince(stopping)
	crashpoint.Reached(crashpoint.VMStopped)
	if r.slot > 0 {
		r.agent.slots.free(r.slot)
		r.slot = 0
	}
	r.show(fleet.ObservedDestroying, func(v *protocol.RunnerReport) {
		v.HoldsSlot = false
		if r.machine != nil {
			v.Took.Stop = stopped
		}
	})
	removed := int64(0)
	if !end.never {
		keep()
		if !r.bury(ctx) {
			return
		}
		crashpoint.Reached(crashpoint.TombstoneWritten)
		removing := time.Now()
		if !r.remove(ctx) {
			return
		}
		if r.machine != nil {
			removed = stepSince(removing)
		}
		crashpoint.Reached(crashpoint.RecordDropped)
		r.buryAgain()
	}
	r.show(fleet.ObservedGone, func(v *protocol.RunnerReport) { v.Took.Delete = removed })
	r.agent.mu.Lock()
	r.over = true
	r.agent.mu.Unlock()
	r.agent.changed()
}

// stop powers the VM off and reports whether nothing of it runs any more.
func (r *runner) stop(ctx context.Context) bool {
	if r.machine == nil {
		return ctx.Err() == nil
	}
	return r.insist(ctx, "stop", func() error {
		call, cancel := context.WithTimeout(ctx, stopPatience)
		defer cancel()
		return r.machine.Stop(call)
	})
}

// bury writes the tombstone, before the files that keep the id go.
func (r *runner) bury(ctx context.Context) bool {
	r.agent.mu.Lock()
	last := r.view
	r.agent.mu.Unlock()
	last.Observed, last.HoldsSlot = string(fleet.ObservedGone), false
	stone := tombstone{At: time.Now().UTC(), Report: last}
	if r.machine == nil {
		// No VM of this id ever was, so the id may as well be lost with the folder.
		if err := r.agent.state.bury(stone); err != nil {
			r.log.Warn("no tombstone", slog.Any("error", err))
		}
		return ctx.Err() == nil
	}
	return r.insist(ctx, "tombstone", func() error {
		err := r.agent.state.bury(stone)
		if full(err) && r.agent.state.layAside(r.id) == nil {
			// The VM's own files may be what fills the volume: they must go first.
			r.unburied = &stone
			return nil
		}
		return err
	})
}

// buryAgain writes the tombstone for which there was no room. The one that was laid
// aside does its work if there is none still.
func (r *runner) buryAgain() {
	if r.unburied == nil {
		return
	}
	if err := r.agent.state.bury(*r.unburied); err != nil {
		r.log.Warn("the tombstone tells no reason", slog.Any("error", err))
	}
}

// remove deletes the VM's files and the runner's record.
func (r *runner) remove(ctx context.Context) bool {
	return r.insist(ctx, "remove", func() error {
		if r.machine != nil {
			if err := r.machine.Remove(ctx); err != nil {
				return err
			}
			crashpoint.Reached(crashpoint.BundleRemoved)
			return r.agent.state.dropRecord(r.id)
		}
		if err := r.agent.state.dropRecord(r.id); err != nil {
			r.log.Warn("a record stays", slog.Any("error", err))
		}
		return nil
	})
}

// insist repeats a step until it works or the agent stops. While it does not the host
// is degraded, and says why.
func (r *runner) insist(ctx context.Context, what string, step func() error) bool {
	concern := what + " " + r.id
	pause := backoff{first: 100 * time.Millisecond, most: 30 * time.Second}
	for {
		err := step()
		if err == nil {
			r.agent.trouble(concern, "")
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		r.agent.trouble(concern, what+" of runner "+r.id+" does not work, it is tried again: "+err.Error())
		if !sleep(ctx, pause.next()) {
			return false
		}
	}
}
