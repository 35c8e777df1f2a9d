// SPDX-License-Identifier: MIT

package imagecache_test

import (
	"bytes"
	"runtime"
	"testing"

	"github.com/minifleet/minifleet/imagecache"
)

// TestMemoryIsBounded fetches images of which most is on this host already, and none of it in
// files that could be cloned: however large they are, what is held of them is bounded. What
// is not made cannot become garbage either, so all that was made is looked at. It runs alone.
func TestMemoryIsBounded(t *testing.T) { //nolint:paralleltest // what others allocate would count
	const chunks, most = 128, 64 + 24 // MiB: what fetches may hold, and all else
	b := newBucket()
	content := bytes.Repeat(noise(1, 8*mib), chunks/8)
	first := b.push(t, "first", files{"disk.img": content})
	copy(content, noise(2, 8*mib))
	next := b.push(t, "next", files{"other.img": content})
	c := b.cache(t, imagecache.Config{})
	for _, digest := range []string{first, next} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		fetch(t, c, "gs://bucket/any@"+digest)
		runtime.ReadMemStats(&after)
		if made := (after.TotalAlloc - before.TotalAlloc) >> 20; made > most {
			t.Errorf("to fetch %d MiB, %d MiB of memory were made, want %d at most", chunks, made, most)
		}
	}
	if n := b.chunks(); n > chunks+8+2 {
		t.Errorf("%d chunks were asked for: nearly all of the second image is here", n)
	}
}
