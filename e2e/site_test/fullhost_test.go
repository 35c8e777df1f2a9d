// SPDX-License-Identifier: MIT

package site_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// A host's volume has no room, or no room for another file: no VM can be made, and the
// operator is told so by runner and host; what was begun is cleared away, the running job
// goes on, and an agent that is killed meanwhile comes back. All heals with the room.
func TestHostWithoutRoom(t *testing.T) {
	t.Parallel()
	for i, fault := range []struct {
		name string
		do   func(*volume) func()
	}{{"full volume", (*volume).fill}, {"full inode table", (*volume).crowd}} {
		t.Run(fault.name, func(t *testing.T) {
			turn(t)
			s := newSite(t, "--seed", fmt.Sprint(70+i))
			v := newVolume(t, s.path("mini-1"), 64, 1000)
			controller := s.startController()
			agent := s.startAgent("mini-1")
			const ticks = 60
			job := ticking("long", ticks)
			job.Steps = slices.Insert(job.Steps, 1, s.held("room")) // its end makes room
			long := s.queue(job)[0]
			s.untilJob(long, "it ticks", func(j githubsim.Job) bool { return len(j.Feed) > 2 })

			free := fault.do(v)
			defer free()
			id := s.queue(githubsim.JobSpec{Name: "patient", Steps: []githubsim.Step{{Run: "echo at last"}}})[0]
			eventually(t, "runner and host say what is wrong", func() bool {
				return slices.ContainsFunc(s.list("runners?all=true"), func(r row) bool { return strings.Contains(r.Failure, "no space left on device") }) &&
					slices.ContainsFunc(all[hostRow](s, "hosts"), func(h hostRow) bool { return strings.Contains(h.Degraded, "no space left on device") })
			})
			agent.signal(syscall.SIGKILL)
			agent.exit()
			agent = s.startAgent("mini-1")
			eventually(t, "nothing is left of VMs that could not be made", func() bool {
				begun, err := filepath.Glob(s.path("mini-1", "vms", ".new*"))
				whole, err2 := filepath.Glob(s.path("mini-1", "vms", "*"))
				return err == nil && err2 == nil && len(begun) == 0 && len(whole) <= 1
			})
			before := len(s.job(long).Feed)
			s.untilJob(long, "the running job goes on", func(j githubsim.Job) bool { return len(j.Feed) > before+2 || j.Done() })
			if j := s.job(id); j.Status != "queued" {
				t.Errorf("the job is %s", j.Status)
			}

			free()
			s.file("room", "")
			for _, id := range []int64{id, long} {
				s.untilEnd(id, "the job ends")
			}
			complete(t, s.job(long), ticks)
			s.settled()
			agent.stop()
			controller.stop()
		})
	}
}

// A job fills its host's volume with its own files: they are deleted after it, although
// there is not even room for the note that says so, and the host serves the next job.
func TestJobFillsItsHost(t *testing.T) {
	turn(t)
	s := newSite(t, "--seed", "72")
	newVolume(t, s.path("mini-1"), 64, 1000)
	controller := s.startController()
	agent := s.startAgent("mini-1")
	greedy := s.queue(githubsim.JobSpec{Name: "greedy", Steps: []githubsim.Step{
		{Run: `for size in 1M 1k 1; do dd if=/dev/zero bs=$size >> filler || true; done; echo "nothing fits any more"; sleep 1`},
	}})[0]
	j := s.untilEnd(greedy, "it ends")
	t.Logf("the greedy job ends with %s %s", j.Conclusion, j.Reason)
	s.fates[greedy] = j.Conclusion // its runner had no room either
	next := s.queue(githubsim.JobSpec{Name: "next", Steps: []githubsim.Step{{Run: "true"}}})[0]
	s.untilEnd(next, "the next job ends")
	s.settled()
	agent.stop()
	controller.stop()
}
