// SPDX-License-Identifier: MIT

package site_test

import (
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// newImpatientSite has a GitHub that gives a job up soon after its runner fell silent:
// later than a living runner renews it, which is once a minute.
func newImpatientSite(t *testing.T) *site {
	t.Helper()
	s, _ := newSimulated(t, githubsim.Options{Seed: 101, Timing: githubsim.Timing{Lease: 90 * time.Second}})
	return s
}

// A vmm is killed, and a whole host loses its power: all of its processes at once. What
// the vmm left behind is ended before anything else touches that disk, and what the host
// left is cleared up when it is back. The dead jobs' fate is stated, their registrations
// go, their neighbours notice nothing, and the slots serve again.
func TestVMsDie(t *testing.T) {
	turn(t)
	s := newImpatientSite(t)
	controller := s.startController()
	first := s.startAgent("mini-1")
	const ticks = 60
	neighbour := ticking("neighbour", ticks)
	neighbour.Steps = slices.Insert(neighbour.Steps, 1, s.held("over")) // its slot is free for none of the second host's
	onFirst := s.queue(githubsim.JobSpec{Name: "loses-its-vmm", Steps: []githubsim.Step{{Run: "sleep 1000"}}}, neighbour)
	for _, id := range onFirst {
		s.untilJob(id, "it runs", githubsim.Job.Running)
	}
	second := s.startAgent("mini-2")
	onSecond := s.queue(
		githubsim.JobSpec{Name: "loses-power", Steps: []githubsim.Step{{Run: "sleep 1000"}}},
		githubsim.JobSpec{Name: "loses-power-too", Steps: []githubsim.Step{{Run: "trap '' TERM; sleep 1000"}}})
	for _, id := range onSecond {
		s.untilJob(id, "it runs", githubsim.Job.Running)
	}
	bundle := s.bundleOf(onFirst[0])

	s.strike(syscall.SIGKILL, s.pids("minifleet-vmm run", bundle+" ")...)
	s.powerCut("mini-2")
	second.exit()

	s.failure(bundle, "vmm")
	if left := s.pids(bundle); len(left) > 0 {
		t.Errorf("the failure is stated and processes %v still use the disk", left)
	}
	s.file("over", "")
	eventually(t, "the slot is free", func() bool {
		return slices.ContainsFunc(all[hostRow](s, "hosts"), func(h hostRow) bool { return h.Name == "mini-1" && h.FreeSlots >= 1 })
	})
	dead := []string{s.bundleOf(onSecond[0]), s.bundleOf(onSecond[1])}
	second = s.startAgent("mini-2")
	for _, b := range dead {
		s.failure(b, "while no agent ran")
	}
	next := s.queue(ticking("next-1", 1), ticking("next-2", 1), ticking("next-3", 1))
	for _, id := range append(next, onFirst[1]) {
		s.untilEnd(id, "it ends")
	}
	complete(t, s.job(onFirst[1]), ticks)
	for _, id := range append(onSecond, onFirst[0]) {
		s.fates[id] = "failure"
	}
	s.settled()
	for _, p := range []*program{first, second, controller} {
		p.stop()
	}
}

// powerCut kills everything that runs on a host: the agent, its VMs and whatever their
// jobs have started, all in one sweep, and what was just being started in another.
func (s *site) powerCut(host string) {
	s.t.Helper()
	for {
		pids := s.pids(s.path(host))
		if len(pids) == 0 {
			return
		}
		s.strike(syscall.SIGKILL, pids...)
		eventually(s.t, "all of them are dead", func() bool {
			return !slices.ContainsFunc(pids, func(pid int) bool { return !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) })
		})
	}
}

// failure waits until the books say how the VM of a bundle failed.
func (s *site) failure(bundle, words string) {
	s.t.Helper()
	id := bundle[strings.LastIndexByte(bundle, '/')+1:]
	said := ""
	eventually(s.t, "the failure of runner "+id+" is stated", func() bool {
		for _, r := range s.list("runners?all=true") {
			if r.ID == id {
				said = r.Failure
			}
		}
		return said != ""
	})
	if !strings.Contains(said, words) {
		s.t.Errorf("the failure of runner %s is told as %q, want %q in it", id, said, words)
	}
}
