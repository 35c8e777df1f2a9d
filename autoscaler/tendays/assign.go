// SPDX-License-Identifier: MIT

package tendays

import (
	"fmt"
	"slices"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// assignSoon lets GitHub look for runners in a moment.
func (o *owner) assignSoon() {
	if o.assigning {
		return
	}
	o.assigning = true
	o.w.after(time.Second, func() {
		o.assigning = false
		o.assign()
	})
}

// assign offers queued jobs, the oldest first, to any listener that fits.
func (o *owner) assign() {
	var idle []*registration
	for _, r := range o.regs {
		if r.online && r.job == nil {
			idle = append(idle, r)
		}
	}
	for at := 0; at < len(o.queued) && len(idle) > 0; {
		j := o.queued[at]
		var fit []int
		for i, r := range idle {
			if r.scope.Covers(j.repo.Owner, j.repo.Repo) && j.labels.Within(r.labels) {
				fit = append(fit, i)
			}
		}
		if len(fit) == 0 {
			at++
			continue
		}
		i := fit[int(o.w.chance(ofAssign, uint64(j.id), 0)%uint64(len(fit)))]
		r := idle[i]
		idle = slices.Delete(idle, i, i+1)
		o.queued = slices.Delete(o.queued, at, at+1)
		o.w.offer(j, r)
	}
}

// offer gives a job to a runner, which takes it within seconds; if it does not, the job is
// offered to another after a minute.
func (w *world) offer(j *job, r *registration) {
	j.reg, r.job = r, j
	w.note("offered", j.n, int(r.id))
	deaf := w.open(Deaf)
	if deaf && w.chance(ofOffer, uint64(j.id), 1)%2 == 0 {
		early := w.news(j) // it names the runner that is to take it
		early.Event, early.Job.RunnerName, early.Job.RunnerID = fleet.ToldInProgress, r.name, r.id
		w.deliver(j, early, fate{j.n, 1})
	}
	w.after(w.span(time.Second, 3*time.Second, ofOffer, uint64(j.id), 0), func() {
		if !deaf && j.reg == r && !r.gone && r.vm != nil && r.vm.listens() {
			w.acquire(j, r)
		}
	})
	w.after(time.Minute, func() {
		if j.reg != r || j.acquired {
			return
		}
		j.reg = nil
		if r.job = nil; deaf && r.vm != nil && r.vm.listens() {
			w.remove(r) // as seen with lost assignments: it listens for ever and is registered no more
		}
		j.repo.queued = slices.Insert(j.repo.queued, 0, j)
		j.repo.assignSoon()
	})
}

func (w *world) acquire(j *job, r *registration) {
	w.moves(j, fleet.JobInProgress)
	j.acquired, j.started, j.runner, j.runnerID = true, w.t, r.name, r.id
	w.note("starts", j.n, r.vm.n)
	r.vm.work(j)
	w.tell(j, 1)
	if j.forked {
		r.vm.refuse(j)
		return
	}
	w.fig.waited(w.t-j.created, j.untold)
	w.after(j.took, func() { w.finish(j, "success") })
}

// remove drops a registration.
func (w *world) remove(r *registration) {
	if r.gone {
		return
	}
	r.gone, r.online = true, false
	r.listed.now++
	delete(w.regs, r.id)
	r.owner.regs = slices.DeleteFunc(r.owner.regs, func(o *registration) bool { return o == r })
}

// listen is a listener that connects.
func (w *world) listen(r *registration) {
	r.online = true
	r.listed.now++
	r.assignSoon()
	if w.open(Reaper) {
		w.after(w.span(2*time.Minute, 6*time.Minute, ofReaper, uint64(r.id), 0), func() {
			if r.online && r.job == nil && !r.gone {
				w.note("idle registration removed", int(r.id), 0)
				w.fig.Reaped++
				w.remove(r)
				r.vm.unregistered()
			}
		})
	}
}

func (r *registration) String() string { return fmt.Sprintf("%s (%d)", r.name, r.id) }
