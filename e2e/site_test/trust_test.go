// SPDX-License-Identifier: MIT

package site_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// GitHub gives the runner that is armed for an allowed job to a fork's job, which waits
// longer. The guest ends that before its first step, and the allowed job gets another runner.
func TestAForksJobEndsInTheGuest(t *testing.T) {
	turn(t)
	s := newSite(t, "--kind")
	s.unhurried()
	s.startController()
	s.startAgent("mini-1")
	labels := []string{"self-hosted", "demo"}
	step := []githubsim.Step{{Run: "echo a step was run"}}
	forks, err := s.sim.QueueRun(s.ctx, githubsim.Workflow{
		Repo: "octo/demo", Event: "pull_request", HeadRepo: "eve/demo", Actor: "eve",
		Jobs: []githubsim.JobSpec{{Name: "theirs", Labels: labels, Steps: step, Env: map[string]string{"GITHUB_EVENT_NAME": "push", "BASH_ENV": "/dev/null"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	explained := func() string {
		out, _ := s.operator("get", "explain", fmt.Sprint(forks.JobIDs[0])).Output() // it may not be known yet
		return string(out)
	}
	eventually(t, "the fork's job is refused", func() bool {
		return strings.Contains(explained(), "refused by pool demo: the code comes from eve/demo")
	})
	own := s.queue(githubsim.JobSpec{Name: "ours", Steps: step})[0]
	if j := s.untilEnd(own, "the allowed job"); j.Conclusion != "success" || !strings.Contains(j.Logs, "a step was run") {
		t.Errorf("%s: %s", j.Conclusion, j.Logs)
	}
	j := s.untilEnd(forks.JobIDs[0], "the fork's job")
	if j.Conclusion == "success" || strings.Contains(j.Logs, "a step was run") || !strings.Contains(j.Logs, "This machine does not run the job: the code comes from eve/demo, and trust.forks is false") {
		t.Errorf("the fork's job: %s\n%s", j.Conclusion, j.Logs)
	}
	eventually(t, "the operator is told why", func() bool {
		jobs, err := s.operator("get", "jobs").Output()
		return err == nil && strings.Contains(string(jobs), ": the code comes from eve/demo") && strings.Contains(explained(), "whose guest ended it: the code comes from eve/demo")
	})
	s.nothingLeft()
	out, err := s.operator("get", "runners", "--all", "-o", "json").Output()
	if err != nil || strings.Count(string(out), `"id": "r-`) != 2 {
		t.Errorf("want two runners, %v:\n%s", err, out)
	}
	all, err := s.sim.Runners(s.ctx)
	if err != nil || len(all) != 2 || slices.ContainsFunc(all, func(r githubsim.Runner) bool { return r.RemovedAt.IsZero() }) {
		t.Errorf("registrations: %+v %v", all, err)
	}
}
