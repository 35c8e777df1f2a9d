// SPDX-License-Identifier: MIT

package books

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

func (b *Books) cache(h *fleet.Host, said []fleet.CachedImage) {
	was := h.Cached
	h.Cached = nil
	for _, c := range said {
		c.MovedAt = b.now()
		for _, w := range was {
			if w.Digest == c.Digest && w.State == c.State && w.DoneBytes == c.DoneBytes {
				c.MovedAt = w.MovedAt
			}
		}
		h.Cached = append(h.Cached, c)
	}
}

func (b *Books) observe(r *fleet.Runner, said fleet.RunnerReport) {
	was, next := *r, *r
	next.Observed = r.Observed.Next(said.Observed)
	next.HoldsSlot = said.HoldsSlot && next.Observed != fleet.ObservedGone
	next.HasConfig = r.HasConfig || said.HasConfig
	next.Failure, next.Result = cmp.Or(next.Failure, said.Failure), cmp.Or(next.Result, said.Result)
	next.JobRefused = cmp.Or(next.JobRefused, said.JobRefused)
	if next.JobRun == 0 {
		next.JobRepository, next.JobRun = said.JobRepository, said.JobRun
	}
	ended := next.Observed == fleet.ObservedFinished || next.Observed == fleet.ObservedDestroying || next.Observed == fleet.ObservedGone
	if said.Result != "" && ended && (r.Registration == fleet.RegBusy || r.Job != 0) {
		next.Registration = next.Registration.Next(fleet.RegFinished)
	}
	b.Save(r, next)
	answered := func(o fleet.Observed) bool {
		return o == fleet.ObservedStandby || o == fleet.ObservedRegistering || o == fleet.ObservedIdle || o == fleet.ObservedBusy || o == fleet.ObservedFinished
	}
	if answered(next.Observed) && !answered(was.Observed) {
		b.Host(r.Host).Failures = 0
		if was, ok := b.Rollouts[r.Pool]; ok && r.Image != "" {
			b.saveRollout(was, was.Tried(r.Image, b.now()))
		}
	}
	ran := func(r fleet.Runner) bool { return r.Observed == fleet.ObservedBusy || r.Result != "" }
	if health := b.pools[r.Pool]; ran(next) && !ran(was) && health.Failures > 0 {
		health.Failures = 0
		b.pools[r.Pool] = health
	}
	if next.Failure != "" && was.Failure == "" && !blameless(was) {
		b.failed(next)
	}
}

func blameless(r fleet.Runner) bool {
	return r.Observed == fleet.ObservedBusy || r.Job != 0 || r.Unvouched() ||
		r.Registration == fleet.RegDeleting || r.Registration == fleet.RegGone && r.Attempt > 0 ||
		r.Wanted == fleet.WantDrain || r.Wanted == fleet.WantGone
}

func (b *Books) missing(r *fleet.Runner) {
	if r.Observed == fleet.ObservedNone || r.Observed == fleet.ObservedGone {
		return
	}
	was, next := *r, *r
	next.Observed, next.HoldsSlot = fleet.ObservedGone, false
	if r.Observed != fleet.ObservedDestroying && r.Wanted != fleet.WantGone && next.Failure == "" {
		next.Failure = "the agent lost it"
	}
	if next.Failure != was.Failure && !blameless(was) {
		b.failed(next)
	}
	b.Save(r, next)
}

// Job returns a job that was heard of.
func (b *Books) Job(id fleet.JobID) (j fleet.Job, ok bool) {
	if at := b.jobs[id]; at != nil {
		return *at, true
	}
	return j, false
}

// Learn takes in news about a job.
func (b *Books) Learn(_ context.Context, n fleet.JobNews) error {
	at := b.jobs[n.Job.ID]
	if at == nil {
		at = &fleet.Job{}
		b.jobs[n.Job.ID] = at
	}
	was := *at
	is := was.Learn(n, b.now())
	is.RunnerID = 0 // only in news
	b.saveJob(at, was, is)
	if was.RunnerName != "" && was.RunnerName != is.RunnerName {
		for _, r := range b.all {
			if r.Job == is.ID && !r.JobDone {
				next := r.Runner
				next.Job = 0
				b.Save(&r.Runner, next)
			}
		}
	}
	b.bind(is, n.Job.RunnerID)
	return nil
}

// saveJob keeps the lists of jobs in order.
func (b *Books) saveJob(at *fleet.Job, was, is fleet.Job) {
	oldest := func(x *fleet.Job, y fleet.Job) int {
		return cmp.Or(x.QueuedAt.Compare(y.QueuedAt), cmp.Compare(x.ID, y.ID))
	}
	first := func(x *fleet.Job, y fleet.Job) int { return cmp.Compare(x.ID, y.ID) }
	owner := strings.ToLower(is.Owner)
	over := func(s fleet.JobState) bool { return s == fleet.JobCompleted || s == fleet.JobUnknown }
	if was.State == fleet.JobQueued {
		i, _ := slices.BinarySearchFunc(b.queue, was, oldest)
		b.queue = slices.Delete(b.queue, i, i+1)
	}
	*at = is
	if is.State == fleet.JobQueued {
		i, _ := slices.BinarySearchFunc(b.queue, is, oldest)
		b.queue = slices.Insert(b.queue, i, at)
	}
	i, _ := slices.BinarySearchFunc(b.open[owner], is, first)
	switch {
	case over(was.State) && !over(is.State):
		b.open[owner] = slices.Insert(b.open[owner], i, at)
	case !over(was.State) && over(is.State):
		b.open[owner] = slices.Delete(b.open[owner], i, i+1)
	}
	if is.ToldAt.After(was.ToldAt) {
		if b.heard[owner] == nil {
			b.heard[owner] = map[fleet.Scope]time.Time{}
		}
		b.heard[owner][fleet.Scope{Owner: is.Owner, Repo: is.Repo}] = is.ToldAt
	}
	if was.State != is.State || was.RunnerName != is.RunnerName || was.Conclusion != is.Conclusion {
		b.changed("")
	}
}

func (b *Books) bind(j fleet.Job, githubID int64) {
	if j.RunnerName == "" || j.State != fleet.JobInProgress && j.State != fleet.JobCompleted {
		return
	}
	r := b.rows[b.names[j.RunnerName].runner]
	switch {
	case r == nil, !r.Scope.Covers(j.Owner, j.Repo), r.GitHubID != 0 && githubID != 0 && r.GitHubID != githubID, r.Job != 0 && r.Job != j.ID:
		return
	}
	next := r.Runner
	next.Job, next.Registration = j.ID, r.Registration.Next(fleet.RegStarted)
	next.JobDone = r.JobDone || j.State == fleet.JobCompleted
	b.Save(&r.Runner, next)
}
