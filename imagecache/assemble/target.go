// SPDX-License-Identifier: MIT

package assemble

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/imagecache/manifest"
)

// target is a file that is being made.
type target struct {
	file   *manifest.File
	f      *os.File
	direct *os.File // the same past the cache of pages; nil where that is not possible
	flush  flusher
	cloned bool
	// What is on the disk: nothing but a hole if fresh, the chunks of was if that is set,
	// and else it has to be read.
	fresh bool
	was   *manifest.File

	once sync.Once // closes f
	err  error
}

// open opens a file of the image with its right size: as it was left, cloned from the
// base, or new.
func (r *run) open(file *manifest.File) (*target, error) {
	t := &target{file: file}
	path := filepath.Join(r.job.Dir, filepath.FromSlash(file.Path))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = r.clone(t, path)
	}
	if err != nil {
		return nil, err
	}
	if info != nil || t.cloned {
		if err := os.Chmod(path, 0o600); err != nil { // the image may forbid writing
			return nil, err
		}
	}
	if t.f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600); err != nil {
		return nil, err
	}
	t.fresh = info == nil && !t.cloned
	if err := t.f.Truncate(file.Size); err != nil {
		return nil, errors.Join(err, t.f.Close())
	}
	t.direct = openDirect(t.f, path)
	return t, nil
}

// clone makes the file a clone of the base's file of the same path, if that is possible.
func (r *run) clone(t *target, path string) error {
	base := r.job.Base
	if base == nil || base.Manifest.ChunkBytes != r.job.Manifest.ChunkBytes {
		return nil
	}
	was := fileAt(base.Manifest, t.file.Path)
	if was == nil || !shares(was, t.file) {
		return nil
	}
	held := base.Holds(was.Path)
	err := reflink(filepath.Join(base.Dir, filepath.FromSlash(was.Path)), path)
	switch {
	case errors.Is(err, errNoClone), errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("clone the image it is near to: %w", err)
	}
	t.cloned = true
	// Before and after: what was cloned is what the record tells of.
	if held && base.Holds(was.Path) {
		t.was = was
	}
	return nil
}

// shares reports whether anything of was can be kept.
func shares(was, now *manifest.File) bool {
	for i := range min(len(was.Chunks), len(now.Chunks)) {
		if c := now.Chunks[i]; !c.Zero() && c.Sum == was.Chunks[i].Sum {
			return true
		}
	}
	return false
}

func fileAt(m *manifest.Manifest, path string) *manifest.File {
	for i := range m.Files {
		if m.Files[i].Path == path {
			return &m.Files[i]
		}
	}
	return nil
}

// knows returns the sum of what is on the disk in the place of a chunk, zero for zeros, if
// that is known without reading.
func (t *target) knows(chunk int) (known bool, sum manifest.Sum) {
	switch {
	case t.fresh:
		return true, manifest.Sum{}
	case t.was == nil:
		return false, manifest.Sum{}
	case chunk < len(t.was.Chunks):
		// A chunk that was cut or has grown has another sum than before, unless it is zeros.
		return true, t.was.Chunks[chunk].Sum
	default:
		return true, manifest.Sum{}
	}
}

// put writes content. An image that is fetched is large and not read at once: it neither
// drives out of memory what machines read, nor costs the work of keeping it there.
func (t *target) put(content []byte, off int64) error {
	if t.direct != nil && aligned(content, off) {
		_, err := t.direct.WriteAt(content, off)
		if !errors.Is(err, unix.EINVAL) {
			return err
		}
		t.direct.Close() // the volume wants another alignment
		t.direct = nil
	}
	n, err := t.f.WriteAt(content, off)
	if err == nil && n < len(content) {
		err = errShort
	}
	if err != nil {
		return err
	}
	t.flush.wrote(t.f, off, int64(n))
	return nil
}

// putAll writes contents one behind the other, past the cache of pages, and returns how many
// bytes it wrote: none where that is not possible. What is missing put has to write.
func (t *target) putAll(contents [][]byte, off int64) (int64, error) {
	if t.direct == nil {
		return 0, nil
	}
	for _, c := range contents {
		if !aligned(c, off) { // they end at a multiple then, where the next begins
			return 0, nil
		}
	}
	for {
		n, err := unix.Pwritev(int(t.direct.Fd()), contents, off)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EINVAL):
			return 0, nil
		default:
			return int64(max(n, 0)), err
		}
	}
}

// zero makes zeros of what is there, as a hole where the volume can.
func (t *target) zero(off, size int64) error {
	if punch(t.f, off, size) == nil {
		return nil
	}
	zeros := make([]byte, min(size, 1<<20))
	for size > 0 {
		n := min(size, int64(len(zeros)))
		if err := t.put(zeros[:n], off); err != nil {
			return err
		}
		off, size = off+n, size-n
	}
	return nil
}

// finish makes the file durable and says what it looks like from now on.
func (t *target) finish() (Stamp, error) {
	defer t.abandon()
	if err := t.f.Chmod(fs.FileMode(t.file.Mode)); err != nil {
		return Stamp{}, err
	}
	if err := t.f.Sync(); err != nil {
		return Stamp{}, err
	}
	stamp, err := stampOf(t.f, t.file.Path)
	t.abandon()
	return stamp, errors.Join(err, t.err)
}

// abandon closes the file. The writer may, and who comes after writer and dispatcher.
func (t *target) abandon() {
	t.once.Do(func() {
		t.err = t.f.Close()
		if t.direct != nil {
			t.err = errors.Join(t.err, t.direct.Close())
		}
	})
}

// hole reports whether there is nothing but a hole.
func hole(f *os.File, off, size int64) bool {
	data, err := f.Seek(off, unix.SEEK_DATA)
	return errors.Is(err, unix.ENXIO) || err == nil && data >= off+size
}

// Stamp is what a file looks like. One with the same stamp has not been changed: nobody
// can set its Changed.
type Stamp struct {
	Path    string `json:"path"`
	Size    int64  `json:"size"`
	Inode   uint64 `json:"inode"`
	Written int64  `json:"written"` // mtime in nanoseconds
	Changed int64  `json:"changed"` // ctime in nanoseconds
}

// StampOf returns the stamp of a file of the folder.
func StampOf(dir, path string) (Stamp, error) {
	f, err := os.OpenFile(filepath.Join(dir, filepath.FromSlash(path)), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return Stamp{}, err
	}
	defer f.Close()
	return stampOf(f, path)
}

func stampOf(f *os.File, path string) (Stamp, error) {
	info, err := f.Stat()
	if err != nil {
		return Stamp{}, err
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() {
		return Stamp{}, fmt.Errorf("%s is no file", path)
	}
	return Stamp{Path: path, Size: s.Size, Inode: s.Ino, Written: info.ModTime().UnixNano(), Changed: changeTime(s)}, nil
}
