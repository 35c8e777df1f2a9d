// SPDX-License-Identifier: MIT

package site_test

import (
	"strings"
	"syscall"
	"testing"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// Events drive, ticks only repair: with every periodic tick set to an hour all jobs end
// as they do otherwise. A step that needs a tick hangs here, and so fails.
func TestTicksOfAnHour(t *testing.T) {
	turn(t)
	s := newSite(t, "--seed", "81")
	s.config = strings.Replace(s.config, "timing: {host_deadline: 20s, repair: 1s, end_grace: 5s}",
		"timing: {host_deadline: 3h, lease: 3h, poll: 1h, repair: 1h, redelivery: 1h, reconcile: 1h, end_grace: 5s}", 1)
	s.config = strings.Replace(s.config, "github: {", "github: {installation_refresh: 1h, ", 1)
	controller := s.startController()
	start := func() *program {
		return s.startAgentWith("mini-1", "report_every: 1h\nimages_every: 1h\nlook_every: 1h\n")
	}
	agent := start()
	done := func(what string, id int64, want string) {
		t.Helper()
		s.fates[id] = want
		j := s.untilEnd(id, what)
		if j.Conclusion != want {
			t.Errorf("%s: it ended with %s %s", what, j.Conclusion, j.Reason)
		}
	}
	step := func(run string) githubsim.JobSpec {
		return githubsim.JobSpec{Name: "step", Steps: []githubsim.Step{{Run: run}}}
	}

	done("a job succeeds", s.queue(step("true"))[0], "success")
	done("a job fails", s.queue(step("exit 3"))[0], "failure")

	const ticks = 40
	long := s.queue(ticking("long-1", ticks), ticking("long-2", ticks))
	for _, id := range long {
		s.untilJob(id, "both slots are taken", func(j githubsim.Job) bool { return len(j.Feed) > 0 })
	}
	waiting := s.queue(step("true"), step("true"))
	if err := s.sim.CancelJob(s.ctx, waiting[0]); err != nil {
		t.Fatal(err)
	}
	done("a queued job is cancelled", waiting[0], "cancelled")
	agent.signal(syscall.SIGKILL)
	agent.exit()
	agent = start()
	for _, id := range long {
		done("a job survives its agent", id, "success")
		complete(t, s.job(id), ticks)
	}
	done("a job that waited for a slot runs", waiting[1], "success")

	endless := s.queue(step("sleep 1000"))[0]
	s.untilJob(endless, "it runs", githubsim.Job.Running)
	if err := s.sim.CancelJob(s.ctx, endless); err != nil {
		t.Fatal(err)
	}
	done("a running job is cancelled", endless, "cancelled")

	unwanted := s.queue(step("true"))[0]
	if err := s.sim.CancelJob(s.ctx, unwanted); err != nil {
		t.Fatal(err)
	}
	done("a job is cancelled while its runner comes", unwanted, "cancelled")
	s.settled()
	agent.stop()
	controller.stop()
}
