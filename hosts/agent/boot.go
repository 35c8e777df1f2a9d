// SPDX-License-Identifier: MIT

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/minifleet/minifleet/vm"
)

// macRest is how long one macOS guest fewer is let in after macOS has refused one. What
// takes its place is another program's, or left over of a VM: neither goes soon.
const macRest = 15 * time.Minute

// concernMacs is the trouble of a host on which fewer macOS guests run than may.
const concernMacs = "macOS guests"

// boot starts the VM. One that does not continue from its saved state is replaced by one
// that boots. Where macOS refuses it because two of its guests run, of which at least one
// cannot be ours since there are slots for two, what is left over of ours is ended, and a
// new VM is tried: once. If that is refused too, one macOS guest fewer is let in for a
// while. The host says so until two run at once again.
func (r *runner) boot(ctx context.Context) error {
	err := r.startOnce(ctx)
	for again := false; err != nil && ctx.Err() == nil; err = r.startOnce(ctx) {
		m, ok := r.machine.(Saved)
		restored := ok && m.Restored()
		refused := vm.ReasonOf(err, "") == vm.ReasonTwoVMLimit
		switch {
		case refused && !again:
			again = true
			ended, lookErr := r.agent.cfg.Machines.EndLeftovers(ctx)
			r.log.Warn("macOS refuses another macOS guest; it is tried once more", slog.Int("leftovers_ended", ended), slog.Any("error", errors.Join(err, lookErr)))
			err = r.replace(ctx)
		case refused:
			r.agent.slots.restMacs(macRest)
			r.agent.trouble(concernMacs, fmt.Sprintf("macOS refused a macOS guest because two run, and not all are Minifleet's: one at a time is made now, "+
				"and a second one tried every %s: end VMs of other programs, or restart the host if there are none", macRest))
			return err
		case restored:
			err = r.replaceCold(ctx, m, err)
		default:
			return err
		}
		if err != nil {
			return err
		}
	}
	if err == nil && r.agent.slots.running(r.slot) {
		r.agent.trouble(concernMacs, "")
	}
	return err
}

// startOnce starts the VM that there is.
func (r *runner) startOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, r.agent.cfg.BootTimeout, fmt.Errorf("the VM did not start within %s", r.agent.cfg.BootTimeout))
	defer cancel()
	return r.machine.Start(ctx)
}

// replace makes another VM in the place of one that is of no use: no disk has two lives.
func (r *runner) replace(ctx context.Context) error {
	stop, cancel := context.WithTimeout(ctx, stopPatience)
	defer cancel()
	if err := r.machine.Stop(stop); err != nil {
		return err
	}
	if err := r.machine.Remove(ctx); err != nil {
		return err
	}
	r.machine.Release()
	r.machine = nil
	if r.record.Installed != "" { // by an earlier agent, in the VM that is gone
		r.record.Installed = ""
		if err := r.agent.state.saveRecord(r.id, r.record); err != nil {
			return r.agent.unwritable(err)
		}
	}
	if err := r.clone(ctx); err != nil {
		return err
	}
	r.started = time.Now()
	return nil
}

// replaceCold replaces a VM that does not continue from its saved state by one that will
// boot from the image: in the same slot and the same life.
func (r *runner) replaceCold(ctx context.Context, m Saved, why error) error {
	r.agent.unfit.Add(1)
	r.log.Warn("a saved state is of no use and is deleted; the VM boots anew",
		slog.Any("error", why), slog.Int64("times", r.agent.unfit.Load()))
	m.Unfit(why.Error())
	r.cold = true
	if err := r.replace(ctx); err != nil {
		return fmt.Errorf("make a VM in place of one that could not be restored: %w", err)
	}
	return nil
}
