// SPDX-License-Identifier: MIT

package site_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/internal/testimage"
	"github.com/minifleet/minifleet/vm"
)

// What a run of all tests has to see, each without a failure.
const (
	wantBoots    = 100
	wantRestores = 50
)

// boots counts the machines that have booted in other tests before TestManyMachines.
var boots atomic.Int64

// countBoots counts the machines that have booted in a site, and holds it to the others
// having died of what was done to them; intended is what the failures of those say, if it
// looks like one of their own.
func (s *site) countBoots(intended string) {
	s.t.Helper()
	booted := 0
	for _, r := range s.list("runners?all=true&limit=1000") {
		if r.Attempts > 0 { // a standby asks for its config
			booted++
		}
		for _, own := range []string{"did not answer within", "hypervisor_crashed", "guest_ended", "backend_failed", "restore_failed", "bad_configuration"} {
			if strings.Contains(r.Failure, own) && (intended == "" || !strings.Contains(r.Failure, intended)) {
				s.t.Errorf("a machine has failed of itself: %s", r.Failure)
			}
		}
	}
	boots.Add(int64(booted))
	s.t.Logf("%d machines have booted", booted)
}

// Machines boot and continue from saved states many times over, two at once, and not one
// fails: as many as it takes, with those of all other tests, for the numbers above. Each is
// cloned, answers, runs a command, and leaves nothing.
func TestManyMachines(t *testing.T) {
	t.Parallel()
	images, bin := testimage.Need(t), programs(t)
	machineTests.Wait()
	takeRoom(t, machineSlots, 2)
	dir := folder(t)
	v, err := agent.NewVMs(agent.VMsConfig{
		Dir: filepath.Join(dir, "vms"), ImagesDir: images.Dir, Backend: vm.BackendQEMU, VMMProgram: filepath.Join(bin, "minifleet-vmm"),
		QEMU: agent.QEMUConfig{Accelerator: "tcg"}, AllowCopy: true, SavedStates: 8 << 30,
	})
	if err != nil {
		t.Fatal(err)
	}
	before, began := boots.Load(), time.Now()
	var booted, restored, number atomic.Int64
	var slots sync.WaitGroup
	for slot := 1; slot <= 2; slot++ {
		slots.Go(func() {
			for first := true; ; first = false {
				cold := first || before+booted.Load() < wantBoots
				if t.Failed() || !cold && restored.Load() >= wantRestores {
					return
				}
				o := agent.Order{
					ID: fmt.Sprintf("m-%d", number.Add(1)), Pool: "p", Slot: slot, Image: testimage.Guest, CPUs: 1, MemoryMiB: 256, Cold: cold && !first,
				}
				switch fromState, err := oneMachine(t.Context(), v, o); {
				case err != nil:
					t.Errorf("%s, in slot %d, after %d boots and %d restores: %v", o.ID, slot, booted.Load(), restored.Load(), err)
				case fromState != !cold:
					t.Errorf("%s continues from a state: %t, want %t", o.ID, fromState, !cold)
				case fromState:
					restored.Add(1)
				default:
					booted.Add(1)
				}
			}
		})
	}
	slots.Wait()
	left, err := os.ReadDir(filepath.Join(dir, "vms"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	t.Logf("%d boots after %d in other tests, %d restores, in %.0f s", booted.Load(), before, restored.Load(), time.Since(began).Seconds())
}

// oneMachine is the life of one machine that has no job. The first of a slot is saved.
func oneMachine(ctx context.Context, v *agent.VMs, o agent.Order) (restored bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	made, err := v.Create(ctx, o, func(string) {})
	if err != nil {
		return false, err
	}
	m := made.(agent.Saved)
	defer m.Release()
	if err := m.Start(ctx); err != nil {
		return false, err
	}
	// What is sent to a guest that boots waits for it; a guest that has a network says more.
	status, err := m.Guest().Status(ctx, 0, 0)
	if err != nil {
		return false, fmt.Errorf("its guest does not answer: %w", err)
	}
	if status.Phase != guest.PhaseReady || status.HasConfig {
		return false, fmt.Errorf("its guest says %+v", status)
	}
	if m.Lacking() && !o.Cold {
		if err := m.Save(ctx, func(context.Context) error { return nil }); err != nil {
			return false, err
		}
	}
	if m.Restored() {
		m.Continued()
	}
	var out strings.Builder
	code, err := m.Guest().(*guest.Client).Exec(ctx, guest.ExecRequest{Argv: []string{"sh", "-c", "echo $((6 * 7))"}}, &out, &out)
	if err != nil || code != 0 || out.String() != "42\n" {
		return false, fmt.Errorf("a command in it: %d, %w, %q", code, err, out.String())
	}
	if err := m.Stop(ctx); err != nil {
		return false, err
	}
	return m.Restored(), m.Remove(ctx)
}
