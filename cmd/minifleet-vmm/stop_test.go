// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	"context"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/minifleet/minifleet/program"
	"github.com/minifleet/minifleet/vm"
)

// asProgram makes the test's own binary a vmm of the bundle that it names, whose
// machine does not power off.
const asProgram = "MINIFLEET_TEST_AS_VMM"

// powerless is a machine that nothing ends.
type powerless struct{ vm.Instance }

func (powerless) Start(context.Context) error { return nil }
func (powerless) Stop(context.Context) error  { select {} }

func (powerless) Connect(ctx context.Context) (net.Conn, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func powerlessBackend() vm.Backend {
	return vm.Backend{Name: vm.BackendQEMU, Isolation: vm.IsolationVM, Open: func(context.Context, vm.OpenConfig) (vm.Instance, error) {
		return powerless{}, nil
	}}
}

// TestMainAsProgram is the program where asProgram is set.
func TestMainAsProgram(t *testing.T) {
	bundle := os.Getenv(asProgram)
	if bundle == "" {
		t.Skip("runs as a child of TestSecondSignal")
	}
	program.Main("minifleet-vmm", func(ctx context.Context) error {
		return runCommand{Bundle: bundle}.run(ctx, os.Stderr, powerlessBackend())
	})
}

// TestSecondSignal: a vmm whose machine does not power off is gone at the second
// signal, and its exit status says by which.
func TestSecondSignal(t *testing.T) {
	vms, err := os.MkdirTemp("", "mf") //nolint:usetesting // its path is too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(vms)
	spec := vm.Spec{ID: "stuck-1", Backend: vm.BackendQEMU, CPUs: 1, MemoryMiB: 1, MaxLife: time.Hour}
	dir, err := vm.Create(t.Context(), vm.CreateConfig{Dir: vms, Spec: spec})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestMainAsProgram$")
	cmd.Env = append(os.Environ(), asProgram+"="+dir)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	awaitPhase(t, dir, vm.PhaseRunning)
	cmd.Process.Signal(syscall.SIGTERM)
	lines := bufio.NewScanner(stderr)
	for lines.Scan() && !strings.Contains(lines.Text(), "stopping: signal again") {
	}
	if !strings.Contains(lines.Text(), "finishing=") || !strings.Contains(lines.Text(), "at_most=25s") {
		t.Errorf("it says %q", lines.Text())
	}
	awaitPhase(t, dir, vm.PhaseStopping)
	cmd.Process.Signal(syscall.SIGTERM)
	for lines.Scan() {
	}
	cmd.Wait()
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGTERM {
		t.Errorf("it ended with %v, not by the second signal", cmd.ProcessState)
	}
}

// awaitPhase waits until a machine's status says that it is in a phase.
func awaitPhase(t *testing.T, dir string, want vm.Phase) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for over := time.Now().Add(time.Minute); time.Now().Before(over); <-tick.C {
		states, _ := vm.ReadStatus(dir) // being written perhaps
		if len(states) > 0 && states[len(states)-1].Phase == want {
			return
		}
	}
	t.Fatalf("the machine is not %s within a minute", want)
}
