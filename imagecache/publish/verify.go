// SPDX-License-Identifier: MIT

package publish

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/imagecache/objects"
)

// Verified says what verifying found.
type Verified struct {
	Images   int       `json:"images"` // manifests that were read
	Chunks   int       `json:"chunks"` // that were read, each once
	Bytes    int64     `json:"bytes"`  // of their content
	Problems []Problem `json:"problems"`
}

// Problem is an object that is not what it should be.
type Problem struct {
	Object string `json:"object"`
	// Images are the digests of the images that need it.
	Images []string `json:"images"`
	What   string   `json:"what"`
}

// Verify reads every chunk of an image and checks it, or of all images, where the digest
// is "", and whether each tag names one. It changes nothing: what is missing or wrong is
// in the answer, and an error says that something could not be looked at.
func (l Location) Verify(ctx context.Context, digest string, progress func(Progress)) (Verified, error) {
	v := &verification{Location: l, meter: newMeter(progress), chunks: map[manifest.Sum]*needed{}}
	v.result.Problems = []Problem{}
	digests := []string{digest}
	if digest == "" {
		var err error
		if digests, err = v.all(ctx); err != nil {
			return v.result, err
		}
	}
	for _, d := range digests {
		m, err := l.Manifest(ctx, d)
		switch {
		case errors.Is(err, ErrNoImage) && digest == "": // deleted meanwhile, or a tag's problem
		case errors.Is(err, ErrDamaged):
			v.problem(manifest.ManifestObject(d), []string{d}, err)
		case err != nil:
			return v.result, err
		default:
			v.result.Images++
			v.add(d, m)
		}
	}
	err := v.read(ctx)
	slices.SortFunc(v.result.Problems, func(a, b Problem) int { return strings.Compare(a.Object, b.Object) })
	return v.result, err
}

type verification struct {
	Location
	meter  *meter
	chunks map[manifest.Sum]*needed

	mu     sync.Mutex // guards result
	result Verified
}

// needed is a chunk and who needs it.
type needed struct {
	size   int64
	images []string
}

func (v *verification) problem(object string, images []string, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.result.Problems = append(v.result.Problems, Problem{Object: object, Images: images, What: err.Error()})
}

// all returns the digests of all manifests, having looked at the tags.
func (v *verification) all(ctx context.Context) ([]string, error) {
	var digests []string
	there, err := v.manifests(ctx)
	if err != nil {
		return nil, err
	}
	for d := range there {
		digests = append(digests, d)
	}
	slices.Sort(digests)
	for a, err := range v.Store.List(ctx, manifest.DirTags) {
		if err != nil {
			return nil, fmt.Errorf("list the tags of %s: %w", v.Store, err)
		}
		name, tag, ok := manifest.ParseTagObject(a.Name)
		if !ok {
			continue
		}
		t, err := v.tag(ctx, name, tag)
		switch {
		case errors.Is(err, ErrDamaged):
			v.problem(a.Name, []string{}, err)
		case err != nil:
			return nil, err
		case t.Digest != "":
			if _, ok := there[t.Digest]; ok {
				continue
			}
			// It may have been pushed since the listing.
			_, err := v.Store.Stat(ctx, manifest.ManifestObject(t.Digest))
			if errors.Is(err, objects.ErrNotFound) {
				v.problem(a.Name, []string{t.Digest}, fmt.Errorf("tag %s:%s names %s, whose manifest is not there: push the image again, or delete the tag", name, tag, t.Digest))
			} else if err != nil {
				return nil, err
			}
		}
	}
	return digests, nil
}

func (v *verification) add(digest string, m *manifest.Manifest) {
	for sum, s := range distinct(m) {
		n := v.chunks[sum]
		if n == nil {
			n = &needed{size: s.size}
			v.chunks[sum] = n
		}
		n.images = append(n.images, digest)
	}
}

func (v *verification) read(ctx context.Context) error {
	total := int64(0)
	for _, n := range v.chunks {
		total += n.size
	}
	v.meter.begin("verifying", total)
	g, ctx := group(ctx, v.chunksAtOnce())
	for sum, n := range v.chunks {
		g.Go(func() error {
			err := v.chunk(ctx, sum, n.size)
			switch {
			case errors.Is(err, objects.ErrNotFound):
				if err := v.missing(ctx, sum, n.images); err != nil {
					return err
				}
			case errors.Is(err, manifest.ErrCorrupt):
				v.problem(manifest.ChunkObject(sum), n.images, fmt.Errorf("%w: delete this object, and push the image again", err))
			case err != nil:
				return fmt.Errorf("chunk %s: %w", sum, err)
			}
			v.mu.Lock()
			v.result.Chunks++
			v.result.Bytes += n.size
			v.mu.Unlock()
			v.meter.done(n.size)
			return nil
		})
	}
	return g.Wait()
}

// missing records that a chunk is not there, for those of the images that still are.
func (v *verification) missing(ctx context.Context, sum manifest.Sum, images []string) error {
	var still []string
	for _, d := range images {
		_, err := v.Store.Stat(ctx, manifest.ManifestObject(d))
		if err == nil {
			still = append(still, d)
		} else if !errors.Is(err, objects.ErrNotFound) {
			return err
		}
	}
	if len(still) > 0 {
		v.problem(manifest.ChunkObject(sum), still, errors.New("it is missing: push the image again"))
	}
	return nil
}

// chunk reads one and checks it.
func (v *verification) chunk(ctx context.Context, sum manifest.Sum, size int64) error {
	stored, err := readChunk(ctx, v.Store, sum, size)
	if err != nil {
		return err
	}
	v.meter.sent(int64(len(stored)))
	_, err = manifest.Decompress(stored, size, sum)
	return err
}
