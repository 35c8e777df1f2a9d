// SPDX-License-Identifier: MIT

package agent

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"
)

// leaseStage says how long the controller has been silent, as far as it matters.
type leaseStage int

const (
	leaseHeld  leaseStage = iota
	leaseEnded            // VMs that are still booting, and hold no JIT config, end
	leaseLong             // standbys end
)

// sleepThreshold is how far the clock on the wall may run away from the steady one
// before the machine must have slept, or its time was set.
const sleepThreshold = 10 * time.Second

// errSlept interrupts calls that wait on connections from before a sleep.
var errSlept = errors.New("the machine slept")

// exchangeClock knows when the controller was last spoken with, and notices sleep.
type exchangeClock struct {
	wall func() time.Time

	mu        sync.Mutex // guards the rest
	last      time.Time  // of the last exchange, steady clock
	tick      time.Time  // of the last look
	tickWall  time.Time
	interrupt context.CancelCauseFunc // of the call that waits, nil if none
}

func (c *exchangeClock) exchanged() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = time.Now()
}

// silence returns how long nothing was heard from the controller. A sleep since the
// last look starts the count anew, because it is no silence of the controller's, and
// what was wanted before it must be asked for again before anything is acted on.
func (c *exchangeClock) silence() (silent time.Duration, slept bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, wall := time.Now(), c.wall()
	if !c.tick.IsZero() {
		if drift := wall.Sub(c.tickWall) - now.Sub(c.tick); drift.Abs() > sleepThreshold {
			slept = true
			c.last = now
			if c.interrupt != nil {
				c.interrupt(errSlept)
			}
		}
	}
	c.tick, c.tickWall = now, wall
	return now.Sub(c.last), slept
}

// interruptible returns a context that ends with errSlept when the machine slept.
func (c *exchangeClock) interruptible(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.interrupt = cancel
	return ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.interrupt = nil
		cancel(nil)
	}
}

// watchLease ends the lease in its two steps when the controller stays silent.
func (a *Agent) watchLease(ctx context.Context) {
	jitter := rand.Float64()
	every := time.NewTicker(2 * time.Second)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
		silent, slept := a.clock.silence()
		if slept {
			a.log.Info("the machine slept or its clock was set: the controller is asked before anything is done")
			a.changed()
		}
		a.mu.Lock()
		lease := time.Duration(a.welcome.LeaseSeconds) * time.Second
		a.mu.Unlock()
		if lease <= 0 {
			continue // no controller has promised anything yet
		}
		switch long := 2*lease + time.Duration(jitter*float64(lease)); {
		case silent >= long:
			a.setLease(leaseLong)
		case silent >= lease:
			a.setLease(leaseEnded)
		default:
			a.setLease(leaseHeld)
		}
	}
}

// setLease tells every runner how the lease stands.
func (a *Agent) setLease(stage leaseStage) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.lease == stage {
		return
	}
	if stage > a.lease {
		a.log.Warn("the lease has ended: the controller has been silent too long", slog.Int("stage", int(stage)))
	}
	a.lease = stage
	for _, r := range a.runners {
		r.signal()
	}
}
