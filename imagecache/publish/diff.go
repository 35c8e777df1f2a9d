// SPDX-License-Identifier: MIT

package publish

import (
	"slices"
	"strings"

	"github.com/minifleet/minifleet/imagecache/manifest"
)

// Difference is what distinguishes an image from an older one.
type Difference struct {
	Shared Amount       `json:"shared"` // in both
	New    Amount       `json:"new"`    // in the newer one only: what a host fetches that has the older
	Gone   Amount       `json:"gone"`   // in the older one only
	Files  []FileChange `json:"files"`  // those that differ, in the order of their paths
}

// Amount counts chunks, each once, without those of zeros.
type Amount struct {
	Chunks int   `json:"chunks"`
	Bytes  int64 `json:"bytes"` // of their content
	// StoredBytes is their compressed size. Unsized says of how many of them it is not
	// known, which are not in the sum.
	StoredBytes int64 `json:"stored_bytes"`
	Unsized     int   `json:"unsized,omitempty"`
}

func (a *Amount) add(s sized) {
	a.Chunks++
	a.Bytes += s.size
	a.StoredBytes += s.stored
	if s.stored == 0 {
		a.Unsized++
	}
}

// FileChange is a file that differs.
type FileChange struct {
	Path string `json:"path"`
	// Change is "new", "gone" or "changed".
	Change string `json:"change"`
	// Chunks is how many of its chunks, zeros included, are not what they were at their
	// place in the older image.
	Chunks int `json:"chunks"`
}

// Diff compares two images.
func Diff(older, newer *manifest.Manifest) Difference {
	d := Difference{Files: []FileChange{}}
	was, is := distinct(older), distinct(newer)
	for sum, s := range is {
		if o, ok := was[sum]; ok {
			if s.stored == 0 {
				s.stored = o.stored
			}
			d.Shared.add(s)
		} else {
			d.New.add(s)
		}
	}
	for sum, s := range was {
		if _, ok := is[sum]; !ok {
			d.Gone.add(s)
		}
	}
	files := map[string]*manifest.File{}
	for i := range older.Files {
		files[older.Files[i].Path] = &older.Files[i]
	}
	for i := range newer.Files {
		f := &newer.Files[i]
		before, ok := files[f.Path]
		if delete(files, f.Path); !ok {
			d.Files = append(d.Files, FileChange{f.Path, "new", len(f.Chunks)})
		} else if n := changed(before, f); n > 0 || before.Size != f.Size || before.Mode != f.Mode {
			d.Files = append(d.Files, FileChange{f.Path, "changed", n})
		}
	}
	for path := range files {
		d.Files = append(d.Files, FileChange{path, "gone", 0})
	}
	slices.SortFunc(d.Files, func(a, b FileChange) int { return strings.Compare(a.Path, b.Path) })
	return d
}

// changed counts the chunks that are not what they were.
func changed(before, now *manifest.File) int {
	n := 0
	for i, c := range now.Chunks {
		if i >= len(before.Chunks) || before.Chunks[i].Sum != c.Sum {
			n++
		}
	}
	return n
}
