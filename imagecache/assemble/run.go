// SPDX-License-Identifier: MIT

package assemble

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/imagecache/manifest"
)

// window is how many chunks may be under way beyond the one that is written next. Most
// often the bound of the memory is reached first.
const window = 32

// roomEvery is how many bytes are written between two looks at the volume's room.
const roomEvery = 64 << 20

// run is one job at work. A dispatcher goes through the files in order and begins what
// each chunk needs; a writer takes them in the same order, so that the disk sees each
// file once, from its begin to its end, however the chunks arrive.
type run struct {
	job     Job
	queue   chan *piece
	workers sync.WaitGroup

	// The dispatcher's: the file that it is at. The writer may still be writing to it when
	// the dispatcher gives up, so that it is closed after both.
	opened *target

	// The writer's.
	at     Progress
	result Result
	unseen int64 // written since the last look at the room
}

// piece is a chunk of a file on its way, or, with end set, the file's end.
type piece struct {
	to    *target
	index int
	chunk manifest.Chunk
	size  int64
	end   bool

	held int64 // of the memory
	// done is closed when the rest is set; nil where nothing has to be awaited.
	done  chan struct{}
	got   Fetched
	found finding
	err   error

	written bool // together with others
}

// finding is what a chunk needs of the writer.
type finding int

const (
	keep  finding = iota // nothing: it is there
	clean                // zeros
	put                  // the content that was got
)

// dispatch goes through all chunks in order.
func (r *run) dispatch(ctx context.Context) error {
	defer close(r.queue)
	m := r.job.Manifest
	for i := range m.Files {
		t, err := r.open(&m.Files[i])
		if err != nil {
			return fmt.Errorf("%s: %w", m.Files[i].Path, err)
		}
		r.opened = t
		r.result.Cloned = r.result.Cloned || t.cloned
		for n, c := range t.file.Chunks {
			p := &piece{to: t, index: n, chunk: c, size: t.file.ChunkSize(n, m)}
			if err := r.begin(ctx, p); err != nil {
				return err
			}
			if err := r.send(ctx, p); err != nil {
				return err
			}
		}
		if err := r.send(ctx, &piece{to: t, end: true}); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) send(ctx context.Context, p *piece) error {
	select {
	case r.queue <- p:
		return nil
	case <-ctx.Done():
		r.finish(p)
		return context.Cause(ctx)
	}
}

// begin finds out what a chunk needs, and begins it where that takes time.
func (r *run) begin(ctx context.Context, p *piece) error {
	known, there := p.to.knows(p.index)
	switch {
	case known && there == p.chunk.Sum:
		p.found = keep
		return nil
	case known && p.chunk.Zero():
		p.found = clean
		return nil
	}
	// Before it holds any memory, which others may wait for.
	if r.job.Gate != nil {
		if err := r.job.Gate(ctx); err != nil {
			return err
		}
	}
	// Beside the content there is, until it is here, what was stored of it.
	held, err := r.job.Memory.take(ctx, 2*p.size)
	if err != nil {
		return err
	}
	p.held, p.done = held, make(chan struct{})
	r.workers.Go(func() {
		defer close(p.done)
		if p.err = r.work(ctx, p, known); p.err == nil { // else nothing more is to be begun
			r.keepOnly(p, int64(len(p.got.Content)))
		}
	})
	return nil
}

// work verifies what is on the disk, if that is not known, and fetches the chunk if it is
// another.
func (r *run) work(ctx context.Context, p *piece, known bool) error {
	if !known {
		right, err := r.check(p)
		if err != nil || right {
			p.found = keep
			return err
		}
		if p.chunk.Zero() {
			p.found = clean
			return nil
		}
	}
	got, err := r.job.Fetcher.Fetch(ctx, p.chunk, p.size)
	if err != nil {
		return err
	}
	if int64(len(got.Content)) != p.size {
		got.release()
		return fmt.Errorf("%d bytes came instead of %d", len(got.Content), p.size)
	}
	p.got, p.found = got, put
	return nil
}

// check reports whether the disk holds the chunk.
func (r *run) check(p *piece) (bool, error) {
	off := int64(p.index) * r.job.Manifest.ChunkBytes
	if hole(p.to.f, off, p.size) {
		return p.chunk.Zero(), nil
	}
	content := r.job.Memory.Buffer(p.size)
	defer r.job.Memory.Reuse(content)
	if _, err := p.to.f.ReadAt(content, off); err != nil {
		// A block that cannot be read is as good as a wrong one: it is written anew.
		return false, nil //nolint:nilerr // see above
	}
	if p.chunk.Zero() {
		return manifest.AllZero(content), nil
	}
	return manifest.SumOf(content) == p.chunk.Sum, nil
}

// batchBytes bounds what is written at once: a disk takes long writes faster than short
// ones, each of which is waited for.
const batchBytes = 8 << 20

// write takes the chunks in order.
func (r *run) write(ctx context.Context) error {
	for p := r.next(); p != nil; {
		batch, after := r.gather(p)
		err := r.putAll(batch)
		for _, p := range batch {
			if err == nil {
				err = r.take(ctx, p)
			}
			if err != nil {
				r.finish(p)
				p.to.abandon()
			}
		}
		if err != nil {
			if after != nil {
				r.finish(after)
				after.to.abandon()
			}
			return err
		}
		if p = after; p == nil {
			p = r.next()
		}
	}
	return nil
}

// next is the next piece, nil after the last.
func (r *run) next() *piece { return <-r.queue }

// gather returns the pieces that can be written together with first, those that wait for
// the writer already, and the one after them if it was taken from the queue.
func (r *run) gather(first *piece) (batch []*piece, after *piece) {
	batch = []*piece{first}
	if first.done != nil {
		<-first.done // it ends with the job
	}
	bytes := first.size
	for first.ready() {
		select {
		case p := <-r.queue:
			last := batch[len(batch)-1]
			if p == nil || !p.ready() || p.to != last.to || p.index != last.index+1 || bytes+p.size > batchBytes {
				return batch, p
			}
			batch, bytes = append(batch, p), bytes+p.size
		default:
			return batch, nil
		}
	}
	return batch, nil
}

// ready reports whether the piece's content is here and is to be written.
func (p *piece) ready() bool {
	if p.done == nil {
		return false
	}
	select {
	case <-p.done:
		return p.err == nil && p.found == put
	default:
		return false
	}
}

// putAll writes several pieces at once, if there are and that is possible. What it has not
// written take writes.
func (r *run) putAll(batch []*piece) error {
	if len(batch) < 2 {
		return nil
	}
	var contents [][]byte
	for _, p := range batch {
		contents = append(contents, p.got.Content)
	}
	n, err := batch[0].to.putAll(contents, int64(batch[0].index)*r.job.Manifest.ChunkBytes)
	if err != nil {
		return chunkError(batch[0].to.file.Path, batch[0].index, err)
	}
	for _, p := range batch {
		if n -= p.size; n < 0 {
			break
		}
		p.written = true
	}
	return nil
}

func (r *run) take(ctx context.Context, p *piece) error {
	defer r.finish(p)
	if p.end {
		stamp, err := p.to.finish()
		if err != nil {
			return fmt.Errorf("%s: %w", p.to.file.Path, err)
		}
		r.result.Stamps = append(r.result.Stamps, stamp)
		return nil
	}
	if p.done != nil {
		<-p.done // it ends with ctx
	}
	err := p.err
	if err == nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err == nil {
		err = r.store(ctx, p)
	}
	if err != nil {
		return chunkError(p.to.file.Path, p.index, err)
	}
	if r.job.Progress != nil {
		r.job.Progress(r.at)
	}
	return nil
}

func (r *run) store(ctx context.Context, p *piece) error {
	off := int64(p.index) * r.job.Manifest.ChunkBytes
	switch p.found {
	case put:
		if !p.written {
			if err := p.to.put(p.got.Content, off); err != nil {
				return err
			}
		}
		crashpoint.Reached(crashpoint.ChunkWritten)
		r.result.WrittenBytes += p.size
		r.at.WrittenBytes += p.size
		r.at.FetchedBytes += p.got.Network
		switch {
		case p.got.Peer:
			r.at.PeerBytes += p.got.Network
		case p.got.Network == 0:
			r.result.LocalBytes += p.size
		}
		if r.unseen += p.size; r.unseen >= roomEvery && r.job.Room != nil {
			r.unseen = 0
			if err := r.job.Room(ctx); err != nil {
				return err
			}
		}
	case clean:
		if err := p.to.zero(off, p.size); err != nil {
			return err
		}
	case keep:
		if !p.chunk.Zero() {
			r.result.KeptBytes += p.size
		}
	}
	r.at.DoneBytes += p.size
	return nil
}

// finish gives back what a piece held.
func (r *run) finish(p *piece) {
	if p.done != nil {
		<-p.done
	}
	p.got.release()
	p.got = Fetched{}
	r.keepOnly(p, 0)
}

// keepOnly gives back what a piece holds of the memory beyond so many bytes.
func (r *run) keepOnly(p *piece, bytes int64) {
	if p.held > bytes {
		r.job.Memory.give(p.held - bytes)
		p.held = bytes
	}
}

// abandon takes back what nobody wrote. Both goroutines have ended.
func (r *run) abandon() {
	for p := range r.queue {
		r.finish(p)
		p.to.abandon()
	}
	if r.opened != nil {
		r.opened.abandon()
	}
	r.workers.Wait()
}

// errShort says that a write was cut without a reason.
var errShort = errors.New("not all was written")
