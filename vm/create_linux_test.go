// SPDX-License-Identifier: MIT

package vm_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/vm"
)

// asNobody runs f without root's right to pass over permissions, if the test has it.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		// The identity belongs to the thread, which is not unlocked and so ends with the
		// goroutine.
		runtime.LockOSThread()
		if _, err := unix.SetfsgidRetGid(65534); err != nil {
			t.Error(err)
			return
		}
		if _, err := unix.SetfsuidRetUid(65534); err != nil {
			t.Error(err)
			return
		}
		f()
	}()
	<-done
}

func TestReadOnlyFolder(t *testing.T) {
	vms := newVMs(t)
	if err := os.Chmod(vms, 0o555); err != nil {
		t.Fatal(err)
	}
	asNobody(t, func() {
		_, err := vm.Create(t.Context(), vm.CreateConfig{Dir: vms, Spec: newSpec("ro-1")})
		if !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), vms) {
			t.Errorf("create: %v; want a refusal that names the folder", err)
		}
		if err := vm.ProbeClone(vms, vms); !errors.Is(err, os.ErrPermission) || errors.Is(err, vm.ErrCloneUnsupported) {
			t.Errorf("probe: %v", err)
		}
		if found, err := vm.Scan(t.Context(), vms); err != nil || len(found) != 0 {
			t.Errorf("scan: %v, %v", found, err)
		}
	})
}

// TestRemoveWhatAJobMadeReadOnly deletes folders that forbid writing, as module caches do.
func TestRemoveWhatAJobMadeReadOnly(t *testing.T) {
	vms := newVMs(t)
	if err := os.Chmod(vms, 0o777); err != nil {
		t.Fatal(err)
	}
	asNobody(t, func() {
		dir, err := vm.Create(t.Context(), vm.CreateConfig{Dir: vms, Spec: newSpec("ro-2")})
		if err != nil {
			t.Error(err)
			return
		}
		deep := filepath.Join(dir, vm.DirRoot, "cache", "mod")
		if err := os.MkdirAll(deep, 0o700); err != nil {
			t.Error(err)
			return
		}
		for _, d := range []string{deep, filepath.Dir(deep)} {
			if err := os.WriteFile(filepath.Join(d, "file"), nil, 0o400); err != nil {
				t.Error(err)
			}
			if err := os.Chmod(d, 0o555); err != nil {
				t.Error(err)
			}
		}
		if err := os.RemoveAll(deep); err == nil {
			t.Error("the test's folder is not protected")
		}
		if err := vm.Remove(t.Context(), dir); err != nil {
			t.Error(err)
		}
	})
	if left := names(t, vms); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// TestRemoveGoesOn: a deletion that something kept from its end is done when it is asked for
// again, and not called done before.
func TestRemoveGoesOn(t *testing.T) {
	vms := newVMs(t)
	dir, err := vm.Create(t.Context(), vm.CreateConfig{Dir: vms, Spec: newSpec("held-1")})
	if err != nil {
		t.Fatal(err)
	}
	held := filepath.Join(dir, "held")
	if err := os.Mkdir(held, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", held, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("nothing can be mounted here: %v", err)
	}
	others := ".trash-held-1-2-AAAAAAAA"
	if err := os.Mkdir(filepath.Join(vms, others), 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := vm.Remove(t.Context(), dir); !errors.Is(err, unix.EBUSY) {
			t.Errorf("remove: %v", err)
		}
	}
	if left := names(t, vms); len(left) != 2 {
		t.Fatalf("left: %v", left)
	}
	moved, err := filepath.Glob(filepath.Join(vms, ".trash-held-1-????????", "held"))
	if err != nil || len(moved) != 1 {
		t.Fatalf("%v, %v", moved, err)
	}
	if err := unix.Unmount(moved[0], 0); err != nil {
		t.Fatal(err)
	}
	if err := vm.Remove(t.Context(), dir); err != nil {
		t.Error(err)
	}
	if left := names(t, vms); len(left) != 1 || left[0] != others {
		t.Errorf("left: %v", left)
	}
}

func TestFullVolume(t *testing.T) {
	vms := newVMs(t)
	if err := unix.Mount("none", vms, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("a small volume cannot be mounted here: %v", err)
	}
	defer unix.Unmount(vms, unix.MNT_DETACH)
	image := t.TempDir()
	if err := os.WriteFile(filepath.Join(image, "disk.img"), make([]byte, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := vm.Create(t.Context(), vm.CreateConfig{Dir: vms, Spec: newSpec("full-1"), ImageDir: image, Clone: vm.CloneAllowCopy})
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "is full") {
		t.Errorf("create: %v", err)
	}
	if left := names(t, vms); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	// Across volumes there is no copy-on-write, and without leave to copy it is refused.
	_, err = vm.Create(t.Context(), vm.CreateConfig{Dir: vms, Spec: newSpec("full-2"), ImageDir: image})
	if !errors.Is(err, vm.ErrCloneUnsupported) {
		t.Errorf("create across volumes: %v", err)
	}
}

// without skips a test for what the machine lacks; under CI that is a failure.
func without(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// TestReflink clones on a file system that can.
func TestReflink(t *testing.T) {
	mkfs, err := exec.LookPath("mkfs.xfs")
	if err != nil || os.Geteuid() != 0 {
		without(t, "needs root and mkfs.xfs (Debian: apt-get install xfsprogs) to mount a volume with copy-on-write")
	}
	volume := filepath.Join(t.TempDir(), "xfs.img")
	write(t, volume, "")
	if err := os.Truncate(volume, 1<<30); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), mkfs, "-q", "-m", "reflink=1", volume).CombinedOutput(); err != nil {
		without(t, "mkfs.xfs: %v: %s", err, out)
	}
	vms := newVMs(t)
	if out, err := exec.CommandContext(t.Context(), "mount", "-o", "loop,discard", volume, vms).CombinedOutput(); err != nil {
		without(t, "mount: %v: %s", err, out)
	}
	defer func() {
		if out, err := exec.Command("umount", vms).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	}()
	if err := vm.ProbeClone(vms, vms); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(vms, ".image")
	if err := os.Mkdir(image, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(image, "disk.img"), make([]byte, 64<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	var before, after unix.Statfs_t
	unix.Sync()
	if err := unix.Statfs(vms, &before); err != nil {
		t.Fatal(err)
	}
	var last vm.Progress
	dir, err := vm.Create(t.Context(), vm.CreateConfig{
		Dir: vms, Spec: newSpec("cow-1"), ImageDir: image, Progress: func(p vm.Progress) { last = p },
	})
	if err != nil {
		t.Fatal(err)
	}
	unix.Sync()
	if err := unix.Statfs(vms, &after); err != nil {
		t.Fatal(err)
	}
	if used := int64(before.Bfree-after.Bfree) * before.Bsize; used > 8<<20 || last.Copying {
		t.Errorf("the clone of 64 MiB took %d bytes (%+v)", used, last)
	}
	if err := vm.Remove(t.Context(), dir); err != nil {
		t.Error(err)
	}
}
