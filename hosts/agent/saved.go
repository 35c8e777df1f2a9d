// SPDX-License-Identifier: MIT

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/hosts/protocol"
)

// Saved is a Machine that can continue from a saved state, and be saved itself. Which
// state, and whether, is its own affair; when it is safe is the runner's.
type Saved interface {
	Machine
	// Restored reports whether the machine continues from a saved state instead of booting.
	Restored() bool
	// Continued says that it did, so that the state is free for the next machine.
	Continued()
	// Unfit says that it did not, and why: the state is deleted. Without one it does nothing.
	Unfit(why string)
	// Lacking reports whether a state of this machine is worth making.
	Lacking() bool
	// Save makes one, if ready, which it calls first, has no objection. Meanwhile the
	// machine stands still for a while. After an error there is none, the machine runs on
	// or has ended, and the next ones are not lacking for a while.
	Save(ctx context.Context, ready func(context.Context) error) error
}

// clock is a guest whose clock can be set: after a restore it tells the time of the save.
type clock interface {
	SetClock(ctx context.Context, now time.Time) error
}

// Pauses between the first questions to a guest.
const (
	greetFirst = 20 * time.Millisecond
	greetMost  = 500 * time.Millisecond
)

// wake follows a VM from its start to its guest's first answer where a saved state is at
// stake: one that continues from a state is replaced by one that boots if it does not, and
// one that has booted is saved. No JIT config can be under way meanwhile: a mint is begun
// by serve alone, which comes after. It reports whether the runner's life is over already.
func (r *runner) wake(ctx context.Context) (ending, bool) {
	m, ok := r.machine.(Saved)
	if !ok {
		return ending{}, false
	}
	if m.Restored() {
		err := r.whileWanted(ctx, func(ctx context.Context) error { return r.awaitRestored(ctx, m) })
		adopted := r.started.IsZero()
		if err == nil && !adopted {
			r.restored = time.Since(r.started)
		}
		if err == nil || adopted && errors.Is(err, errNotFresh) { // an earlier agent armed it, and could not note that
			m.Continued()
			return ending{}, false
		}
		if _, left := errors.AsType[errLeft](err); left || ctx.Err() != nil {
			m.Continued() // or not: nothing was found out about the state
			return ending{failure: failureOf(err, "")}, true
		}
		anew := func(ctx context.Context) error {
			if err := r.replaceCold(ctx, m, err); err != nil {
				return err
			}
			return r.boot(ctx)
		}
		if err := r.whileWanted(ctx, anew); err != nil {
			return ending{failure: failureOf(err, "boot the VM instead of restoring it")}, true
		}
		m = r.machine.(Saved) //nolint:forcetypeassert // of the same maker
	}
	if !m.Lacking() {
		return ending{}, false
	}
	err := r.whileWanted(ctx, func(ctx context.Context) error { return r.save(ctx, m) })
	left, isLeft := errors.AsType[errLeft](err)
	lacks, isLacking := errors.AsType[errNoSession](err)
	switch {
	case isLeft:
		return ending{failure: left.failure}, true
	case errors.Is(err, errNoAnswer):
		return ending{failure: fmt.Sprintf("the guest did not answer within %s of the VM's start", r.agent.cfg.BootTimeout)}, true
	case isLacking:
		return ending{failure: lacks.Error()}, true
	case err != nil && ctx.Err() == nil:
		// Whether it still runs is found out by those who serve it.
		r.log.Warn("no state was saved of a VM", slog.Any("error", err))
	}
	return ending{}, false
}

// errNoAnswer is the cause with which the wait for a guest that boots ends.
var errNoAnswer = errors.New("its guest did not answer in time")

// errNotFresh says of a guest that it has, or had, a config.
var errNotFresh = errors.New("not ready for a first config: such a state must never be kept")

// awaitRestored returns when the guest of a restored VM answers and knows what time it is,
// and holds no secret; or with an error that says why it is of no use.
func (r *runner) awaitRestored(ctx context.Context, m Saved) error {
	ctx, cancel := context.WithTimeoutCause(ctx, r.agent.cfg.RestoreTimeout,
		fmt.Errorf("its guest did not answer within %v", r.agent.cfg.RestoreTimeout))
	defer cancel()
	if err := greet(ctx, m); err != nil {
		return err
	}
	return setClock(ctx, m.Guest())
}

// save saves a VM that has booted, once its session is ready. That it can set its clock is
// tried beforehand: a state whose guest cannot would be of no use.
func (r *runner) save(ctx context.Context, m Saved) error {
	boot, cancel := context.WithTimeoutCause(ctx, r.agent.cfg.BootTimeout, errNoAnswer)
	defer cancel()
	if err := greet(boot, m); err != nil {
		return err
	}
	err := whileRuns(ctx, m, func(ctx context.Context) error {
		_, _, err := r.awaitSession(ctx, m.Guest())
		return err
	})
	if err != nil {
		return err
	}
	r.show(fleet.ObservedBooting, func(v *protocol.RunnerReport) { v.Progress = "saving a state for the VMs to come" })
	began := time.Now()
	defer func() { r.saving = time.Since(began) }()
	return m.Save(ctx, func(ctx context.Context) error { return setClock(ctx, m.Guest()) })
}

func setClock(ctx context.Context, g Guest) error {
	c, ok := g.(clock)
	if !ok {
		return errors.New("its guest program cannot set its clock: use a newer one")
	}
	ctx, cancel := context.WithTimeout(ctx, guestCall)
	defer cancel()
	if err := c.SetClock(ctx, time.Now()); err != nil {
		return fmt.Errorf("set the guest's clock: %w", err)
	}
	return nil
}

// greet waits for the first answer of a guest that has, and had, no config. It ends with
// the VM.
func greet(ctx context.Context, m Machine) error {
	g := m.Guest()
	if g == nil {
		return errors.New("there is no way to its guest")
	}
	return whileRuns(ctx, m, func(ctx context.Context) error {
		pause := backoff{first: greetFirst, most: greetMost}
		for {
			ask, done := context.WithTimeout(ctx, guestCall)
			status, err := g.Status(ask, 0, 0)
			done()
			switch {
			case err == nil && (status.HasConfig || status.Phase != guest.PhaseReady):
				return fmt.Errorf("its guest is %q and %w", status.Phase, errNotFresh)
			case err == nil:
				return nil
			case !sleep(ctx, pause.next()):
				return fmt.Errorf("%w (%w)", context.Cause(ctx), err)
			}
		}
	})
}

// whileRuns runs a step that is called off when the VM ends.
func whileRuns(ctx context.Context, m Machine, step func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		if why, err := m.Wait(ctx); err == nil {
			cancel(errors.New("the VM ended: " + why))
		}
	}()
	defer func() { cancel(nil); <-watched }()
	return step(ctx)
}

// resume serves the VM of an earlier agent. One that was restored and holds no config may
// not have been told the time.
func (r *runner) resume(ctx context.Context) ending {
	if m, ok := r.machine.(Saved); ok && m.Restored() && !r.record.Given {
		if end, over := r.wake(ctx); over {
			return end
		}
	}
	return r.serve(ctx)
}
