// SPDX-License-Identifier: MIT

package oci

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/imagecache/assemble"
	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/internal/durable"
)

// DirSpool is the folder, within that of the image, in which layers wait to be unpacked.
// Pull removes it at the end.
const DirSpool = ".layers"

// Pull fetches the image into the folder dir, which exists, and returns its manifest in our
// own form. What dir has of the image already, of a call that did not end or as a clone of
// another image, is read, and kept where it is right; other files are left alone. One call
// at a time works on a folder.
//
// At any moment at most Scratch bytes lie in DirSpool. A layer is written when its blob is
// what its digest says, and an image is whole only when what was unpacked is too: after an
// error the folder is good for another call and nothing else.
func (i *Image) Pull(ctx context.Context, dir string, o PullOptions) (_ *manifest.Manifest, err error) {
	defer i.repository.base.CloseIdleConnections()
	p := &pull{image: i, dir: dir, PullOptions: o, at: assemble.Progress{TotalBytes: i.Bytes()}}
	defer func() {
		p.close()
		if err != nil {
			err = fmt.Errorf("pull image %s: %w", i.repository.ref.At(i.digest), err)
		}
	}()
	if err := p.open(); err != nil {
		return nil, err
	}
	if err := p.check(ctx); err != nil {
		return nil, err
	}
	if err := p.prepare(); err != nil {
		return nil, err
	}
	if err := p.fetch(ctx); err != nil {
		return nil, err
	}
	return p.finish(ctx)
}

// PullOptions say who else has a say in a pull.
type PullOptions struct {
	// Progress, if set, is told of it, one call at a time.
	Progress func(assemble.Progress)
	// Gate, if set, holds the pull up before each layer, and in the midst of one after each
	// MiB that came. A connection that is cut meanwhile is made anew.
	Gate func(context.Context) error
	// Room, if set, is called after every 64 MiB that were written, of layers or of the
	// image, with how much may still be written at most. Its error ends the pull.
	Room func(ctx context.Context, left int64) error
}

// gateEvery and roomEvery are how many bytes are between two calls.
const (
	gateEvery = 1 << 20
	roomEvery = 64 << 20
)

type pull struct {
	PullOptions
	image  *Image
	dir    string
	files  []*target
	pieces []*piece // in the order in which they are written

	mu     sync.Mutex // guards the rest, and is held while Progress is called
	at     assemble.Progress
	unseen int64 // written since Room was called
}

// target is a file that is being written.
type target struct {
	*file
	f      *os.File
	had    int64 // its size at the beginning: up to there anything may be in it
	grown  int64 // its size now
	chunks []manifest.Chunk
	known  []bool // of each chunk, whether its sum is
}

// piece is a layer in its file.
type piece struct {
	layer
	to   *target
	kept bool   // the file has it already
	zero bool   // it was written, and is all zeros
	from *piece // where the same content is, or nil: it is fetched
	got  chan *os.File
}

// open opens the files and makes those that are not there.
func (p *pull) open() error {
	for i := range p.image.files {
		t := &target{file: &p.image.files[i]}
		p.files = append(p.files, t)
		t.chunks = make([]manifest.Chunk, len(t.Chunks))
		t.known = make([]bool, len(t.Chunks))
		var err error
		t.f, err = os.OpenFile(filepath.Join(p.dir, t.Path), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, os.FileMode(t.Mode))
		if err != nil {
			return err
		}
		info, err := t.f.Stat()
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%s is no regular file: remove it", filepath.Join(p.dir, t.Path))
		}
		if t.had = info.Size(); t.had > t.Size {
			if err := t.f.Truncate(t.Size); err != nil {
				return err
			}
			t.had = t.Size
		}
		t.grown = t.had
		for _, l := range t.layers {
			p.pieces = append(p.pieces, &piece{layer: l, to: t, got: make(chan *os.File, 1)})
		}
	}
	return nil
}

// prepare makes the folder of spools, and takes out of it what this call does not need.
func (p *pull) prepare() error {
	dir := filepath.Join(p.dir, DirSpool)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if info, err := os.Lstat(dir); err != nil || !info.IsDir() {
		return errors.Join(err, fmt.Errorf("%s is no folder: remove it", dir))
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	needed := map[string]bool{}
	for _, c := range p.pieces {
		if !c.kept && c.from == nil {
			needed[p.spool(c)] = true
		}
	}
	for _, e := range entries {
		if path := filepath.Join(dir, e.Name()); !needed[path] {
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *pull) close() {
	for _, t := range p.files {
		if t.f != nil {
			t.f.Close()
		}
	}
}

// check reads what the files have already, and finds out where the rest comes from.
func (p *pull) check(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(min(runtime.GOMAXPROCS(0), p.image.repository.o.Layers))
	for _, c := range p.pieces {
		if c.to.had < c.offset+c.bytes || c.to.had == 0 {
			continue
		}
		g.Go(func() error {
			sums, err := c.read(ctx)
			if errors.Is(err, errContent) {
				return nil
			}
			if err != nil {
				return err
			}
			c.kept = true
			p.settle(c, sums)
			p.report(c.bytes, 0)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	type content struct {
		sum   manifest.Sum
		bytes int64
	}
	where := map[content]*piece{}
	for _, c := range p.pieces {
		if c.kept {
			where[content{c.content, c.bytes}] = c
		}
	}
	for _, c := range p.pieces {
		if id := (content{c.content, c.bytes}); !c.kept {
			if c.from = where[id]; c.from == nil {
				where[id] = c
			}
		}
	}
	return nil
}

// fetch brings what is missing. Blobs are fetched side by side, each in its turn so that
// few wait; one goroutine writes, in order.
func (p *pull) fetch(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	slots := make(chan struct{}, p.image.repository.o.Layers)
	g.Go(func() error {
		for _, c := range p.pieces {
			if c.kept || c.from != nil {
				continue
			}
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			if err := p.gate(ctx); err != nil {
				return err
			}
			g.Go(func() error {
				f, err := p.image.repository.fetch(ctx, p.image.client, c.blob, p.spool(c), func(ctx context.Context, n int) error { return p.came(ctx, int64(n)) })
				if err != nil {
					return fmt.Errorf("%s: %w", c, err)
				}
				c.got <- f // there is room
				return nil
			})
		}
		return nil
	})
	g.Go(func() error {
		for _, c := range p.pieces {
			if c.kept {
				continue
			}
			if err := p.place(ctx, c); err != nil {
				return fmt.Errorf("%s: %w", c, err)
			}
			if c.from == nil {
				<-slots
			}
		}
		return nil
	})
	err := g.Wait()
	for _, c := range p.pieces { // those that nobody took
		select {
		case f := <-c.got:
			f.Close()
		default:
		}
	}
	return err
}

// String names the piece to people.
func (c *piece) String() string {
	return fmt.Sprintf("%s at %d, layer %s", c.to.Path, c.offset, c.digest)
}

func (p *pull) spool(c *piece) string {
	return filepath.Join(p.dir, DirSpool, strings.TrimPrefix(c.digest, "sha256:"))
}

// place writes a piece, from another place of the image or from its blob.
func (p *pull) place(ctx context.Context, c *piece) error {
	if err := p.gate(ctx); err != nil {
		return err
	}
	w := newPieceWriter(c, func(n int) error {
		p.report(int64(n), 0)
		return p.wrote(ctx, int64(n))
	})
	switch {
	case c.from == nil:
		if err := p.unpack(ctx, c, w); err != nil {
			return err
		}
	case c.from.zero && c.to.had <= c.offset:
		return p.hole(c, w.sums)
	default:
		source := newInput(ctx, c.from.to.f, c.bytes)
		source.at = c.from.offset
		if err := source.copy(w.Write); err != nil {
			return err
		}
	}
	if err := w.close(); err != nil {
		return err
	}
	c.zero = w.zero
	p.settle(c, w.sums)
	return nil
}

// hole is a piece of zeros where nothing is: another one of the same size is known to have
// the sum that this one must have.
func (p *pull) hole(c *piece, sums *chunkSums) error {
	if err := c.reach(); err != nil {
		return err
	}
	for at := c.offset; at < c.offset+c.bytes; {
		n := min(blockBytes-at%blockBytes, c.offset+c.bytes-at)
		sums.take(zeros[:n], true)
		at += n
	}
	p.settle(c, sums)
	p.report(c.bytes, 0)
	return nil
}

func (p *pull) unpack(ctx context.Context, c *piece, w *pieceWriter) error {
	var f *os.File
	select {
	case f = <-c.got:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer f.Close()
	source := newInput(ctx, f, c.size)
	var err error
	if c.packed {
		err = decodeLZ4(source, c.bytes, w.Write)
	} else {
		err = source.copy(w.Write)
	}
	switch {
	case errors.Is(err, errSize) || errors.Is(err, errLZ4):
		return fmt.Errorf("%w: the image is broken in the registry: push it again", err)
	case err != nil:
		return err
	}
	// A later call finds the content in the file.
	return os.Remove(f.Name())
}

// errContent says that content is another than what it should be.
var errContent = errors.New("its content is not what its digest says")

// read reads a piece out of its file. It returns the sums of its chunks, or errContent.
func (c *piece) read(ctx context.Context) (*chunkSums, error) {
	t := newTally(c)
	source := newInput(ctx, c.to.f, c.bytes)
	source.at = c.offset
	if err := source.copy(t.take); err != nil {
		return nil, err
	}
	return t.sums, t.check()
}

// reach has the file reach the end of the piece.
func (c *piece) reach() error {
	end := c.offset + c.bytes
	if c.to.grown >= end {
		return nil
	}
	c.to.grown = end
	return c.to.f.Truncate(end)
}

// settle notes the sums of a piece's chunks, once it is known to be right.
func (p *pull) settle(c *piece, sums *chunkSums) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for n, sum := range sums.known {
		c.to.chunks[n].Sum, c.to.known[n] = sum, true
	}
}

func (p *pull) report(done, fetched int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at.DoneBytes += done
	p.at.FetchedBytes += fetched
	if p.Progress != nil {
		p.Progress(p.at)
	}
}

func (p *pull) gate(ctx context.Context) error {
	if p.Gate == nil {
		return nil
	}
	return p.Gate(ctx)
}

// came notes that bytes of a layer came and were written to its spool.
func (p *pull) came(ctx context.Context, n int64) error {
	p.mu.Lock()
	before := p.at.FetchedBytes
	p.mu.Unlock()
	p.report(0, n)
	if err := p.wrote(ctx, n); err != nil {
		return err
	}
	if before/gateEvery == (before+n)/gateEvery {
		return nil
	}
	return p.gate(ctx)
}

// wrote notes that bytes were written.
func (p *pull) wrote(ctx context.Context, n int64) error {
	p.mu.Lock()
	p.unseen += n
	look := p.unseen >= roomEvery && p.Room != nil
	if look {
		p.unseen = 0
	}
	left := p.at.TotalBytes - p.at.DoneBytes + p.image.Scratch()
	p.mu.Unlock()
	if !look {
		return nil
	}
	return p.Room(ctx, left)
}

// finish completes the files and makes the manifest.
func (p *pull) finish(ctx context.Context) (*manifest.Manifest, error) {
	m := p.image.about
	for _, t := range p.files {
		if err := p.complete(ctx, t); err != nil {
			return nil, fmt.Errorf("%s: %w", t.Path, err)
		}
		file := t.File
		file.Chunks = t.chunks
		m.Files = append(m.Files, file)
	}
	if err := os.RemoveAll(filepath.Join(p.dir, DirSpool)); err != nil {
		return nil, err
	}
	if err := durable.Sync(p.dir); err != nil {
		return nil, err
	}
	_, err := m.Encode() // with all its checks
	return &m, err
}

// complete makes a file what the image says: its size, its mode, durable. Chunks that no
// layer has as a whole are read for their sums.
func (p *pull) complete(ctx context.Context, t *target) error {
	if t.layers == nil {
		if err := t.replace(); err != nil {
			return err
		}
		p.report(t.Size, 0)
	}
	if err := errors.Join(t.f.Truncate(t.Size), t.f.Chmod(os.FileMode(t.Mode)), t.f.Sync()); err != nil {
		return err
	}
	for n, known := range t.known {
		if known {
			continue
		}
		begin := int64(n) * manifest.ChunkBytes
		end := min(begin+manifest.ChunkBytes, t.Size)
		sums := newChunkSums(begin, end, t.Size)
		source := newInput(ctx, t.f, end-begin)
		source.at = begin
		if err := source.copy(func(b []byte) error { blocks(begin, b, sums.take); begin += int64(len(b)); return nil }); err != nil {
			return err
		}
		t.chunks[n].Sum = sums.known[n]
	}
	return nil
}

// replace writes content that is known.
func (t *target) replace() error {
	there := make([]byte, len(t.content))
	if n, _ := t.f.ReadAt(there, 0); n == len(there) && string(there) == string(t.content) {
		return nil
	}
	_, err := t.f.WriteAt(t.content, 0)
	return err
}
