// SPDX-License-Identifier: MIT

package site_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// Ghosts of access: runner groups that are not there, or not for the repository, tokens and
// installations that end, lists that do not show a runner for minutes.
func TestGhostsOfAccess(t *testing.T) {
	turn(t)
	s, sim := newSimulated(t, githubsim.Options{Seed: 133, OneKey: true, Timing: githubsim.Timing{ListLag: time.Hour}})
	s.unhurried()
	if _, err := sim.AddRunnerGroup("octo", "others", false, "other"); err != nil {
		t.Fatal(err)
	}
	s.config = strings.NewReplacer("timing: {", "timing: {reconcile: 1s, absence: 1s, ", "scopes: [octo/demo]", "scopes: [octo]").Replace(s.config)
	pool := s.config[strings.Index(s.config, "  - name: demo"):]
	for _, group := range []string{"missing", "others"} {
		s.config += strings.NewReplacer("name: demo", "name: "+group, "macOS, demo]", "macOS, "+group+"]",
			"scopes: [octo]", "scopes: [octo]\n    runner_group: "+group).Replace(pool)
	}
	last := strings.LastIndex(s.config, "limits: {") // of the pool whose runners are given nothing
	s.config = s.config[:last] + strings.Replace(s.config[last:], "limits: {", "limits: {assignment: 5s, ", 1)
	var more []int64
	for _, account := range []string{"acme", "initech"} {
		id, err := sim.AddInstallation(githubsim.Installation{Account: account, Repositories: []string{"demo"}})
		if err != nil {
			t.Fatal(err)
		}
		more = append(more, id)
	}
	s.config = strings.Replace(s.config, "scopes: [octo]", "scopes: [octo, acme, initech]", 1)
	controller := s.startController()
	agent := s.startAgent("mini-1")
	s.haunted(
		ghost{"the runner group is not there", func(s *site) {
			id := s.queueFor("missing", short("grouped"))
			s.explained(id, `runner group "missing"`)
			if _, err := sim.AddRunnerGroup("octo", "missing", true); err != nil {
				s.t.Fatal(err)
			}
			s.over(id)
		}},
		ghost{"the runner group is not for the repository, and no list shows the runners (garm#236, terraform-aws-github-runner#4391)", notAssigned},
		ghost{"a token is revoked", func(s *site) {
			s.inject(githubsim.Fault{Kind: githubsim.FaultStatus, Status: http.StatusUnauthorized, Method: http.MethodPost, Path: "/generate-jitconfig"})
			before := len(s.calls(http.MethodPost, "/access_tokens"))
			s.over(s.queue(short("signed-in-anew"))...)
			if n := len(s.calls(http.MethodPost, "/access_tokens")) - before; n < 1 || n > 2 {
				s.t.Errorf("it has signed in %d times", n) // once, and once more where another call began before
			}
		}},
		ghost{"the App is removed and installed anew", func(s *site) {
			if err := sim.Uninstall(s.installation); err != nil {
				s.t.Fatal(err)
			}
			var err error
			if s.installation, err = sim.AddInstallation(githubsim.Installation{Account: "octo", Repositories: []string{"demo"}}); err != nil {
				s.t.Fatal(err)
			}
			s.over(s.queue(short("installed-anew"))...)
		}},
		ghost{"two JWTs are signed in one second (terraform-aws-github-runner#5025)", func(s *site) {
			s.signsInTwice(sim, more)
		}},
	)
	agent.stop()
	controller.stop()
}

// queueFor queues a job that asks for a label of its own.
func (s *site) queueFor(label string, job githubsim.JobSpec) int64 {
	s.t.Helper()
	job.Labels = []string{"self-hosted", label}
	run, err := s.sim.QueueRun(s.ctx, githubsim.Workflow{Repo: "octo/demo", Jobs: []githubsim.JobSpec{job}})
	if err != nil {
		s.t.Fatal(err)
	}
	return run.JobIDs[0]
}

// notAssigned is a job whose pool's runners GitHub does not give it. They listen until their
// time is over: that no list shows them ends none of them.
func notAssigned(s *site) {
	id := s.queueFor("others", short("passed-over"))
	s.explained(id, "not assigned by GitHub: 2 runners with its labels listened one after the other")
	for _, r := range s.runners("") {
		if r.Pool == "others" && !strings.HasPrefix(r.Retired, "it listened for 5s and GitHub did not give it the job") {
			s.t.Errorf("runner %s was ended because of this: %q %q", r.ID, r.Retired, r.Failure)
		}
	}
	s.over(s.queue(short("in-another-group"))...)
	if err := s.sim.CancelJob(s.ctx, id); err != nil {
		s.t.Fatal(err)
	}
	eventually(s.t, "the books say so", func() bool { return s.stateOf(id) == "completed" })
}

// signsInTwice has installations ask for tokens anew until two of them did in one second: a
// second JWT that is the same as the first would be answered with 404.
func (s *site) signsInTwice(sim *githubsim.Sim, installations []int64) {
	s.t.Helper()
	eventually(s.t, "two tokens are asked for in one second", func() bool {
		requests, err := s.sim.Requests(s.ctx)
		if err != nil {
			s.t.Fatal(err)
		}
		seconds, twice := map[int64]int{}, false
		for _, r := range requests {
			if r.Method != http.MethodPost || !strings.HasSuffix(r.Path, "/access_tokens") {
				continue
			}
			if r.Status == http.StatusNotFound {
				s.t.Errorf("%s at %s: %d", r.Path, r.At, r.Status)
			}
			seconds[r.At.Unix()]++
			twice = twice || seconds[r.At.Unix()] > 1
		}
		for _, id := range installations {
			if err := errors.Join(sim.Suspend(id, true), sim.Suspend(id, false)); err != nil {
				s.t.Fatal(err)
			}
		}
		return twice || s.t.Failed()
	})
}
