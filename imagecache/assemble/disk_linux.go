// SPDX-License-Identifier: MIT

package assemble

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

func changeTime(s *syscall.Stat_t) int64 { return s.Ctim.Nano() }

// errNoClone says that the volume does not clone files.
var errNoClone = errors.New("copy-on-write clones do not work here")

// reflink makes dst a clone of src, which shares its blocks.
func reflink(src, dst string) (err error) {
	from, err := os.OpenFile(src, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = unix.IoctlFileClone(int(to.Fd()), int(from.Fd()))
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EXDEV):
		err = fmt.Errorf("%w: %w", errNoClone, err)
	}
	if err = errors.Join(err, to.Close()); err != nil {
		os.Remove(dst) // a refused clone leaves the empty file behind
	}
	return err
}

// punch makes a hole.
func punch(f *os.File, off, size int64) error {
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, size)
}

// openDirect opens the file of f for writing past the cache of pages.
func openDirect(_ *os.File, path string) *os.File {
	direct, err := os.OpenFile(path, os.O_WRONLY|unix.O_DIRECT|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil
	}
	return direct
}

// directBlock is the alignment that every volume takes.
const directBlock = 4 << 10

// aligned reports whether content can be written directly.
func aligned(content []byte, off int64) bool {
	return len(content) > 0 && len(content)%directBlock == 0 && off%directBlock == 0 &&
		uintptr(unsafe.Pointer(unsafe.SliceData(content)))%directBlock == 0
}

// flushEvery is how much is written between two orders to bring it to the disk.
const flushEvery = 32 << 20

// flusher has the kernel write while the job goes on, so that little is left for the last
// sync, and a pull does not fill the memory with pages that wait for the disk.
type flusher struct {
	from, to int64 // written, not ordered
	last     int64 // begin of what was ordered before, to from
}

// wrote may wait for what was ordered two steps ago. An error is one of the last sync too.
func (w *flusher) wrote(f *os.File, off, n int64) {
	if off != w.to {
		w.order(f)
		w.from = off
	}
	if w.to = off + n; w.to-w.from >= flushEvery {
		w.order(f)
	}
}

func (w *flusher) order(f *os.File) {
	if w.to <= w.from {
		return
	}
	fd := int(f.Fd())
	_ = unix.SyncFileRange(fd, w.from, w.to-w.from, unix.SYNC_FILE_RANGE_WRITE)
	if w.last < w.from {
		_ = unix.SyncFileRange(fd, w.last, w.from-w.last, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
	}
	w.last, w.from = w.from, w.to
}
