// SPDX-License-Identifier: MIT

package publish

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/imagecache/objects"
)

// GCOptions say what a collection keeps. All ages are by the store's clock.
type GCOptions struct {
	// Grace is how long a chunk is kept that no manifest names, since it was written or
	// touched; KeepUntagged how long a manifest is that no tag names, since it was written,
	// tagged or untagged. Both are Lease at least.
	Grace, KeepUntagged time.Duration
	// DryRun says what would be deleted, and deletes nothing.
	DryRun   bool
	Progress func(Progress)
}

// Collected says what a collection deleted, or would.
type Collected struct {
	Manifests []string // digests
	Chunks    int
	Bytes     int64 // of the chunks, as they are stored
	// KeptManifests and KeptChunks are in use by nobody and not old enough, or came into
	// use while it went on.
	KeptManifests, KeptChunks int
}

// GC deletes manifests that no tag names and chunks that no manifest names, if they are
// old enough. It is safe beside pushes and other collections: docs/images.md has
// the argument. Where it cannot read a tag or a manifest it deletes nothing that hangs
// on that.
func (l Location) GC(ctx context.Context, o GCOptions) (Collected, error) {
	if o.Grace < Lease || o.KeepUntagged < Lease {
		return Collected{}, fmt.Errorf("a grace of %s and %s for what is untagged: give %s at least, which pushes rely on", o.Grace, o.KeepUntagged, Lease)
	}
	c := collection{Location: l, GCOptions: o, meter: newMeter(o.Progress), used: map[manifest.Sum]struct{}{}}
	var err error
	if c.now, err = l.now(ctx); err != nil { // a
		return Collected{}, err
	}
	if err := c.manifests(ctx); err != nil {
		return c.result, err
	}
	return c.result, c.chunks(ctx)
}

type collection struct {
	Location
	GCOptions
	now    time.Time
	meter  *meter
	doomed []string // digests of manifests that a dry run would have deleted

	mu     sync.Mutex // guards the rest
	result Collected
	used   map[manifest.Sum]struct{}
}

// delete deletes what is still as it was when it was marked.
func (c *collection) delete(ctx context.Context, marked objects.Attributes) (bool, error) {
	if c.DryRun {
		return true, nil
	}
	err := c.Store.Delete(ctx, marked.Name, objects.Condition{Generation: marked.Generation, Metageneration: marked.Metageneration})
	if errors.Is(err, objects.ErrNotFound) || errors.Is(err, objects.ErrPrecondition) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("delete %s: %w", marked.Name, err)
	}
	return true, nil
}

func (c *collection) old(a objects.Attributes, age time.Duration) bool {
	return a.Touched.Add(age).Before(c.now)
}

// manifests deletes those that no tag names.
func (c *collection) manifests(ctx context.Context) error {
	marked, err := c.Location.manifests(ctx) // b
	if err != nil {
		return err
	}
	crashpoint.Reached(crashpoint.ManifestsMarked)
	tags, err := c.tags(ctx, "") // c
	if err != nil {
		return err
	}
	for _, t := range tags {
		delete(marked, t.Digest)
	}
	maps.DeleteFunc(marked, func(_ string, a objects.Attributes) bool {
		young := !c.old(a, c.KeepUntagged)
		if young {
			c.result.KeptManifests++
		}
		return young
	})
	if c.DryRun {
		c.doomed = slices.Collect(maps.Keys(marked))
	}
	g, ctx := group(ctx, c.small())
	for digest, a := range marked {
		g.Go(func() error { // d
			gone, err := c.delete(ctx, a)
			if err != nil {
				return err
			}
			crashpoint.Reached(crashpoint.ManifestDeleted)
			c.mu.Lock()
			defer c.mu.Unlock()
			if gone {
				c.result.Manifests = append(c.result.Manifests, digest)
			} else {
				c.result.KeptManifests++
			}
			return nil
		})
	}
	err = g.Wait()
	slices.Sort(c.result.Manifests)
	return err
}

// chunks deletes those that no manifest names.
func (c *collection) chunks(ctx context.Context) error {
	marked, err := c.mark(ctx) // e
	if err != nil {
		return err
	}
	crashpoint.Reached(crashpoint.ChunksMarked)
	if err := c.use(ctx); err != nil { // f
		return err
	}
	total := int64(0)
	marked = slices.DeleteFunc(marked, func(m markedChunk) bool {
		if _, used := c.used[m.sum]; used {
			return true
		}
		if !m.old {
			c.result.KeptChunks++
			return true
		}
		total += m.size
		return false
	})
	c.meter.begin("deleting", total)
	g, ctx := group(ctx, c.small())
	for _, m := range marked {
		g.Go(func() error { // g
			gone, err := c.delete(ctx, objects.Attributes{Name: manifest.ChunkObject(m.sum), Generation: m.generation, Metageneration: m.metageneration})
			if err != nil {
				return err
			}
			crashpoint.Reached(crashpoint.ChunkDeleted)
			c.mu.Lock()
			if gone {
				c.result.Chunks++
				c.result.Bytes += m.size
			} else {
				c.result.KeptChunks++
			}
			c.mu.Unlock()
			c.meter.done(m.size)
			return nil
		})
	}
	return g.Wait()
}

// markedChunk is small: there may be millions.
type markedChunk struct {
	sum                              manifest.Sum
	generation, metageneration, size int64
	old                              bool
}

func (c *collection) mark(ctx context.Context) ([]markedChunk, error) {
	var all []markedChunk
	g, ctx := group(ctx, len(shards))
	for i := range len(shards) {
		g.Go(func() error {
			for a, err := range c.Store.List(ctx, manifest.DirChunks+shards[i:i+1]) {
				if err != nil {
					return fmt.Errorf("list the chunks of %s: %w", c.Store, err)
				}
				sum, ok := manifest.ParseChunkObject(a.Name)
				if !ok {
					continue
				}
				c.mu.Lock()
				all = append(all, markedChunk{sum: sum, generation: a.Generation, metageneration: a.Metageneration, size: a.Size, old: c.old(a, c.Grace)})
				c.mu.Unlock()
			}
			return nil
		})
	}
	return all, g.Wait()
}

// use reads all manifests there are. It must begin after the chunks were marked.
func (c *collection) use(ctx context.Context) error {
	there, err := c.Location.manifests(ctx)
	if err != nil {
		return err
	}
	for _, digest := range c.doomed {
		delete(there, digest)
	}
	c.meter.begin("reading manifests", 0)
	g, ctx := group(ctx, c.chunksAtOnce())
	for digest := range there {
		g.Go(func() error {
			m, err := c.Manifest(ctx, digest)
			if errors.Is(err, ErrNoImage) {
				return nil // deleted meanwhile
			}
			if err != nil {
				return fmt.Errorf("no chunk was deleted, since it is not known which this image has: %w; delete it, or collect with the program that made it", err)
			}
			c.mu.Lock()
			for i := range m.Files {
				for _, chunk := range m.Files[i].Chunks {
					if !chunk.Zero() {
						c.used[chunk.Sum] = struct{}{}
					}
				}
			}
			c.mu.Unlock()
			return nil
		})
	}
	return g.Wait()
}
