// SPDX-License-Identifier: MIT

package tendays

import (
	"cmp"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

func (w *world) news(j *job) fleet.JobNews {
	e, _ := fleet.Told(j.state)
	return fleet.JobNews{Event: e, Job: fleet.Job{
		ID: j.id, RunID: j.run.id, RunAttempt: j.attempt, InstallationID: 1, Owner: j.repo.Owner, Repo: j.repo.Repo, Name: "build",
		Labels: j.labels, Conclusion: j.conclusion, RunnerName: j.runner, RunnerID: j.runnerID, CreatedAt: w.began.Add(j.created),
	}}
}

// tell sends a delivery: once, twice, late, or never.
func (w *world) tell(j *job, told int) { w.deliver(j, w.news(j), fate{j.n, told}) }

func (w *world) deliver(j *job, n fleet.JobNews, f fate) {
	latency := w.span(300*time.Millisecond, 3*time.Second, ofDelivery, uint64(j.id), uint64(f.told))
	if w.open(Outage) && w.quiet {
		if w.chance(ofDelivery, uint64(j.id), uint64(9+f.told))%2 == 0 {
			w.drop(j, f)
			return
		}
		latency += w.until[Outage] - w.t
	}
	arrive := func() {
		if w.controller == nil {
			w.drop(j, f)
			return
		}
		w.fig.Deliveries++
		j.repo.heard = cmp.Or(j.repo.heard, w.t)
		if err := w.books.Learn(w.controller.ctx, n); err != nil {
			w.fail("news of job %d: %v", j.n, err)
		}
	}
	switch e, ok := w.fates[f]; {
	case !ok || j.attempt > 1:
	case e.Kind == Drop:
		w.drop(j, f)
		return
	case e.Kind == Twice:
		w.after(latency+e.For, arrive)
	case e.Kind == Late:
		latency += e.For
	}
	w.after(latency, arrive)
}

func (w *world) drop(j *job, f fate) {
	w.note("delivery lost", j.n, f.told)
	w.fig.Dropped++
	j.untold = j.untold || f.told == 0
}
