// SPDX-License-Identifier: MIT

//go:build linux

package qemu_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/vm"
	"github.com/minifleet/minifleet/vm/options"
)

// writes has the guest write 64 MiB to its disk.
const writes = `{"argv": ["sh", "-c", "dd if=/dev/zero of=/root/filler bs=1M count=64 && sync && echo written"], "timeout_seconds": 300}`

// smallVolume mounts a volume on which a VM of the image has little room, and fills it.
func smallVolume(t *testing.T) (dir, filler string) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("a small volume is mounted: run this as root")
		}
		t.Skip("a small volume is mounted: run this as root")
	}
	dir, err := os.MkdirTemp("", "mf") //nolint:usetesting // its path is too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("small", dir, "tmpfs", 0, "size=300m,mode=700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(unix.Unmount(dir, unix.MNT_DETACH), os.Remove(dir)); err != nil {
			t.Error(err)
		}
	})
	return dir, filepath.Join(dir, "filler")
}

// TestFullVolume: a machine whose host's volume is full goes on once there is room, and does
// not hang where there is none.
func TestFullVolume(t *testing.T) {
	image := testImage(t)
	for name, roomTime := range map[string]time.Duration{"room is made": time.Minute, "none is made": 15 * time.Second} {
		t.Run(name, func(t *testing.T) {
			dir, filler := smallVolume(t)
			m := startWith(t, createIn(t, dir, image, options.QEMU{
				Identity: options.Identity{MAC: "02:00:00:00:00:0a"}, Network: options.NetworkIsolated, Accelerator: "tcg",
			}), backendWith(t, roomTime))
			m.call("GET", "/v1/health", "")
			fill(t, filler)
			asked := make(chan string, 1)
			go func() {
				out, err := m.try("POST", "/v1/exec", writes)
				if err != nil {
					out = err.Error()
				}
				asked <- out
			}()
			if name == "room is made" {
				m.awaitHalt()
				if err := os.Remove(filler); err != nil {
					t.Error(err)
				}
				if out := <-asked; !strings.Contains(out, "written") {
					t.Errorf("after room was made: %q", out)
				}
				return
			}
			if e := m.awaitEnd(); e.Reason != vm.ReasonBackendFailed || !strings.Contains(e.Detail, "is full") {
				t.Errorf("it ended with %+v", e)
			}
			<-asked
		})
	}
}

// tellsHalt is in the log when a machine finds its host's volume full.
const tellsHalt = "the machine halts"

// awaitHalt waits until the backend has noticed that the machine could not write. The guest
// says nothing reliable: it is continued every second, and answers in between.
func (m *machine) awaitHalt() {
	m.t.Helper()
	select {
	case <-m.halts:
	case e := <-m.ended:
		m.t.Fatalf("it ended with %+v", e)
	case <-m.ctx.Done():
		m.t.Fatal("the machine did not halt")
	}
}

// fill writes until the volume is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for {
		if _, err := f.Write(make([]byte, 1<<20)); errors.Is(err, syscall.ENOSPC) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}
