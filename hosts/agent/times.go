// SPDX-License-Identifier: MIT

package agent

import (
	"time"

	"github.com/minifleet/minifleet/hosts/protocol"
)

// Took is how long the parts of making a VM took that only its maker can tell apart.
// Zero is a part that was not needed.
type Took struct {
	Image   time.Duration // finding, fetching and checking it
	Clone   time.Duration
	Restore time.Duration // of a saved state, within Start
}

// stepTime is the time of a step as it is reported: what was measured at all is not zero.
func stepTime(d time.Duration) int64 {
	return min(max(d.Microseconds(), 1), protocol.MaxStep.Microseconds())
}

// stepSince is the time of a step that began then and is over now. Both are read from the
// monotonic clock, which nobody sets.
func stepSince(began time.Time) int64 { return stepTime(time.Since(began)) }

// stepIf is the time of a step that may not have been taken.
func stepIf(d time.Duration) int64 {
	if d <= 0 {
		return 0
	}
	return stepTime(d)
}

// bounded makes times fit for a report: the books that they come from may be damaged.
func bounded(t protocol.StepTimes) protocol.StepTimes {
	for _, us := range []*int64{
		&t.Runner, &t.Image, &t.Clone, &t.Restore, &t.Boot, &t.Session, &t.Install, &t.Listener, &t.Job, &t.Stop, &t.Delete,
	} {
		*us = min(max(*us, 0), protocol.MaxStep.Microseconds())
	}
	return t
}

// stopwatch measures the steps of a VM's service, each once: a listener that restarts
// itself is measured as it came up first.
type stopwatch struct {
	started  time.Time // of the VM by this agent; zero for one that was adopted
	restore  time.Duration
	handed   time.Time // of the JIT config
	listened time.Time
	took     protocol.StepTimes
}

// answered notes that the guest answers.
func (w *stopwatch) answered() {
	if w.started.IsZero() || w.took.Boot > 0 {
		return
	}
	w.took.Restore = stepIf(w.restore)
	w.took.Boot = stepTime(time.Since(w.started) - w.restore)
}

// listens notes that the runner listens, or already has a job.
func (w *stopwatch) listens() {
	if w.handed.IsZero() || w.took.Listener > 0 {
		return
	}
	w.listened = time.Now()
	w.took.Listener = stepTime(w.listened.Sub(w.handed))
}

// works notes that the runner has a job. How long it listened is known only where it was
// seen to.
func (w *stopwatch) works() {
	if w.listened.IsZero() {
		w.listens()
		w.listened = time.Time{}
		return
	}
	if w.took.Job == 0 {
		w.took.Job = stepSince(w.listened)
	}
}

// onto puts what was measured into a report.
func (w *stopwatch) onto(t *protocol.StepTimes) {
	t.Restore, t.Boot, t.Install, t.Session = w.took.Restore, w.took.Boot, w.took.Install, w.took.Session
	t.Listener, t.Job = w.took.Listener, w.took.Job
}
