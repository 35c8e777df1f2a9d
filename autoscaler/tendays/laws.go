// SPDX-License-Identifier: MIT

package tendays

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// Figures are what a run counts.
type Figures struct {
	Jobs       int // with those that were run again
	Deliveries int
	Dropped    int
	VMs        int
	Failures   int // of VMs
	Refused    int // jobs of forks that a guest ended
	Lost       int // jobs whose host lost its power
	Reaped     int // registrations that GitHub removed
	Decisions  int
	Unchanged  int // calls for a list that had not changed since it was read
	Errors     int // calls that GitHub did not answer
	Calls      [callKinds]int
	Watched    time.Duration   // while nothing excused a wait
	Waits      []time.Duration // from queued to running
	Untold     []time.Duration // of these, those of which no delivery told in time
}

func (f *Figures) waited(d time.Duration, untold bool) {
	f.Waits = append(f.Waits, d)
	if untold {
		f.Untold = append(f.Untold, d)
	}
}

func (f Figures) String() string {
	return fmt.Sprintf("%d jobs, %d of forks ended, %d VMs, %d decisions, %d calls, watched %s; waits: %s; untold: %s",
		f.Jobs, f.Refused, f.VMs, f.Decisions, f.Total(), f.Watched, Percentiles(f.Waits), Percentiles(f.Untold))
}

// Total returns all calls of GitHub's API.
func (f Figures) Total() (n int) {
	for _, c := range f.Calls {
		n += c
	}
	return n
}

// Bill lists the calls of GitHub's API by kind, each as a number and per job.
func (f Figures) Bill() string {
	var b strings.Builder
	for k, n := range f.Calls {
		fmt.Fprintf(&b, "%-22s %8d %8.3f\n", callNames[k], n, float64(n)/float64(f.Jobs))
	}
	fmt.Fprintf(&b, "%-22s %8d %8.3f\n", "all", f.Total(), float64(f.Total())/float64(f.Jobs))
	fmt.Fprintf(&b, "%-22s %8d %8.3f\n", "of these for a list that had not changed", f.Unchanged, float64(f.Unchanged)/float64(f.Jobs))
	return b.String()
}

// Percentiles writes some of a distribution.
func Percentiles(list []time.Duration) string {
	if len(list) == 0 {
		return "none"
	}
	sorted := slices.Sorted(slices.Values(list))
	at := func(percent int) time.Duration {
		return sorted[min(len(sorted)*percent/100, len(sorted)-1)].Round(time.Second)
	}
	return fmt.Sprintf("50 %% %s, 90 %% %s, 99 %% %s, all %s", at(50), at(90), at(99), at(100))
}

// judge holds what is left at the end against the laws.
func (w *world) judge() {
	c := w.controller
	if c == nil {
		w.fail("the controller is down at the end")
	}
	for _, e := range w.Events {
		if e.Kind != Arrive {
			continue
		}
		if j := w.jobs[e.Job]; j != nil {
			w.judgeJob(j)
		}
	}
	for _, o := range w.owners {
		for _, r := range o.regs {
			w.fail("registration %s of %s is left, online %t", r, r.scope, r.online)
		}
	}
	standbys := map[string]int{}
	for _, h := range w.hosts {
		for _, v := range h.vms {
			if v.state != fleet.ObservedStandby || v.given {
				w.fail("VM %s is left", v)
			}
			standbys[v.pool.Name]++
		}
	}
	for _, r := range w.books.Live() {
		if r.Phase() != fleet.PhaseStandby {
			w.fail("runner %s is left, %s, registration %q", r.ID, r.Phase(), r.Registration)
		}
	}
	for _, p := range w.pools {
		if standbys[p.Name] > p.Standby {
			w.fail("pool %s has %d standbys, want %d", p.Name, standbys[p.Name], p.Standby)
		}
	}
}

// unknown reports whether nothing can be known of a job: its repository was never heard of,
// and nobody asks which there are.
func (w *world) unknown(j *job) bool {
	return !w.covers && (j.repo.heard == 0 || w.t < j.repo.heard+recovery)
}

// judgeJob: it was served, or there is a reason; and the books know what became of it.
func (w *world) judgeJob(j *job) {
	known, heard := w.books.Job(j.id)
	if j.state == fleet.JobCompleted {
		if heard && known.State != fleet.JobCompleted {
			w.fail("job %d is completed, and %s in the books", j.n, known.State)
		}
		return
	}
	if w.unknown(j) {
		return
	}
	wait, ok, err := w.controller.loop.Explain(w.controller.ctx, j.id)
	switch {
	case err != nil:
		w.fail("explain: %v", err)
	case !ok:
		w.fail("job %d is %s since %s, and no reason is given; in the books it is %q", j.n, j.state, clock(j.created), known.State)
	case wait.Code != fleet.WaitNoPool && (!j.forked || wait.Code != fleet.WaitPolicy):
		w.fail("job %d waits for ever since %s: %s", j.n, clock(j.created), wait.Reason)
	}
}
