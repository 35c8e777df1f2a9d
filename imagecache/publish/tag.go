// SPDX-License-Identifier: MIT

package publish

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/imagecache/objects"
)

// Named says what a tag names, and what it named before.
type Named struct{ Digest, Previous string }

// Tag makes or moves a tag of the reference's name to the image that the reference names.
// If the tag is moved by another meanwhile, the error is a *MovedError.
func (l Location) Tag(ctx context.Context, r manifest.Reference, tag string) (Named, error) {
	if !manifest.ValidTag(tag) {
		return Named{}, fmt.Errorf("the tag %.140q: give 1 to 128 of a-z, 0-9, '.', '_' and '-', not beginning with '.' or '-'", tag)
	}
	digest, err := l.Resolve(ctx, r)
	if err != nil {
		return Named{}, err
	}
	before, err := l.tag(ctx, r.Name, tag)
	if err != nil {
		return Named{}, err
	}
	is, err := l.sealedAlready(ctx, r.Name, digest)
	if err != nil {
		return Named{}, err
	}
	now := before
	gone, err := l.name(ctx, &now, digest, is.Generation)
	if gone && err == nil {
		err = fmt.Errorf("%w: %s was deleted meanwhile; push the image again", ErrNoImage, digest)
	}
	if gone {
		err = errors.Join(err, l.takeBack(ctx, before, now))
	}
	return Named{Digest: digest, Previous: before.Digest}, err
}

// takeBack makes a tag again what it was before it was moved to a manifest that is gone, and
// deletes it if what it named then is gone too. Where somebody else has moved it since, it
// stays.
func (l Location) takeBack(ctx context.Context, before, now tagged) error {
	if now.Generation == before.Generation {
		return nil // it was not moved
	}
	ctx, cancel := afterwards(ctx)
	defer cancel()
	object, c := manifest.TagObject(now.Name, now.Tag), objects.Condition{Generation: now.Generation}
	err := func() error {
		if before.Digest != "" {
			a, err := l.Store.Put(ctx, object, manifest.EncodeTag(before.Digest), c)
			if err != nil {
				return err
			}
			if _, err = l.Store.Stat(ctx, manifest.ManifestObject(before.Digest)); !errors.Is(err, objects.ErrNotFound) {
				return err
			}
			c.Generation = a.Generation
		}
		return l.Store.Delete(ctx, object, c)
	}()
	if err == nil || errors.Is(err, objects.ErrPrecondition) || errors.Is(err, objects.ErrNotFound) {
		return nil
	}
	return fmt.Errorf("the tag %s:%s may name an image that is gone; push the image again, or delete the tag: %w", now.Name, now.Tag, err)
}

// sealedAlready returns the manifest's attributes if no collection will take a chunk of
// it, or sees to that where the chunks are there.
func (l Location) sealedAlready(ctx context.Context, name, digest string) (objects.Attributes, error) {
	is, err := l.Store.Stat(ctx, manifest.ManifestObject(digest))
	if errors.Is(err, objects.ErrNotFound) {
		return is, fmt.Errorf("%w: %s has no manifest %s", ErrNoImage, l.Store, digest)
	}
	if err != nil {
		return is, fmt.Errorf("manifest %s: %w", digest, err)
	}
	if named, err := l.isNamed(ctx, name, digest); named || err != nil {
		return is, err
	}
	m, err := l.Manifest(ctx, digest)
	if err != nil {
		return is, err
	}
	g, ctx := group(ctx, l.small())
	for sum := range distinct(m) {
		g.Go(func() error {
			_, err := l.Store.Touch(ctx, manifest.ChunkObject(sum), objects.Condition{})
			if errors.Is(err, objects.ErrNotFound) {
				return fmt.Errorf("the image %s lacks the chunk %s, and so gets no tag: push it again", digest, sum)
			}
			return err
		})
	}
	return is, g.Wait()
}

// TaggedError says that an image is not deleted because tags name it.
type TaggedError struct {
	Digest string
	Tags   []string // name:tag
}

func (e *TaggedError) Error() string {
	return fmt.Sprintf("%s is named by %s: delete these tags first, or everything with --force", e.Digest, strings.Join(e.Tags, ", "))
}

// YoungError says that an image is not deleted because somebody may be about to tag it.
type YoungError struct{ Digest string }

func (e *YoungError) Error() string {
	return fmt.Sprintf("%s was pushed, tagged or untagged less than %s ago, and a push may be about to tag it again: wait, or delete it with --force", e.Digest, Lease)
}

// Deleted says what was deleted: a manifest, or only tags.
type Deleted struct {
	Digest string   // of the manifest; "" if it is still there
	Tags   []string // name:tag
}

// Delete deletes a tag, or, where the reference has a digest, the manifest, unless a tag
// names it (a *TaggedError) or it is too young (a *YoungError). By force its tags go
// too, at any age; a push that is about to tag it puts it back. Chunks go with the next
// collection.
func (l Location) Delete(ctx context.Context, r manifest.Reference, force bool) (Deleted, error) {
	if r.Digest == "" {
		err := l.untag(ctx, r.Name, r.Tag)
		return Deleted{Tags: []string{r.Name + ":" + r.Tag}}, err
	}
	object := manifest.ManifestObject(r.Digest)
	now, err := l.now(ctx)
	if err != nil {
		return Deleted{}, err
	}
	var d Deleted
	for range tries {
		is, err := l.Store.Stat(ctx, object)
		if errors.Is(err, objects.ErrNotFound) {
			return d, fmt.Errorf("%w: %s has no manifest %s", ErrNoImage, l.Store, r.Digest)
		}
		if err != nil {
			return d, fmt.Errorf("manifest %s: %w", r.Digest, err)
		}
		tags, err := l.tags(ctx, "")
		if err != nil {
			return d, err
		}
		naming := &TaggedError{Digest: r.Digest}
		for _, t := range tags {
			if t.Digest == r.Digest {
				naming.Tags = append(naming.Tags, t.Name+":"+t.Tag)
			}
		}
		switch {
		case force:
			for _, t := range tags {
				if t.Digest != r.Digest {
					continue
				}
				if err := l.drop(ctx, t.Name, t.Tag, t.Generation); err != nil {
					return d, err
				}
				d.Tags = append(d.Tags, t.Name+":"+t.Tag)
			}
		case len(naming.Tags) > 0:
			return d, naming
		case !is.Touched.Add(Lease).Before(now):
			return d, &YoungError{r.Digest}
		}
		err = l.Store.Delete(ctx, object, objects.Condition{Generation: is.Generation, Metageneration: is.Metageneration})
		switch {
		case err == nil, errors.Is(err, objects.ErrNotFound):
			d.Digest = r.Digest
			return d, nil
		case !errors.Is(err, objects.ErrPrecondition):
			return d, fmt.Errorf("delete manifest %s: %w", r.Digest, err)
		}
	}
	return d, fmt.Errorf("manifest %s is in use by others all the time: try again", r.Digest)
}

// untag deletes a tag, whatever it holds.
func (l Location) untag(ctx context.Context, name, tag string) error {
	t, err := l.tag(ctx, name, tag)
	if err != nil && !errors.Is(err, ErrDamaged) {
		return err
	}
	if t.Generation == 0 {
		return fmt.Errorf("%w: %s has no tag %s:%s", ErrNoImage, l.Store, name, tag)
	}
	if err := l.release(ctx, t.Digest); err != nil {
		return err
	}
	return l.drop(ctx, name, tag, t.Generation)
}

func (l Location) drop(ctx context.Context, name, tag string, generation int64) error {
	err := l.Store.Delete(ctx, manifest.TagObject(name, tag), objects.Condition{Generation: generation})
	switch {
	case errors.Is(err, objects.ErrPrecondition):
		return fmt.Errorf("the tag %s:%s was moved by somebody else meanwhile, and is left as it is now: look at it, and run the command again", name, tag)
	case err != nil && !errors.Is(err, objects.ErrNotFound):
		return fmt.Errorf("delete tag %s:%s: %w", name, tag, err)
	}
	return nil
}
