// SPDX-License-Identifier: MIT

package site_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// Jobs come and go through a runner scale set, webhooks tell of them as well, and the
// controller is killed between each step of the handling of a message.
func TestScaleSet(t *testing.T) {
	turn(t)
	bin, err := crashPrograms()
	if err != nil {
		t.Fatal(err)
	}
	c := newCrashSite(t, bin, "", func(crashpoint.Point) {}, "--acquire", "--prompt", "--seed", "61")
	c.config = strings.Replace(c.config, "    scopes:", "    demand: scale_set\n    scale_set: The Macs\n    scopes:", 1)
	c.alone = true
	c.controller = c.startController()
	c.agents[host] = c.startAgent(host)
	work := func(n int) githubsim.JobSpec {
		return githubsim.JobSpec{Name: fmt.Sprintf("job-%d", n), Steps: []githubsim.Step{{Run: "echo done"}}}
	}
	ids := c.queue(work(0))
	c.untilEnd(ids[0], "a job ends")
	for i, p := range []crashpoint.Point{crashpoint.SetJobsAcquired, crashpoint.SetMessageStored} {
		c.arm(p)
		ids = append(ids, c.queue(work(i+1))...)
		c.untilDead(p)
		if i == 0 {
			c.controller = c.startController()
		}
	}
	// It starts again and dies before the session that it has opened is in the books:
	// GitHub lets go of that after a while.
	c.arm(crashpoint.SetSessionOpened)
	c.controller = c.startController()
	c.untilDead(crashpoint.SetSessionOpened)
	if err := c.sim.EndSetSessions(c.ctx); err != nil {
		t.Fatal(err)
	}
	c.controller = c.startController()
	ids = append(ids, c.queue(work(3))...)
	for _, id := range ids {
		c.untilEnd(id, fmt.Sprintf("job %d ends", id))
		if j := c.job(id); j.Conclusion != "success" || j.RunnerName == "" {
			t.Errorf("job %d ended with %s (%s)", id, j.Conclusion, j.Reason)
		}
	}
	var jobs []jobRow
	eventually(t, "the books agree with GitHub", func() bool {
		jobs = all[jobRow](c.site, "jobs")
		sets, err := c.sim.ScaleSets(c.ctx)
		if err != nil || len(sets) != 1 {
			t.Fatalf("scale sets %+v, %v", sets, err)
		}
		open := slices.ContainsFunc(jobs, func(j jobRow) bool { return j.State != "completed" })
		return !open && sets[0].Unread == 0 && sets[0].Assigned == 0 && len(c.list("runners")) == 0
	})
	if len(jobs) != len(ids) { // what webhooks told of them is not counted again
		t.Errorf("the books have %d jobs, want %d: %+v", len(jobs), len(ids), jobs)
	}
	served := map[int64]bool{}
	for _, r := range c.list("runners?all=true&limit=1000") {
		served[r.Job] = true
	}
	for _, j := range jobs {
		if !served[j.ID] {
			t.Errorf("no runner has job %d (%s)", j.ID, j.Name)
		}
	}
	requests, err := c.sim.Requests(c.ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range requests {
		if r.Method == http.MethodPost && strings.HasSuffix(r.Path, "/generate-jitconfig") {
			t.Error("a runner was registered beside the scale set")
		}
	}
	names, err := c.sim.Runners(c.ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range names {
		if r.RemovedAt.IsZero() {
			t.Errorf("registration %s is left", r.Name)
		}
	}
	c.controller.stop()
	c.agents[host].stop()
	sets, err := c.sim.ScaleSets(c.ctx)
	if err != nil || sets[0].Session != "" || sets[0].Name != "The Macs" {
		t.Errorf("after the end %+v, %v", sets, err)
	}
}
