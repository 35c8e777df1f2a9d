// SPDX-License-Identifier: MIT

package agent_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/internal/testimage"
	"github.com/minifleet/minifleet/vm"
	"github.com/minifleet/minifleet/vm/options"
)

// newQEMUSite is a site whose VMs are machines under QEMU.
func newQEMUSite(t *testing.T) *site {
	t.Helper()
	images := testimage.Need(t)
	s := newSite(t)
	s.c.patience = 3 * time.Minute // without hardware support, on a busy host
	s.imgs = images.Dir
	s.setup = func(cfg *agent.VMsConfig) {
		cfg.Backend, cfg.QEMU = vm.BackendQEMU, agent.QEMUConfig{Accelerator: "tcg"}
	}
	return s
}

func machineUp(id string) protocol.Desire {
	return protocol.Desire{ID: id, Wanted: protocol.WantUp, Image: testimage.Guest, CPUs: 1, MemoryMiB: 512}
}

// spec is what a VM was made as.
func (s *site) spec(id string) (slot string, identity options.Identity) {
	s.t.Helper()
	spec, err := vm.ReadSpec(filepath.Join(s.dir, agent.DirVMs, id))
	if err != nil {
		s.t.Fatal(err)
	}
	o, err := options.ParseQEMU(spec.Options)
	if err != nil {
		s.t.Fatal(err)
	}
	return spec.Annotations["minifleet/slot"], o.Identity
}

// nothingLeft checks that a host is as it was before its VMs.
func (s *site) nothingLeft() {
	s.t.Helper()
	if left, err := os.ReadDir(filepath.Join(s.dir, agent.DirVMs)); err != nil || len(left) > 0 {
		s.t.Errorf("left: %v, %v", left, err)
	}
}

// A machine boots, outlives its agent, keeps its slot under the next one, and is gone.
// Its slot is then that of the next machine, and the identity with it.
func TestAMachineUnderQEMU(t *testing.T) {
	s := newQEMUSite(t)
	stop := s.start()
	s.c.want(machineUp("r1"))
	s.c.awaitObserved("r1", "standby")
	slot, identity := s.spec("r1")
	if slot != "1" {
		t.Errorf("it is in slot %s", slot)
	}
	stop()
	before := len(s.c.hellos)
	s.start()
	s.c.await("the machine is adopted", func() bool {
		return len(s.c.hellos) > before && s.c.runner("r1").Observed == "standby" && s.c.reports[len(s.c.reports)-1].Instance == s.c.hellos[before].Instance
	})
	s.c.want(machineUp("r2"))
	s.c.awaitObserved("r2", "standby")
	if slot, other := s.spec("r2"); slot != "2" || other == identity {
		t.Errorf("beside an adopted machine in slot 1 another one is in slot %s, with %v beside %v", slot, other, identity)
	}
	s.c.want(gone("r1"))
	s.c.awaitObserved("r1", "gone")
	s.c.want(machineUp("r3"))
	s.c.awaitObserved("r3", "standby")
	if slot, again := s.spec("r3"); slot != "1" || again != identity {
		t.Errorf("the next machine is in slot %s with %v: want 1 with %v", slot, again, identity)
	}
	s.c.want(gone("r2"))
	s.c.want(gone("r3"))
	s.c.awaitObserved("r2", "gone")
	s.c.awaitObserved("r3", "gone")
	s.nothingLeft()
}

// A vmm that is killed leaves QEMU running with the disk: it is ended, and the slot free.
func TestAMachineUnderQEMUThatLosesItsVMM(t *testing.T) {
	s := newQEMUSite(t)
	s.start()
	s.c.want(machineUp("r1"))
	s.c.awaitObserved("r1", "standby")
	vmm, err := vm.ReadIdentity(filepath.Join(s.dir, agent.DirVMs, "r1"), vm.FileVMM)
	if err != nil {
		t.Fatal(err)
	}
	qemu, err := vm.ReadIdentity(filepath.Join(s.dir, agent.DirVMs, "r1"), vm.FileWriter)
	if err != nil || !qemu.Alive() {
		t.Fatalf("no QEMU: %v", err)
	}
	if err := syscall.Kill(vmm.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if got := s.c.awaitObserved("r1", "gone"); got.HoldsSlot || got.Failure == "" {
		t.Errorf("reported as %+v", got)
	}
	// It has let go of the bundle, and is gone a moment after that.
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for deadline := time.Now().Add(time.Minute); qemu.Alive(); <-look.C {
		if time.Now().After(deadline) {
			t.Fatal("QEMU runs on")
		}
	}
	s.nothingLeft()
}
