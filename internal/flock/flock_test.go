// SPDX-License-Identifier: MIT

package flock_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/internal/flock"
	"github.com/minifleet/minifleet/internal/leakcheck"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

func TestLock(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lock")
	if _, err := flock.Open(path, os.O_RDWR, 0, unix.LOCK_SH); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	open := func(how int) (*os.File, error) { return flock.Open(path, os.O_RDWR|os.O_CREATE, 0o600, how) }
	alone, err := open(unix.LOCK_EX)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := open(unix.LOCK_SH); !errors.Is(err, flock.ErrHeld) {
		t.Errorf("beside one that has it alone: %v", err)
	}
	heir, err := unix.Dup(int(alone.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	flock.Release(alone)
	shared, err := open(unix.LOCK_SH)
	if err != nil {
		t.Errorf("after it was given up, though another descriptor is open: %v", err)
	}
	if err := unix.Close(heir); err != nil {
		t.Error(err)
	}
	second, err := open(unix.LOCK_SH)
	if err != nil {
		t.Errorf("two who share it: %v", err)
	}
	if _, err := open(unix.LOCK_EX); !errors.Is(err, flock.ErrHeld) {
		t.Errorf("alone beside two who share it: %v", err)
	}
	second.Close()
	if err := flock.Try(shared, unix.LOCK_EX); err != nil {
		t.Errorf("the last one takes it alone: %v", err)
	}
	shared.Close()
	link := path + "-link"
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if _, err := flock.Open(link, os.O_RDWR, 0, unix.LOCK_SH); err == nil {
		t.Error("a link was followed")
	}
}
