// SPDX-License-Identifier: MIT

package vm_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/vm"
	"github.com/minifleet/minifleet/vm/vmtest"
)

// TestKilledVMM kills the vmm under an agent that watches: the machine ends and its slot
// becomes free, also if the guest agent does not end by itself, as an emulator would not.
func TestKilledVMM(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{"guest ends by itself": nil, "guest lives on": {vmtest.GuestUndead}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := create(t, newVMs(t), newSpec("kill-1", args...))
			m := start(t, dir)
			awaitGuest(t, m)
			guest := identify(t, facts(t, m).PID)
			stray := spawnInGuest(t, m, "")
			signalTo(t, m.VMM(), syscall.SIGKILL)
			awaitDone(t, m)
			awaitDead(t, guest)
			awaitDead(t, stray)
			wantLocked(t, dir, false)
			if reason, detail := m.Final(); reason != vm.ReasonVMMDied || !strings.Contains(detail, "running") {
				t.Errorf("final: %q, %q", reason, detail)
			}
			if err := m.Stop(t.Context()); err != nil {
				t.Errorf("stop after the end: %v", err)
			}
		})
	}
}

// TestOrphan kills the vmm while no agent is there. What the next agent finds is a disk
// with a writer, which has to go before anything else touches it.
func TestOrphan(t *testing.T) {
	t.Parallel()
	vms := newVMs(t)
	dir := create(t, vms, newSpec("orphan-1", vmtest.GuestUndead))
	m := start(t, dir)
	awaitGuest(t, m)
	guest, vmm := identify(t, facts(t, m).PID), m.VMM()
	stray := spawnInGuest(t, m, "?setsid=true")
	if err := vm.EndWriter(within(t), dir); !errors.Is(err, vm.ErrVMMAlive) {
		t.Errorf("EndWriter while the vmm lives: %v", err)
	}
	m.Detach()
	signalTo(t, vmm, syscall.SIGKILL)
	awaitDead(t, vmm)

	found, err := vm.Scan(within(t), vms)
	if err != nil || len(found) != 1 || found[0].Condition != vm.Orphaned || found[0].State.Phase != vm.PhaseRunning {
		t.Fatalf("scan: %+v, %v", found, err)
	}
	if !guest.Alive() {
		t.Fatal("the guest was to live on")
	}
	if _, err := vm.Adopt(within(t), dir); !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("adopt an orphan: %v", err)
	}
	if err := vm.Remove(within(t), dir); !errors.Is(err, vm.ErrLocked) {
		t.Errorf("remove an orphan: %v", err)
	}
	if err := runVMM(t, dir); err == nil || !strings.Contains(err.Error(), "locked") {
		t.Errorf("a second vmm on an orphan's bundle: %v", err)
	}
	if err := vm.EndWriter(within(t), dir); err != nil {
		t.Fatal(err)
	}
	awaitDead(t, guest)
	if runtime.GOOS == "linux" {
		awaitDead(t, stray)
	}
	wantLocked(t, dir, false)
	if found, err := vm.Scan(within(t), vms); err != nil || len(found) != 1 || found[0].Condition != vm.Ended || found[0].State.Reason != vm.ReasonVMMDied {
		t.Errorf("scan: %+v, %v", found, err)
	}
	if err := vm.Remove(within(t), dir); err != nil {
		t.Fatal(err)
	}
	syscall.Wait4(vmm.PID, nil, 0, nil) // detached: nobody else waits for it
}

// TestOrphanWithoutRecord has the vmm die before it could note who its writer is.
func TestOrphanWithoutRecord(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells who holds a lock")
	}
	t.Parallel()
	dir := create(t, newVMs(t), newSpec("orphan-2", vmtest.GuestUndead))
	m := start(t, dir)
	awaitGuest(t, m)
	guest, vmm := identify(t, facts(t, m).PID), m.VMM()
	m.Detach()
	if err := os.Remove(filepath.Join(dir, vm.FileWriter)); err != nil {
		t.Fatal(err)
	}
	signalTo(t, vmm, syscall.SIGKILL)
	awaitDead(t, vmm)
	if err := vm.EndWriter(within(t), dir); err != nil {
		t.Fatal(err)
	}
	awaitDead(t, guest)
	wantLocked(t, dir, false)
	syscall.Wait4(vmm.PID, nil, 0, nil)
}

// TestPIDProvesNothing notes a living stranger's pid, with another start time, as vmm
// and as writer: neither is it taken for the vmm, nor is it killed.
func TestPIDProvesNothing(t *testing.T) {
	t.Parallel()
	stranger := exec.CommandContext(t.Context(), "sleep", "100000")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	defer stranger.Wait()
	defer stranger.Process.Kill()
	known := identify(t, stranger.Process.Pid)
	old := vm.ProcessID{PID: known.PID, Start: known.Start - 1}
	if old.Alive() {
		t.Error("a pid with another start time is taken for the process")
	}
	if err := old.Kill(); err != nil || !known.Alive() {
		t.Fatalf("kill of an earlier process of the pid: %v, alive %v", err, known.Alive())
	}

	vms := newVMs(t)
	dir := create(t, vms, newSpec("pid-1", vmtest.GuestUndead))
	m := start(t, dir)
	awaitGuest(t, m)
	vmm := m.VMM()
	m.Detach()
	for _, name := range []string{vm.FileVMM, vm.FileWriter} {
		if err := vm.WriteIdentity(dir, name, old); err != nil {
			t.Fatal(err)
		}
	}
	signalTo(t, vmm, syscall.SIGKILL)
	awaitDead(t, vmm)
	if found, err := vm.Scan(within(t), vms); err != nil || len(found) != 1 || found[0].Condition != vm.Orphaned {
		t.Errorf("scan: %+v, %v", found, err)
	}
	if runtime.GOOS == "linux" {
		if err := vm.EndWriter(within(t), dir); err != nil {
			t.Error(err)
		}
	}
	if !known.Alive() {
		t.Error("a stranger was killed")
	}
	syscall.Wait4(vmm.PID, nil, 0, nil)
}

// TestHungVMM stops the vmm's process: it obeys no command and is killed for it.
func TestHungVMM(t *testing.T) {
	t.Parallel()
	dir := create(t, newVMs(t), newSpec("hung-1"))
	m := start(t, dir)
	awaitGuest(t, m)
	guest := identify(t, facts(t, m).PID)
	freezeProcess(t, m.VMM())

	cause := errors.New("the agent shuts down")
	cancelled, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if err := m.Stop(cancelled); !errors.Is(err, cause) || !m.VMM().Alive() {
		t.Fatalf("a cancelled stop: %v, alive %v; want it to give up and kill nothing", err, m.VMM().Alive())
	}
	short, cancelShort := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancelShort()
	if err := m.Stop(short); err != nil {
		t.Fatal(err)
	}
	awaitDone(t, m)
	wantDead(t, "the vmm", m.VMM())
	awaitDead(t, guest)
	wantLocked(t, dir, false)
}

// TestAdoptHungVMM has the next agent find a vmm that hangs: it can still be stopped.
func TestAdoptHungVMM(t *testing.T) {
	t.Parallel()
	dir := create(t, newVMs(t), newSpec("hung-2"))
	m := start(t, dir)
	awaitGuest(t, m)
	m.Detach()
	freezeProcess(t, m.VMM())
	again, err := vm.Adopt(within(t), dir)
	if err != nil {
		t.Fatal(err)
	}
	own(t, again)
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := again.Stop(short); err != nil {
		t.Fatal(err)
	}
	wantDead(t, "the vmm", again.VMM())
	wantLocked(t, dir, false)
}

func TestNothingEscapesTheStop(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("on macOS what leaves the guest's session is out of reach")
	}
	t.Parallel()
	m := start(t, create(t, newVMs(t), newSpec("escape-1")))
	awaitGuest(t, m)
	kin := map[string]vm.ProcessID{
		"child":                      spawnInGuest(t, m, ""),
		"child with its own session": spawnInGuest(t, m, "?setsid=true&aloof=true"),
	}
	if err := m.Stop(within(t)); err != nil {
		t.Fatal(err)
	}
	for what, id := range kin {
		wantDead(t, what, id)
	}
}

func TestNothingSurvivesTheGuest(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("on macOS what leaves the guest's session is out of reach")
	}
	t.Parallel()
	m := start(t, create(t, newVMs(t), newSpec("escape-2")))
	awaitGuest(t, m)
	stray := spawnInGuest(t, m, "?setsid=true&aloof=true")
	signalTo(t, identify(t, facts(t, m).PID), syscall.SIGKILL)
	awaitDone(t, m)
	wantDead(t, "what the guest left", stray)
	if reason, detail := m.Final(); reason != vm.ReasonGuestEnded || !strings.Contains(detail, "killed") {
		t.Errorf("final: %q, %q", reason, detail)
	}
}

func TestOneVMMAndOneLife(t *testing.T) {
	t.Parallel()
	dir := create(t, newVMs(t), newSpec("second-1"))
	m := start(t, dir)
	awaitGuest(t, m)
	before, err := vm.ReadStatus(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := runVMM(t, dir); err == nil || !strings.Contains(err.Error(), "locked") {
		t.Errorf("a second vmm: %v", err)
	}
	if _, err := vm.Start(within(t), dir, vmmProgram); err == nil {
		t.Error("a second Start succeeded")
	}
	if after, err := vm.ReadStatus(dir); err != nil || cmp.Diff(before, after) != "" {
		t.Errorf("the second vmm wrote into the first one's status: %v\n%s", err, cmp.Diff(before, after))
	}
	facts(t, m) // the first machine is well
	if err := m.Stop(within(t)); err != nil {
		t.Fatal(err)
	}
	if err := runVMM(t, dir); err == nil || !strings.Contains(err.Error(), "already been started once") {
		t.Errorf("a second life: %v", err)
	}
	if _, err := vm.Start(within(t), dir, vmmProgram); !errors.Is(err, vm.ErrSecondLife) {
		t.Errorf("a second life by Start: %v", err)
	}
	if reason, _ := m.Final(); reason != vm.ReasonStopped {
		t.Errorf("reason %q", reason)
	}
}

// runVMM runs a vmm by hand and returns its complaint.
func runVMM(t *testing.T, dir string) error {
	t.Helper()
	cmd := exec.CommandContext(within(t), vmmProgram, "run", "--bundle", dir)
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	return errors.New(string(out))
}

// awaitDead returns when the process has ended. It is another process's business to
// wait for it, so the test can only look. One that was killed lets go of the lock, as of all
// its files, a moment before it is gone.
func awaitDead(t *testing.T, id vm.ProcessID) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for ctx := within(t); id.Alive(); {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("process %d does not end", id.PID)
		}
	}
}
