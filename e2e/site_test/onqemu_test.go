// SPDX-License-Identifier: MIT

package site_test

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/githubapp/githubsim"
	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/internal/testimage"
	"github.com/minifleet/minifleet/vm"
)

// guestGitHub is where guests, whose network is isolated, find the simulated GitHub.
const guestGitHub = "10.0.2.100:80"

// newSiteOnQEMU makes a site of one agent whose runners are VMs, so many at once, when
// there is room for them beside those of other tests. Its GitHub ends a cancelled job by
// force after a second, which is how the tests end those whose runner is dead.
func newSiteOnQEMU(t *testing.T, seed uint64, vms int) *site {
	t.Helper()
	programs(t)
	images := testimage.Need(t)
	giveBack := takeRoom(t, machineSlots, int64(vms))
	dir := folder(t)
	github := simulate(t, githubsim.Options{
		Seed: seed, RunnerURL: "http://" + guestGitHub, Timing: githubsim.Timing{CancelGrace: time.Second, OfflineAfter: 5 * time.Second},
	})
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	t.Cleanup(cancel)
	s := &site{t: t, dir: dir, ctx: ctx, programs: programs(t), slots: vms, noMoreVMs: giveBack, vms: machines{
		pool:      "image: " + testimage.Guest + "\n    backend: qemu\n    cpus: 1\n    memory_mib: 512",
		imagesDir: images.Dir,
		agent: fmt.Sprintf("backend: qemu\nqemu: {accelerator: tcg, network: isolated, forwards: [{guest: %q, host: %q}]}\n",
			guestGitHub, strings.TrimPrefix(github.URL(), "http://")),
	}}
	s.open(github.URL())
	// What is emulated, on a machine that is busy with other tests, is slow.
	s.unhurried()
	s.config = strings.Replace(s.config, "end_grace: 5s", "end_grace: 1s", 1)
	return s
}

// endless is a job that says that it begins, and goes on until something ends it.
func endless(name string) githubsim.JobSpec {
	return githubsim.JobSpec{Name: name, Steps: []githubsim.Step{{Run: `echo "it begins"; sleep 100000`}}}
}

// begun waits until a job's script runs and returns its VM's bundle.
func (s *site) begun(job int64) (bundle string) {
	s.t.Helper()
	s.untilJob(job, "its script runs", func(j githubsim.Job) bool { return len(j.Feed) > 0 })
	return s.bundleOf(job)
}

// inGuest has the guest program run a shell's command as root that leaves it no time, or no
// way, to answer, and again while it does answer: a slow machine had not come to it.
func (s *site) inGuest(bundle, script string) {
	s.t.Helper()
	client := guest.NewClient(func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(bundle, vm.FileGuestSocket))
	})
	defer client.Close()
	for alive := true; alive; {
		ctx, cancel := context.WithTimeout(s.ctx, 10*time.Second)
		if code, err := client.Exec(ctx, guest.ExecRequest{Argv: []string{"sh", "-c", script}}, nil, nil); err == nil {
			s.t.Fatalf("the guest, asked to %s, answers %d", script, code)
		}
		cancel()
		ctx, cancel = context.WithTimeout(s.ctx, 10*time.Second)
		_, err := client.Health(ctx)
		alive = err == nil
		cancel()
	}
}

// qemu returns the process of a bundle's machine.
func (s *site) qemu(bundle string) []int {
	s.t.Helper()
	return s.pids("process=minifleet-qemu", bundle+"/")
}

// vmm returns the process that owns it.
func (s *site) vmm(bundle string) []int {
	s.t.Helper()
	return s.pids("minifleet-vmm run", bundle+" ")
}

// giveUp cancels a job, as the user does whose job shows no sign of life. GitHub may have
// given it up before.
func (s *site) giveUp(job int64) {
	s.t.Helper()
	s.fates[job] = "lost"
	if err := s.sim.CancelJob(s.ctx, job); err != nil && !s.job(job).Done() {
		s.t.Fatal(err)
	}
}

// What can happen to a VM in the middle of its job: the VM is ended, what failed is stated,
// the slot is free and nothing is left, whatever hangs or has died.
func TestVMFailsOnQEMU(t *testing.T) {
	machineTurn(t)
	for i, fault := range []struct {
		name    string
		strike  func(s *site, bundle string)
		failure string // what the books say; "" where the guest is silent, which is no failure
	}{
		{"its vmm is killed", func(s *site, b string) { s.strike(9, s.vmm(b)...) }, "vmm_died"},
		{"its vmm stands still", func(s *site, b string) { s.freeze(s.vmm(b)...) }, ""},
		{"QEMU is killed", func(s *site, b string) { s.strike(9, s.qemu(b)...) }, "hypervisor_crashed"},
		{"QEMU stands still", func(s *site, b string) { s.freeze(s.qemu(b)...) }, ""},
		{"its guest program stands still", func(s *site, b string) { s.inGuest(b, "kill -STOP $(pidof minifleet-guest)") }, ""},
		{"its guest program is killed", func(s *site, b string) { s.inGuest(b, "kill -KILL $(pidof minifleet-guest)") }, "has lost its runner"},
		{"it powers off", func(s *site, b string) { s.inGuest(b, "poweroff -f") }, "the guest shut down"},
	} {
		t.Run(fault.name, func(t *testing.T) {
			t.Parallel()
			s := newSiteOnQEMU(t, uint64(300+i), 1)
			controller := s.startController()
			agent := s.startAgentWith("mini-1", "guest_timeout: 2s\nlook_every: 1s\n")
			job := s.queue(endless("doomed"))[0]
			bundle := s.begun(job)
			if len(s.vmm(bundle)) != 1 || len(s.qemu(bundle)) != 1 {
				t.Fatalf("the VM has the vmms %v and the machines %v", s.vmm(bundle), s.qemu(bundle))
			}
			fault.strike(s, bundle)
			if fault.failure != "" {
				s.failure(bundle, fault.failure)
			}
			s.giveUp(job)
			eventually(t, "the slot is free", func() bool {
				return slices.ContainsFunc(all[hostRow](s, "hosts"), func(h hostRow) bool { return h.FreeSlots == 1 })
			})
			s.noMoreVMs() // what follows can take a minute: GitHub refuses to delete a registration while a job has it
			s.settled()
			s.countBoots(fault.failure)
			agent.stop()
			controller.stop()
		})
	}
}
