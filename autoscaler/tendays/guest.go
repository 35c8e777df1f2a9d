// SPDX-License-Identifier: MIT

package tendays

import (
	"strconv"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

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
