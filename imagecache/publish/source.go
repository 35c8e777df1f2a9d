// SPDX-License-Identifier: MIT

package publish

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/imagecache/layout"
)

// source is a file of a template that is read more than once, and must be the same
// each time.
type source struct {
	layout.File
	size int64
	was  look

	// f is open while the file's chunks are read for the first time; open counts these.
	f    *os.File
	open atomic.Int64
}

// look is what a file looks like from outside. A program cannot set its change time back.
type look struct {
	size, mtime, ctime int64
	device, inode      uint64
}

func newSource(f layout.File) (*source, error) {
	s := &source{File: f, size: int64(len(f.Content))}
	if f.Source == "" {
		return s, nil
	}
	file, now, err := s.openFile()
	if err != nil {
		return nil, err
	}
	s.was, s.size = now, now.size
	return s, file.Close()
}

// ChangedError says that a file changed while it was pushed.
type ChangedError struct{ Path string }

func (e *ChangedError) Error() string {
	return fmt.Sprintf("%s has changed while it was read: shut down the VM that writes to it, and push again", e.Path)
}

func (s *source) openFile() (*os.File, look, error) {
	f, err := os.OpenFile(s.Source, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, look{}, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, look{}, errors.Join(fmt.Errorf("stat %s: %w", s.Source, err), f.Close())
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, look{}, errors.Join(fmt.Errorf("%s is no regular file", s.Source), f.Close())
	}
	return f, look{size: st.Size, mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano(), device: uint64(st.Dev), inode: st.Ino}, nil
}

// begin opens the file and returns the numbers of the chunks that have data: the others
// are holes and so all zeros. end is called once for each and once for begin itself.
func (s *source) begin(chunkBytes int64) (chunks func(yield func(int) bool), err error) {
	s.open.Store(1)
	all := func(yield func(int) bool) {
		for i := 0; int64(i)*chunkBytes < s.size; i++ {
			s.open.Add(1)
			if !yield(i) {
				return
			}
		}
	}
	if s.Source == "" {
		return all, nil
	}
	f, now, err := s.openFile()
	if err != nil {
		return nil, err
	}
	if now != s.was {
		return nil, errors.Join(&ChangedError{s.Source}, f.Close())
	}
	s.f = f
	// Where data is still on its way to the disk, some file systems show a hole.
	_ = f.Sync() // on a volume that cannot be written there is no such data
	if _, err := f.Seek(0, unix.SEEK_DATA); errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) {
		return all, nil // a file system that shows no holes
	}
	return func(yield func(int) bool) {
		for at := int64(0); at < s.size; {
			data, err := f.Seek(at, unix.SEEK_DATA)
			if errors.Is(err, unix.ENXIO) {
				return // nothing but a hole follows
			}
			if err != nil {
				data = at // read it: zeros are seen then
			}
			s.open.Add(1)
			if !yield(int(data / chunkBytes)) {
				return
			}
			at = (data/chunkBytes + 1) * chunkBytes
		}
	}, nil
}

// end closes the file after the last of its chunks, and finds out whether it changed.
func (s *source) end() error {
	if s.open.Add(-1) > 0 || s.f == nil {
		return nil
	}
	return errors.Join(s.f.Close(), s.check())
}

// check compares the file with what it was.
func (s *source) check() error {
	if s.Source == "" {
		return nil
	}
	f, now, err := s.openFile()
	if errors.Is(err, fs.ErrNotExist) {
		return &ChangedError{s.Source}
	}
	if err != nil {
		return err
	}
	if now != s.was {
		return errors.Join(&ChangedError{s.Source}, f.Close())
	}
	return f.Close()
}

// chunk fills buf with what is at an offset, between begin and end.
func (s *source) chunk(at int64, buf []byte) error { return s.readFrom(s.f, at, buf) }

// again fills buf with what is at an offset, at any other time.
func (s *source) again(at int64, buf []byte) error {
	if s.Source == "" {
		return s.readFrom(nil, at, buf)
	}
	f, now, err := s.openFile()
	if err != nil {
		return err
	}
	defer f.Close()
	if now != s.was {
		return &ChangedError{s.Source}
	}
	return s.readFrom(f, at, buf)
}

func (s *source) readFrom(f *os.File, at int64, buf []byte) error {
	if f == nil {
		copy(buf, s.Content[at:])
		return nil
	}
	_, err := f.ReadAt(buf, at)
	if errors.Is(err, io.EOF) {
		return &ChangedError{s.Source}
	}
	return err
}
