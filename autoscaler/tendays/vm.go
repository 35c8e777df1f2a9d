// SPDX-License-Identifier: MIT

package tendays

import (
	"errors"
	"fmt"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// vm is a VM with its guest, and what the agent knows of both.
type vm struct {
	host    *host
	id      fleet.RunnerID
	n       int
	pool    *fleet.Pool
	want    fleet.Wanted // as fetched last
	state   fleet.Observed
	slot    bool
	ending  bool // it is torn down, or dead
	minting bool
	never   bool // no config is asked for before more is heard of the controller
	tries   int
	given   bool
	name    string
	scope   fleet.Scope
	reg     *registration
	job     *job // that its guest works on
	worked  bool // it had its job
	failure string
	result  string
	// What the guest's hook told of its job.
	repository string
	run        int64
	refused    string
	stuck      time.Duration // how long nothing excuses that it listens in vain
}

func (v *vm) show(o fleet.Observed) {
	if v.state == o {
		return
	}
	v.state, v.host.news = o, true
	v.host.w.note("vm "+string(o), v.n, v.host.n)
	v.host.soon(50 * time.Millisecond)
}

// then does something later if the VM still lives.
func (v *vm) then(d time.Duration, do func()) {
	v.host.w.after(d, func() {
		if !v.ending {
			do()
		}
	})
}

func (v *vm) span(from, to time.Duration, what uint64) time.Duration {
	return v.host.w.span(from, to, what, uint64(v.n), uint64(v.tries))
}

// react does what is wanted.
func (v *vm) react() {
	switch {
	case v.ending || v.state == fleet.ObservedGone:
	case v.want == fleet.WantGone, v.want == fleet.WantDrain && v.job == nil:
		if v.state == fleet.ObservedNone && !v.slot {
			v.ending = true
			v.show(fleet.ObservedGone)
			return
		}
		v.end()
	case v.want == fleet.WantDrain: // its guest is busy
	case v.state == fleet.ObservedNone && !v.slot:
		v.begin()
	case v.state == fleet.ObservedStandby && v.want == fleet.WantArmed && !v.minting && !v.never && !v.given:
		v.mint()
	}
}

// end stops the VM; a listener is told to end first.
func (v *vm) end() {
	if !v.given {
		v.teardown("", "")
		return
	}
	v.ending = true
	j := v.job
	v.host.w.after(time.Second, func() {
		if j != nil && j.state == fleet.JobInProgress && j.reg != nil && j.reg.vm == v {
			v.host.w.fail("runner %s was stopped while it ran job %d", v.id, j.n)
		}
		v.ending = false
		v.teardown("", v.result)
	})
}

func (h *host) slotsTaken() (n int) {
	for _, v := range h.vms {
		if v.slot {
			n++
		}
	}
	return n
}

// begin makes the VM, once there is a slot for it.
func (v *vm) begin() {
	w, h := v.host.w, v.host
	if h.slotsTaken() >= h.slots() {
		return
	}
	v.slot, h.movedAt = true, w.t
	w.fig.VMs++
	v.show(fleet.ObservedPreparing)
	v.then(v.span(500*time.Millisecond, 2*time.Second, ofBoot), func() {
		v.show(fleet.ObservedBooting)
		boot := v.span(12*time.Second, 40*time.Second, ofBoot)
		if w.openAt(SlowBoot, h.n) {
			boot = v.span(time.Minute, 8*time.Minute, ofBoot)
		}
		broken := w.openAt(BadBoot, h.n)
		v.then(boot, func() {
			if broken {
				v.teardown("the guest did not answer", "")
				return
			}
			v.show(fleet.ObservedStandby)
			v.react()
		})
	})
}

// mint asks for a config. The answer takes a moment, in which it can be lost.
func (v *vm) mint() {
	w, h := v.host.w, v.host
	v.minting = true
	v.tries++
	v.then(50*time.Millisecond, func() {
		c := w.controller
		if !h.reachable() || !h.seen {
			v.again(time.Second)
			return
		}
		name, config, _, err := c.server.Mint(c.ctx, h.id, v.id)
		v.then(v.span(300*time.Millisecond, 1500*time.Millisecond, ofMint), func() {
			var limited *fleet.RateLimited
			switch {
			case w.controller != c || !h.reachable():
				v.again(v.backoff())
			case errors.Is(err, fleet.ErrNoGrant), errors.Is(err, fleet.ErrNotFound), errors.Is(err, fleet.ErrRunnerBusy):
				v.minting, v.never = false, true
			case errors.As(err, &limited):
				v.again(limited.Until.Sub(w.now()) + time.Second)
			case err != nil:
				v.again(v.backoff())
			case v.want == fleet.WantGone || v.want == fleet.WantDrain:
				v.minting = false
			default:
				v.take(name, config.Reveal())
			}
		})
	})
}

func (v *vm) backoff() time.Duration {
	return min(500*time.Millisecond<<min(v.tries, 10), 30*time.Second)
}

func (v *vm) again(d time.Duration) {
	v.then(max(d, 0), func() {
		v.minting = false
		v.react()
	})
}

// teardown stops the VM and deletes it.
func (v *vm) teardown(failure, result string) {
	if v.ending {
		return
	}
	w := v.host.w
	if j := v.job; j != nil && j.state == fleet.JobInProgress {
		w.fail("runner %s is torn down while it runs job %d: %s", v.id, j.n, failure)
	}
	v.ending = true
	v.offline()
	v.failure, v.result = failure, result
	switch {
	case failure != "":
		w.fig.Failures++
		v.show(fleet.ObservedFailed)
	case result != "":
		v.show(fleet.ObservedFinished)
	default:
		v.show(fleet.ObservedDestroying)
	}
	life := v.host.instance
	w.after(v.span(time.Second, 4*time.Second, ofEnd), func() {
		if v.host.instance != life || !v.host.powered {
			return
		}
		v.slot, v.host.news, v.host.movedAt = false, true, w.t
		w.ended = append(w.ended, ended{v.pool, w.t})
		v.show(fleet.ObservedDestroying)
		v.host.soon(50 * time.Millisecond)
		for _, o := range v.host.vms {
			o.react() // one that waits for the slot
		}
		w.after(v.span(200*time.Millisecond, 2*time.Second, ofEnd), func() {
			if v.host.instance == life && v.host.powered {
				v.show(fleet.ObservedGone)
			}
		})
	})
}

func (v *vm) offline() {
	if r := v.reg; r != nil {
		r.online, r.vm = false, nil
	}
}

// die is what a power cut does.
func (v *vm) die() {
	if v.state == fleet.ObservedGone {
		return
	}
	if v.job != nil {
		v.host.w.abandon(v.job)
		v.job = nil
	}
	v.offline()
	v.ending, v.slot, v.failure = true, false, "the VM ended while no agent ran"
	v.state = fleet.ObservedDestroying
	v.host.w.note("vm dies", v.n, v.host.n)
}

func (v *vm) String() string { return fmt.Sprintf("%s (%s)", v.id, v.state) }
