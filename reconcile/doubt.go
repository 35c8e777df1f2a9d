// SPDX-License-Identifier: MIT

package reconcile

import (
	"time"

	"github.com/minifleet/minifleet/fleet"
)

const (
	// silence is how long after a guest saw its job end GitHub's delivery may take.
	silence = 10 * time.Second
	// No job is asked for more often than this, however much is in doubt.
	spacing = 30 * time.Second
	// While a job's runner is gone and GitHub still calls it running, as it does until
	// the lease ends after some ten minutes, it is asked for this often.
	leaseSpacing = 2 * time.Minute
	// Runners of the past are looked at for so long.
	lately = 10 * time.Minute
)

// doubts returns the jobs of which a runner shows that GitHub must know more than the
// books, and when the next will be in doubt if nothing happens. Asked says when GitHub
// was last asked for a job.
//
// A job that runs is in doubt when its runner has ended. Jobs thought queued are in
// doubt when a runner that could have been given one of them has a job without a name,
// or had one, or listens for long and gets none.
func doubts(now time.Time, pools []fleet.Pool, jobs []fleet.Job, runners []fleet.Runner, asked func(fleet.Job) time.Time) (ask []fleet.Job, next time.Time) {
	ended := map[fleet.JobID]time.Time{} // of jobs that run, when their runner was last heard of
	signs := map[place]*sign{}
	for _, r := range runners {
		if r.Job != 0 {
			if r.Observed.Ended() && !r.JobDone {
				ended[r.Job] = r.MovedAt
			}
			continue
		}
		for i, p := range pools {
			if p.Name == r.Pool {
				read(now, signs, i, p.Limits.WithDefaults(), r)
			}
		}
	}
	for _, j := range jobs {
		due, doubtful := time.Time{}, false
		switch j.State {
		case fleet.JobInProgress:
			if since, ok := ended[j.ID]; ok {
				due, doubtful = since.Add(silence), true
				if !asked(j).Before(due) {
					due = asked(j).Add(leaseSpacing)
				}
			}
		case fleet.JobQueued:
			due, doubtful = queuedDoubt(signs, pools, j, asked(j))
			if over := j.QueuedAt.Add(fleet.LongestQueue); !over.After(now) && asked(j).Before(over) {
				due, doubtful = earlier(due, over), true // GitHub cancels it then
			}
		}
		switch {
		case !doubtful:
		case due.After(now):
			next = earlier(next, due)
		default:
			ask = append(ask, j)
		}
	}
	return ask, next
}

// place is where runners are alike to jobs.
type place struct {
	pool  int
	scope fleet.Scope
	idle  bool
}

// sign is what the runners of a place show: the latest moment at which one of them
// cast doubt, and the next at which one will.
type sign struct {
	latest, next time.Time
	queued       time.Duration // how long a job must have been queued for it to count
}

// read takes in what one runner without a named job shows.
func read(now time.Time, signs map[place]*sign, pool int, l fleet.Limits, r fleet.Runner) {
	at := place{pool: pool, scope: r.Scope}
	var since time.Time
	var queued time.Duration
	switch {
	case r.Observed.Ended():
		if !r.HasConfig || r.Result == "" && r.Failure == "" {
			return // it had no job
		}
		since = r.MovedAt.Add(silence)
	case r.Phase() == fleet.PhaseBusy:
		since = r.Since.Add(l.Unnamed / 2)
	case r.Phase() == fleet.PhaseIdle:
		at.idle, queued = true, l.Assignment/2
		since = r.Since.Add(queued)
	default:
		return
	}
	s := signs[at]
	if s == nil {
		s = &sign{queued: queued}
		signs[at] = s
	}
	if since.After(now) {
		s.next = earlier(s.next, since)
	} else if since.After(s.latest) {
		s.latest = since
	}
}

// queuedDoubt says when a job that is thought queued is to be asked for.
func queuedDoubt(signs map[place]*sign, pools []fleet.Pool, j fleet.Job, asked time.Time) (due time.Time, doubtful bool) {
	for at, s := range signs {
		if !at.scope.Covers(j.Owner, j.Repo) || !j.Labels.Within(pools[at.pool].Labels) {
			continue
		}
		for _, since := range []time.Time{s.latest, s.next} {
			if since.IsZero() {
				continue
			}
			if ready := j.QueuedAt.Add(s.queued); s.queued > 0 && ready.After(since) {
				since = ready
			}
			if !asked.Before(since) {
				continue // it was asked for since
			}
			if rested := asked.Add(spacing); rested.After(since) {
				since = rested
			}
			due, doubtful = earlier(due, since), true
		}
	}
	return due, doubtful
}
