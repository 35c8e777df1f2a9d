// SPDX-License-Identifier: MIT

package githubsim_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/githubapp/githubsim"
	"github.com/minifleet/minifleet/secret"
)

func forBothFlows(t *testing.T, test func(t *testing.T, s *site)) {
	forBothFlowsWith(t, githubsim.Options{KeyPool: 2}, test)
}

func forBothFlowsWith(t *testing.T, opt githubsim.Options, test func(t *testing.T, s *site)) {
	for _, flow := range []githubsim.Flow{githubsim.FlowV1, githubsim.FlowMigrate} {
		t.Run(string(flow), func(t *testing.T) {
			t.Parallel()
			opt := opt
			opt.Flow = flow
			test(t, newSite(t, opt))
		})
	}
}

func TestJobWithStepsAndEnvironmentSucceeds(t *testing.T) {
	forBothFlows(t, func(t *testing.T, s *site) {
		ids := s.queue(githubsim.JobSpec{
			Name: "build", Labels: []string{"self-hosted", "VM"}, Env: map[string]string{"FROM_JOB": "job-value", "BOTH": "job"},
			Secrets: map[string]secret.Text{"KEY": secret.New("hunter2-secret")},
			Steps: []githubsim.Step{
				{Name: "first", Run: "echo \"one $FROM_JOB $BOTH\"", Env: map[string]string{"BOTH": "step"}},
				{Name: "second", Run: "echo two $BOTH; echo the secret is hunter2-secret"},
			},
		})
		_, jit := s.mint("vm-1", "self-hosted", "vm", "extra")
		c := s.startRunner(jit)
		j := s.wait(ids[0], githubsim.Job.Done)
		if j.Conclusion != "success" || j.RunnerName != "vm-1" || j.Renewals == 0 {
			t.Errorf("job is %+v", j)
		}
		if code := s.exit(c); code != 0 {
			t.Errorf("the client exits with %d", code)
		}
		for _, want := range []string{"one job-value step", "two job"} {
			if !strings.Contains(j.Logs, want) {
				t.Errorf("%q is not in the log:\n%s", want, j.Logs)
			}
		}
		if all := j.Logs + strings.Join(j.Feed, "\n"); strings.Contains(all, "hunter2") || !strings.Contains(all, "the secret is ***") {
			t.Errorf("the secret is not masked:\n%s", all)
		}
		steps := map[string]string{}
		for _, st := range j.Steps {
			steps[st.Name] = st.Conclusion
		}
		if steps["first"] != "success" || steps["second"] != "success" {
			t.Errorf("steps are %v", steps)
		}
		if len(j.Feed) == 0 {
			t.Error("no live lines came")
		}
		s.do("GET", fmt.Sprintf("/repos/octo/demo/actions/jobs/%d", j.ID), s.token, nil, 200)
		s.delivered()
		s.rec.report(t, []string{"POST /repos/{owner}/{repo}/actions/runners/generate-jitconfig 201", "GET /repos/{owner}/{repo}/actions/jobs/{job_id} 200"},
			[]string{
				"ping.", "installation.created", "workflow_job.queued", "workflow_job.in_progress", "workflow_job.completed",
				"workflow_run.requested", "workflow_run.in_progress", "workflow_run.completed",
			})
	})
}

func TestFailingStepFailsTheJob(t *testing.T) {
	forBothFlows(t, func(t *testing.T, s *site) {
		ids := s.queue(githubsim.JobSpec{Name: "build", Labels: []string{"vm"}, Steps: []githubsim.Step{
			{Name: "good", Run: "true"}, {Name: "bad", Run: "echo about to fail; exit 3"}, {Name: "never", Run: "echo must not run"},
		}})
		_, jit := s.mint("vm-1", "vm")
		c := s.startRunner(jit)
		j := s.wait(ids[0], githubsim.Job.Done)
		if j.Conclusion != "failure" {
			t.Errorf("conclusion is %q", j.Conclusion)
		}
		steps := map[string]string{}
		for _, st := range j.Steps {
			steps[st.Name] = st.Conclusion
		}
		if steps["good"] != "success" || steps["bad"] != "failure" || steps["never"] != "skipped" {
			t.Errorf("steps are %v", steps)
		}
		if strings.Contains(j.Logs, "must not run") {
			t.Error("a step ran after the failure")
		}
		if code := s.exit(c); code != 0 {
			t.Errorf("the client exits with %d; it does so with 0 whatever became of its job", code)
		}
		s.delivered()
		s.rec.report(t, nil, []string{"workflow_job.completed"})
	})
}

func TestCancelWhileRunning(t *testing.T) {
	forBothFlows(t, func(t *testing.T, s *site) {
		ids := s.queue(githubsim.JobSpec{Name: "build", Labels: []string{"vm"}, Steps: []githubsim.Step{{Name: "long", Run: "sleep 600 & wait"}}})
		_, jit := s.mint("vm-1", "vm")
		c := s.startRunner(jit)
		s.wait(ids[0], func(j githubsim.Job) bool { return j.Running() && len(j.Steps) > 0 })
		if err := s.sim.CancelRun(s.sim.Runs()[0].ID); err != nil {
			t.Fatal(err)
		}
		if j := s.wait(ids[0], githubsim.Job.Done); j.Conclusion != "cancelled" || j.Reason != "" {
			t.Errorf("job is %+v", j)
		}
		if code := s.exit(c); code != 0 {
			t.Errorf("the client exits with %d", code)
		}
		s.delivered()
		s.rec.report(t, nil, []string{"workflow_job.completed", "workflow_run.completed"})
	})
}

func TestEightJobsOnEightRunners(t *testing.T) {
	forBothFlows(t, func(t *testing.T, s *site) {
		const n = 8
		var specs []githubsim.JobSpec
		for i := range n {
			specs = append(specs, githubsim.JobSpec{Name: fmt.Sprintf("build-%d", i), Labels: []string{"vm"}, Steps: []githubsim.Step{
				{Name: "work", Run: "echo number $N"},
			}, Env: map[string]string{"N": fmt.Sprint(i)}})
		}
		ids := s.queue(specs...)
		clients := make([]*client, n)
		for i := range n {
			_, jit := s.mint(fmt.Sprintf("vm-%d", i), "vm")
			clients[i] = s.startRunner(jit)
		}
		ran := map[string]bool{}
		for i, id := range ids {
			j := s.wait(id, githubsim.Job.Done)
			if j.Conclusion != "success" || !strings.Contains(j.Logs, fmt.Sprintf("number %d", i)) {
				t.Errorf("job %d: %s\n%s", i, j.Conclusion, j.Logs)
			}
			if ran[j.RunnerName] {
				t.Errorf("runner %s ran two jobs", j.RunnerName)
			}
			ran[j.RunnerName] = true
		}
		for _, c := range clients {
			if code := s.exit(c); code != 0 {
				t.Errorf("a client exits with %d", code)
			}
		}
		for _, r := range s.sim.Runners() {
			if r.RemovedAt.IsZero() {
				t.Errorf("runner %s is still registered", r.Name)
			}
		}
		s.delivered()
		s.rec.report(t, nil, nil)
	})
}

// The broker's client tries for five minutes before it gives up, so only the
// older service is followed to the end of the process.
func TestDeletedWhileIdle(t *testing.T) {
	t.Parallel()
	s := newSite(t, githubsim.Options{KeyPool: 1})
	id, jit := s.mint("vm-1", "vm")
	c := s.startRunner(jit)
	ctx := t.Context()
	if _, err := s.sim.WaitRunner(ctx, "vm-1", func(r githubsim.Runner) bool { return r.Status == "online" }); err != nil {
		t.Fatal(err)
	}
	s.do("DELETE", fmt.Sprintf("/repos/octo/demo/actions/runners/%d", id), s.token, nil, 204)
	s.do("DELETE", fmt.Sprintf("/repos/octo/demo/actions/runners/%d", id), s.token, nil, 404)
	if code := s.exit(c); code != 1 {
		t.Errorf("the client exits with %d, want 1\n%s", code, c.output())
	}
	if out := c.output(); !strings.Contains(out, "removed from GitHub") {
		t.Errorf("the client does not say why it ended:\n%s", out)
	}
	s.rec.report(t, []string{"DELETE /repos/{owner}/{repo}/actions/runners/{runner_id} 204"}, nil)
}
