// SPDX-License-Identifier: MIT

package publish

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/imagecache/objects"
)

// tries bounds what is begun anew because somebody else was faster.
const tries = 20

// present is which chunks a location has, as far as its listing has come.
type present struct {
	mu     sync.Mutex // guards the rest
	listed map[byte]bool
	stored map[manifest.Sum]int64
}

func newPresent() *present {
	return &present{listed: map[byte]bool{}, stored: map[manifest.Sum]int64{}}
}

// list lists all chunks, shard beside shard.
func (p *present) list(ctx context.Context, l Location) error {
	g, ctx := group(ctx, len(shards))
	for i := range len(shards) {
		g.Go(func() error {
			for a, err := range l.Store.List(ctx, manifest.DirChunks+shards[i:i+1]) {
				if err != nil {
					return fmt.Errorf("list the chunks of %s: %w", l.Store, err)
				}
				if sum, ok := manifest.ParseChunkObject(a.Name); ok {
					p.mu.Lock()
					p.stored[sum] = a.Size
					p.mu.Unlock()
				}
			}
			p.mu.Lock()
			defer p.mu.Unlock()
			p.listed[shards[i]] = true
			return nil
		})
	}
	return g.Wait()
}

// has returns how large a chunk is stored, whether it is there, and whether that is known.
func (p *present) has(s manifest.Sum) (stored int64, there, known bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	stored, there = p.stored[s]
	return stored, there, there || p.listed[s.String()[0]]
}

// held is a chunk of the image that is being pushed.
type held struct {
	place place // where to read it again
	// stored is its compressed size; 0 while it is not known to be in the location.
	stored int64
	// touched is when this push wrote or touched it, by the store's clock; zero before.
	touched time.Time
}

// compressed is a chunk's stored form, in memory that is used again.
func (p *push) compressed(content []byte) *[]byte {
	buf := p.buffers.Get().(*[]byte)
	if most := int(manifest.MaxStored(int64(len(content)))); cap(*buf) < most {
		*buf = make([]byte, 0, most) // what grows leaves garbage behind
	}
	*buf = manifest.Compress((*buf)[:0], content)
	return buf
}

// put stores a compressed chunk, or finds that it is there.
func (p *push) put(ctx context.Context, sum manifest.Sum, buf *[]byte) error {
	defer p.buffers.Put(buf)
	for range tries {
		a, err := p.Store.Put(ctx, manifest.ChunkObject(sum), *buf, objects.Condition{Absent: true})
		if err == nil {
			crashpoint.Reached(crashpoint.ChunkStored)
			p.note(sum, a, true)
			p.meter.sent(a.Size)
			return nil
		}
		if !errors.Is(err, objects.ErrPrecondition) {
			return fmt.Errorf("store chunk %s: %w", sum, err)
		}
		// Somebody else was faster, with the same content.
		a, err = p.Store.Touch(ctx, manifest.ChunkObject(sum), objects.Condition{})
		if err == nil {
			p.note(sum, a, false)
			return nil
		}
		if !errors.Is(err, objects.ErrNotFound) {
			return fmt.Errorf("touch chunk %s: %w", sum, err)
		}
	}
	return fmt.Errorf("chunk %s comes and goes in %s: run the push again, and no collection beside it", sum, p.Store)
}

// note records that a chunk is there as of now.
func (p *push) note(sum manifest.Sum, a objects.Attributes, uploaded bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.chunks[sum]
	h.stored, h.touched = a.Size, a.Touched
	if uploaded {
		p.result.Uploaded++
		p.result.UploadedBytes += a.Size
	}
}

// restore stores a chunk that is not in the location, read from the template again.
func (p *push) restore(ctx context.Context, sum manifest.Sum) error {
	at := p.at(sum).place
	src := p.scan.sources[at.file]
	content := make([]byte, p.scan.size(at))
	if err := src.again(p.scan.offset(at), content); err != nil {
		return err
	}
	if manifest.SumOf(content) != sum {
		return &ChangedError{src.Source}
	}
	return p.put(ctx, sum, p.compressed(content))
}

// store reads the template through, and uploads what the location lacks. What was read
// before it was known whether the location has it is read again for that, if it has not.
func (p *push) store(ctx context.Context) error {
	there := newPresent()
	uploads := make(chan struct{}, p.chunksAtOnce()) // each holds a chunk in memory
	g, storing := errgroup.WithContext(ctx)
	g.Go(func() error { return there.list(storing, p.Location) })
	g.Go(func() error {
		p.meter.begin("pushing", p.scan.total)
		return p.scan.read(storing, p.meter.done, func(reading context.Context, at place, sum manifest.Sum, content []byte) error {
			if !p.first(sum, at, there) {
				return nil
			}
			buf := p.compressed(content)
			select {
			case uploads <- struct{}{}:
			case <-reading.Done():
				return context.Cause(reading)
			}
			g.Go(func() error { // longer than the reading
				defer func() { <-uploads }()
				return p.put(storing, sum, buf)
			})
			return nil
		})
	})
	if err := g.Wait(); err != nil {
		return err
	}
	return p.complete(ctx, there)
}

// first records a chunk, and reports whether it is one that has to be uploaded: the first
// of its kind that the location is known to lack.
func (p *push) first(sum manifest.Sum, at place, there *present) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.chunks[sum] != nil {
		return false
	}
	stored, has, known := there.has(sum)
	p.chunks[sum] = &held{place: at, stored: stored}
	return known && !has
}

// complete stores the chunks that were read before their listing was.
func (p *push) complete(ctx context.Context, there *present) error {
	var missing []manifest.Sum
	total := int64(0)
	for sum, h := range p.each() {
		if h.stored == 0 {
			stored, has, _ := there.has(sum)
			if !has {
				missing, total = append(missing, sum), total+p.scan.size(h.place)
				continue
			}
			p.mu.Lock()
			p.chunks[sum].stored = stored
			p.mu.Unlock()
		}
	}
	if len(missing) == 0 {
		return nil
	}
	p.meter.begin("pushing the rest", total)
	g, ctx := group(ctx, p.chunksAtOnce())
	for _, sum := range missing {
		g.Go(func() error {
			if err := p.restore(ctx, sum); err != nil {
				return err
			}
			p.meter.done(p.scan.size(p.at(sum).place))
			return nil
		})
	}
	return g.Wait()
}

// refresh touches the chunks for which old holds, and restores those that have vanished.
func (p *push) refresh(ctx context.Context, old func(held) bool) error {
	var which []manifest.Sum
	total := int64(0)
	for sum, h := range p.each() {
		if old(h) {
			which = append(which, sum)
			total += p.scan.size(h.place)
		}
	}
	if len(which) == 0 {
		return nil
	}
	p.meter.begin("keeping", total)
	g, ctx := group(ctx, p.small())
	restoring := make(chan struct{}, p.chunksAtOnce()) // each holds a chunk in memory
	for _, sum := range which {
		g.Go(func() error {
			a, err := p.Store.Touch(ctx, manifest.ChunkObject(sum), objects.Condition{})
			switch {
			case err == nil:
				p.note(sum, a, false)
			case errors.Is(err, objects.ErrNotFound):
				select {
				case restoring <- struct{}{}:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
				defer func() { <-restoring }()
				if err := p.restore(ctx, sum); err != nil {
					return err
				}
			default:
				return fmt.Errorf("touch chunk %s: %w", sum, err)
			}
			p.meter.done(p.scan.size(p.at(sum).place))
			return nil
		})
	}
	return g.Wait()
}

func (p *push) at(sum manifest.Sum) held {
	p.mu.Lock()
	defer p.mu.Unlock()
	return *p.chunks[sum]
}

// each is the chunks as they are now, in the order of their sums.
func (p *push) each() func(func(manifest.Sum, held) bool) {
	p.mu.Lock()
	sums := slices.SortedFunc(maps.Keys(p.chunks), compareSums)
	p.mu.Unlock()
	return func(yield func(manifest.Sum, held) bool) {
		for _, sum := range sums {
			if !yield(sum, p.at(sum)) {
				return
			}
		}
	}
}

func compareSums(a, b manifest.Sum) int { return bytes.Compare(a[:], b[:]) }
