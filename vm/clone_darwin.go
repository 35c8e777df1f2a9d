// SPDX-License-Identifier: MIT

package vm

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// reflink clones src to the new file dst with clonefile. The descriptor, not the path,
// names the source, so that what was checked is what is cloned.
func reflink(src *os.File, dst string) error {
	err := unix.Fclonefileat(int(src.Fd()), unix.AT_FDCWD, dst, 0)
	switch {
	case errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.EXDEV):
		return fmt.Errorf("%w: %w", ErrCloneUnsupported, err)
	}
	return err
}

// copyRange copies length bytes at off and returns how many it copied, at least one.
func copyRange(src, dst *os.File, off, length int64) (int64, error) {
	m, err := io.CopyN(io.NewOffsetWriter(dst, off), io.NewSectionReader(src, off, length), length)
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("%s became shorter while it was copied: %w", src.Name(), io.ErrUnexpectedEOF)
	}
	return m, err
}
