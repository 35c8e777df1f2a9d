// SPDX-License-Identifier: MIT

package imagecache

import (
	"context"
	"errors"
	"sync"

	"golang.org/x/time/rate"

	"github.com/minifleet/minifleet/imagecache/manifest"
)

// errAbandoned is why the fetching of an image ended that nobody waited for any more.
var errAbandoned = errors.New("nobody waits for the image any more")

// limitPiece is how many bytes a limit of the bandwidth gives out at a time.
const limitPiece = 128 << 10

// Options say how an image is to be fetched. One that many wait for is fetched as the
// least patient of them wishes.
type Options struct {
	// BytesPerSecond limits what is fetched over the network; 0 sets no limit.
	BytesPerSecond int64
	// Background waits until nothing else is fetched, and pauses when something else is.
	Background bool
}

// flight is the fetching of one image, and those who wait for it.
type flight struct {
	ref   manifest.Reference // with the digest
	start int64              // flights are counted
	limit *rate.Limiter
	base  string // the image that it starts from, by hex; of its own goroutines only

	cancel context.CancelCauseFunc
	done   chan struct{} // closed after err was set
	err    error

	mu      sync.Mutex // guards the rest
	waiters map[*Options]bool
	at      Progress
	waiting bool          // at the gate
	moved   chan struct{} // closed and replaced when one of these two changes
	need    int64         // bytes that it is going to write at most
}

func (f *flight) digest() string { return f.ref.Digest }

// background reports whether all who wait are patient.
func (f *flight) background() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for o := range f.waiters {
		if !o.Background {
			return false
		}
	}
	return true
}

// adjust makes the limit that of those who wait.
func (f *flight) adjust() {
	limit := rate.Limit(0)
	for o := range f.waiters {
		if o.BytesPerSecond <= 0 {
			limit = rate.Inf
			break
		}
		limit = max(limit, rate.Limit(o.BytesPerSecond))
	}
	if len(f.waiters) > 0 && f.limit.Limit() != limit {
		f.limit.SetLimit(limit)
	}
}

func (f *flight) show(p Progress) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at = p
	f.moveLocked()
}

func (f *flight) moveLocked() {
	close(f.moved)
	f.moved = make(chan struct{})
}

func (f *flight) look() (at Progress, waiting bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.at, f.waiting
}

func (f *flight) setWaiting(waiting bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.waiting != waiting {
		f.waiting = waiting
		f.moveLocked()
	}
}

func (f *flight) setNeed(bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.need = bytes
}

// unwritten is how much room the flight still takes.
func (f *flight) unwritten() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return max(0, f.need-f.at.WrittenBytes)
}

// wait returns when the flight is over, or with the cause of ctx.
func (f *flight) wait(ctx context.Context, progress func(Progress)) error {
	for {
		f.mu.Lock()
		at, moved := f.at, f.moved
		f.mu.Unlock()
		if progress != nil && at != (Progress{}) {
			progress(at)
		}
		select {
		case <-f.done:
			return f.err
		case <-moved:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// join returns the flight to an image, which it begins if there is none, and how to leave
// it. Who leaves last ends it, and waits for its end.
func (c *Cache) join(ref manifest.Reference, o Options) (f *flight, leave func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, nil, errClosed
	}
	f = c.flights[ref.Digest]
	if f == nil {
		ctx, cancel := context.WithCancelCause(context.Background())
		c.started++
		f = &flight{
			ref: ref, start: c.started, limit: rate.NewLimiter(rate.Inf, limitPiece), cancel: cancel,
			waiters: map[*Options]bool{}, moved: make(chan struct{}), done: make(chan struct{}),
		}
		c.flights[ref.Digest] = f
		delete(c.failures, ref.Digest)
		c.work.Go(func() {
			err := causeOf(ctx, c.fly(ctx, f))
			cancel(nil)
			c.mu.Lock()
			delete(c.flights, ref.Digest)
			if err != nil && !errors.Is(err, errAbandoned) && !errors.Is(err, errClosed) {
				c.failures[ref.Digest] = failure{ref: ref, at: f.at, text: err.Error()}
				c.trimFailures()
			}
			c.turnLocked()
			c.mu.Unlock()
			f.err = err
			close(f.done)
		})
	}
	f.mu.Lock()
	f.waiters[&o] = true
	f.adjust()
	f.mu.Unlock()
	c.turnLocked()
	return f, func() { c.leave(f, &o) }, nil
}

func (c *Cache) leave(f *flight, o *Options) {
	c.mu.Lock()
	f.mu.Lock()
	delete(f.waiters, o)
	f.adjust()
	last := len(f.waiters) == 0
	f.mu.Unlock()
	c.turnLocked()
	c.mu.Unlock()
	if last {
		f.cancel(errAbandoned)
		<-f.done
	}
}

// Limit changes how fast an image is fetched, as far as those go who wait in the background.
func (c *Cache) Limit(digest string, bytesPerSecond int64) {
	c.mu.Lock()
	f := c.flights[digest]
	c.mu.Unlock()
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for o := range f.waiters {
		if o.Background {
			o.BytesPerSecond = bytesPerSecond
		}
	}
	f.adjust()
}

// turnLocked has all who wait at the gate look again.
func (c *Cache) turnLocked() {
	close(c.turned)
	c.turned = make(chan struct{})
}

// gate holds a flight up that only patient ones wait for, while there is one that others
// wait for, or an earlier patient one.
func (c *Cache) gate(ctx context.Context, f *flight) error {
	for {
		c.mu.Lock()
		free, turned := true, c.turned
		if f.background() {
			for _, other := range c.flights {
				if other != f && (!other.background() || other.start < f.start) {
					free = false
				}
			}
		}
		c.mu.Unlock()
		f.setWaiting(!free)
		if free {
			return nil
		}
		select {
		case <-turned:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
