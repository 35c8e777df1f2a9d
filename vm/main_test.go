// SPDX-License-Identifier: MIT

package vm_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/minifleet/minifleet/internal/freeze"
	"github.com/minifleet/minifleet/internal/leakcheck"
	"github.com/minifleet/minifleet/vm"
	"github.com/minifleet/minifleet/vm/vmtest"
)

// vmmProgram is the real minifleet-vmm, built once. It and the folder are set by
// TestMain before any test runs.
var vmmProgram string

// patience bounds every wait of these tests; none of them takes nearly as long.
const patience = time.Minute

func TestMain(m *testing.M) {
	if vmtest.IsGuest() {
		vmtest.Guest()
	}
	if len(os.Args) == 4 && os.Args[1] == "start-and-die" {
		startAndDie(os.Args[2], os.Args[3])
	}
	leakcheck.Main(withVMM{m})
}

// withVMM builds the vmm before the tests and deletes it after them.
type withVMM struct{ m *testing.M }

func (w withVMM) Run() int {
	dir, err := os.MkdirTemp("", "mf")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	vmmProgram = filepath.Join(dir, "minifleet-vmm")
	build := exec.Command("go", "build", "-o", vmmProgram)
	if raceDetector {
		build.Args, build.Env = append(build.Args, "-race"), append(os.Environ(), "CGO_ENABLED=1")
	}
	build.Args = append(build.Args, "github.com/minifleet/minifleet/cmd/minifleet-vmm")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build minifleet-vmm: %v\n%s", err, out)
		return 1
	}
	return w.m.Run()
}

// startAndDie is an agent that dies right after it has started a machine.
func startAndDie(bundle, vmmProgram string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := vm.Start(ctx, bundle, vmmProgram); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
}

// newVMs makes a folder for bundles. Its path is short enough for sockets; at the end
// nothing may be left in it that runs.
func newVMs(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "mf") //nolint:usetesting // its path is too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		found, err := vm.Scan(context.Background(), dir)
		if err != nil {
			t.Error(err)
		}
		for _, f := range found {
			if f.Condition == vm.Running || f.Condition == vm.Orphaned {
				t.Errorf("%s is left %s", f.Dir, f.Condition)
			}
			if log, err := os.ReadFile(filepath.Join(f.Dir, vm.FileVMMLog)); err == nil && bytes.Contains(log, []byte("DATA RACE")) {
				t.Errorf("the vmm of %s found a data race:\n%s", f.Dir, log)
			}
		}
		os.RemoveAll(dir)
	})
	return dir
}

// newSpec is a machine whose guest is this test binary.
func newSpec(id string, guestArgs ...string) vm.Spec {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return vm.Spec{
		ID: id, Backend: vm.BackendProcess, CPUs: 2, MemoryMiB: 512, MaxLife: time.Hour,
		Process: &vm.ProcessSpec{GuestProgram: self, Args: guestArgs},
	}
}

func create(t *testing.T, vms string, spec vm.Spec) string {
	t.Helper()
	dir, err := vm.Create(t.Context(), vm.CreateConfig{Dir: vms, Spec: spec})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// start starts a machine and stops it after the test.
func start(t *testing.T, dir string) *vm.Machine {
	t.Helper()
	m, err := vm.Start(within(t), dir, vmmProgram)
	if err != nil {
		t.Fatal(err)
	}
	own(t, m)
	return m
}

func own(t *testing.T, m *vm.Machine) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := m.Stop(ctx); err != nil && !errors.Is(err, vm.ErrDetached) {
			t.Error(err)
		}
		m.Detach()
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(m.Dir(), vm.FileVMMLog))
			t.Logf("log of the vmm:\n%s", log)
		}
	})
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// await follows a machine's states until one fits.
func await(t *testing.T, m *vm.Machine, what string, fits func(vm.State) bool) vm.State {
	t.Helper()
	ctx := within(t)
	for revision := int64(0); ; {
		s, err := m.State(ctx, revision, patience)
		if err != nil && ctx.Err() == nil {
			continue // an adopted one may not have its sockets yet
		}
		if err != nil {
			t.Fatalf("waiting for %s: %v", what, err)
		}
		if fits(s) {
			return s
		}
		if s.Phase == vm.PhaseFinal {
			t.Fatalf("waiting for %s: the machine ended: %+v", what, s)
		}
		revision = s.Revision
	}
}

func awaitGuest(t *testing.T, m *vm.Machine) vm.State {
	t.Helper()
	return await(t, m, "the guest", func(s vm.State) bool { return s.GuestReady })
}

func awaitDone(t *testing.T, m *vm.Machine) {
	t.Helper()
	select {
	case <-m.Done():
	case <-time.After(patience):
		t.Fatal("the machine's slot did not become free")
	}
}

// tell sends a request to the guest.
func tell(t *testing.T, m *vm.Machine, method, path string) string {
	t.Helper()
	ctx := within(t)
	c, err := m.DialGuest(ctx)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := vmtest.Call(ctx, c, method, path, "")
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return answer
}

func facts(t *testing.T, m *vm.Machine) vmtest.Facts {
	t.Helper()
	var f vmtest.Facts
	if err := json.Unmarshal([]byte(tell(t, m, "GET", "/facts")), &f); err != nil {
		t.Fatal(err)
	}
	return f
}

// spawnInGuest has the guest start a process that never ends.
func spawnInGuest(t *testing.T, m *vm.Machine, query string) vm.ProcessID {
	t.Helper()
	pid, err := strconv.Atoi(strings.TrimSpace(tell(t, m, "POST", "/spawn"+query)))
	if err != nil {
		t.Fatal(err)
	}
	return identify(t, pid)
}

func identify(t *testing.T, pid int) vm.ProcessID {
	t.Helper()
	id, err := vm.IdentifyProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	if !id.Alive() {
		t.Fatalf("process %d does not run", pid)
	}
	return id
}

func signalTo(t *testing.T, id vm.ProcessID, sig syscall.Signal) {
	t.Helper()
	if !id.Alive() {
		t.Fatalf("process %d does not run", id.PID)
	}
	if err := syscall.Kill(id.PID, sig); err != nil {
		t.Fatal(err)
	}
}

// freezeProcess has a process stand still.
func freezeProcess(t *testing.T, id vm.ProcessID) {
	t.Helper()
	if err := freeze.Process(id.PID); err != nil {
		t.Fatal(err)
	}
}

func wantDead(t *testing.T, what string, id vm.ProcessID) {
	t.Helper()
	if id.Alive() {
		t.Errorf("%s (pid %d) still runs", what, id.PID)
	}
}

func wantLocked(t *testing.T, dir string, want bool) {
	t.Helper()
	if got, err := vm.IsLocked(dir); got != want || err != nil {
		t.Errorf("IsLocked(%s) = %v, %v; want %v", dir, got, err, want)
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	list := []string{}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}
