// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/internal/leakcheck"
)

// TestMain lets this program be the listener inside a VM, as the real one is.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == listenerWord {
		os.Exit(listener(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == imagesWord {
		if err := imagesProgram(os.Args[2:], os.Stdout, os.Stderr); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	leakcheck.Main(m)
}

// Every figure is measured, with a few jobs each. What the times are is nobody's concern
// here.
func TestBench(t *testing.T) {
	programs := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", programs+"/", "./cmd/minifleet", "./cmd/minifleet-agent", "./cmd/minifleet-vmm", "./cmd/minifleet-guest")
	build.Dir = filepath.Join("..", "..")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	// Sockets lie below the folder of the measurement, so its path is short.
	short, err := os.MkdirTemp("", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(short) })
	var out, complaints bytes.Buffer
	err = bench(t.Context(), []string{"-programs", programs, "-payload", "../../webhook/testdata/job_queued.json", "-image", "../bin/images/testlinux", "-dir", short, "-scale", "0.003"}, &out, &complaints)
	if err != nil {
		t.Fatalf("%v\n%s%s", err, &out, &complaints)
	}
	table := out.String()[strings.LastIndex(out.String(), "verdict"):]
	for _, figure := range []string{
		"webhook stored and answered", "burst of 1,000", "webhook to assignment", "200 jobs at once", "webhook to listener started",
		"slot free", "webhooks delivered", "never sent", "running: failed", "deliveries pulled", "all assigned", "at its peak", "idle: controller's memory", "CPU over", "one more job on", "jobs in a row",
		"descriptors", "goroutines", "database", "sparse, on", "written, on", "on xfs", "on btrfs", "beyond QEMU by hand", "stop to slot free",
		"restore to guest's answer", "everything gone again", "first push", "the same image again", "SHA-256", "of a plain download",
		"writes to the same disk", "process that pulls", "a line of 300 MB/s", "changed chunks' size", "512 MiB layers move", "cached image to bundle",
	} {
		i := strings.Index(table, figure)
		if i < 0 {
			t.Errorf("no figure %q", figure)
			continue
		}
		line, _, _ := strings.Cut(table[i:], "\n")
		if !strings.ContainsAny(line, "0123456789") && !strings.HasSuffix(line, "skipped") {
			t.Errorf("no number in %q", line)
		}
		if strings.HasSuffix(line, "skipped") && os.Getenv("CI") == "true" && (strings.Contains(line, "make test-image") || strings.Contains(line, "QEMU is not")) {
			t.Errorf("CI skips %q", line)
		}
	}
	for _, word := range []string{"commit", "machine", "database", "synchronous=FULL", "load"} {
		if !strings.Contains(out.String(), word) {
			t.Errorf("the header does not tell of %q", word)
		}
	}
	if left, err := os.ReadDir(short); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestArguments(t *testing.T) {
	for name, args := range map[string][]string{
		"an unknown figure": {"-only", "speed"},
		"a scale of zero":   {"-scale", "0"},
		"a scale above one": {"-scale", "2"},
		"a word":            {"webhook"},
		"no programs":       {"-programs", t.TempDir()},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			if err := bench(t.Context(), append(args, "-dir", t.TempDir()), &out, &out); err == nil {
				t.Error("no error")
			}
		})
	}
}

func TestTimes(t *testing.T) {
	at := func(ms ...int) (list []time.Time) {
		for _, n := range ms {
			list = append(list, time.UnixMilli(int64(n)))
		}
		return list
	}
	if got := inOrder(at(30, 10, 20), at(21, 35, 12)); !slices.Equal(got, times{2e6, 1e6, 5e6}) {
		t.Errorf("in order: %v", got)
	}
	var hundred times
	for i := range 100 {
		hundred = append(hundred, time.Duration(100-i)*time.Millisecond)
	}
	if got, want := hundred.String(), "p50 51.0 ms, p99 100.0 ms, max 100.0 ms, n 100"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
