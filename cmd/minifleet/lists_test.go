// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"testing"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// GitHub delivers nothing at all: its lists alone bring a job a runner, and take it
// away again when the job is cancelled.
func TestNothingIsDelivered(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.timing = "{repair: 1h, poll: 20s, reconcile: 1s}"
	if err := s.sim.Inject(githubsim.Fault{Kind: githubsim.DeliveryLost, Count: -1}); err != nil {
		t.Fatal(err)
	}
	c := s.serve()
	g := newGates()
	g.create.open()
	g.start.open()
	g.config.open()
	startHost(t, hostConfig(t, c.agents, "mini-1", t.TempDir(), c.hostToken("mini-1")), g)
	job := s.queue(macLabels()).JobIDs[0]
	c.one("phase", "idle", "runners")
	c.waiting(fmt.Sprint(job), "assignment", "")
	if err := s.sim.CancelJob(job); err != nil {
		t.Fatal(err)
	}
	c.one("state", "completed", "jobs")
	eventually(t, "the runner is gone, and its registration", func() bool {
		return len(c.list("runners")) == 0 && !s.sim.Runners()[0].RemovedAt.IsZero()
	})
	if n := len(c.list("deliveries")); n != 0 {
		t.Errorf("%d deliveries: there was something to go by", n)
	}
}
