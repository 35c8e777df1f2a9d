// SPDX-License-Identifier: MIT

package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/imagecache/objects"
)

// Lease is how long, by the store's clock, what was written or touched is safe from every
// collection: none has a shorter grace. Whoever names an object touched it no longer ago.
const Lease = time.Hour

// Location is a place of images. Images of one location share their chunks.
type Location struct {
	Store objects.Store
	// Parallel is how many chunks are under way at once; 0 is 16. Requests that carry no
	// content are four times as many.
	Parallel int
}

// ErrNoImage says that a tag or a manifest is not there. Test with errors.Is.
var ErrNoImage = errors.New("no such image")

// Progress tells how far an operation has come.
type Progress struct {
	Doing       string // what is being done: a word or two
	Done, Total int64  // bytes of the image, holes included
	Sent        int64  // bytes that crossed the network
}

func (l Location) chunksAtOnce() int {
	if l.Parallel > 0 {
		return l.Parallel
	}
	return 16
}

func (l Location) small() int { return 4 * l.chunksAtOnce() }

// group runs functions side by side, at most n, until one fails.
func group(ctx context.Context, n int) (*errgroup.Group, context.Context) {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(n)
	return g, ctx
}

// read returns the content of a small object, which must not have more than limit bytes.
func (l Location) read(ctx context.Context, object string, limit int64) ([]byte, objects.Attributes, error) {
	r, a, err := l.Store.Get(ctx, object)
	if err != nil {
		return nil, a, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	switch {
	case err != nil:
		return nil, a, fmt.Errorf("%s: %w", object, err)
	case int64(len(b)) > limit:
		return nil, a, fmt.Errorf("%s has more than %d bytes", object, limit)
	case int64(len(b)) != a.Size:
		return nil, a, fmt.Errorf("%s has %d bytes and %d were read: try again", object, a.Size, len(b))
	}
	return b, a, nil
}

// Manifest returns the manifest with a digest, which its bytes are checked against.
func (l Location) Manifest(ctx context.Context, digest string) (*manifest.Manifest, error) {
	if !manifest.ValidDigest(digest) {
		return nil, fmt.Errorf("the digest %.80q is none", digest)
	}
	b, _, err := l.read(ctx, manifest.ManifestObject(digest), manifest.MaxBytes)
	if errors.Is(err, objects.ErrNotFound) {
		return nil, fmt.Errorf("%w: %s has no manifest %s", ErrNoImage, l.Store, digest)
	}
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", digest, err)
	}
	if have := manifest.Digest(b); have != digest {
		return nil, fmt.Errorf("manifest %s is %w: it has the digest %s", digest, ErrDamaged, have)
	}
	m, err := manifest.Parse(b)
	if err != nil {
		return nil, fmt.Errorf("manifest %s cannot be read (%w): %w", digest, ErrDamaged, err)
	}
	return m, nil
}

// ErrDamaged says that an object does not hold what it should. Test with errors.Is.
var ErrDamaged = errors.New("damaged")

// tagged is a tag as it was at one moment.
type tagged struct {
	Name, Tag, Digest string
	objects.Attributes
}

// condition holds as long as the tag is as it was: there, or not.
func (t tagged) condition() objects.Condition {
	return objects.Condition{Absent: t.Generation == 0, Generation: t.Generation}
}

// tag reads a tag. One that is not there has no digest and no generation.
func (l Location) tag(ctx context.Context, name, tag string) (tagged, error) {
	t := tagged{Name: name, Tag: tag}
	b, a, err := l.read(ctx, manifest.TagObject(name, tag), manifest.MaxTagBytes)
	if errors.Is(err, objects.ErrNotFound) {
		return t, nil
	}
	if err != nil {
		return t, fmt.Errorf("tag %s:%s: %w", name, tag, err)
	}
	t.Attributes = a
	if t.Digest, err = manifest.ParseTag(b); err != nil {
		return t, fmt.Errorf("tag %s:%s is %w: %w; if no other program needs it, delete it", name, tag, ErrDamaged, err)
	}
	return t, nil
}

// tags reads the tags of a name, or all where it is "", in the order of their objects.
func (l Location) tags(ctx context.Context, name string) ([]tagged, error) {
	prefix := manifest.DirTags
	if name != "" {
		prefix += name + "/"
	}
	var all []tagged
	for a, err := range l.Store.List(ctx, prefix) {
		if err != nil {
			return nil, fmt.Errorf("list the tags of %s: %w", l.Store, err)
		}
		if name, tag, ok := manifest.ParseTagObject(a.Name); ok {
			all = append(all, tagged{Name: name, Tag: tag})
		}
	}
	g, ctx := group(ctx, l.small())
	for i := range all {
		g.Go(func() (err error) {
			all[i], err = l.tag(ctx, all[i].Name, all[i].Tag)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	there := all[:0]
	for _, t := range all {
		if t.Generation != 0 { // it was deleted meanwhile
			there = append(there, t)
		}
	}
	return there, nil
}

// Resolve returns the digest of the image that a reference to this location names.
func (l Location) Resolve(ctx context.Context, r manifest.Reference) (string, error) {
	if r.Digest != "" {
		return r.Digest, nil
	}
	t, err := l.tag(ctx, r.Name, r.Tag)
	if err != nil {
		return "", err
	}
	if t.Digest == "" {
		return "", fmt.Errorf("%w: %s has no tag %s:%s; `minifleet image list` shows which there are", ErrNoImage, l.Store, r.Name, r.Tag)
	}
	return t.Digest, nil
}

// manifests lists the manifests there are, by digest.
func (l Location) manifests(ctx context.Context) (map[string]objects.Attributes, error) {
	all := map[string]objects.Attributes{}
	for a, err := range l.Store.List(ctx, manifest.DirManifests) {
		if err != nil {
			return nil, fmt.Errorf("list the manifests of %s: %w", l.Store, err)
		}
		if digest, ok := manifest.ParseManifestObject(a.Name); ok {
			all[digest] = a
		}
	}
	return all, nil
}

// shards are the prefixes that together have every chunk.
const shards = "0123456789abcdef"

// now is the store's clock. Only an object that was just written shows it.
func (l Location) now(ctx context.Context) (time.Time, error) {
	a, err := l.Store.Put(ctx, clockObject, []byte("{}"), objects.Condition{})
	if err != nil {
		return time.Time{}, fmt.Errorf("%s: the clock of the store is read by writing %s: %w", l.Store, clockObject, err)
	}
	return a.Touched, nil
}

// clockObject is written to learn the store's time. Nobody reads it.
const clockObject = "gc/clock.json"
