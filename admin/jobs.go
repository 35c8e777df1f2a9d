// SPDX-License-Identifier: MIT

package admin

import (
	"context"
	"fmt"
	"time"

	"github.com/minifleet/minifleet/admin/api"
	"github.com/minifleet/minifleet/fleet"
)

// ListJobs answers GET /api/v1/jobs.
func (h handlers) ListJobs(ctx context.Context, req api.ListJobsRequestObject) (api.ListJobsResponseObject, error) {
	q := fleet.JobQuery{Repository: given(req.Params.Repository)}
	var err error
	if q.Page, err = pageOf(req.Params.Limit, req.Params.Cursor); err != nil {
		return nil, err
	}
	if err := checkOneOf("state", given(req.Params.State), api.JobStateWaiting, api.JobStateQueued, api.JobStateInProgress, api.JobStateCompleted); err != nil {
		return nil, err
	}
	for _, s := range given(req.Params.State) {
		q.States = append(q.States, fleet.JobState(s))
	}
	if q.Repository != "" {
		if _, err := repositoryOf(q.Repository); err != nil {
			return nil, err
		}
	}
	if req.Params.RunID != nil {
		if q.RunID = *req.Params.RunID; q.RunID < 1 {
			return nil, badParameter("run_id", wantedForm("run_id"))
		}
	}
	jobs, next, err := h.Store.ListJobs(ctx, q)
	if err != nil {
		return nil, err
	}
	page := api.ListJobs200JSONResponse{Items: make([]api.Job, 0, len(jobs)), Next: next}
	for _, j := range jobs {
		row, err := h.jobRow(ctx, j)
		if err != nil {
			return nil, err
		}
		page.Items = append(page.Items, row)
	}
	return page, nil
}

// GetJob answers GET /api/v1/jobs/{id}.
func (h handlers) GetJob(ctx context.Context, req api.GetJobRequestObject) (api.GetJobResponseObject, error) {
	job, err := h.job(ctx, req.ID)
	if err != nil {
		return nil, err
	}
	row, err := h.jobRow(ctx, job)
	return api.GetJob200JSONResponse(row), err
}

// ExplainJob answers GET /api/v1/jobs/{id}/explain.
func (h handlers) ExplainJob(ctx context.Context, req api.ExplainJobRequestObject) (api.ExplainJobResponseObject, error) {
	job, err := h.job(ctx, req.ID)
	if err != nil {
		return nil, err
	}
	out := api.Explanation{}
	if out.Job, err = h.jobRow(ctx, job); err != nil {
		return nil, err
	}
	switch job.State {
	case fleet.JobQueued:
		if err = h.explainQueued(ctx, &out); err == nil {
			err = h.addAlarms(ctx, job, &out)
		}
	case fleet.JobInProgress:
		err = h.explainRunning(ctx, job, &out)
	case fleet.JobCompleted:
		out.Reason = explainCompleted(job)
		if out.Job.Refused != "" {
			out.Reason += ", whose guest ended it: " + out.Job.Refused
		}
	case fleet.JobWaiting:
		out.Reason = "GitHub holds it behind a deployment gate: it wants a runner once it is approved"
	default:
		out.Reason = "nothing is known of its state yet"
	}
	out.Since = wireTime(sinceOf(job))
	return api.ExplainJob200JSONResponse(out), err
}

func (h handlers) job(ctx context.Context, id int64) (fleet.Job, error) {
	if id < 1 {
		return fleet.Job{}, badParameter("id", wantedForm("id"))
	}
	job, found, err := h.Store.Job(ctx, fleet.JobID(id))
	if err == nil && !found {
		err = notFound("job %d is not known: GitHub has not announced it to this controller, or it was forgotten since", id)
	}
	return job, err
}

// jobRow adds the scheduler's reason to a job that waits, and its machine's to one that the
// machine refused.
func (h handlers) jobRow(ctx context.Context, j fleet.Job) (api.Job, error) {
	out := wireJob(j)
	switch {
	case j.State == fleet.JobInProgress, j.State == fleet.JobCompleted && j.RunnerName != "" && j.Conclusion != "success":
		var err error
		out.Refused, err = h.refusal(ctx, j)
		return out, err
	case j.State != fleet.JobQueued:
		return out, nil
	}
	wait, known, err := h.Explainer.Explain(ctx, j.ID)
	if err != nil {
		return out, fmt.Errorf("explain job %d: %w", j.ID, err)
	}
	if known {
		out.Wait = api.Wait{Code: api.WaitCode(wait.Code), Reason: wait.Reason, Runner: string(wait.Runner)}
	}
	return out, nil
}

// refusal returns why a guest ended a job that GitHub gave its runner, empty if none did.
func (h handlers) refusal(ctx context.Context, j fleet.Job) (string, error) {
	var why string
	err := each(func(p fleet.Page) ([]fleet.Runner, string, error) {
		return h.Store.ListRunners(ctx, fleet.RunnerQuery{Page: p, Job: j.ID, All: true})
	}, func(r fleet.Runner) bool {
		why = r.JobRefused
		return why == ""
	})
	if err != nil {
		return "", fmt.Errorf("find the runners of job %d: %w", j.ID, err)
	}
	return why, nil
}

func (h handlers) explainQueued(ctx context.Context, out *api.Explanation) error {
	if out.Job.Wait == (api.Wait{}) {
		out.Reason = "no decision about it is recorded yet: ask again in a few seconds"
		return nil
	}
	out.Reason = out.Job.Wait.Reason
	if out.Job.Wait.Runner == "" {
		return nil
	}
	r, found, err := h.Store.Runner(ctx, fleet.RunnerID(out.Job.Wait.Runner))
	if err != nil || !found {
		return err // a runner that has gone since is no error: the next decision names another
	}
	return h.addRunner(ctx, r, out)
}

func (h handlers) explainRunning(ctx context.Context, j fleet.Job, out *api.Explanation) error {
	runner, found, err := h.runnerOf(ctx, j)
	switch {
	case err != nil:
		return err
	case found:
		if err := h.addRunner(ctx, runner, out); err != nil {
			return err
		}
		out.Reason = fmt.Sprintf("it runs on runner %s", runner.ID)
		if out.Runner.HostName != "" {
			out.Reason += " at host " + out.Runner.HostName
		}
		if runner.JobRefused != "" {
			out.Reason += ", whose guest ends it: " + runner.JobRefused
		}
	case j.RunnerName == "":
		out.Reason = "it runs, and GitHub has not said on which runner"
	default:
		out.Reason = fmt.Sprintf("it runs on %s, which is none of this fleet's present runners", j.RunnerName)
	}
	return nil
}

// runnerOf finds the present runner that a job is bound to.
func (h handlers) runnerOf(ctx context.Context, j fleet.Job) (runner fleet.Runner, found bool, err error) {
	err = each(func(p fleet.Page) ([]fleet.Runner, string, error) {
		return h.Store.ListRunners(ctx, fleet.RunnerQuery{Page: p})
	}, func(r fleet.Runner) bool {
		if r.Job == j.ID || (j.RunnerName != "" && r.RunnerName == j.RunnerName) {
			runner, found = r, true
		}
		return !found
	})
	return runner, found, err
}

func (h handlers) addRunner(ctx context.Context, r fleet.Runner, out *api.Explanation) error {
	names, err := h.hostNames(ctx)
	out.Runner = wireRunner(r, names)
	return err
}

func explainCompleted(j fleet.Job) string {
	how := "it is completed"
	if j.Conclusion != "" {
		how += " (" + j.Conclusion + ")"
	}
	if j.RunnerName == "" {
		return how + ", and no runner had it"
	}
	return how + ", on runner " + j.RunnerName
}

// sinceOf is when a job came into its state.
func sinceOf(j fleet.Job) time.Time {
	at := j.HeardAt
	switch j.State {
	case fleet.JobQueued:
		at = j.QueuedAt
	case fleet.JobInProgress:
		at = j.StartedAt
	case fleet.JobCompleted:
		at = j.CompletedAt
	}
	if at.IsZero() {
		return j.HeardAt
	}
	return at
}
