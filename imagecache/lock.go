// SPDX-License-Identifier: MIT

package imagecache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// errInUse says that another holds an image's lock.
var errInUse = errors.New("the image is in use")

// lock is a held lock of one image: shared by all who use it, of whatever process, or
// held alone by who changes or deletes it. It ends with the process.
type lock struct {
	file *os.File
	once sync.Once
}

func (l *lock) release() { l.once.Do(func() { l.file.Close() }) }

// tryLock takes a lock, LOCK_SH or LOCK_EX, or fails with errInUse.
func (p places) tryLock(hex string, how int) (*lock, error) {
	path := p.lock(hex)
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o644)
		if err != nil {
			return nil, err
		}
		for {
			err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
			if !errors.Is(err, unix.EINTR) {
				break
			}
		}
		if err != nil {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, errInUse
			}
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		// Between open and flock the file may have been removed, and even made anew.
		mine, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, err
		}
		there, err := os.Lstat(path)
		if err == nil && os.SameFile(mine, there) {
			return &lock{file: f}, nil
		}
		f.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
}

// lockAgain is the pause between two looks at a lock that another process holds.
const lockAgain = 20 * time.Millisecond

// glance is how long a lock is waited for that may be held for a moment only, by who looks
// whether somebody has the image in use.
const glance = time.Second

// soonLock is tryLock, but not refused because of a glance.
func (p places) soonLock(ctx context.Context, hex string, how int) (*lock, error) {
	within, cancel := context.WithTimeoutCause(ctx, glance, errInUse)
	defer cancel()
	return p.waitLock(within, hex, how)
}

// waitLock waits until it has the lock.
func (p places) waitLock(ctx context.Context, hex string, how int) (*lock, error) {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-pause.C:
		}
		l, err := p.tryLock(hex, how)
		if !errors.Is(err, errInUse) {
			return l, err
		}
		pause.Reset(lockAgain)
	}
}
