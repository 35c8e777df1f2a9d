// SPDX-License-Identifier: MIT

package vm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/internal/flock"
)

// ErrLocked says that a bundle's lock is held: its machine, or something that
// writes to its disk, still runs.
var ErrLocked = errors.New("the bundle is locked by a machine that still runs")

// Lock is a held lock of a bundle. It is an flock: it belongs to the open file, so
// every process that inherits the descriptor holds it too, and it ends when the last
// of them has closed it or has ended, however it ended.
type Lock struct{ file *os.File }

// File is the descriptor to hand to whatever writes to the disk.
func (l *Lock) File() *os.File { return l.file }

// Close gives up this process's share. It does not unlock: a writer that inherited
// the descriptor goes on holding the lock.
func (l *Lock) Close() error { return l.file.Close() }

// release unlocks for good, whoever else has the descriptor. It is for locks that were taken
// to look or to delete, and never given on.
func (l *Lock) release() { flock.Release(l.file) }

// lockWait is how long AcquireLock tries. A lock can be taken for a moment by someone
// who only looks; a machine holds it far longer.
const lockWait = 500 * time.Millisecond

// AcquireLock takes the lock of the bundle dir for the machine's whole life. It fails
// with ErrLocked if another vmm, or a writer that outlived one, has it.
func AcquireLock(ctx context.Context, dir string) (*Lock, error) {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	for wait := newBackoff(time.Millisecond, 50*time.Millisecond); ; {
		l, err := tryLock(dir, unix.LOCK_EX)
		if !errors.Is(err, ErrLocked) {
			return l, err
		}
		if !wait.sleep(ctx) {
			return nil, err
		}
	}
}

// IsLocked reports whether something holds the lock of the bundle dir. A folder
// without a lock file is not locked.
func IsLocked(dir string) (bool, error) {
	// A shared lock, so that two who look do not take each other for a machine.
	l, err := tryLock(dir, unix.LOCK_SH)
	switch {
	case err == nil:
		l.release()
		return false, nil
	case errors.Is(err, ErrLocked):
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	default:
		return false, err
	}
}

func tryLock(dir string, how int) (*Lock, error) {
	path := filepath.Join(dir, FileLock)
	// The bundle may have been deleted meanwhile, and even made anew.
	f, err := flock.Open(path, os.O_RDWR, 0, how)
	if errors.Is(err, flock.ErrHeld) {
		return nil, fmt.Errorf("bundle %s: %w", dir, ErrLocked)
	}
	if err != nil {
		return nil, err
	}
	return &Lock{file: f}, nil
}

// createLock makes the lock file of a bundle that is being made, and holds it.
func createLock(dir string) (*Lock, error) {
	f, err := os.OpenFile(filepath.Join(dir, FileLock), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	f.Close()
	return tryLock(dir, unix.LOCK_EX)
}

// backoff is a doubling pause that ends with a context.
type backoff struct{ next, most time.Duration }

func newBackoff(first, most time.Duration) *backoff { return &backoff{next: first, most: most} }

// sleep pauses and reports whether the context still stands.
func (b *backoff) sleep(ctx context.Context) bool {
	t := time.NewTimer(b.next)
	defer t.Stop()
	b.next = min(2*b.next, b.most)
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
