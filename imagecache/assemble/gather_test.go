// SPDX-License-Identifier: MIT

package assemble

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"unsafe"

	"github.com/minifleet/minifleet/imagecache/manifest"
)

// TestGather says which pieces are written together: those that are here, side by side.
func TestGather(t *testing.T) {
	t.Parallel()
	a, b := &target{file: &manifest.File{}}, &target{file: &manifest.File{}}
	here := make(chan struct{})
	close(here)
	const size = batchBytes / 4
	one := func(to *target, index int, change func(*piece)) *piece {
		p := &piece{to: to, index: index, size: size, done: here, found: put}
		if change != nil {
			change(p)
		}
		return p
	}
	for name, test := range map[string]struct {
		queue []*piece
		want  int // of the queue in the batch, the first with it
		after bool
	}{
		"alone":                {[]*piece{one(a, 3, nil)}, 1, false},
		"side by side":         {[]*piece{one(a, 3, nil), one(a, 4, nil), one(a, 5, nil)}, 3, false},
		"as many as it may":    {[]*piece{one(a, 0, nil), one(a, 1, nil), one(a, 2, nil), one(a, 3, nil), one(a, 4, nil)}, 4, true},
		"a gap":                {[]*piece{one(a, 0, nil), one(a, 2, nil)}, 1, true},
		"another file":         {[]*piece{one(a, 0, nil), one(b, 1, nil)}, 1, true},
		"the file's end":       {[]*piece{one(a, 0, nil), {to: a, end: true}}, 1, true},
		"under way":            {[]*piece{one(a, 0, nil), one(a, 1, func(p *piece) { p.done = make(chan struct{}) })}, 1, true},
		"failed":               {[]*piece{one(a, 0, nil), one(a, 1, func(p *piece) { p.err = errors.New("no") })}, 1, true},
		"kept":                 {[]*piece{one(a, 0, nil), one(a, 1, func(p *piece) { p.found = keep })}, 1, true},
		"the first has failed": {[]*piece{one(a, 0, func(p *piece) { p.err = errors.New("no") }), one(a, 1, nil)}, 1, false},
		"the first is kept":    {[]*piece{one(a, 0, func(p *piece) { p.done, p.found = nil, keep }), one(a, 1, nil)}, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := &run{queue: make(chan *piece, window)}
			for _, p := range test.queue {
				r.queue <- p
			}
			batch, after := r.gather(r.next())
			if !slices.Equal(batch, test.queue[:test.want]) {
				t.Errorf("%d are written together and should be %d", len(batch), test.want)
			}
			if after != nil != test.after || after != nil && after != test.queue[test.want] {
				t.Errorf("%v is taken from the queue beside them", after)
			}
		})
	}
}

// TestPutAll writes contents together, or leaves them to put.
func TestPutAll(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	to := &target{file: &manifest.File{}, f: f, direct: openDirect(f, path)}
	defer to.abandon()
	room := make([]byte, 5*directSize)
	room = room[-uintptr(unsafe.Pointer(&room[0]))&(directSize-1):]
	one, two := room[:directSize], room[directSize:2*directSize]
	one[0], two[directSize-1] = 1, 2
	if n, err := to.putAll([][]byte{one, two[:directSize-1]}, 0); n != 0 || err != nil {
		t.Errorf("what has an odd length: %d bytes were written, %v", n, err)
	}
	n, err := to.putAll([][]byte{one, two}, directSize)
	if err != nil || n != 0 && n != 2*directSize {
		t.Fatalf("%d bytes were written, %v", n, err)
	}
	have, err := os.ReadFile(path)
	if want := append(append(make([]byte, directSize), one...), two...); err != nil || n > 0 && !slices.Equal(have, want) {
		t.Errorf("the file is not what was written: %v", err)
	}
	if n == 0 && len(have) > 0 {
		t.Error("something was written after all")
	}
}

// directSize is a size that every volume takes directly.
const directSize = 4 << 10
