// SPDX-License-Identifier: MIT

package imagecache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"golang.org/x/time/rate"

	"github.com/minifleet/minifleet/imagecache/assemble"
	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/imagecache/objects"
)

// tries is how often an object is asked for that came cut, wrong or not at all. What the
// store itself retries, connections that break or stall above all, is not counted.
const tries = 2

// source is one place of images in our format.
type source struct {
	store  objects.Store
	limit  *rate.Limiter // nil for none
	log    *slog.Logger
	memory *assemble.Memory // for what is stored of chunks, and their content
	// shared says that others keep what Fetch returns: it is not used again then.
	shared bool
}

// store opens the place of a reference, once in the cache's life.
func (c *Cache) store(ctx context.Context, ref manifest.Reference) (objects.Store, error) {
	key := ref.Scheme + "://" + ref.Location
	c.opening.Lock()
	defer c.opening.Unlock()
	if s := c.stores[key]; s != nil {
		return s, nil
	}
	o := c.cfg.Objects
	o.Scheme, o.Location = ref.Scheme, ref.Location
	s, err := c.cfg.OpenStore(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", key, err)
	}
	c.stores[key] = s
	return s, nil
}

func (c *Cache) source(ctx context.Context, ref manifest.Reference, limit *rate.Limiter) (*source, error) {
	s, err := c.store(ctx, ref)
	if err != nil {
		return nil, err
	}
	return &source{store: s, limit: limit, log: c.log, memory: c.memory}, nil
}

// errLong says that an object is longer than anything of its kind.
var errLong = errors.New("the object is longer than it can be")

// get reads an object of at most limit bytes into what buf has room for.
func (s *source) get(ctx context.Context, name string, buf []byte, limit int64) ([]byte, error) {
	r, _, err := s.store.Get(ctx, name)
	if err != nil {
		return nil, causeOf(ctx, err)
	}
	defer r.Close()
	buf = buf[:0]
	for {
		if int64(len(buf)) > limit {
			return nil, fmt.Errorf("%s: %w", name, errLong)
		}
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		most := cap(buf)
		if s.limited() {
			most = min(most, len(buf)+limitPiece)
		}
		n, err := r.Read(buf[len(buf):most])
		buf = buf[:len(buf)+n]
		if err := s.wait(ctx, n); err != nil {
			return nil, causeOf(ctx, err)
		}
		if errors.Is(err, io.EOF) {
			return buf, nil
		}
		if err != nil {
			return nil, causeOf(ctx, err)
		}
	}
}

// limited reports whether there is a limit of the bandwidth now.
func (s *source) limited() bool { return s.limit != nil && s.limit.Limit() != rate.Inf }

// wait waits until so many bytes may have come.
func (s *source) wait(ctx context.Context, n int) error {
	for n > 0 && s.limited() {
		piece := min(n, limitPiece)
		if err := s.limit.WaitN(ctx, piece); err != nil {
			return err
		}
		n -= piece
	}
	return nil
}

// causeOf prefers why a context ended to what followed from that.
func causeOf(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// again calls f until it is right, or wrong for good.
func (s *source) again(ctx context.Context, name string, f func() error) error {
	for try := 1; ; try++ {
		err := f()
		if err == nil || ctx.Err() != nil || try == tries || errors.Is(err, objects.ErrNotFound) || errors.Is(err, objects.ErrForbidden) {
			return err
		}
		s.log.Warn("an object of an image is asked for again", slog.String("object", name), slog.Any("error", err))
	}
}

// Fetch brings a chunk from the place.
func (s *source) Fetch(ctx context.Context, c manifest.Chunk, size int64) (assemble.Fetched, error) {
	name := manifest.ChunkObject(c.Sum)
	most := manifest.MaxStored(size)
	// One byte more shows what is too long.
	part := s.memory.Buffer(most + 1)
	defer s.memory.Reuse(part)
	var content []byte
	if !s.shared {
		content = s.memory.Buffer(size)
	}
	var got assemble.Fetched
	err := s.again(ctx, name, func() error {
		stored, err := s.get(ctx, name, part, most)
		if err != nil {
			return err
		}
		got.Network += int64(len(stored))
		got.Content, err = manifest.DecompressInto(content, stored, size, c.Sum)
		return err
	})
	if !s.shared {
		got.Release = func() { s.memory.Reuse(content) }
	}
	if err == nil {
		return got, nil
	}
	if got.Release != nil {
		got.Release()
	}
	switch {
	case ctx.Err() != nil:
		return assemble.Fetched{}, context.Cause(ctx)
	case errors.Is(err, objects.ErrNotFound):
		return assemble.Fetched{}, fmt.Errorf("%s has vanished from %s: push the image there again: %w", name, s.store, err)
	case errors.Is(err, manifest.ErrCorrupt), errors.Is(err, errLong):
		return assemble.Fetched{}, fmt.Errorf("%s of %s is damaged: `minifleet image verify` finds what else is, and a push of the image restores it: %w", name, s.store, err)
	default:
		return assemble.Fetched{}, fmt.Errorf("%s of %s: %w", name, s.store, err)
	}
}

// manifest brings the bytes of a manifest, verified by its digest, and what they say.
func (s *source) manifest(ctx context.Context, digest string) (b []byte, m *manifest.Manifest, err error) {
	name := manifest.ManifestObject(digest)
	err = s.again(ctx, name, func() (err error) {
		if b, err = s.get(ctx, name, nil, manifest.MaxBytes); err != nil {
			return err
		}
		if have := manifest.Digest(b); have != digest {
			return fmt.Errorf("what it holds has the digest %s", have)
		}
		return nil
	})
	if errors.Is(err, objects.ErrNotFound) {
		return nil, nil, fmt.Errorf("%s has no image %s: push it there, or correct the pool's image: %w", s.store, digest, err)
	}
	if err == nil {
		m, err = manifest.Parse(b)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s of %s: %w", name, s.store, err)
	}
	return b, m, nil
}

// tag returns the digest that a tag names now.
func (s *source) tag(ctx context.Context, name, tag string) (string, error) {
	object := manifest.TagObject(name, tag)
	var b []byte
	err := s.again(ctx, object, func() (err error) {
		b, err = s.get(ctx, object, nil, manifest.MaxTagBytes)
		return err
	})
	if errors.Is(err, objects.ErrNotFound) {
		return "", fmt.Errorf("%s has no image %s:%s: push it there, or correct the pool's image: %w", s.store, name, tag, err)
	}
	var digest string
	if err == nil {
		digest, err = manifest.ParseTag(b)
	}
	if err != nil {
		return "", fmt.Errorf("%s of %s: %w", object, s.store, err)
	}
	return digest, nil
}
