// SPDX-License-Identifier: MIT

package vm_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/internal/flock"
	"github.com/minifleet/minifleet/vm"
)

// TestOwnersWord: the user whom a bundle belongs to cannot have root end the process of
// another by noting it as the bundle's, or by passing the lock on to it.
func TestOwnersWord(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		without(t, "only root can give a bundle to another user")
	}
	dir := create(t, newVMs(t), newSpec("theirs-2"))
	lock, err := vm.AcquireLock(within(t), dir)
	if err != nil {
		t.Fatal(err)
	}
	// For good: a child that is being forked in that moment has it too.
	defer flock.Release(lock.File())
	stranger := exec.CommandContext(t.Context(), "sleep", "100000")
	stranger.ExtraFiles = []*os.File{lock.File()}
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	defer stranger.Wait()
	defer stranger.Process.Kill()
	known := identify(t, stranger.Process.Pid)
	for _, name := range []string{vm.FileVMM, vm.FileWriter} {
		if err := vm.WriteIdentity(dir, name, known); err != nil {
			t.Fatal(err)
		}
		if got, err := vm.ReadIdentity(dir, name); got != known || err != nil {
			t.Errorf("%s of root's bundle: %v, %v", name, got, err)
		}
	}
	if err := os.Lchown(dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{vm.FileVMM, vm.FileWriter} {
		if got, err := vm.ReadIdentity(dir, name); err == nil || !strings.Contains(err.Error(), "of user 0") {
			t.Errorf("%s of another's bundle: %v, %v", name, got, err)
		}
	}
	if m, err := vm.Adopt(within(t), dir); !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("adopted %v, %v", m, err)
	}
	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := vm.EndWriter(short, dir); !errors.Is(err, vm.ErrLocked) {
		t.Errorf("EndWriter: %v", err)
	}
	if !known.Alive() {
		t.Error("a process of another user was killed")
	}
}

// TestFilesOfABundle: nothing in the place of a bundle's file holds its reader up, or
// leads him elsewhere.
func TestFilesOfABundle(t *testing.T) {
	t.Parallel()
	dir := create(t, newVMs(t), newSpec("files-1"))
	path := filepath.Join(dir, vm.FileVMM)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := vm.ReadIdentity(dir, vm.FileVMM); err == nil || !strings.Contains(err.Error(), "no regular file") {
		t.Errorf("a pipe: %v", err)
	}
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	if err := errors.Join(os.Remove(path), os.Symlink(elsewhere, path), os.WriteFile(elsewhere, []byte(`{"schema":1,"pid":2}`), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := vm.ReadIdentity(dir, vm.FileVMM); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a link: %v", err)
	}
}
