// SPDX-License-Identifier: MIT

package process_test

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/minifleet/minifleet/internal/leakcheck"
	"github.com/minifleet/minifleet/vm"
	"github.com/minifleet/minifleet/vm/process"
	"github.com/minifleet/minifleet/vm/vmtest"
)

func TestMain(m *testing.M) {
	if vmtest.IsGuest() {
		vmtest.Guest()
	}
	leakcheck.Main(m)
}

// TestConformance runs the suite on the test's own guest, which is this test binary.
func TestConformance(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h := harness(self, "", "POST", "/exit?code=3")
	vmtest.Run(t, h)
}

// TestConformanceWithRealGuest runs the suite on minifleet-guest.
func TestConformanceWithRealGuest(t *testing.T) {
	program := filepath.Join(t.TempDir(), "minifleet-guest")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "github.com/minifleet/minifleet/cmd/minifleet-guest")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the guest: %v\n%s", err, out)
	}
	vmtest.Run(t, harness(program, "runner", "POST", "/v1/shutdown"))
}

func harness(program, runnerDir, endMethod, endPath string) vmtest.Harness {
	return vmtest.Harness{
		Backend: process.Backend(),
		NewBundle: func(t *testing.T) string {
			return newBundle(t, func(s *vm.Spec) {
				s.Process.GuestProgram, s.Process.RunnerDir = program, runnerDir
			})
		},
		BadBundle: func(t *testing.T) string {
			return newBundle(t, func(s *vm.Spec) {
				s.Process.GuestProgram, s.Process.RunnerDir = program, "not/there"
			})
		},
		Ask: func(ctx context.Context, c net.Conn) error {
			_, err := vmtest.Call(ctx, c, "GET", "/v1/health", "")
			return err
		},
		End: func(ctx context.Context, c net.Conn) error {
			_, err := vmtest.Call(ctx, c, endMethod, endPath, "{}")
			return err
		},
	}
}

// newBundle makes a bundle from a tiny image with a runner's folder in it.
func newBundle(t *testing.T, change func(*vm.Spec)) string {
	t.Helper()
	// Not t.TempDir: its path is too long for sockets.
	dir, err := os.MkdirTemp("", "mf") //nolint:usetesting // its path is too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	image := t.TempDir()
	listener := filepath.Join(image, vm.DirRoot, "runner", "bin", "Runner.Listener")
	if err := os.MkdirAll(filepath.Dir(listener), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(listener, []byte("#!/bin/sh\nexit 0\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	spec := vm.Spec{
		ID: "t1", Backend: vm.BackendProcess, CPUs: 1, MemoryMiB: 64, MaxLife: time.Hour,
		Process: &vm.ProcessSpec{},
	}
	change(&spec)
	bundle, err := vm.Create(t.Context(), vm.CreateConfig{Dir: dir, Spec: spec, ImageDir: image, Clone: vm.CloneAllowCopy})
	if err != nil {
		t.Fatal(err)
	}
	return bundle
}
