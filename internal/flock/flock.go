// SPDX-License-Identifier: MIT

// Package flock takes locks of files. Such a lock belongs to the open file: every process
// that inherits the descriptor holds it too, and it ends when the last of them has closed it
// or has ended.
package flock

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// ErrHeld says that somebody else holds a lock.
var ErrHeld = errors.New("the lock is held by another")

// Try takes the lock of an open file, unix.LOCK_SH or unix.LOCK_EX. It does not wait:
// ErrHeld says that it is held otherwise.
func Try(f *os.File, how int) error {
	for {
		switch err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); {
		case err == nil:
			return nil
		case errors.Is(err, unix.EWOULDBLOCK):
			return ErrHeld
		case !errors.Is(err, unix.EINTR):
			return fmt.Errorf("lock %s: %w", f.Name(), err)
		}
	}
}

// Open opens a file or a folder, never by a link, and takes its lock as Try does. The path
// leads to it when it has the lock: if it was removed meanwhile, or even made anew, the error
// is fs.ErrNotExist.
func Open(path string, flags int, mode fs.FileMode, how int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|unix.O_NOFOLLOW, mode)
	if err != nil {
		return nil, err
	}
	if err := Try(f, how); err != nil {
		f.Close()
		return nil, err
	}
	mine, err := f.Stat()
	if err == nil {
		var there fs.FileInfo
		if there, err = os.Lstat(path); err == nil && !os.SameFile(mine, there) {
			err = fmt.Errorf("lock %s: %w", path, fs.ErrNotExist)
		}
	}
	if err != nil {
		Release(f)
		return nil, err
	}
	return f, nil
}

// Release gives a lock up for good, whoever else has the descriptor, and closes the file. A
// child that is being forked in this moment would otherwise hold it until its exec.
func Release(f *os.File) {
	for errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_UN), unix.EINTR) {
	}
	f.Close()
}
