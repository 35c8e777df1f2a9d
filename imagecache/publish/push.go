// SPDX-License-Identifier: MIT

package publish

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/imagecache/layout"
	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/imagecache/objects"
)

// PushOptions say under which name an image is published.
type PushOptions struct {
	Name, Tag string
	Progress  func(Progress) // called by one goroutine at a time, often; nil for nobody
}

// Pushed says what a push did.
type Pushed struct {
	Digest   string
	Previous string // what the tag named before; "" if it is new
	// Bytes are those of the image's files, holes included; StoredBytes and Chunks are of its
	// chunks, each counted once, and of these the others were uploaded.
	Bytes, StoredBytes, UploadedBytes int64
	Chunks, Uploaded                  int
}

// MovedError says that a tag was moved by somebody else while it was about to be.
type MovedError struct{ Name, Tag, Want string }

func (e *MovedError) Error() string {
	return fmt.Sprintf("the tag %s:%s was changed by somebody else meanwhile, and is left as it is now; to have it name %s, run the command again", e.Name, e.Tag, e.Want)
}

type push struct {
	Location
	PushOptions
	scan    *scanned
	meter   *meter
	buffers sync.Pool

	mu     sync.Mutex // guards the rest
	chunks map[manifest.Sum]*held
	result Pushed
}

// Push publishes the image in a template, and moves the tag to it. It can be cut off at
// any moment and run again: chunks that are there are not uploaded again. If the tag is
// moved by another meanwhile, the error is a *MovedError.
//
// What makes it safe beside collections is argued in docs/images.md, whose steps have the
// numbers that stand here.
func (l Location) Push(ctx context.Context, t *layout.Template, o PushOptions) (Pushed, error) {
	before, err := l.tag(ctx, o.Name, o.Tag)
	if err != nil {
		return Pushed{}, err
	}
	p := &push{Location: l, PushOptions: o, meter: newMeter(o.Progress), chunks: map[manifest.Sum]*held{}}
	p.buffers.New = func() any { return new([]byte) }
	p.result.Previous = before.Digest
	if p.scan, err = newScan(t); err != nil {
		return Pushed{}, err
	}
	if err := p.store(ctx); err != nil { // 1
		return Pushed{}, err
	}
	crashpoint.Reached(crashpoint.ChunksStored)
	if err := p.scan.unchanged(); err != nil {
		return Pushed{}, err
	}
	if err := p.publish(ctx, before); err != nil {
		return Pushed{}, err
	}
	p.result.Bytes, p.result.Chunks = p.scan.total, len(p.chunks)
	for _, h := range p.chunks {
		p.result.StoredBytes += h.stored
	}
	return p.result, nil
}

// encode returns the manifest of what was read, as it has to be stored.
func (p *push) encode() ([]byte, error) {
	p.scan.fill(func(sum manifest.Sum) int64 { return p.at(sum).stored })
	b, err := p.scan.manifest.Encode()
	if err != nil {
		return nil, err
	}
	p.result.Digest = manifest.Digest(b)
	return b, nil
}

// publish writes the manifest and moves the tag, anew as often as the manifest was
// deleted under its hands. Where that fails, the tag becomes again what it was.
func (p *push) publish(ctx context.Context, tag tagged) (err error) {
	before, gone := tag, false
	defer func() {
		if err != nil && gone {
			err = errors.Join(err, p.takeBack(ctx, before, tag))
		}
	}()
	for range tries {
		b, err := p.encode()
		if err != nil {
			return err
		}
		is, sealed, err := p.sealed(ctx, b)
		if err != nil {
			return err
		}
		if !sealed {
			if is, err = p.seal(ctx); err != nil {
				return err
			}
		}
		crashpoint.Reached(crashpoint.ManifestSealed)
		gone, err = p.name(ctx, &tag, p.result.Digest, is.Generation) // 5 to 7
		if err != nil || !gone {
			return err
		}
	}
	return fmt.Errorf("the manifest comes and goes in %s: run the push again, and nothing beside it that deletes", p.Store)
}

// sealed reports whether the manifest is there and a tag names it. All its chunks are there
// then, and stay for as long as this generation of it does.
func (p *push) sealed(ctx context.Context, b []byte) (objects.Attributes, bool, error) {
	is, err := p.Store.Stat(ctx, manifest.ManifestObject(p.result.Digest))
	if errors.Is(err, objects.ErrNotFound) || err == nil && is.Size != int64(len(b)) {
		return is, false, nil
	}
	if err != nil {
		return is, false, fmt.Errorf("manifest %s: %w", p.result.Digest, err)
	}
	sealed, err := p.isNamed(ctx, p.Name, p.result.Digest)
	return is, sealed, err
}

// isNamed reports whether a tag of the name names the manifest.
func (l Location) isNamed(ctx context.Context, name, digest string) (bool, error) {
	tags, err := l.tags(ctx, name)
	if errors.Is(err, ErrDamaged) {
		return false, nil // that is for verify to say
	}
	return slices.ContainsFunc(tags, func(t tagged) bool { return t.Digest == digest }), err
}

// seal writes the manifest in such a way that no collection takes a chunk of it.
func (p *push) seal(ctx context.Context) (objects.Attributes, error) {
	if err := p.refreshAll(ctx); err != nil { // 2
		return objects.Attributes{}, err
	}
	b, err := p.encode()
	if err != nil {
		return objects.Attributes{}, err
	}
	if err := p.scan.unchanged(); err != nil {
		return objects.Attributes{}, err
	}
	crashpoint.Reached(crashpoint.ChunksKept)
	is, err := p.putManifest(ctx, b) // 3
	if err != nil {
		return is, err
	}
	crashpoint.Reached(crashpoint.ManifestStored)
	return is, p.refresh(ctx, func(h held) bool { return h.touched.Add(Lease / 2).Before(is.Touched) }) // 4
}

// refreshAll touches every chunk that this push has not written or touched lately.
func (p *push) refreshAll(ctx context.Context) error {
	if err := p.refresh(ctx, func(h held) bool { return h.touched.IsZero() }); err != nil {
		return err
	}
	now := time.Time{} // or a little later, by the store's clock
	for _, h := range p.each() {
		if h.touched.After(now) {
			now = h.touched
		}
	}
	return p.refresh(ctx, func(h held) bool { return h.touched.Add(Lease / 2).Before(now) })
}

// putManifest stores the manifest, or finds that it is there.
func (p *push) putManifest(ctx context.Context, b []byte) (objects.Attributes, error) {
	object, c := manifest.ManifestObject(p.result.Digest), objects.Condition{Absent: true}
	for range tries {
		a, err := p.Store.Put(ctx, object, b, c)
		if err == nil {
			p.meter.sent(int64(len(b)))
			return a, nil
		}
		if !errors.Is(err, objects.ErrPrecondition) {
			return a, fmt.Errorf("store manifest %s: %w", p.result.Digest, err)
		}
		a, err = p.Store.Stat(ctx, object)
		switch {
		case errors.Is(err, objects.ErrNotFound):
			c = objects.Condition{Absent: true}
		case err != nil:
			return a, fmt.Errorf("manifest %s: %w", p.result.Digest, err)
		case a.Size == int64(len(b)):
			return a, nil
		default: // damaged
			c = objects.Condition{Generation: a.Generation}
		}
	}
	return objects.Attributes{}, fmt.Errorf("the manifest comes and goes in %s: run the push again, and nothing beside it that deletes", p.Store)
}

// name moves a tag to a manifest that is sealed in a generation, and leaves in tag what it
// is then. gone says that this generation is no more, or that this is not known, and the tag
// may be moved already.
func (l Location) name(ctx context.Context, tag *tagged, digest string, generation int64) (gone bool, err error) {
	if tag.Digest != digest {
		if err := l.release(ctx, tag.Digest); err != nil {
			return false, err
		}
	}
	// Right before the tag: collections leave it alone for a lease from here.
	object := manifest.ManifestObject(digest)
	_, err = l.Store.Touch(ctx, object, objects.Condition{Generation: generation})
	if errors.Is(err, objects.ErrNotFound) || errors.Is(err, objects.ErrPrecondition) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("touch manifest %s: %w", digest, err)
	}
	if tag.Digest != digest {
		if err := l.move(ctx, tag, digest); err != nil {
			return false, err
		}
		crashpoint.Reached(crashpoint.TagMoved)
	}
	// Right behind it, though the caller may have been called off in between.
	after, cancel := afterwards(ctx)
	defer cancel()
	is, err := l.Store.Stat(after, object)
	if err != nil && !errors.Is(err, objects.ErrNotFound) {
		return true, fmt.Errorf("manifest %s: %w", digest, err)
	}
	return is.Generation != generation, nil
}

// afterwards is a context for what a tag that was written needs, whatever happens to ctx.
func afterwards(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
}

// move writes the tag, if nobody else did since it was read.
func (l Location) move(ctx context.Context, tag *tagged, digest string) error {
	a, err := l.Store.Put(ctx, manifest.TagObject(tag.Name, tag.Tag), manifest.EncodeTag(digest), tag.condition())
	if errors.Is(err, objects.ErrPrecondition) || errors.Is(err, objects.ErrNotFound) {
		now, err := l.tag(ctx, tag.Name, tag.Tag)
		if err != nil {
			return err
		}
		if now.Digest != digest {
			return &MovedError{Name: tag.Name, Tag: tag.Tag, Want: digest}
		}
		*tag = now
		return nil
	}
	if err != nil {
		return fmt.Errorf("move tag %s:%s: %w", tag.Name, tag.Tag, err)
	}
	tag.Digest, tag.Attributes = digest, a
	return nil
}

// release touches a manifest that a tag is about to name no more: from then on counts how
// long it is kept without one.
func (l Location) release(ctx context.Context, digest string) error {
	if digest == "" {
		return nil
	}
	_, err := l.Store.Touch(ctx, manifest.ManifestObject(digest), objects.Condition{})
	if err != nil && !errors.Is(err, objects.ErrNotFound) {
		return fmt.Errorf("touch manifest %s: %w", digest, err)
	}
	return nil
}
