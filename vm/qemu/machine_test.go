// SPDX-License-Identifier: MIT

//go:build linux

package qemu_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/minifleet/minifleet/internal/leakcheck"
	"github.com/minifleet/minifleet/internal/testimage"
	"github.com/minifleet/minifleet/vm"
	"github.com/minifleet/minifleet/vm/options"
	"github.com/minifleet/minifleet/vm/qemu"
	"github.com/minifleet/minifleet/vm/vmtest"
)

// patience bounds what is certain to come, of an emulated machine on a busy host.
const patience = 5 * time.Minute

// handOver makes the test's own binary the program that hands a connection over.
const handOver = "-hand-over"

func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == handOver {
		if err := qemu.HandOver(os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	leakcheck.Main(m)
}

// missing skips a test, but not in CI, where everything has to be there.
func missing(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// testImage returns an image whose kernel and modules boot.
func testImage(t *testing.T) string {
	t.Helper()
	return testimage.Need(t).Image(testimage.Guest)
}

// initrd appends the test guest to the image's own initial file system, as its first
// program. The kernel unpacks one archive after the other.
var initrd = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "mf")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "init"), "./testdata/guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the test guest: %w\n%s", err, out)
	}
	program, err := os.ReadFile(filepath.Join(dir, "init"))
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	entry := func(name string, mode int, content []byte) {
		fmt.Fprintf(&b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", 0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name + "\x00")
		b.Write(make([]byte, -b.Len()&3))
		b.Write(content)
		b.Write(make([]byte, -b.Len()&3))
	}
	entry("init", 0o100755, program)
	entry("TRAILER!!!", 0, nil)
	return b.Bytes(), nil
})

// bundle makes a bundle that boots the test guest.
func bundle(t *testing.T, change func(*options.QEMU)) string {
	t.Helper()
	image := testImage(t)
	more, err := initrd()
	if err != nil {
		t.Fatal(err)
	}
	first, err := os.ReadFile(filepath.Join(image, options.FileInitrd))
	if err != nil {
		t.Fatal(err)
	}
	first = append(first, make([]byte, -len(first)&511)...)
	dir := t.TempDir()
	for name, b := range map[string][]byte{
		options.FileInitrd:      append(first, more...),
		options.FileDisk:        make([]byte, 1<<20),
		options.FileCommandLine: []byte("console=ttyS0 quiet panic=-1 nokaslr mitigations=off audit=0 apparmor=0 lsm= cryptomgr.notests i8042.noaux no_timer_check\n"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("cp", filepath.Join(image, options.FileKernel), dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	o := options.QEMU{Identity: options.Identity{MAC: "02:00:00:00:00:07"}, Network: options.NetworkIsolated, Accelerator: "tcg", Console: true}
	if change != nil {
		change(&o)
	}
	return create(t, dir, o)
}

func create(t *testing.T, image string, o options.QEMU) string {
	t.Helper()
	vms, err := os.MkdirTemp("", "mf") //nolint:usetesting // its path is too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(vms) })
	return createIn(t, vms, image, o)
}

// createIn makes a bundle of an image in a folder.
func createIn(t *testing.T, vms, image string, o options.QEMU) string {
	t.Helper()
	b, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := vm.Create(t.Context(), vm.CreateConfig{
		Dir: vms, ImageDir: image, Clone: vm.CloneAllowCopy,
		Spec: vm.Spec{ID: "m-1", Backend: vm.BackendQEMU, CPUs: 1, MemoryMiB: 256, MaxLife: time.Hour, Options: b},
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func backend(t *testing.T) vm.Backend {
	t.Helper()
	return backendWith(t, 15*time.Second)
}

// backendWith is a backend whose machines wait so long for room on a full volume.
func backendWith(t *testing.T, roomTime time.Duration) vm.Backend {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return qemu.Backend(qemu.Config{HandOver: []string{self, handOver}, RoomTime: roomTime})
}

// ask makes one request over a stream that stays open.
func ask(ctx context.Context, c net.Conn) error {
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := io.WriteString(c, "GET /v1/health HTTP/1.1\r\nHost: guest\r\n\r\n"); err != nil {
		return err
	}
	var answer []byte
	for !bytes.HasSuffix(answer, []byte("{}")) {
		b := make([]byte, 4096)
		n, err := c.Read(b)
		if err != nil {
			return fmt.Errorf("%w after %q", err, answer)
		}
		answer = append(answer, b[:n]...)
	}
	return c.SetDeadline(time.Time{})
}

func TestConformance(t *testing.T) {
	testImage(t)
	vmtest.Run(t, vmtest.Harness{
		Backend:   backend(t),
		NewBundle: func(t *testing.T) string { return bundle(t, nil) },
		BadBundle: func(t *testing.T) string {
			dir := bundle(t, nil)
			if err := os.Truncate(filepath.Join(dir, options.FileDisk), 0); err != nil {
				t.Fatal(err)
			}
			return dir
		},
		Ask: ask,
		End: func(ctx context.Context, c net.Conn) error {
			_, err := vmtest.Call(ctx, c, "POST", "/off", "")
			return err
		},
		Twin:     twin,
		Patience: patience,
	})
}

// twin makes a bundle of the disk of another.
func twin(t *testing.T, dir string) string {
	t.Helper()
	spec, err := vm.ReadSpec(dir)
	if err != nil {
		t.Fatal(err)
	}
	o, err := options.ParseQEMU(spec.Options)
	if err != nil {
		t.Fatal(err)
	}
	image := t.TempDir()
	for _, name := range []string{options.FileDisk, options.FileKernel, options.FileInitrd, options.FileCommandLine} {
		if out, err := exec.Command("cp", filepath.Join(dir, name), image).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	return create(t, image, o)
}
