// SPDX-License-Identifier: MIT

package githubsim_test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/minifleet/minifleet/githubapp/githubsim"
	"github.com/minifleet/minifleet/internal/freeze"
)

// sleeper is a job that ends only with its runner, so that nothing is left of it
// when a test kills the runner.
func sleeper() githubsim.JobSpec {
	return githubsim.JobSpec{Name: "long", Labels: []string{"vm"}, Steps: []githubsim.Step{
		{Name: "sleep", Run: "while kill -0 $PPID 2>/dev/null; do sleep 0.2; done"},
	}}
}

func (s *site) online(name string) {
	s.t.Helper()
	if _, err := s.sim.WaitRunner(s.t.Context(), name, func(r githubsim.Runner) bool { return r.Status == "online" }); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) signal(c *client, sig syscall.Signal) {
	s.t.Helper()
	if err := c.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

// freeze has a runner's client stand still.
func (s *site) freeze(c *client) {
	s.t.Helper()
	if err := freeze.Process(c.cmd.Process.Pid); err != nil {
		s.t.Fatal(err)
	}
}

// A runner that does not take the job it is offered gets no more than its time.
func TestJobNotTakenIsQueuedAgain(t *testing.T) {
	// The one that takes it has no more time than that either, on a machine that is busy.
	forBothFlowsWith(t, githubsim.Options{Timing: githubsim.Timing{AssignTimeout: 2 * time.Second}}, func(t *testing.T, s *site) {
		_, jit := s.mint("asleep", "vm")
		asleep := s.startRunner(jit)
		s.online("asleep")
		s.freeze(asleep)
		ids := s.queue(githubsim.JobSpec{Name: "build", Labels: []string{"vm"}, Steps: []githubsim.Step{{Run: "true"}}})
		s.wait(ids[0], func(j githubsim.Job) bool { return j.Attempts > 1 })
		_, jit = s.mint("awake", "vm")
		awake := s.startRunner(jit)
		j := s.wait(ids[0], githubsim.Job.Done)
		if j.Conclusion != "success" || j.RunnerName != "awake" || j.Attempts < 2 {
			t.Errorf("job is %+v", j)
		}
		if code := s.exit(awake); code != 0 {
			t.Errorf("the client exits with %d", code)
		}
		s.delivered()
		s.rec.report(t, nil, nil)
	})
}

func TestLostCommunication(t *testing.T) {
	forBothFlowsWith(t, githubsim.Options{Timing: githubsim.Timing{Lease: 2 * time.Second}}, func(t *testing.T, s *site) {
		ids := s.queue(sleeper())
		_, jit := s.mint("vm-1", "vm")
		c := s.startRunner(jit)
		s.wait(ids[0], func(j githubsim.Job) bool { return !j.StartedAt.IsZero() }) // on a busy machine it is over soon
		_ = c.cmd.Process.Kill()
		j := s.wait(ids[0], githubsim.Job.Done)
		if j.Conclusion != "failure" || !strings.Contains(j.Reason, "lost communication") {
			t.Errorf("job is %+v", j)
		}
		if d := j.DoneAt.Sub(j.StartedAt); d < 2*time.Second {
			t.Errorf("given up after %s already", d)
		}
		s.delivered()
		s.rec.report(t, nil, []string{"workflow_job.completed"})
	})
}

func TestCancellationByForce(t *testing.T) {
	t.Parallel()
	s := newSite(t, githubsim.Options{KeyPool: 1, Timing: githubsim.Timing{CancelGrace: 500 * time.Millisecond}})
	ids := s.queue(sleeper())
	_, jit := s.mint("vm-1", "vm")
	c := s.startRunner(jit)
	s.wait(ids[0], githubsim.Job.Running)
	s.freeze(c)
	if err := s.sim.CancelJob(ids[0]); err != nil {
		t.Fatal(err)
	}
	if j := s.wait(ids[0], githubsim.Job.Done); j.Conclusion != "cancelled" || j.Reason == "" {
		t.Errorf("job is %+v", j)
	}
	s.delivered()
	s.rec.report(t, nil, nil)
}

func TestDeleteBusyRunner(t *testing.T) {
	forBothFlowsWith(t, githubsim.Options{Kind: true}, func(t *testing.T, s *site) {
		ids := s.queue(sleeper())
		id, jit := s.mint("vm-1", "vm")
		c := s.startRunner(jit)
		s.wait(ids[0], githubsim.Job.Running)
		path := fmt.Sprintf("/repos/octo/demo/actions/runners/%d", id)
		if r := s.do("GET", path, s.token, nil, 200); r["busy"] != true || r["status"] != "online" {
			t.Errorf("runner is %v", r)
		}
		s.do("DELETE", path, s.token, nil, 422)
		if err := s.sim.CancelJob(ids[0]); err != nil {
			t.Fatal(err)
		}
		s.wait(ids[0], githubsim.Job.Done)
		s.exit(c)
		s.do("GET", path, s.token, nil, 404)
		s.rec.report(t, []string{"DELETE /repos/{owner}/{repo}/actions/runners/{runner_id} 422"}, nil)
	})
}

// GitHub's known race: `busy` shows late, and until then a delete succeeds and kills the job.
func TestDeleteBeforeBusyShows(t *testing.T) {
	t.Parallel()
	s := newSite(t, githubsim.Options{KeyPool: 1, Seed: 3, Timing: githubsim.Timing{BusyLag: time.Hour}})
	ids := s.queue(sleeper())
	id, jit := s.mint("vm-1", "vm")
	s.startRunner(jit)
	s.wait(ids[0], githubsim.Job.Running)
	path := fmt.Sprintf("/repos/octo/demo/actions/runners/%d", id)
	if r := s.do("GET", path, s.token, nil, 200); r["busy"] != false {
		t.Errorf("runner is %v", r)
	}
	s.do("DELETE", path, s.token, nil, 204)
	if j := s.wait(ids[0], githubsim.Job.Done); j.Conclusion != "failure" || j.Reason == "" {
		t.Errorf("job is %+v", j)
	}
}

func TestJobsGoOnlyWhereTheyMay(t *testing.T) {
	t.Parallel()
	s := newSite(t, githubsim.Options{KeyPool: 2, Kind: true})
	group, err := s.sim.AddRunnerGroup("octo", "macs", false, "other")
	if err != nil {
		t.Fatal(err)
	}
	step := []githubsim.Step{{Run: "true"}}
	queue := func(repo string, labels ...string) int64 {
		run, err := s.sim.QueueRun(githubsim.Workflow{Repo: repo, Jobs: []githubsim.JobSpec{{Name: "j", Labels: labels, Steps: step}}})
		if err != nil {
			t.Fatal(err)
		}
		return run.JobIDs[0]
	}
	unlabelled, tooMany, elsewhere := queue("octo/demo"), queue("octo/demo", "vm", "gpu"), queue("octo/other", "vm")
	fits := queue("octo/demo", "VM")
	_, jit := s.mint("of-demo", "vm", "extra")
	s.exit(s.startRunner(jit))
	if j := s.wait(fits, githubsim.Job.Done); j.RunnerName != "of-demo" {
		t.Errorf("job is %+v", j)
	}
	for _, id := range []int64{unlabelled, tooMany, elsewhere} {
		if j, _ := s.sim.Job(id); j.Status != "queued" || j.Attempts != 0 {
			t.Errorf("job is %+v", j)
		}
	}
	inDemo := queue("octo/demo", "vm")
	out := s.do("POST", "/orgs/octo/actions/runners/generate-jitconfig", s.token,
		map[string]any{"name": "of-group", "runner_group_id": group, "labels": []string{"vm"}}, 201)
	s.exit(s.startRunner(out["encoded_jit_config"].(string)))
	if j := s.wait(elsewhere, githubsim.Job.Done); j.RunnerName != "of-group" {
		t.Errorf("job is %+v", j)
	}
	if j, _ := s.sim.Job(inDemo); j.Attempts != 0 {
		t.Errorf("a job of a repository outside of the group went to its runner: %+v", j)
	}
}

// A config is good for one runner at a time, and for one job.
func TestConfigUsedTwice(t *testing.T) {
	t.Parallel()
	s := newSite(t, githubsim.Options{KeyPool: 1, Kind: true})
	_, jit := s.mint("vm-1", "vm")
	first := s.startRunner(jit)
	s.online("vm-1")
	conflict := make(chan struct{})
	second := s.startRunnerWatched(jit, "TaskAgentSessionConflictException", conflict)
	select {
	case <-conflict:
	case <-time.After(patience):
		t.Fatalf("no conflict:\n%s", second.output())
	}
	s.signal(second, syscall.SIGKILL)
	ids := s.queue(githubsim.JobSpec{Name: "build", Labels: []string{"vm"}, Steps: []githubsim.Step{{Run: "true"}}})
	s.wait(ids[0], githubsim.Job.Done)
	s.exit(first)

	refused := make(chan struct{}) // this client then tries for ever; the official one ends
	third := s.startRunnerWatched(jit, "Retry retrieving connectiondata", refused)
	select {
	case <-refused:
	case <-time.After(patience):
		t.Fatalf("a used config is not refused:\n%s", third.output())
	}
	if r := s.sim.Runners()[0]; r.Status != "offline" || r.RemovedAt.IsZero() {
		t.Errorf("a used config brings its runner back: %+v", r)
	}
}
