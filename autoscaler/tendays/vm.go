// SPDX-License-Identifier: MIT

package tendays

import (
	"errors"
	"fmt"
	"strconv"
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

// take hands the config to the guest, which starts its listener.
func (v *vm) take(name, config string) {
	w := v.host.w
	if v.given {
		w.fail("runner %s is given a second config", v.id)
	}
	id, err := strconv.ParseInt(config, 10, 64)
	if err != nil {
		w.fail("runner %s is given %q for a config", v.id, config)
	}
	v.minting, v.given, v.name = false, true, name
	r := w.regs[id]
	if v.reg = r; r != nil {
		if r.vm != nil {
			w.fail("the config of %s is given to two runners", r)
		}
		r.vm, v.scope = v, r.scope
	}
	v.show(fleet.ObservedRegistering)
	hangs := w.openAt(Hang, v.host.n)
	v.then(v.span(2*time.Second, 6*time.Second, ofMint), func() {
		switch {
		case r == nil || r.gone:
			v.teardown("the runner ended without a job: its registration was not found", "")
		case !hangs:
			v.show(fleet.ObservedIdle)
			w.listen(r)
		}
	})
}

// listens reports whether the guest would take a job.
func (v *vm) listens() bool {
	return v.state == fleet.ObservedIdle && !v.ending && v.job == nil && v.host.powered
}

func (v *vm) work(j *job) {
	if v.worked {
		v.host.w.fail("runner %s runs a second job, %d", v.id, j.n)
	}
	v.job, v.worked = j, true
	v.show(fleet.ObservedBusy)
	v.then(v.span(500*time.Millisecond, 2*time.Second, ofHook), func() { // its job-started hook
		v.repository, v.run, v.host.news = j.repo.Scope.String(), j.run.id, true
		v.host.soon(50 * time.Millisecond)
	})
}

// refuse ends a job that the pool's policy refuses: the guest's check sees to it before any
// of its steps.
func (v *vm) refuse(j *job) {
	w := v.host.w
	w.note("refused by the guest", j.n, v.n)
	w.fig.Refused++
	v.then(2*time.Second, func() {
		v.refused, v.host.news = "the run is of a fork", true
		v.host.soon(50 * time.Millisecond)
		v.then(2*time.Second, func() { w.finish(j, "failure") })
	})
}

// done is the end of its job.
func (v *vm) done(conclusion string) {
	v.job = nil
	if v.ending {
		return
	}
	if v.result = conclusion; v.host.w.open(NoResult) {
		v.result = ""
	}
	v.then(500*time.Millisecond, func() { v.teardown("", v.result) })
}

// unregistered is what a listener makes of it, if it notices, that its registration is gone.
func (v *vm) unregistered() {
	if v.ending || v.job != nil || v.host.w.open(Unaware) {
		return
	}
	v.then(v.span(time.Second, 5*time.Second, ofEnd), func() {
		if v.state != fleet.ObservedIdle {
			return // its config is of no use: it finds that when it starts
		}
		why := ""
		if v.want != fleet.WantGone && v.want != fleet.WantDrain {
			why = "the runner ended without a job: its registration is gone"
		}
		v.teardown(why, "")
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
