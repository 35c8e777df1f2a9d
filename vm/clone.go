// SPDX-License-Identifier: MIT

package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// CloneMode says what to do where copy-on-write does not work.
type CloneMode int

// The clone modes. The zero value refuses: a silent copy of a large image is an outage.
const (
	CloneReflink   CloneMode = iota // copy-on-write, or fail with ErrCloneUnsupported
	CloneAllowCopy                  // copy-on-write, and a copy of the data where that does not work
)

// ErrCloneUnsupported says that the file system cannot clone files copy-on-write.
var ErrCloneUnsupported = errors.New("copy-on-write clones do not work here")

// Progress tells how far a copy has come. A copy-on-write clone copies nothing.
type Progress struct {
	Files       int   // done so far
	CopiedBytes int64 // data written so far, holes apart
	Copying     bool  // the file system did not clone, so data is being copied
}

// ProbeClone reports whether files in the folder from can be cloned copy-on-write into
// the folder to, by doing it; they may be the same. If they cannot,
// errors.Is(err, ErrCloneUnsupported) holds.
func ProbeClone(from, to string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("probe for copy-on-write clones from %s to %s: %w", from, to, err)
		}
	}()
	src, err := probeFolder(from)
	if err != nil {
		return err
	}
	defer os.RemoveAll(src)
	dst, err := probeFolder(to)
	if err != nil {
		return err
	}
	defer os.RemoveAll(dst)
	// More than one block, so that a file system that keeps small files elsewhere has to
	// show what it does with blocks.
	path := filepath.Join(src, "a")
	if err := os.WriteFile(path, make([]byte, 64<<10), 0o600); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return reflink(f, filepath.Join(dst, "b"))
}

func probeFolder(dir string) (string, error) { return os.MkdirTemp(dir, prefixNew+"probe-") }

// cloner clones regular files, one after the other.
type cloner struct {
	mode   CloneMode
	ours   bool // the source is a bundle: what is the bundle's own stays behind
	notify func(Progress)
	at     Progress
}

// file clones the open file src to the new path dst.
func (c *cloner) file(ctx context.Context, src *os.File, dst string) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	err := reflink(src, dst)
	if errors.Is(err, ErrCloneUnsupported) && c.mode == CloneAllowCopy {
		c.at.Copying = true
		err = c.copy(ctx, src, dst)
	}
	if err != nil {
		return cloneError(err, src.Name(), dst)
	}
	c.at.Files++
	c.tell()
	return nil
}

func (c *cloner) tell() {
	if c.notify != nil {
		c.notify(c.at)
	}
}

// cloneError says what to do about the errors that an operator can do something about.
func cloneError(err error, src, dst string) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("clone %s: the volume of %s is full: free some space there: %w", src, filepath.Dir(dst), err)
	case errors.Is(err, unix.EXDEV):
		return fmt.Errorf("clone %s to %s: the image and the machine are on different volumes: keep both on one: %w", src, dst, err)
	case errors.Is(err, ErrCloneUnsupported):
		return fmt.Errorf("clone %s to %s: keep images and machines on one APFS, XFS or btrfs volume, or allow copying: %w", src, dst, err)
	default:
		return fmt.Errorf("clone %s to %s: %w", src, dst, err)
	}
}

// copyPiece bounds what is copied between two looks at the context.
const copyPiece = 8 << 20

// copy copies the data of src and leaves its holes holes.
func (c *cloner) copy(ctx context.Context, src *os.File, dst string) (err error) {
	info, err := src.Stat()
	if err != nil {
		return err
	}
	d, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, d.Close()); err != nil {
			os.Remove(dst)
		}
	}()
	size := info.Size()
	if err := d.Truncate(size); err != nil {
		return err
	}
	for off := int64(0); off < size; {
		from, to, err := nextData(src, off, size)
		if err != nil {
			return err
		}
		for from < to {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			n, err := copyRange(src, d, from, min(to-from, copyPiece))
			if err != nil {
				return err
			}
			from += n
			c.at.CopiedBytes += n
			c.tell()
		}
		off = to
	}
	return nil
}

// nextData returns the first piece of data of f at or after off; from == to at the end.
func nextData(f *os.File, off, size int64) (from, to int64, err error) {
	from, err = f.Seek(off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO): // the rest is a hole
		return size, size, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOTSUP):
		return off, size, nil // the file system does not tell holes from data
	case err != nil:
		return 0, 0, err
	}
	to, err = f.Seek(from, unix.SEEK_HOLE)
	return min(from, size), min(to, size), err
}
