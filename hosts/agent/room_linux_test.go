// SPDX-License-Identifier: MIT

package agent_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/internal/testimage"
	"github.com/minifleet/minifleet/vm"
	"github.com/minifleet/minifleet/vm/states"
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

// Saved states only save time: no VM is refused for the room that they take.
func TestSavedStatesMakeRoom(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath(testimage.QEMU); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	h := newHost(t, vm.BackendQEMU)
	h.volume("vms", "6m")
	h.write("images/debian/disk.img", strings.Repeat("x", 1<<20))
	h.cfg.Dir, h.cfg.DiskReserve, h.cfg.SavedStates = filepath.Join(h.dir, "vms", "a"), 3<<20, 1<<30
	build, err := states.HostBuild(t.Context(), vm.BackendQEMU, testimage.QEMU, "")
	if err != nil {
		t.Fatal(err)
	}
	program, err := states.ProgramVersion(h.cfg.VMMProgram)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(h.dir, "vms", "states")
	store, err := states.Open(states.Config{Dir: dir, MaxBytes: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	key := states.Key{Backend: vm.BackendQEMU, Host: build, Image: "sha256:1", CPUs: 1, MemoryMiB: 1, VMM: program}
	for slot := 1; slot <= 2; slot++ {
		err := store.Save(t.Context(), slot, key, func(_ context.Context, dir string) error {
			return errors.Join(os.Mkdir(filepath.Join(dir, vm.DirDisks), 0o700), os.Mkdir(filepath.Join(dir, vm.DirState), 0o700),
				os.WriteFile(filepath.Join(dir, vm.DirState, "memory"), make([]byte, 1<<20), 0o600))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	h.create(h.vms(), agent.Order{ID: "a", Slot: 1, Image: "debian"})
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("%d states are left, want 1: no more go than have to, %v", len(left), err)
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
