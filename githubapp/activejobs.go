// SPDX-License-Identifier: MIT

package githubapp

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/go-github/v62/github"

	"github.com/minifleet/minifleet/fleet"
)

// ActiveJobs returns the jobs, in the latest attempt, of every run of a repository
// that is not over and may hold queued jobs. GitHub has no list of queued jobs. What it
// returns can lack a run that began or moved on meanwhile, and the oldest of more than a
// thousand: absence proves nothing. What has not changed since it was asked for last costs
// nothing of GitHub's hourly limit.
func (a *App) ActiveJobs(ctx context.Context, owner, repo string) ([]fleet.JobNews, error) {
	scope := fleet.Scope{Owner: owner, Repo: repo}
	if repo == "" {
		return nil, fmt.Errorf("list the jobs of %s: jobs belong to a repository", scope)
	}
	ctx = remembered(ctx)
	runs, err := a.activeRuns(ctx, scope)
	if err != nil {
		return nil, err
	}
	var out []fleet.JobNews
	for _, run := range runs {
		jobs, err := a.jobsOf(ctx, scope, run)
		if missing(err) {
			continue // somebody deleted the run
		}
		if err != nil {
			return nil, err
		}
		out = append(out, jobs...)
	}
	return out, nil
}

// activeRuns lists the runs with jobs that a runner can be given. GitHub says of a run what
// it says of the job that got least far (cli/cli#13972): one of which a job is behind others
// of its concurrency group, or at a gate, is pending or waiting while another of its jobs is
// queued (skillberry-ai/cap-evolve#228). One that is requested has none that was queued. The
// order is that in which runs go on, so that one which does meanwhile is in one of the lists.
func (a *App) activeRuns(ctx context.Context, scope fleet.Scope) ([]int64, error) {
	var ids []int64
	seen := map[int64]bool{}
	for _, status := range []string{"pending", "waiting", "queued", "in_progress"} {
		what := fmt.Sprintf("list runs of %s that are %s", scope, status)
		err := a.pagesAt(ctx, scope, what, func(ctx context.Context, c *github.Client, page github.ListOptions) (*github.Response, error) {
			list, resp, err := c.Actions.ListRepositoryWorkflowRuns(ctx, scope.Owner, scope.Repo, &github.ListWorkflowRunsOptions{Status: status, ListOptions: page})
			if err != nil {
				return nil, err
			}
			for _, r := range list.WorkflowRuns {
				if id := r.GetID(); id > 0 && !seen[id] {
					seen[id] = true
					ids = append(ids, id)
				}
			}
			return resp, nil
		})
		if err != nil {
			return nil, err
		}
	}
	return ids, nil
}

func (a *App) jobsOf(ctx context.Context, scope fleet.Scope, run int64) ([]fleet.JobNews, error) {
	what := fmt.Sprintf("list the jobs of run %d of %s", run, scope)
	var out []fleet.JobNews
	page := github.ListOptions{PerPage: 100}
	for range maxPages {
		var asked time.Time
		var list *github.Jobs
		var resp *github.Response
		var installationID int64
		err := a.at(ctx, scope, what, a.callTimeout, func(ctx context.Context, in *installation) (err error) {
			asked, installationID = a.now(), in.id
			list, resp, err = in.client.Actions.ListWorkflowJobs(ctx, scope.Owner, scope.Repo, run, &github.ListWorkflowJobsOptions{Filter: "latest", ListOptions: page})
			return err
		})
		if err != nil {
			return nil, err
		}
		for _, j := range list.Jobs {
			news, err := newsOf(j, scope, installationID, asked)
			if err != nil { // one that is not understood hides no other
				a.log.WarnContext(ctx, "job of a list not understood", slog.Int64("run", run), slog.Any("error", err))
				continue
			}
			out = append(out, news)
		}
		if resp.NextPage <= page.Page {
			return out, nil
		}
		page.Page = resp.NextPage
	}
	return nil, fmt.Errorf("%s: %w", what, errPages)
}
