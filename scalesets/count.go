// SPDX-License-Identifier: MIT

package scalesets

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/actions/scaleset"

	"github.com/minifleet/minifleet/fleet"
)

// compare looks whether the books have as many jobs of the set as GitHub counts. A message
// that was lost shows in nothing else. Where they differ and nothing is under way, or for
// long enough though messages come, GitHub is asked anew: jobs that the books lack are
// entered without a name, and those that they have beyond the count are looked up.
func (s *set) compare(ctx context.Context, quiet bool) error {
	jobs, err := s.c.Store.SetJobs(ctx, s.pool.Name)
	if err != nil {
		return err
	}
	now := time.Now()
	switch {
	case len(jobs) != s.tally.assigned:
		if s.off.IsZero() {
			s.off = now
		}
		if !quiet && now.Sub(s.off) < s.c.Absence {
			return nil
		}
	case !quiet || now.Sub(s.compared) < s.c.Every:
		s.off = time.Time{}
		return nil
	}
	var found *scaleset.RunnerScaleSet
	if err := s.call(ctx, "ask for the count of jobs", func(ctx context.Context) (err error) {
		found, err = s.client.GetRunnerScaleSetByID(ctx, int(s.id.Load()))
		return err
	}); err != nil {
		return err
	}
	if found == nil || found.Statistics == nil {
		return errors.New("ask for the count of jobs: GitHub's answer has none")
	}
	s.compared = now
	m := s.message(0, found.Statistics)
	m.Complete = true
	if m.Assigned > len(jobs) {
		s.log.Warn("GitHub counts more jobs of the scale set than its messages named", "counted", m.Assigned, "known", len(jobs))
	}
	m.Jobs = s.ended(ctx, jobs, m.Assigned)
	_, err = s.take(ctx, m)
	s.off = time.Time{}
	return err
}

// ended returns the news that jobs are over, of those that the books have beyond GitHub's
// count. The count does not say which: their runs do. Nothing is made of the count alone,
// because what is thought over is told to end.
func (s *set) ended(ctx context.Context, jobs []fleet.Job, counted int) []fleet.JobNews {
	if len(jobs) <= counted {
		return nil
	}
	s.log.Warn("the books have more jobs of the scale set than GitHub counts: their runs are looked at", "counted", counted, "known", len(jobs))
	type place struct {
		repo fleet.Scope
		run  int64
	}
	runs := map[place][]fleet.JobNews{}
	var out []fleet.JobNews
	for _, j := range jobs {
		at := place{fleet.Scope{Owner: j.Owner, Repo: j.Repo}, j.RunID}
		if j.Nameless() || at.repo.Repo == "" || at.run == 0 {
			continue
		}
		list, known := runs[at]
		if !known {
			var err error
			if list, err = s.c.GitHub.RunJobs(ctx, at.repo, at.run); err != nil {
				s.log.Warn("run not looked at", "run", at.run, "repository", at.repo.String(), "error", err)
				continue
			}
			runs[at] = list
		}
		if end, over := overAt(j, list); over {
			out = append(out, fleet.JobNews{Event: fleet.ToldCompleted, Job: fleet.Job{
				SetKey: j.SetKey, Owner: j.Owner, Repo: j.Repo, Conclusion: end.Conclusion, RunnerName: end.RunnerName, RunnerID: end.RunnerID,
			}})
		}
	}
	return out
}

// overAt finds a job among those of its run, by its runner or else by its name, and says
// whether it is over: all that it could be have to be. One that is not there belongs to a
// run that was deleted.
func overAt(j fleet.Job, list []fleet.JobNews) (end fleet.Job, over bool) {
	over = true
	for _, n := range list {
		byRunner := j.RunnerName != "" && strings.EqualFold(n.Job.RunnerName, j.RunnerName)
		if byRunner {
			return n.Job, n.Event == fleet.SeenCompleted
		}
		if n.Job.Name != j.Name {
			continue
		}
		end = n.Job
		over = over && n.Event == fleet.SeenCompleted
	}
	return end, over && (end.ID != 0 || len(list) == 0)
}
