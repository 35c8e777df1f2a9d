// SPDX-License-Identifier: MIT

package assemble

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/imagecache/manifest"
)

// Damage is something in an image's files that is not what the manifest says.
type Damage struct {
	Path    string `json:"path"`
	Chunk   int    `json:"chunk"` // -1 if the whole file is meant
	Problem string `json:"problem"`
}

// String says it to people.
func (d Damage) String() string {
	if d.Chunk < 0 {
		return fmt.Sprintf("%s: %s", d.Path, d.Problem)
	}
	return fmt.Sprintf("%s, chunk %d: %s", d.Path, d.Chunk, d.Problem)
}

// MaxDamages is how many are told of one image.
const MaxDamages = 100

// Verify reads an image's files, all of them, and compares them with the manifest. It
// returns what is damaged, and the files' stamps where nothing is.
func Verify(ctx context.Context, dir string, m *manifest.Manifest, progress func(Progress)) ([]Damage, []Stamp, error) {
	v := &verifier{m: m, buffers: newBuffers(m.ChunkBytes), progress: progress}
	v.at.TotalBytes = m.Bytes()
	var stamps []Stamp
	for i := range m.Files {
		stamp, err := v.file(ctx, dir, &m.Files[i])
		if err != nil {
			return nil, nil, err
		}
		stamps = append(stamps, stamp)
	}
	if len(v.damages) > 0 {
		return v.damages, nil, nil
	}
	return nil, stamps, nil
}

// buffers are slices of one size that are used again.
type buffers struct {
	size int64
	pool sync.Pool
}

func newBuffers(size int64) *buffers {
	b := &buffers{size: size}
	b.pool.New = func() any { s := make([]byte, size); return &s }
	return b
}

func (b *buffers) get() *[]byte  { return b.pool.Get().(*[]byte) } //nolint:forcetypeassert // nothing else is put there
func (b *buffers) put(s *[]byte) { b.pool.Put(s) }

type verifier struct {
	m        *manifest.Manifest
	buffers  *buffers
	progress func(Progress)

	mu      sync.Mutex // guards the rest
	at      Progress
	damages []Damage
}

func (v *verifier) damaged(d Damage) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.damages) < MaxDamages {
		v.damages = append(v.damages, d)
	}
}

func (v *verifier) read(n int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.at.DoneBytes += n
	if v.progress != nil {
		v.progress(v.at)
	}
}

func (v *verifier) file(ctx context.Context, dir string, file *manifest.File) (Stamp, error) {
	f, err := os.OpenFile(filepath.Join(dir, filepath.FromSlash(file.Path)), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		v.damaged(Damage{Path: file.Path, Chunk: -1, Problem: "it cannot be opened: " + err.Error()})
		return Stamp{}, nil
	}
	defer f.Close()
	before, err := stampOf(f, file.Path)
	if err != nil || before.Size != file.Size {
		v.damaged(Damage{Path: file.Path, Chunk: -1, Problem: fmt.Sprintf("it is no file of %d bytes", file.Size)})
		return Stamp{}, nil
	}
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i, c := range file.Chunks {
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error { return v.chunk(ctx, f, file, i, c) })
	}
	if err := group.Wait(); err != nil {
		return Stamp{}, err
	}
	if ctx.Err() != nil {
		return Stamp{}, context.Cause(ctx)
	}
	after, err := stampOf(f, file.Path)
	if err == nil && before != after {
		err = fmt.Errorf("%s changed while it was read: an image in the cache must not change", file.Path)
	}
	return after, err
}

func (v *verifier) chunk(ctx context.Context, f *os.File, file *manifest.File, i int, c manifest.Chunk) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	size := file.ChunkSize(i, v.m)
	off := int64(i) * v.m.ChunkBytes
	defer v.read(size)
	if c.Zero() && hole(f, off, size) {
		return nil
	}
	buf := v.buffers.get()
	defer v.buffers.put(buf)
	content := (*buf)[:size]
	_, err := f.ReadAt(content, off)
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		v.damaged(Damage{file.Path, i, "it cannot be read: " + err.Error()})
	case err != nil:
		v.damaged(Damage{file.Path, i, "the file has become shorter"})
	case c.Zero() && !manifest.AllZero(content):
		v.damaged(Damage{file.Path, i, "it is not zeros"})
	case !c.Zero() && manifest.SumOf(content) != c.Sum:
		v.damaged(Damage{file.Path, i, "its content has another sum"})
	}
	return nil
}
