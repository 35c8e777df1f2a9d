// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// queueFrom queues a run of one job whose code comes from head, and returns the job.
func (s *site) queueFrom(repo, head, event string, labels ...string) (job string, run githubsim.Run) {
	s.t.Helper()
	r, err := s.sim.QueueRun(githubsim.Workflow{
		Repo: repo, Name: "ci", Event: event, HeadRepo: head, Actor: "eve",
		Jobs: []githubsim.JobSpec{{Name: "job", Labels: labels, Steps: []githubsim.Step{{Run: "true"}}}},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.delivered()
	return fmt.Sprint(r.JobIDs[0]), r
}

// twoSlots is a host whose runners take no job by themselves.
func (c *served) twoSlots() {
	c.t.Helper()
	g := newGates()
	g.create.open()
	g.start.open()
	g.config.open()
	startHost(c.t, hostConfig(c.t, c.agents, "mini-1", c.t.TempDir(), c.hostToken("mini-1")), g)
}

// asked counts the calls of GitHub whose path has the part.
func (s *site) asked(part string) (n int) {
	for _, r := range s.sim.Requests() {
		if r.Method == http.MethodGet && strings.Contains(r.Path, part) {
			n++
		}
	}
	return n
}

// Nothing is booted or armed for a fork's job, not even when it waits longest; the
// repository's own is served, and a re-run by somebody else is judged anew.
func TestAForksJobIsNeverArmed(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.pools = strings.Replace(s.pools, "limits: {surplus: 1s}", "limits: {surplus: 1s}\n    trust: {fork_actors: [eve]}", 1)
	c := s.serve()
	c.twoSlots()
	forks, _ := s.queueFrom("octo/demo", "mallory/demo", "pull_request", macLabels()...)
	c.waiting(forks, "policy", "refused by pool mac: the code comes from mallory/demo, and mallory, who owns the fork, is not one of trust.fork_actors; "+
		"refused by pool big: the code comes from mallory/demo, and trust.forks is false")
	own, run := s.queueFrom("octo/demo", "octo/demo", "pull_request", macLabels()...)
	c.waiting(own, "assignment", "")
	c.waiting(forks, "policy", "mallory/demo")
	if all := s.sim.Runners(); len(all) != 1 {
		t.Errorf("%d registrations for one job that is allowed", len(all))
	}
	if err := s.sim.CancelRun(run.ID); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the runner is gone", func() bool { return len(c.list("runners")) == 0 })
	trusted, run := s.queueFrom("octo/demo", "eve/demo", "pull_request", macLabels()...)
	c.waiting(trusted, "assignment", "")
	if err := s.sim.CancelRun(run.ID); err != nil {
		t.Fatal(err)
	}
	s.delivered()
	again, err := s.sim.RerunAs(run.ID, 0, "mallory")
	if err != nil {
		t.Fatal(err)
	}
	s.delivered()
	c.waiting(fmt.Sprint(again.JobIDs[0]), "policy", "mallory, who began this attempt")
}

// The delivery that tells of the run is lost, and GitHub does not answer: the VM boots and
// nothing is armed, until GitHub does.
func TestARunThatNobodyTellsOf(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, f := range []githubsim.Fault{
		{Kind: githubsim.DeliveryLost, Path: "workflow_run", Count: -1},
		{Kind: githubsim.FaultStatus, Status: http.StatusBadGateway, Path: "/attempts/", Count: -1},
	} {
		if err := s.sim.Inject(f); err != nil {
			t.Fatal(err)
		}
	}
	c := s.serve()
	c.twoSlots()
	job, run := s.queueFrom("octo/demo", "octo/demo", "push", macLabels()...)
	c.one("phase", "standby", "runners")
	c.waiting(job, "policy", "GitHub answered 502")
	if all := s.sim.Runners(); len(all) != 0 {
		t.Errorf("armed without a verdict: %+v", all)
	}
	s.sim.ClearFaults()
	c.waiting(job, "assignment", "")
	if s.asked(fmt.Sprintf("/repos/octo/demo/actions/runs/%d/attempts/1", run.ID)) < 2 {
		t.Error("nobody asked GitHub for the run")
	}
}

// A public repository is refused by default, allowed by configuration, and denied by name.
func TestPublicRepositories(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	if _, err := s.sim.AddInstallation(githubsim.Installation{Account: "pub", Repositories: []string{"site", "old-site"}, Public: []string{"site", "old-site"}}); err != nil {
		t.Fatal(err)
	}
	s.pools = `
  - name: strict
    labels: [self-hosted, macOS]
    scopes: [pub/site, pub/old-site]
    image: sonoma
  - name: wide
    labels: [self-hosted, macOS, wide]
    scopes: [pub/site, pub/old-site]
    image: sonoma
    trust: {public: true, deny: ["PUB/old-*"], deny_events: [pull_request_target]}
`
	c := s.serve()
	c.twoSlots()
	old, _ := s.queueFrom("pub/old-site", "pub/old-site", "push", "macOS")
	c.waiting(old, "policy", "refused by pool strict: pub/old-site is public, and trust.public is false; refused by pool wide: trust.deny has PUB/old-*")
	target, _ := s.queueFrom("pub/site", "pub/site", "pull_request_target", "macOS")
	c.waiting(target, "policy", "trust.deny_events has pull_request_target")
	fork, _ := s.queueFrom("pub/site", "eve/site", "pull_request", "macOS")
	c.waiting(fork, "policy", "refused by pool wide: the code comes from eve/site")
	job, _ := s.queueFrom("pub/site", "pub/site", "push", "macOS")
	c.waiting(job, "assignment", "")
	if pools := c.list("runners").column("pool"); !slices.Equal(pools, []string{"wide"}) {
		t.Errorf("runners of %v", pools)
	}
}
