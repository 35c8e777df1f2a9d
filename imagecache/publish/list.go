// SPDX-License-Identifier: MIT

package publish

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/minifleet/minifleet/imagecache/manifest"
)

// Listed is a tag and what it names, or a manifest that no tag names.
type Listed struct {
	Name   string    `json:"name,omitempty"` // "" where no tag names the manifest
	Tag    string    `json:"tag,omitempty"`
	Digest string    `json:"digest"`
	Moved  time.Time `json:"moved"` // when the tag was last moved, or the manifest touched
	// Summary is nil where the manifest cannot be read, and Error says why.
	*Summary
	Error string `json:"error,omitempty"`
}

// Summary is what one wants to know first of an image.
type Summary struct {
	GuestOS     string `json:"guest_os"`
	Arch        string `json:"arch,omitempty"`
	Bytes       int64  `json:"bytes"`        // of its files, holes included
	StoredBytes int64  `json:"stored_bytes"` // of its chunks, compressed, each counted once
	Chunks      int    `json:"chunks"`       // each counted once, without those of zeros
	Files       int    `json:"files"`
}

// Summarize returns the summary of a manifest.
func Summarize(m *manifest.Manifest) Summary {
	s := Summary{GuestOS: m.GuestOS, Arch: m.Arch, Bytes: m.Bytes(), Files: len(m.Files)}
	for _, c := range distinct(m) {
		s.Chunks++
		s.StoredBytes += c.stored
	}
	return s
}

// sized is a chunk's size, of its content and as it is stored.
type sized struct{ size, stored int64 }

// distinct returns the chunks of an image, each once, without those of zeros.
func distinct(m *manifest.Manifest) map[manifest.Sum]sized {
	all := map[manifest.Sum]sized{}
	for i := range m.Files {
		f := &m.Files[i]
		for j, c := range f.Chunks {
			if !c.Zero() {
				all[c.Sum] = sized{f.ChunkSize(j, m), c.Stored}
			}
		}
	}
	return all
}

// List returns the tags in the order of their names, and the manifests without a tag.
func (l Location) List(ctx context.Context) ([]Listed, error) {
	there, err := l.manifests(ctx)
	if err != nil {
		return nil, err
	}
	tags, err := l.tags(ctx, "")
	if err != nil {
		return nil, err
	}
	var all []Listed
	for _, t := range tags {
		all = append(all, Listed{Name: t.Name, Tag: t.Tag, Digest: t.Digest, Moved: t.Touched})
		delete(there, t.Digest)
	}
	slices.SortFunc(all, func(a, b Listed) int {
		if d := strings.Compare(a.Name, b.Name); d != 0 {
			return d
		}
		return strings.Compare(a.Tag, b.Tag)
	})
	var untagged []Listed
	for digest, a := range there {
		untagged = append(untagged, Listed{Digest: digest, Moved: a.Touched})
	}
	slices.SortFunc(untagged, func(a, b Listed) int { return b.Moved.Compare(a.Moved) })
	all = append(all, untagged...)
	return all, l.summarize(ctx, all)
}

// summarize reads the manifests, each once.
func (l Location) summarize(ctx context.Context, all []Listed) error {
	var mu sync.Mutex // guards all
	of := map[string][]int{}
	for i, e := range all {
		of[e.Digest] = append(of[e.Digest], i)
	}
	g, ctx := group(ctx, l.chunksAtOnce())
	for digest, which := range of {
		g.Go(func() error {
			m, err := l.Manifest(ctx, digest)
			if err != nil && !errors.Is(err, ErrNoImage) && !errors.Is(err, ErrDamaged) {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			for _, i := range which {
				if err != nil {
					all[i].Error = err.Error()
				} else {
					all[i].Summary = new(Summarize(m))
				}
			}
			return nil
		})
	}
	return g.Wait()
}
