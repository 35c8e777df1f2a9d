// SPDX-License-Identifier: MIT

package site_test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// The controller is killed in the middle of everything and started again on the same
// database: running jobs notice nothing, the others are served, nothing is left.
func TestControllerIsKilled(t *testing.T) {
	t.Parallel()
	for name, flow := range map[string]string{"first protocol": "v1", "second protocol": "migrate"} {
		t.Run(name, func(t *testing.T) {
			turn(t)
			s := newSite(t, "--seed", "41", "--flow", flow)
			controller := s.startController()
			agents := []*program{s.startAgent("mini-1"), s.startAgent("mini-2")}
			const ticks = 25
			long := s.queue(ticking("long-1", ticks), ticking("long-2", ticks))
			for _, id := range long {
				s.untilJob(id, "it ticks", func(j githubsim.Job) bool { return strings.Contains(strings.Join(j.Feed, "\n"), "tick 1.") })
			}
			short := []githubsim.JobSpec{{Name: "fails", Steps: []githubsim.Step{{Run: "exit 3"}}}}
			for i := range 7 {
				short = append(short, githubsim.JobSpec{Name: fmt.Sprintf("short-%d", i), Steps: []githubsim.Step{{Run: "sleep 0.1; echo done"}}})
			}
			ids := s.queue(short...)
			// Now runners come and go for the short ones.
			s.untilJob(ids[len(ids)-1], "GitHub has begun to deliver", func(j githubsim.Job) bool { return !j.WebhookAt.IsZero() })
			controller.signal(syscall.SIGKILL)
			controller.exit()

			before := len(s.job(long[0]).Feed)
			s.untilJob(long[0], "it ticks on without a controller", func(j githubsim.Job) bool { return len(j.Feed) > before+2 || j.Done() })
			cancelled := s.queue(githubsim.JobSpec{Name: "cancelled-meanwhile", Steps: []githubsim.Step{{Run: "true"}}})
			if err := s.sim.CancelJob(s.ctx, cancelled[0]); err != nil {
				t.Fatal(err)
			}
			controller = s.startController()
			for _, id := range append(append(ids, long...), cancelled...) {
				s.untilEnd(id, fmt.Sprintf("job %d ends", id))
			}
			for _, id := range long {
				complete(t, s.job(id), ticks)
			}
			s.fates[ids[0]], s.fates[cancelled[0]] = "failure", "cancelled"
			s.settled()
			for _, p := range append(agents, controller) {
				p.stop()
			}
		})
	}
}
