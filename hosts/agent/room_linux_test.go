// SPDX-License-Identifier: MIT

package agent_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/vm"
)

// volume mounts a small volume, which has no copy-on-write clones.
func (h *host) volume(name, size string) {
	h.t.Helper()
	dir := filepath.Join(h.dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := unix.Mount("none", dir, "tmpfs", 0, "size="+size); err != nil {
		if os.Getenv("CI") == "true" {
			h.t.Fatalf("a small volume cannot be mounted here: %v", err)
		}
		h.t.Skipf("a small volume cannot be mounted here: %v", err)
	}
	h.t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			h.t.Error(err)
		}
	})
}

func TestThereIsRoomBeforeACloneIsMade(t *testing.T) {
	t.Parallel()
	h := newHost(t, vm.BackendQEMU)
	h.volume("vms", "6m")
	h.write("images/debian/disk.img", strings.Repeat("x", 4<<20))
	h.cfg.Dir = filepath.Join(h.dir, "vms", "a")
	create := func(id string) error {
		m, err := h.vms().Create(t.Context(), agent.Order{ID: id, Slot: 1, Image: "debian"}, func(string) {})
		if err == nil {
			m.Release()
		}
		return err
	}
	h.cfg.DiskReserve = 3 << 20 // with the copy that is more than there is
	err := create("a")
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "6 MiB free") && !strings.Contains(err.Error(), "5 MiB free") ||
		!strings.Contains(err.Error(), "needs 7 MiB") || !strings.Contains(err.Error(), "disk_reserve_mib") {
		t.Errorf("with a reserve of 3 MiB: %v", err)
	}
	h.cfg.DiskReserve = 0 // so 1 MiB
	if err := create("b"); err != nil {
		t.Errorf("with a quarter of the image in reserve: %v", err)
	}
	if err := create("c"); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "needs 5 MiB") {
		t.Errorf("a second time: %v", err)
	}
	left, err := os.ReadDir(h.cfg.Dir)
	if err != nil || len(left) != 1 || left[0].Name() != "b" {
		t.Errorf("left: %v, %v: want b alone", left, err)
	}
}

func TestImagesOnAnotherVolume(t *testing.T) {
	t.Parallel()
	h := newHost(t, vm.BackendQEMU)
	h.volume("vms", "6m")
	h.cfg.AllowCopy = false
	if _, err := agent.NewVMs(h.cfg); err == nil || !strings.Contains(err.Error(), "images_dir is on another volume") || !strings.Contains(err.Error(), "allow_copy") {
		t.Errorf("without leave to copy: %v", err)
	}
	left, err := os.ReadDir(h.cfg.ImagesDir)
	if err != nil || len(left) != 2 {
		t.Errorf("the look has left something among the images: %v, %v", left, err)
	}
	h.cfg.AllowCopy = true
	h.create(h.vms(), agent.Order{ID: "a", Slot: 1, Image: "debian"})
}
