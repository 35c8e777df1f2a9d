// SPDX-License-Identifier: MIT

// Package assemble makes an image's files out of chunks: fetched side by side, verified,
// and written by one writer for each file, in order. What is on the disk already, of an
// earlier attempt or of another image, is kept where it is what the manifest says.
package assemble

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/internal/durable"
)

// Fetcher brings chunks. It is called by several goroutines.
type Fetcher interface {
	// Fetch returns the content of a chunk of size bytes, verified by its sum: a lie never
	// gets through. An error is final: what is worth a retry was retried.
	Fetch(ctx context.Context, c manifest.Chunk, size int64) (Fetched, error)
}

// Fetched is a chunk that was brought.
type Fetched struct {
	Content []byte
	Network int64 // bytes that crossed the network for it
	Peer    bool  // it came from another host of the site
	// Release, if set, is called once when Content is needed no more, and may reuse it.
	Release func()
}

func (f Fetched) release() {
	if f.Release != nil {
		f.Release()
	}
}

// First asks one fetcher after the other. The error is that of the last.
type First []Fetcher

// Fetch returns what the first fetcher brings that can.
func (f First) Fetch(ctx context.Context, c manifest.Chunk, size int64) (Fetched, error) {
	err := errors.New("nobody is asked for chunks")
	for _, one := range f {
		var got Fetched
		if got, err = one.Fetch(ctx, c, size); err == nil && int64(len(got.Content)) == size {
			return got, nil
		}
		if err == nil {
			got.release()
			err = fmt.Errorf("%d bytes came instead of %d", len(got.Content), size)
		}
		if ctx.Err() != nil {
			return Fetched{}, context.Cause(ctx)
		}
	}
	return Fetched{}, err
}

// Progress tells how far an image has come.
type Progress struct {
	DoneBytes, TotalBytes int64 // of the image's files, holes included
	FetchedBytes          int64 // over the network
	PeerBytes             int64 // of these, from other hosts of the site
	WrittenBytes          int64 // to the disk
}

// Base is an image on the same volume, near to the one that is made: its files are cloned,
// and what differs is written over. It must not change meanwhile.
type Base struct {
	Dir      string
	Manifest *manifest.Manifest
	// Holds reports whether a file is still what it was when it was last known to be what
	// the manifest says. What is kept of one that is not is read and hashed.
	Holds func(path string) bool
}

// Job is an image to be made.
type Job struct {
	Manifest *manifest.Manifest // as Parse returns them: its paths are trusted
	// Dir is the folder of its files and of nothing else, which this process alone writes
	// to. What is in it is kept where it is right.
	Dir     string
	Fetcher Fetcher
	Base    *Base // nil for none
	// Memory bounds what is held of chunks. Required. Jobs may share it.
	Memory *Memory
	// Gate, if set, holds the job up before each chunk that is not known to be there.
	Gate func(context.Context) error
	// Room, if set, is called after every 64 MiB written. Its error ends the job.
	Room func(context.Context) error
	// Progress, if set, is told after each chunk, one call at a time.
	Progress func(Progress)
}

// Result is what was made.
type Result struct {
	Stamps []Stamp // of all files, in the manifest's order
	// Bytes of the files' content: written, of them found on this host instead of fetched,
	// and kept where they were, holes apart.
	WrittenBytes, LocalBytes, KeptBytes int64
	Cloned                              bool // from the base
}

// Assemble makes the image's files, durably: when it returns without an error, every chunk
// was verified, by its sum when it was written or read, or because the base's record of it
// holds. After an error, or a crash at any point, the next call goes on with what is there
// and trusts none of it.
func Assemble(ctx context.Context, job Job) (Result, error) {
	if err := os.MkdirAll(job.Dir, 0o755); err != nil {
		return Result{}, err
	}
	if err := clear(job.Dir, job.Manifest); err != nil {
		return Result{}, err
	}
	defer job.Memory.begin()()
	r := &run{job: job, queue: make(chan *piece, window)}
	r.at.TotalBytes = job.Manifest.Bytes()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return r.dispatch(ctx) })
	group.Go(func() error { return r.write(ctx) })
	err := group.Wait()
	r.abandon()
	if err != nil {
		return Result{}, err
	}
	return r.result, syncFolders(job.Dir, job.Manifest)
}

// clear removes what is in the way: anything that is no file of the manifest's.
func clear(dir string, m *manifest.Manifest) error {
	files, folders := map[string]bool{}, map[string]bool{".": true}
	for i := range m.Files {
		path := filepath.FromSlash(m.Files[i].Path)
		files[path] = true
		for up := filepath.Dir(path); up != "."; up = filepath.Dir(up) {
			folders[up] = true
		}
	}
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if files[rel] && e.Type().IsRegular() || folders[rel] && e.IsDir() {
			return nil
		}
		if err := os.RemoveAll(path); err != nil {
			return err
		}
		if e.IsDir() {
			return fs.SkipDir
		}
		return nil
	})
}

// syncFolders makes the files' names durable.
func syncFolders(dir string, m *manifest.Manifest) error {
	done := map[string]bool{}
	for i := range m.Files {
		for up := filepath.Dir(filepath.FromSlash(m.Files[i].Path)); !done[up]; up = filepath.Dir(up) {
			done[up] = true
			if err := durable.Sync(filepath.Join(dir, up)); err != nil {
				return err
			}
		}
	}
	return nil
}

// Clone makes dst, which is not there yet, a copy-on-write clone of a file of the same volume.
func Clone(src, dst string) error { return reflink(src, dst) }

// Clones reports whether the volume of a folder has copy-on-write clones. It tries.
func Clones(dir string) bool {
	aside, err := os.MkdirTemp(dir, ".clone-")
	if err != nil {
		return false
	}
	defer os.RemoveAll(aside)
	a, b := filepath.Join(aside, "a"), filepath.Join(aside, "b")
	return os.WriteFile(a, []byte("clone"), 0o600) == nil && reflink(a, b) == nil
}

// Shared returns how many bytes of the image m stand in base at the same place, and how
// many have to be written if base is cloned. Zeros are no bytes.
func Shared(m, base *manifest.Manifest) (shared, missing int64) {
	old := map[string]*manifest.File{}
	if base != nil && base.ChunkBytes == m.ChunkBytes {
		for i := range base.Files {
			old[base.Files[i].Path] = &base.Files[i]
		}
	}
	for i := range m.Files {
		f := &m.Files[i]
		was := old[f.Path]
		for n, c := range f.Chunks {
			switch size := f.ChunkSize(n, m); {
			case c.Zero():
			case was != nil && n < len(was.Chunks) && was.Chunks[n].Sum == c.Sum:
				shared += size
			default:
				missing += size
			}
		}
	}
	return shared, missing
}

// chunkError says where in an image something happened.
func chunkError(path string, chunk int, err error) error {
	return fmt.Errorf("%s, chunk %d: %w", path, chunk, err)
}
