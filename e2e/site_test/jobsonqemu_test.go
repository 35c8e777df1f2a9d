// SPDX-License-Identifier: MIT

package site_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/minifleet/minifleet/githubapp/githubsim"
	"github.com/minifleet/minifleet/vm"
)

// What the demo shows, on real VMs, two at once: jobs run, fail and are cancelled, and the
// agent is killed under two of them, which notice nothing.
func TestJobsOnQEMU(t *testing.T) {
	machineTurn(t)
	s := newSiteOnQEMU(t, 310, 2)
	controller := s.startController()
	agent := s.startAgent("mini-1")
	const ticks = 25
	long := s.queue(ticking("long-1", ticks), ticking("long-2", ticks))
	for _, id := range long {
		s.begun(id)
	}
	agent.signal(syscall.SIGKILL)
	agent.exit()
	before := len(s.job(long[0]).Feed)
	s.untilJob(long[0], "it ticks on without an agent", func(j githubsim.Job) bool { return len(j.Feed) > before || j.Done() })
	agent = s.startAgent("mini-1")
	short := s.queue(
		githubsim.JobSpec{Name: "succeeds", Steps: []githubsim.Step{{Run: `test "$(id -un)" = runner && echo done`}}},
		githubsim.JobSpec{Name: "fails", Steps: []githubsim.Step{{Run: "exit 3"}}},
		endless("cancelled"))
	s.fates[short[1]], s.fates[short[2]] = "failure", "cancelled"
	for _, id := range long {
		s.untilEnd(id, "it ends")
		complete(t, s.job(id), ticks)
	}
	s.begun(short[2])
	if err := s.sim.CancelJob(s.ctx, short[2]); err != nil {
		t.Fatal(err)
	}
	s.settled()
	s.countBoots("")
	agent.stop()
	controller.stop()
	s.noSockets()
}

// noSockets demands that no VM left a socket behind.
func (s *site) noSockets() {
	s.t.Helper()
	err := filepath.WalkDir(s.dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && e.Type()&os.ModeSocket != 0 {
			s.t.Errorf("a socket is left: %s", path)
		}
		return err
	})
	if err != nil {
		s.t.Error(err)
	}
}

// A job writes until its disk is full: that is its own affair. Its neighbour goes on.
func TestFullGuestDiskOnQEMU(t *testing.T) {
	machineTurn(t)
	s := newSiteOnQEMU(t, 311, 2)
	controller := s.startController()
	agent := s.startAgent("mini-1")
	const ticks = 40
	jobs := s.queue(ticking("neighbour", ticks),
		githubsim.JobSpec{Name: "greedy", Steps: []githubsim.Step{{Run: `dd if=/dev/zero of=filler bs=1M; echo "not reached"`}}})
	for _, id := range jobs {
		s.untilEnd(id, "it ends")
	}
	complete(t, s.job(jobs[0]), ticks)
	if j := s.job(jobs[1]); j.Conclusion != "failure" || !strings.Contains(j.Logs, "No space left on device") {
		t.Errorf("the greedy job: %s (%s)\n%s", j.Conclusion, j.Reason, j.Logs)
	}
	s.fates[jobs[1]] = "failure"
	s.settled()
	s.countBoots("")
	agent.stop()
	controller.stop()
}

// A host loses its power in the middle of a job: when it is back, what it left is cleared
// up, a bundle half made among it and a lock whose holder's number another process has now,
// and its slot serves again.
func TestHostRestartsOnQEMU(t *testing.T) {
	machineTurn(t)
	s := newSiteOnQEMU(t, 312, 1)
	controller := s.startController()
	agent := s.startAgent("mini-1")
	job := s.queue(endless("loses-power"))[0]
	bundle := s.begun(job)
	s.powerCut("mini-1")
	agent.exit()

	stranger := exec.CommandContext(s.ctx, "sleep", "100000")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := stranger.Process.Signal(syscall.Signal(0)); err != nil {
			t.Errorf("a process that has the number of a dead one is gone: %v", err)
		}
		_ = stranger.Process.Kill()
		_ = stranger.Wait()
	}()
	s.renumber(bundle, stranger.Process.Pid)
	half := s.path("mini-1", "vms", ".new-r-half-AAAAAAAA")
	if out, err := exec.CommandContext(s.ctx, "cp", "--recursive", "--sparse=always", bundle, half).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}

	agent = s.startAgent("mini-1")
	s.failure(bundle, "while no agent ran")
	s.giveUp(job)
	next := s.queue(ticking("next", 1))[0]
	s.untilEnd(next, "it ends")
	complete(t, s.job(next), 1)
	s.settled()
	s.countBoots("")
	agent.stop()
	controller.stop()
}

// renumber gives the noted processes of a bundle the number of another.
func (s *site) renumber(bundle string, pid int) {
	s.t.Helper()
	for _, name := range []string{vm.FileVMM, vm.FileWriter} {
		id, err := vm.ReadIdentity(bundle, name)
		if err == nil {
			id.PID = pid
			err = vm.WriteIdentity(bundle, name, id)
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
}

// The files of a VM cannot all be deleted for a while: the host says so and serves other
// jobs in that slot meanwhile, and deletes the rest once it can.
func TestDeletionFailsOnQEMU(t *testing.T) {
	machineTurn(t)
	s := newSiteOnQEMU(t, 313, 1)
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		lacking(t, "only root can mount something in a bundle, here on Linux")
	}
	controller := s.startController()
	agent := s.startAgent("mini-1")
	first := s.queue(endless("first"))[0]
	bundle := s.begun(first)
	held := filepath.Join(bundle, "held")
	if err := os.Mkdir(held, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(s.ctx, "mount", "-t", "tmpfs", "tmpfs", held).CombinedOutput(); err != nil {
		lacking(t, "mount: %v: %s", err, out)
	}
	mounts := filepath.Join(filepath.Dir(bundle), ".trash-"+filepath.Base(bundle)+"-*", "held")
	free := sync.OnceFunc(func() {
		where, _ := filepath.Glob(mounts) // it moved with its folder
		for _, dir := range append(where, held) {
			_ = exec.Command("umount", dir).Run()
		}
	})
	defer free()
	s.fates[first] = "cancelled"
	if err := s.sim.CancelJob(s.ctx, first); err != nil {
		t.Fatal(err)
	}
	s.untilEnd(first, "it ends")
	eventually(t, "the host says what it cannot delete", func() bool {
		return slices.ContainsFunc(all[hostRow](s, "hosts"), func(h hostRow) bool {
			return strings.Contains(h.Degraded, "remove of runner "+filepath.Base(bundle)+" does not work")
		})
	})
	second := s.queue(ticking("second", 1))[0]
	s.untilEnd(second, "it runs meanwhile")
	free()
	s.settled()
	s.countBoots("")
	agent.stop()
	controller.stop()
}
