// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// A pool whose demand a scale set tells: its job gets a runner that the set registered,
// which goes with the job, and what webhooks say of the same job is not counted.
func TestScaleSetPool(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.pools = `
  - name: set
    labels: [mac-set]
    scopes: [octo]
    runner_group: Macs
    demand: scale_set
    image: sonoma
    max_runners: 1
    limits: {surplus: 1s}
`
	if _, err := s.sim.AddRunnerGroup("octo", "Macs", false); err != nil {
		t.Fatal(err)
	}
	c := s.serve()
	g := newGates()
	g.create.open()
	g.start.open()
	g.config.open()
	h := startHost(t, hostConfig(t, c.agents, "mini-1", t.TempDir(), c.hostToken("mini-1")), g)
	id := s.queue([]string{"mac-set"}).JobIDs[0]
	s.delivered()
	runner := c.one("phase", "idle", "runners")
	job := c.one("state", "queued", "jobs")
	c.waiting(fmt.Sprint(job["id"]), "assignment", "")
	if jobs := c.list("jobs"); len(jobs) != 1 || job["repository"] != "octo/demo" || fmt.Sprint(job["id"]) == fmt.Sprint(id) {
		t.Errorf("jobs %v", jobs)
	}
	if told := c.list("deliveries", "--status", "ignored"); !slices.ContainsFunc(told, func(d map[string]any) bool { return strings.Contains(fmt.Sprint(d["reason"]), "scale set of pool set") }) {
		t.Errorf("deliveries that were passed over: %v", told)
	}
	sets := s.sim.ScaleSets()
	if len(sets) != 1 || sets[0].Name != "set" || sets[0].Group != "Macs" || sets[0].Capacity != 1 || !strings.HasPrefix(sets[0].Session, "minifleet-") {
		t.Errorf("scale sets %+v", sets)
	}
	registered := s.sim.Runners()
	if len(registered) != 1 || registered[0].Name != runner["runner_name"] || s.mints() != 0 {
		t.Errorf("registered %+v, and %d beside the set", registered, s.mints())
	}
	if err := s.sim.CancelJob(id); err != nil {
		t.Fatal(err)
	}
	c.one("state", "completed", "jobs")
	eventually(t, "the runner is gone, and its registration", func() bool {
		return len(c.list("runners")) == 0 && !s.sim.Runners()[0].RemovedAt.IsZero()
	})
	for _, r := range s.sim.Requests() {
		if strings.HasSuffix(r.Path, "/jobs") && r.Method == http.MethodGet {
			t.Errorf("GitHub was asked for jobs that the scale set tells of: %s", r.Path)
		}
	}
	s.noSecrets(c, h, "no token of this kind")
}
