// SPDX-License-Identifier: MIT

package vz

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/internal/leakcheck"
	"github.com/minifleet/minifleet/vm"
	"github.com/minifleet/minifleet/vm/options"
	"github.com/minifleet/minifleet/vm/vmtest"
)

func TestMain(m *testing.M) {
	if os.Getenv("MINIFLEET_TEST_IMAGE") != "" {
		os.Exit(m.Run()) // a real machine's bindings keep goroutines for ever
	}
	leakcheck.Main(unplugged{m})
}

// unplugged closes the placeholders after the tests: they are meant to last as long as
// their process.
type unplugged struct{ *testing.M }

func (u unplugged) Run() int {
	code := u.M.Run()
	var null, st unix.Stat_t
	if err := unix.Stat("/dev/null", &null); err != nil {
		panic(err)
	}
	for n := 3; n <= plugLimit; n++ {
		if unix.Fstat(n, &st) == nil && st.Rdev == null.Rdev && st.Mode == null.Mode {
			_ = unix.Close(n)
		}
	}
	return code
}

// goodModel is a hardware model as the framework stores it.
const goodModel = "bplist00\xd3\x01\x02\x03\x04\x05\x09" +
	"\x5f\x10\x19DataRepresentationVersion" + "\x5f\x10\x12MinimumSupportedOS" + "\x5f\x10\x0fPlatformVersion" +
	"\x10\x01" + "\xa3\x06\x07\x08" + "\x10\x0d" + "\x10\x00" + "\x10\x00" + "\x10\x02" +
	"\x08\x0f\x2b\x40\x52\x54\x58\x5a\x5c\x5e" +
	"\x00\x00\x00\x00\x00\x00\x01\x01\x00\x00\x00\x00\x00\x00\x00\x0a\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x60"

const goodOptions = `{"guest":"macos","ecid":"7","mac":"02:00:00:00:00:07"}`

// newBundle makes the bundle of a macOS guest, with a change to its spec and image files.
func newBundle(t *testing.T, change func(*vm.Spec, map[string]string)) string {
	t.Helper()
	vms, err := os.MkdirTemp("", "mf") //nolint:usetesting // its path is too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(vms) })
	files := map[string]string{options.FileDisk: "disk", options.FileNVRAM: "nvram", options.FileHardwareModel: goodModel}
	spec := vm.Spec{
		ID: "m-1", Backend: vm.BackendVZ, CPUs: 4, MemoryMiB: 8192, MaxLife: time.Hour,
		Options: json.RawMessage(goodOptions),
	}
	if change != nil {
		change(&spec, files)
	}
	image := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(image, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := vm.Create(t.Context(), vm.CreateConfig{Dir: vms, ImageDir: image, Spec: spec, Clone: vm.CloneAllowCopy})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func say(ctx context.Context, c net.Conn, line string) error {
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(c, line); err != nil {
		return err
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && answer != "answer\n" {
		err = fmt.Errorf("the guest answers %q", answer)
	}
	return err
}

// TestConformance runs the suite that every backend passes on simulated machines, so that
// everything but the calls into the framework has run.
func TestConformance(t *testing.T) {
	for name, version := range map[string]Version{"macOS 26": {26, 0, 0}, "macOS 13, without saved states": {13, 5, 0}} {
		t.Run(name, func(t *testing.T) {
			mac := newSimulatedMac()
			mac.is.version = version
			vmtest.Run(t, vmtest.Harness{
				Backend:   newBackend(Config{}, mac),
				NewBundle: func(t *testing.T) string { return newBundle(t, nil) },
				BadBundle: func(t *testing.T) string {
					return newBundle(t, func(_ *vm.Spec, files map[string]string) { delete(files, options.FileNVRAM) })
				},
				Ask:  func(ctx context.Context, c net.Conn) error { return say(ctx, c, "ask") },
				End:  func(ctx context.Context, c net.Conn) error { return say(ctx, c, "end") },
				Twin: func(t *testing.T, _ string) string { return newBundle(t, nil) },
			})
		})
	}
}
