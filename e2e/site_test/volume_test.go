// SPDX-License-Identifier: MIT

package site_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// lacking skips a test whose prerequisite this machine has not; in CI that is a failure.
func lacking(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// volume is a small file system of its own, mounted at a folder.
type volume struct {
	t   *testing.T
	dir string
}

// newVolume makes a file system of so many MiB and inodes and mounts it at dir.
func newVolume(t *testing.T, dir string, mib, inodes int) *volume {
	t.Helper()
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		lacking(t, "only root can mount a small file system, here on Linux")
	}
	device := dir + ".device"
	f, err := os.Create(device)
	if err == nil {
		err = errors.Join(f.Truncate(int64(mib)<<20), f.Close(), os.Mkdir(dir, 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"mkfs.ext4", "-q", "-F", "-m", "0", "-N", fmt.Sprint(inodes), device},
		{"mount", "-o", "loop", device, dir},
	} {
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			lacking(t, "%s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	t.Cleanup(func() {
		// What runs there still is for the site's folder to complain of; it must not keep
		// the device, nor may what a program had open a moment ago.
		if out, err := exec.Command("umount", "--lazy", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
		if err := os.Remove(device); err != nil {
			t.Error(err)
		}
	})
	if err := os.RemoveAll(filepath.Join(dir, "lost+found")); err != nil {
		t.Fatal(err)
	}
	return &volume{t, dir}
}

// fill takes all room, and returns how to give it back.
func (v *volume) fill() (free func()) {
	v.t.Helper()
	path := filepath.Join(v.dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		v.t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; { // down to the last byte
		if _, err := f.Write(make([]byte, size)); errors.Is(err, syscall.ENOSPC) {
			size /= 2
		} else if err != nil {
			v.t.Fatal(err)
		}
	}
	return sync.OnceFunc(func() {
		if err := os.Remove(path); err != nil {
			v.t.Error(err)
		}
	})
}

// crowd takes all inodes, and returns how to give them back.
func (v *volume) crowd() (free func()) {
	v.t.Helper()
	dir := filepath.Join(v.dir, "crowd")
	if err := os.Mkdir(dir, 0o755); err != nil {
		v.t.Fatal(err)
	}
	for i := 0; ; i++ {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
		if errors.Is(err, syscall.ENOSPC) {
			break
		}
		if err = errors.Join(err, f.Close()); err != nil {
			v.t.Fatal(err)
		}
	}
	return sync.OnceFunc(func() {
		if err := os.RemoveAll(dir); err != nil {
			v.t.Error(err)
		}
	})
}
