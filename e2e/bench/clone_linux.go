// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// bareClone clones a file with FICLONE, and where the file system refuses that by copying
// its data, one piece after the other, with nothing in between.
func bareClone(src *os.File, to string) (by string, err error) {
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	if err = unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())); err == nil {
		return "FICLONE", nil
	}
	info, err := src.Stat()
	if err != nil {
		return "", err
	}
	if err := dst.Truncate(info.Size()); err != nil {
		return "", err
	}
	for at := int64(0); ; {
		from, err := src.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return "copy_file_range", nil
		}
		if err != nil {
			return "", err
		}
		if at, err = src.Seek(from, unix.SEEK_HOLE); err != nil {
			return "", err
		}
		for in, out := from, from; in < at; {
			n, err := unix.CopyFileRange(int(src.Fd()), &in, int(dst.Fd()), &out, int(at-in), 0)
			if err == nil && n == 0 {
				err = io.ErrUnexpectedEOF
			}
			if err != nil {
				return "", fmt.Errorf("copy_file_range: %w", err)
			}
		}
	}
}

// volume is a file system in a file.
type volume struct {
	dir, file string
}

// mount makes a file system in a file, which is going to take so much room, and mounts it,
// or says why that is not to be had.
func (b *bencher) mount(ctx context.Context, path, kind string, need int64) (v volume, why string, err error) {
	mkfs, err := exec.LookPath("mkfs." + kind)
	if err != nil {
		return v, fmt.Sprintf("mkfs.%s is not installed (Debian: apt-get install %s)", kind, map[string]string{"xfs": "xfsprogs", "btrfs": "btrfs-progs"}[kind]), nil
	}
	if os.Geteuid() != 0 {
		return v, "only root can mount one", nil
	}
	if room := freeSpace(b.dir); room < need+(1<<30) {
		return v, fmt.Sprintf("%s free: too little for the image", mib(room)), nil
	}
	v = volume{dir: path, file: path + ".img"}
	if err := os.Mkdir(v.dir, 0o700); err != nil {
		return v, "", err
	}
	f, err := os.Create(v.file)
	if err != nil {
		return v, "", err
	}
	// Sparse: what is not written takes no room.
	if err := errors.Join(f.Truncate(2*need+(1<<30)), f.Close()); err != nil {
		return v, "", err
	}
	for _, command := range [][]string{{mkfs, "-q", v.file}, {"mount", "-o", "loop,discard", v.file, v.dir}} {
		if out, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput(); err != nil { //nolint:gosec // of our own words
			return v, fmt.Sprintf("%s: %v: %s", command[0], err, strings.TrimSpace(string(out))), errors.Join(os.Remove(v.file), os.Remove(v.dir))
		}
	}
	return v, "", nil
}

// unmount also deletes the file.
func (v volume) unmount() error { return errors.Join(unix.Unmount(v.dir, 0), os.Remove(v.file)) }
