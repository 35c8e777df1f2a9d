// SPDX-License-Identifier: MIT

package imagecache

import (
	"context"
	"errors"
	"io/fs"
	"math"
	"os"
	"sync"
	"time"

	"github.com/minifleet/minifleet/internal/flock"
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
	for {
		f, err := flock.Open(p.lock(hex), os.O_RDWR|os.O_CREATE, 0o644, how)
		switch {
		case err == nil:
			return &lock{file: f}, nil
		case errors.Is(err, flock.ErrHeld):
			return nil, errInUse
		case !errors.Is(err, fs.ErrNotExist) || !there(p.at(dirLocks)):
			return nil, err
		}
		// It was removed in this moment, by who had it.
	}
}

// lockAgain is the pause between two looks at a lock that another process holds.
const lockAgain = 20 * time.Millisecond

// glanceLooks is how often a lock is looked at that may be held for a moment only, by who
// looks whether somebody has the image in use: for a second, and for longer where the whole
// machine stands still meanwhile.
const glanceLooks = 50

// soonLock is tryLock, but not refused because of a glance.
func (p places) soonLock(ctx context.Context, hex string, how int) (*lock, error) {
	return p.lookForLock(ctx, hex, how, glanceLooks)
}

// waitLock waits until it has the lock.
func (p places) waitLock(ctx context.Context, hex string, how int) (*lock, error) {
	return p.lookForLock(ctx, hex, how, math.MaxInt)
}

// lookForLock is tryLock up to so often.
func (p places) lookForLock(ctx context.Context, hex string, how, looks int) (*lock, error) {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-pause.C:
		}
		l, err := p.tryLock(hex, how)
		if looks--; looks == 0 || !errors.Is(err, errInUse) {
			return l, err
		}
		pause.Reset(lockAgain)
	}
}
