// SPDX-License-Identifier: MIT

package disks_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/minifleet/minifleet/e2e/disks"
)

const size = 68 << 20 // more than one group

func TestDisk(t *testing.T) {
	s, err := disks.Load(t.Context(), 4<<20)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, seed := range map[string]uint64{"one": 1, "same": 1, "other": 2} {
		if err := s.Write(t.Context(), filepath.Join(dir, name), size, seed); err != nil {
			t.Fatal(err)
		}
	}
	one, same, other := read("one"), read("same"), read("other")
	if len(one) != size || !bytes.Equal(one, same) {
		t.Error("the same seed makes another disk")
	}
	zero := make([]byte, disks.Block)
	blocks := map[string]int{}
	zeros, alike, repeated := 0, 0, 0
	for i := 0; i < size; i += disks.Block {
		b := one[i : i+disks.Block]
		if bytes.Equal(b, zero) {
			zeros++
			continue
		}
		if bytes.Equal(b, other[i:i+disks.Block]) {
			alike++
		}
		if blocks[string(b)]++; blocks[string(b)] > 1 {
			repeated++
		}
	}
	n := size / disks.Block
	if part := float64(zeros) / float64(n); part < 0.1 || part > 0.45 {
		t.Errorf("%.0f %% of the blocks are zeros", 100*part)
	}
	if alike > n/100 || repeated > n/50 {
		t.Errorf("of %d blocks %d are those of another disk, and %d were there before", n, alike, repeated)
	}
	e, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if part := float64(len(e.EncodeAll(one[:size/4], nil))) / (size / 4); part < 0.2 || part > 0.7 {
		t.Errorf("it is compressed to %.0f %%", 100*part)
	}

	// An update changes as much as it says, in runs, and the seed alone decides.
	changed, err := s.Update(t.Context(), filepath.Join(dir, "one"), 7, 0.03)
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.Update(t.Context(), filepath.Join(dir, "same"), 7, 0.03)
	if err != nil || again != changed {
		t.Errorf("%+v, and again %+v, %v", changed, again, err)
	}
	updated := read("one")
	if !bytes.Equal(updated, read("same")) {
		t.Error("the same seed makes another update")
	}
	differ := 0
	for i := 0; i < size; i += disks.Block {
		if !bytes.Equal(one[i:i+disks.Block], updated[i:i+disks.Block]) {
			differ++
		}
	}
	if part := float64(differ) / float64(n); part < 0.025 || part > 0.04 {
		t.Errorf("%.1f %% of the blocks differ", 100*part)
	}
	if d := float64(changed.Blocks) / float64(differ); d < 1 || d > 1.2 {
		t.Errorf("it says that it changed %d blocks, %d differ", changed.Blocks, differ)
	}
	if changed.Extents < 20 || changed.Extents > int64(differ)/2 {
		t.Errorf("%d blocks in %d runs", differ, changed.Extents)
	}
}
