// SPDX-License-Identifier: MIT

//go:build linux

package imagecache_test

import (
	"errors"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/e2e/emulator"
	"github.com/minifleet/minifleet/imagecache"
)

// An image is pulled whole, with its holes; the next version is made of it: only chunks
// that differ cross the network and take room, what is zero in the new one is a hole, and
// the old one stays what it was.
func TestDeltaOnCloningFileSystems(t *testing.T) {
	onEach(t, func(t *testing.T, dir string) {
		w := newWorld(t)
		w.discard(12<<20, 4<<20)
		first, m1 := w.push()
		one := w.contents()
		cache := w.cache(dir)
		at1 := w.ensure(cache, first)
		w.holds(at1, one)
		if !hole(t, filepath.Join(at1, "disk.img"), 12<<20, 4<<20) {
			t.Error("a chunk of zeros takes room")
		}

		w.update(2)
		w.discard(32<<20, 8<<20)
		second, m2 := w.push()
		two := w.contents()
		chunks, size := changed(m1, m2)
		if chunks == 0 || chunks > 11 {
			t.Fatalf("%d chunks differ: the test proves nothing", chunks)
		}
		before, asked := taken(t, dir), w.chunks()
		at2 := w.ensure(cache, second)
		if n := w.chunks() - asked; n != chunks {
			t.Errorf("%d chunks were asked for, %d differ", n, chunks)
		}
		if grown := taken(t, dir) - before; grown > size+4<<20 {
			t.Errorf("the volume has %d bytes more in use, the chunks that differ have %d", grown, size)
		}
		w.holds(at2, two)
		w.holds(at1, one)
		if !hole(t, filepath.Join(at2, "disk.img"), 32<<20, 8<<20) {
			t.Error("what became zeros takes room")
		}

		// Back to the first, of which everything is there: nothing is asked for.
		asked = w.chunks()
		if w.ensure(cache, first) != at1 || w.chunks() != asked {
			t.Error("an image that is there is fetched again")
		}
	})
}

// The volume becomes full while an image is being fetched: the attempt fails and says so,
// what it has fetched makes room for machines that run, and it succeeds with room again.
func TestVolumeFullInTheMiddle(t *testing.T) {
	onEach(t, func(t *testing.T, dir string) {
		w := newWorld(t)
		ref, m := w.push()
		want := w.contents()
		cache, empty := w.cache(dir), taken(t, dir)
		// The fetch stands still in its middle, at the file's ninth chunk that is stored.
		name, n := "", 0
		for _, c := range m.Files[0].Chunks {
			if !c.Zero() {
				if n++; n == 9 {
					name = c.Sum.String()
				}
			}
		}
		w.bucket.Faults.Add(emulator.Fault{Kind: emulator.Stall, Part: name, Count: 1})
		done := make(chan error, 1)
		go func() {
			img, err := cache.Ensure(w.ctx, ref, nil)
			if err == nil {
				img.Release()
			}
			done <- err
		}()
		if err := w.bucket.Faults.Await(w.ctx, emulator.Stall, 1); err != nil {
			t.Fatal(err)
		}
		free := fill(t, dir, 0)
		defer free()
		w.bucket.Faults.Clear()
		if err := <-done; !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("on a full volume: %v", err)
		}
		free()
		if grown := taken(t, dir) - empty; grown > 8<<20 {
			t.Errorf("%d bytes of what cannot be finished are left", grown)
		}
		w.holds(w.ensure(cache, ref), want)
	})
}

// A whole image does not fit: that is said before anything is fetched, and names the
// images that hold the room.
func TestNoRoomAtAll(t *testing.T) {
	onEach(t, func(t *testing.T, dir string) {
		w := newWorld(t)
		ref, _ := w.push()
		cache := w.cache(dir)
		free := fill(t, dir, 8<<20)
		defer free()
		img, err := cache.Ensure(w.ctx, ref, nil)
		if err == nil {
			img.Release()
		}
		if _, ok := errors.AsType[*imagecache.NoRoomError](err); !ok {
			t.Fatalf("on a full volume: %v", err)
		}
		if n := w.chunks(); n > 0 {
			t.Errorf("%d chunks were asked for", n)
		}
		free()
		w.holds(w.ensure(cache, ref), w.contents())
	})
}
