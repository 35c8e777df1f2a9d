// SPDX-License-Identifier: MIT

package githubsim_test

import (
	"errors"
	"net/http"
	"slices"
	"testing"

	"github.com/google/go-github/v62/github"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// jobEvents lists the workflow_job deliveries as action/status of one job.
func jobEvents(t *testing.T, sim *githubsim.Sim, id int64) []string {
	t.Helper()
	var out []string
	for _, d := range delivered(t, sim) {
		if d.JobID != id {
			continue
		}
		e, err := github.ParseWebHook("workflow_job", []byte(d.Payload))
		if err != nil {
			t.Fatal(err)
		}
		job := e.(*github.WorkflowJobEvent).GetWorkflowJob()
		out = append(out, d.Action+"/"+job.GetStatus()+"/"+job.GetConclusion())
	}
	return out
}

func TestGatedJobWaitsForApproval(t *testing.T) {
	_, url := newReceiver(t)
	sim, octo := startSim(t, githubsim.Options{Kind: true, WebhookURL: url})
	run := queue(t, sim, githubsim.JobSpec{Gated: true})
	c := asInstallation(t, sim, octo)
	if r, _, err := c.Actions.GetWorkflowRunByID(t.Context(), "octo", "demo", run.ID); err != nil || r.GetStatus() != "waiting" {
		t.Errorf("run: %v, %v", r, err)
	}
	if err := sim.Approve(run.JobIDs[0]); err != nil {
		t.Fatal(err)
	}
	if err := sim.Approve(run.JobIDs[0]); err == nil {
		t.Error("approved twice")
	}
	if got := jobEvents(t, sim, run.JobIDs[0]); !slices.Equal(got, []string{"waiting/waiting/", "queued/queued/"}) {
		t.Errorf("events are %v", got)
	}
}

func TestCancelWhileQueued(t *testing.T) {
	_, url := newReceiver(t)
	sim, octo := startSim(t, githubsim.Options{Kind: true, WebhookURL: url})
	run := queue(t, sim, githubsim.JobSpec{}, githubsim.JobSpec{Gated: true})
	c := asInstallation(t, sim, octo)
	resp, err := c.Actions.CancelWorkflowRunByID(t.Context(), "octo", "demo", run.ID)
	if _, ok := errors.AsType[*github.AcceptedError](err); !ok || resp.StatusCode != http.StatusAccepted {
		t.Fatalf("cancel: %v", err)
	}
	for _, id := range run.JobIDs {
		j, _, err := c.Actions.GetWorkflowJobByID(t.Context(), "octo", "demo", id)
		if err != nil || j.GetConclusion() != "cancelled" || j.GetRunnerID() != 0 || j.GetRunnerName() != "" || len(j.Steps) != 0 {
			t.Errorf("job is %v, %v", j, err)
		}
	}
	if got := jobEvents(t, sim, run.JobIDs[0]); !slices.Equal(got, []string{"queued/queued/", "completed/completed/cancelled"}) {
		t.Errorf("events are %v", got)
	}
	if r, _, err := c.Actions.GetWorkflowRunByID(t.Context(), "octo", "demo", run.ID); err != nil || r.GetConclusion() != "cancelled" {
		t.Errorf("run: %v, %v", r, err)
	}
	if resp, err := c.Actions.CancelWorkflowRunByID(t.Context(), "octo", "demo", run.ID); err == nil || resp.StatusCode != http.StatusConflict {
		t.Errorf("second cancel: %v", err)
	}
}

func TestSkippedJobIsNeverQueued(t *testing.T) {
	_, url := newReceiver(t)
	sim, _ := newSim(t, githubsim.Options{Kind: true, WebhookURL: url})
	run := queue(t, sim, githubsim.JobSpec{Skipped: true})
	if got := jobEvents(t, sim, run.JobIDs[0]); !slices.Equal(got, []string{"completed/completed/skipped"}) {
		t.Errorf("events are %v", got)
	}
	if r := sim.Runs()[0]; r.Status != "completed" || r.Conclusion != "skipped" {
		t.Errorf("run is %+v", r)
	}
}

func TestRerunFailedJobs(t *testing.T) {
	_, url := newReceiver(t)
	sim, octo := startSim(t, githubsim.Options{Kind: true, WebhookURL: url})
	run := queue(t, sim, githubsim.JobSpec{Skipped: true}, githubsim.JobSpec{})
	if _, err := sim.Rerun(run.ID, 0); err == nil {
		t.Error("ran again while it ran")
	}
	if err := sim.CancelRun(run.ID); err != nil {
		t.Fatal(err)
	}
	c := asInstallation(t, sim, octo)
	if _, err := c.Actions.RerunFailedJobsByID(t.Context(), "octo", "demo", run.ID); err != nil {
		t.Fatal(err)
	}
	again := sim.Runs()[0]
	if again.Attempt != 2 || again.JobIDs[0] != run.JobIDs[0] || again.JobIDs[1] == run.JobIDs[1] {
		t.Errorf("before %+v, after %+v", run, again)
	}
	if got := jobEvents(t, sim, run.JobIDs[0]); len(got) != 2 {
		t.Errorf("the completion of the other job is announced again: %v", got)
	}
	for filter, want := range map[string]int{"latest": 2, "all": 3} {
		jobs, _, err := c.Actions.ListWorkflowJobs(t.Context(), "octo", "demo", run.ID, &github.ListWorkflowJobsOptions{Filter: filter})
		if err != nil || jobs.GetTotalCount() != want {
			t.Errorf("%s: %v, %v", filter, jobs, err)
		}
	}
	first, _, err := c.Actions.ListWorkflowJobsAttempt(t.Context(), "octo", "demo", run.ID, 1, nil)
	if err != nil || first.GetTotalCount() != 2 || first.Jobs[1].GetID() != run.JobIDs[1] {
		t.Errorf("first attempt: %v, %v", first, err)
	}
	if err := sim.CancelRun(run.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Actions.RerunJobByID(t.Context(), "octo", "demo", again.JobIDs[1]); err != nil {
		t.Fatal(err)
	}
	if j, ok := sim.Job(sim.Runs()[0].JobIDs[1]); !ok || j.Attempt != 3 || j.Status != "queued" {
		t.Errorf("job is %+v", j)
	}
}

func TestListRuns(t *testing.T) {
	sim, octo := startSim(t, githubsim.Options{Kind: true})
	c := asInstallation(t, sim, octo)
	open := queue(t, sim, githubsim.JobSpec{})
	ended := queue(t, sim, githubsim.JobSpec{Skipped: true})
	fork, err := sim.QueueRun(githubsim.Workflow{
		Repo: "octo/demo", Event: "pull_request", Branch: "topic", HeadRepo: "stranger/demo", Actor: "stranger",
		Jobs: []githubsim.JobSpec{{Name: "j", Labels: []string{"vm"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		opt  github.ListWorkflowRunsOptions
		want []int64
	}{
		"all":            {github.ListWorkflowRunsOptions{}, []int64{fork.ID, ended.ID, open.ID}},
		"queued":         {github.ListWorkflowRunsOptions{Status: "queued"}, []int64{fork.ID, open.ID}},
		"by conclusion":  {github.ListWorkflowRunsOptions{Status: "skipped"}, []int64{ended.ID}},
		"by event":       {github.ListWorkflowRunsOptions{Event: "pull_request"}, []int64{fork.ID}},
		"by branch":      {github.ListWorkflowRunsOptions{Branch: "topic"}, []int64{fork.ID}},
		"by actor":       {github.ListWorkflowRunsOptions{Actor: "stranger"}, []int64{fork.ID}},
		"created since":  {github.ListWorkflowRunsOptions{Created: ">=2000-01-01"}, []int64{fork.ID, ended.ID, open.ID}},
		"created before": {github.ListWorkflowRunsOptions{Created: "<2000-01-01T00:00:00Z"}, nil},
		"created range":  {github.ListWorkflowRunsOptions{Created: "2000-01-01..*"}, []int64{fork.ID, ended.ID, open.ID}},
		"second page":    {github.ListWorkflowRunsOptions{ListOptions: github.ListOptions{PerPage: 2, Page: 2}}, []int64{open.ID}},
	} {
		t.Run(name, func(t *testing.T) {
			runs, _, err := c.Actions.ListRepositoryWorkflowRuns(t.Context(), "octo", "demo", &tc.opt)
			if err != nil {
				t.Fatal(err)
			}
			var got []int64
			for _, r := range runs.WorkflowRuns {
				got = append(got, r.GetID())
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
	r, _, err := c.Actions.GetWorkflowRunByID(t.Context(), "octo", "demo", fork.ID)
	if err != nil || !r.GetHeadRepository().GetFork() || r.GetHeadRepository().GetFullName() != "stranger/demo" || r.GetEvent() != "pull_request" {
		t.Errorf("run of a fork: %v, %v", r, err)
	}
	if _, err := c.Actions.DeleteWorkflowRun(t.Context(), "octo", "demo", ended.ID); err != nil {
		t.Error(err)
	}
	if _, _, err := c.Actions.GetWorkflowRunByID(t.Context(), "octo", "demo", ended.ID); err == nil {
		t.Error("a deleted run is still there")
	}
	if _, _, err := c.Actions.GetWorkflowRunByID(t.Context(), "octo", "other", open.ID); err == nil {
		t.Error("a run shows in another repository")
	}
}

func TestWorkflowsThatCannotBe(t *testing.T) {
	sim, _ := newSim(t, githubsim.Options{Kind: true})
	job := []githubsim.JobSpec{{Name: "j"}}
	for name, w := range map[string]githubsim.Workflow{
		"no repository":      {Jobs: job},
		"no owner":           {Repo: "demo", Jobs: job},
		"unknown repository": {Repo: "octo/nope", Jobs: job},
		"no jobs":            {Repo: "octo/demo"},
		"job without a name": {Repo: "octo/demo", Jobs: []githubsim.JobSpec{{}}},
		"gated and skipped":  {Repo: "octo/demo", Jobs: []githubsim.JobSpec{{Name: "j", Gated: true, Skipped: true}}},
	} {
		if _, err := sim.QueueRun(w); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for name, err := range map[string]error{
		"approve": sim.Approve(1), "cancel job": sim.CancelJob(1), "cancel run": sim.CancelRun(1), "redeliver": sim.Redeliver(1),
	} {
		if !errors.Is(err, githubsim.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := sim.WaitJob(t.Context(), 1, githubsim.Job.Done); !errors.Is(err, githubsim.ErrNotFound) {
		t.Errorf("wait: %v", err)
	}
}
