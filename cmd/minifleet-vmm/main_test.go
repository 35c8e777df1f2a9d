// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/internal/leakcheck"
	"github.com/minifleet/minifleet/vm"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

func start(ctx context.Context, args ...string) (stdout, stderr string, err error) {
	var out, errs bytes.Buffer
	err = run(ctx, args, strings.NewReader(""), &out, &errs, func(string) string { return "" })
	return out.String(), errs.String(), err
}

func TestCommandLine(t *testing.T) {
	for name, tt := range map[string]struct {
		args []string
		out  string
		err  string
	}{
		"version":              {[]string{"version"}, "minifleet-vmm", ""},
		"help":                 {[]string{"--help"}, "run --bundle", ""},
		"help of run":          {[]string{"run", "--help"}, "--bundle=DIR", ""},
		"no command":           {nil, "", "--help"},
		"no bundle":            {[]string{"run"}, "", "--bundle"},
		"unknown flag":         {[]string{"run", "--bundle", "/x", "--fast"}, "", "--fast"},
		"bundle is not there":  {[]string{"run", "--bundle", "/no/such/bundle-1"}, "", "no such file"},
		"probe not on a Mac":   {[]string{"probe"}, "FAIL  host", "needs a Mac"},
		"descriptor reserved":  {[]string{"run", "--bundle", "/x", "--ready-fd", "1"}, "", "3 or above"},
		"descriptor not there": {[]string{"run", "--bundle", "/x", "--ready-fd", "999"}, "", "not an open descriptor"},
	} {
		t.Run(name, func(t *testing.T) {
			out, _, err := start(t.Context(), tt.args...)
			if !strings.Contains(out, tt.out) {
				t.Errorf("output %q, want %q in it", out, tt.out)
			}
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("error %v, want %q in it", err, tt.err)
			}
		})
	}
}

// TestRunByHand runs a bundle without an agent until the machine is told to end.
func TestRunByHand(t *testing.T) {
	vms, err := os.MkdirTemp("", "mf") //nolint:usetesting // its path is too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(vms)
	spec := vm.Spec{
		ID: "hand-1", Backend: vm.BackendProcess, CPUs: 1, MemoryMiB: 1, MaxLife: time.Hour,
		Process: &vm.ProcessSpec{GuestProgram: "/bin/cat", BootDelay: time.Hour},
	}
	dir, err := vm.Create(t.Context(), vm.CreateConfig{Dir: vms, Spec: spec})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, []string{"run", "--bundle", dir}, strings.NewReader(""), io.Discard, w, os.Getenv)
		w.Close()
	}()
	line := make([]byte, 4096)
	n, err := r.Read(line)
	if err != nil || !strings.Contains(string(line[:n]), "NO ISOLATION") {
		t.Errorf("the first line of the log: %q, %v", line[:n], err)
	}
	cancel()
	io.Copy(io.Discard, r)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	states, err := vm.ReadStatus(dir)
	if err != nil || len(states) == 0 || states[len(states)-1].Reason != vm.ReasonStopped {
		t.Errorf("status: %+v, %v", states, err)
	}
}
