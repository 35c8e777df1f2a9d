// SPDX-License-Identifier: MIT

package tendays

import (
	"slices"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// How long something may be amiss when nothing excuses it. A job that no delivery told of
// is found by the next look at its repository, which for one that is seldom used is an hour
// later.
const (
	patrolEvery = time.Minute
	mostWait    = 5 * time.Minute
	mostUntold  = 65 * time.Minute
	mostLeft    = 12 * time.Minute
	recovery    = 15 * time.Minute // after the end of what excuses it
	// Between two VMs a slot, or a place below a pool's limit, is free for seconds.
	turnover = 30 * time.Second
)

// ended is a VM that is gone.
type ended struct {
	pool *fleet.Pool
	at   time.Duration
}

// excused reports whether GitHub, the hosts or the controller are in trouble, or were a
// moment ago.
func (w *world) excused() bool {
	for _, k := range []Kind{Outage, Errors, Limited, Lost, Reaper, Unaware, Deaf, BusyLag, Stale, Partial} {
		if until, ever := w.until[k], w.until[k] > 0; ever && w.t < until+recovery {
			return true
		}
	}
	for _, until := range w.at {
		if w.t < until+recovery {
			return true
		}
	}
	if w.controller == nil || w.t < w.startedAt+recovery {
		return true
	}
	for _, until := range w.controller.gate.shut { // which can be longer than the window
		if w.t < until+recovery {
			return true
		}
	}
	for _, h := range w.hosts {
		if !h.reachable() || w.t < h.backAt+recovery {
			return true
		}
	}
	return false
}

// patrol looks for what is stuck while all is well: jobs that wait although there is room,
// registrations without a VM, VMs without a registration.
func (w *world) patrol() {
	if w.excused() {
		return
	}
	w.fig.Watched += patrolEvery
	w.ended = slices.DeleteFunc(w.ended, func(e ended) bool { return w.t-e.at > turnover })
	free := 0
	for _, h := range w.hosts {
		if w.t-h.movedAt > turnover {
			free += max(0, h.slots()-h.slotsTaken())
		}
	}
	for _, o := range w.owners {
		for _, j := range o.queued {
			known, _ := w.books.Job(j.id)
			told := known.State == fleet.JobQueued
			if told && !j.told {
				j.told, j.stuck = true, 0
			}
			if j.served && free > 0 && !w.unknown(j) && w.hasRoom(j) {
				j.stuck += patrolEvery
			}
			if told && j.stuck > mostWait || j.stuck > mostUntold {
				w.fail("job %d has waited since %s, of that %s for no reason; in the books it is %q", j.n, clock(j.created), j.stuck, known.State)
			}
		}
		for _, r := range o.regs {
			left := r.vm == nil || r.vm.state == fleet.ObservedGone
			if r.job != nil || !left {
				continue
			}
			if r.stuck += patrolEvery; r.stuck > mostLeft {
				w.fail("registration %s, made at %s, is left without a VM", r, clock(r.made))
			}
		}
	}
	for _, h := range w.hosts {
		for _, v := range h.vms {
			if v.state != fleet.ObservedIdle || v.reg != nil && !v.reg.gone {
				continue
			}
			if v.stuck += patrolEvery; v.stuck > mostLeft {
				w.fail("VM %s listens and GitHub has no registration of it", v)
			}
		}
	}
}

// hasRoom reports whether a pool that serves the job is below its limit.
func (w *world) hasRoom(j *job) bool {
	for _, p := range w.pools {
		if !p.Serves(fleet.Job{Owner: j.repo.Owner, Repo: j.repo.Repo, Labels: j.labels}) {
			continue
		}
		n := 0
		for _, e := range w.ended {
			if e.pool.Name == p.Name {
				n++
			}
		}
		for _, h := range w.hosts {
			for _, v := range h.vms {
				if v.pool.Name == p.Name && v.state != fleet.ObservedGone {
					n++
				}
			}
		}
		if p.MaxRunners == 0 || n < p.MaxRunners {
			return true
		}
	}
	return false
}
