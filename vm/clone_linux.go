// SPDX-License-Identifier: MIT

package vm

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// reflink clones src to the new file dst with FICLONE.
func reflink(src *os.File, dst string) (err error) {
	d, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = unix.IoctlFileClone(int(d.Fd()), int(src.Fd()))
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EXDEV):
		err = fmt.Errorf("%w: %w", ErrCloneUnsupported, err)
	}
	if err = errors.Join(err, d.Close()); err != nil {
		os.Remove(dst) // a refused FICLONE leaves the empty file behind
	}
	return err
}

// copyRange copies length bytes at off, in the kernel where it can, and returns how
// many it copied, at least one.
func copyRange(src, dst *os.File, off, length int64) (int64, error) {
	in, out := off, off
	n, err := unix.CopyFileRange(int(src.Fd()), &in, int(dst.Fd()), &out, int(length), 0)
	if err == nil && n > 0 {
		return int64(n), nil
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return 0, err
	}
	// Between some file systems, and under some sandboxes, there is no such call.
	m, err := io.CopyN(io.NewOffsetWriter(dst, off), io.NewSectionReader(src, off, length), length)
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("%s became shorter while it was copied: %w", src.Name(), io.ErrUnexpectedEOF)
	}
	return m, err
}
