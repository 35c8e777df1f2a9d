// SPDX-License-Identifier: MIT

package fleet

import (
	"cmp"

	"github.com/minifleet/minifleet/trust"
)

// Run is what a workflow run tells of the origin of its jobs.
type Run struct {
	ID              int64
	Attempt         int
	Repository      string // owner/name
	Visibility      trust.Visibility
	Event           string // push, pull_request, ...
	HeadRepository  string // owner/name, where the code comes from; "" if GitHub has it no more
	Fork            bool   // that is another repository
	Actor           string // who began it
	TriggeringActor string // who began this attempt
	Status          string
	Conclusion      string
}

// RunKey names one attempt of a run: each has its own jobs, and may have another actor.
type RunKey struct {
	ID      int64
	Attempt int
}

// Key returns the attempt that the run is about.
func (r Run) Key() RunKey { return RunKey{r.ID, r.Attempt} }

// Run returns the attempt that the job belongs to.
func (j Job) Run() RunKey { return RunKey{j.RunID, j.RunAttempt} }

// Verdict is what the pools' policies say of a job: of every pool the same, but of those
// that Pools names. The zero value allows it everywhere.
type Verdict struct {
	Pending bool
	Refused bool
	Reason  string
	Pools   map[string]trust.Verdict // by name
}

// In returns the verdict of one pool.
func (v Verdict) In(pool string) trust.Verdict {
	if own, ok := v.Pools[pool]; ok {
		return own
	}
	return trust.Verdict{Pending: v.Pending, Refused: v.Refused, Reason: v.Reason}
}

// origin gathers what is known of where a job comes from. A repository that was public by
// any account is public.
func origin(j Job, run *Run) trust.Facts {
	f := trust.Facts{Repository: j.Repository(), Visibility: j.Visibility}
	if run == nil {
		return f
	}
	f.Origin, f.Event, f.Head, f.Actor, f.TriggeringActor = true, run.Event, run.HeadRepository, run.Actor, run.TriggeringActor
	if f.Visibility = cmp.Or(f.Visibility, run.Visibility); run.Visibility == trust.Public {
		f.Visibility = trust.Public
	}
	return f
}

// JudgeJob returns the verdict on a job of those pools whose scopes cover its repository.
// A nil run is one that nothing is known of.
func JudgeJob(pools []Pool, j Job, run *Run) Verdict {
	facts := origin(j, run)
	var v Verdict
	for _, p := range pools {
		if _, covered := p.ScopeFor(j.Owner, j.Repo); !covered {
			continue
		}
		if said := p.Trust.Judge(facts); !said.Allowed() {
			if v.Pools == nil {
				v.Pools = map[string]trust.Verdict{}
			}
			v.Pools[p.Name] = said
		}
	}
	return v
}

// WantsRun reports whether a verdict waits for what GitHub alone can tell of the job's run.
func (v Verdict) WantsRun() bool {
	for _, said := range v.Pools {
		if said.Pending {
			return true
		}
	}
	return v.Pending
}

// Learn returns the run after further news of the same attempt. One that is completed
// stays so, and what the news lacks is kept.
func (r Run) Learn(news Run) Run {
	news.Visibility = cmp.Or(news.Visibility, r.Visibility)
	if r.Status == "completed" {
		r.Visibility = news.Visibility
		return r
	}
	return news
}
