// SPDX-License-Identifier: MIT

package imagecache_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/imagecache"
	"github.com/minifleet/minifleet/imagecache/assemble"
	"github.com/minifleet/minifleet/imagecache/manifest"
)

// images publishes a, b, c ... of two chunks each.
func (b *bucket) images(t *testing.T, n int) (refs, digests []string) {
	t.Helper()
	for i := range n {
		ref, digest := b.image(t, string(rune('a'+i)), byte(i+1), 2)
		refs, digests = append(refs, ref), append(digests, digest)
	}
	return refs, digests
}

// TestWhatWasUsedLongestAgoGoes under each limit, whatever the clocks say.
func TestWhatWasUsedLongestAgoGoes(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]imagecache.Config{
		"count": {MaxImages: 3},
		"bytes": {MaxBytes: 6 * mib},
		"free":  {MinFree: 100 * mib},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBucket()
			refs, digests := b.images(t, 5)
			c := b.cache(t, cfg)
			free := func() int64 {
				return 106*mib - 2*mib*int64(len(entriesOf(t, c)))
			}
			c.SetFree(free)
			for _, i := range []int{0, 1, 2} {
				fetch(t, c, refs[i])
			}
			fetch(t, c, refs[0]) // 1 is the oldest now
			// Neither times that lie in the future, as after a clock that was set back, nor
			// those of long ago have a say.
			err := filepath.WalkDir(filepath.Join(c.Dir(), ".cache"), func(path string, e fs.DirEntry, err error) error {
				if err != nil || strings.Contains(path, "/images/") {
					return err
				}
				when := time.Unix(1, 0)
				if strings.Contains(path, strings.TrimPrefix(digests[1], "sha256:")) {
					when = time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)
				}
				return os.Chtimes(path, when, when)
			})
			if err != nil {
				t.Fatal(err)
			}
			cfg.Dir = c.Dir()
			next := b.cache(t, cfg) // the order outlives the process
			next.SetFree(free)
			fetch(t, next, refs[3])
			wantCached(t, next, digests[0], digests[2], digests[3])
			fetch(t, next, refs[4])
			wantCached(t, next, digests[0], digests[3], digests[4])
			if left := trash(t, next); len(left) > 0 {
				t.Errorf("left of what was evicted: %v", left)
			}
		})
	}
}

// entriesOf lists what takes room.
func entriesOf(t *testing.T, c *imagecache.Cache) []string {
	t.Helper()
	var list []string
	for _, dir := range []string{"images", "trash"} {
		entries, err := os.ReadDir(filepath.Join(c.Dir(), ".cache", dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		for _, e := range entries {
			list = append(list, e.Name())
		}
	}
	return list
}

func trash(t *testing.T, c *imagecache.Cache) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(c.Dir(), ".cache", "trash"))
	if err != nil {
		t.Error(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// TestWhatStays has every image kept by something else, and asks for one more.
func TestWhatStays(t *testing.T) {
	t.Parallel()
	b := newBucket()
	refs, digests := b.images(t, 5)
	c := b.cache(t, imagecache.Config{MaxImages: 4})
	for _, ref := range refs[:3] {
		fetch(t, c, ref)
	}
	using := ensure(t, c, refs[3])
	if err := c.Pin(digests[0]); err != nil {
		t.Fatal(err)
	}
	if err := c.Hold([]string{digests[1]}); err != nil {
		t.Fatal(err)
	}
	beside := b.cache(t, imagecache.Config{Dir: c.Dir(), Beside: true})
	elsewhere := ensure(t, beside, refs[2]) // as another process would
	var room *imagecache.NoRoomError
	_, err := c.Ensure(t.Context(), refs[4], nil)
	if !errors.As(err, &room) || !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	for i, why := range []string{"pinned by an operator", "held by the controller", "in use", "machines are being cloned from it"} {
		if want := fmt.Sprintf("%s (2 MiB, %s)", refs[i], why); !strings.Contains(err.Error(), want) {
			t.Errorf("%v\nlacks %s", err, want)
		}
	}
	if !strings.Contains(err.Error(), "cache.max_images is 4") {
		t.Error(err)
	}
	wantCached(t, c, digests[:4]...)
	// Those that are there are given out all the same.
	fetch(t, c, refs[0])
	// An operator is told the same.
	for i, why := range []string{"pinned", "held", "in use", "cloned"} {
		if err := beside.Evict(digests[i], false); err == nil || i < 2 && !strings.Contains(err.Error(), why) {
			t.Errorf("evict %s: %v", refs[i], err)
		}
	}
	elsewhere.Release()
	fetch(t, c, refs[4])
	wantCached(t, c, digests[0], digests[1], digests[3], digests[4])
	using.Release()
	if err := beside.Unpin(digests[0]); err != nil {
		t.Error(err)
	}
	if err := beside.Unpin(digests[0]); err == nil {
		t.Error("unpinned twice")
	}
	for _, i := range []int{0, 3} {
		if err := beside.Evict(digests[i], false); err != nil {
			t.Error(err)
		}
	}
	if err := beside.Evict(digests[1], true); err != nil {
		t.Error(err)
	}
	wantCached(t, c, digests[4])
	if err := beside.Evict(digests[1], true); err == nil || beside.Pin(digests[1]) == nil {
		t.Error("what is not there was evicted or pinned")
	}
	if err := c.Hold(nil); err != nil {
		t.Error(err)
	}
}

// TestNothingGoesInVain asks for more than could be made free.
func TestNothingGoesInVain(t *testing.T) {
	t.Parallel()
	b := newBucket()
	refs, digests := b.images(t, 2)
	large, _ := b.image(t, "large", 50, 8)
	c := b.cache(t, imagecache.Config{MaxBytes: 6 * mib})
	fetch(t, c, refs[0])
	fetch(t, c, refs[1])
	_, err := c.Ensure(t.Context(), large, nil)
	if err == nil || !strings.Contains(err.Error(), "cache.max_gib") || !strings.Contains(err.Error(), "that would not be enough") {
		t.Error(err)
	}
	wantCached(t, c, digests...)
}

// TestEvictionHoldsNobodyUp has an image given out while room is made for another.
func TestEvictionHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	b := newBucket()
	refs, digests := b.images(t, 2)
	c := b.cache(t, imagecache.Config{MaxImages: 1})
	fetch(t, c, refs[0])
	resume := c.StopClearing()
	done := make(chan error, 1)
	go func() {
		img, err := c.Ensure(t.Context(), refs[1], nil)
		if err == nil {
			img.Release()
		}
		done <- err
	}()
	fetch(t, c, refs[0])
	resume()
	if err := <-done; err != nil {
		t.Error(err)
	}
	wantCached(t, c, digests[1])
}

// TestBaseStays evicts an image while another is being made from it.
func TestBaseStays(t *testing.T) {
	t.Parallel()
	b := newBucket()
	content := noise(1, 4*mib)
	old := b.push(t, "tahoe", files{"disk.img": content})
	changed := append(append([]byte{}, content[:3*mib]...), noise(2, mib)...)
	now := b.push(t, "tahoe", files{"disk.img": changed})
	c := b.cache(t, imagecache.Config{})
	fetch(t, c, "gs://bucket/tahoe@"+old)
	asked := false
	b.hook(func(_ context.Context, name string, _ int) error {
		if strings.HasPrefix(name, manifest.DirChunks) {
			asked = true
			if err := c.Evict(old, false); err == nil || !strings.Contains(err.Error(), "another image is being made from it") {
				t.Errorf("evict the base: %v", err)
			}
		}
		return nil
	})
	b.chunks()
	img := ensure(t, c, "gs://bucket/tahoe@"+now)
	wantContent(t, img, files{"disk.img": changed})
	if n := b.chunks(); n != 1 || !asked {
		t.Errorf("%d chunks were fetched", n)
	}
	if err := c.Evict(old, false); err != nil {
		t.Error(err)
	}
	wantContent(t, img, files{"disk.img": changed})
}

func TestFullDisk(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "small")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	mountSmall(t, dir, "6m")
	b := newBucket()
	ref, digest := b.image(t, "tahoe", 1, 4)
	c := b.cache(t, imagecache.Config{Dir: dir})
	c.SetFree(func() int64 { return 1 << 40 }) // others will have written by then
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 4*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := c.Ensure(t.Context(), ref, nil)
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "free some space") {
		t.Errorf("on a full volume: %v", err)
	}
	// What runs there has its room again.
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil || int64(s.Bavail)*int64(s.Bsize) < 3*mib/2 {
		t.Errorf("%d bytes are free: %v", int64(s.Bavail)*int64(s.Bsize), err)
	}
	if s := status(t, c, digest); s.State != imagecache.StateFailed {
		t.Errorf("status %+v", s)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	fetch(t, c, ref)
	wantCached(t, c, digest)
}

// TestRoomThatOthersTake has a volume fill up while an image is written: what is idle goes,
// and then the fetch ends before the volume is full.
func TestRoomThatOthersTake(t *testing.T) {
	t.Parallel()
	b := newBucket()
	idle, digest := b.image(t, "idle", 1, 2)
	large, _ := b.image(t, "large", 2, 140)
	c := b.cache(t, imagecache.Config{MinFree: 100 * mib})
	var taken atomic.Int64
	c.SetFree(func() int64 { return 300*mib - taken.Load() })
	fetch(t, c, idle)
	_, err := c.Ensure(t.Context(), large, func(imagecache.Progress) { taken.Store(250 * mib) })
	var room *imagecache.NoRoomError
	if !errors.As(err, &room) || !strings.Contains(err.Error(), "cache.min_free_gib") {
		t.Errorf("%v", err)
	}
	wantCached(t, c, digest) // it would not have been enough
}

// TestRoomForOneOnly updates an image where the limits let only one stay: the old one goes
// when the new one has been made from it.
func TestRoomForOneOnly(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]imagecache.Config{"count": {MaxImages: 1}, "bytes": {MaxBytes: 5 * mib}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, old, now, content := updated(t)
			c := b.cache(t, cfg)
			fetch(t, c, "gs://bucket/tahoe@"+old)
			b.chunks()
			wantContent(t, ensure(t, c, "gs://bucket/tahoe@"+now), files{"disk.img": content})
			if n := b.chunks(); n != 1 {
				t.Errorf("%d chunks were fetched", n)
			}
			wantCached(t, c, now)
		})
	}
}

// updated has an image of four chunks, and one in which a chunk has changed.
func updated(t *testing.T) (b *bucket, old, now string, content []byte) {
	t.Helper()
	b = newBucket()
	content = noise(1, 4*mib)
	old = b.push(t, "tahoe", files{"disk.img": content})
	content = append(append([]byte{}, content[:3*mib]...), noise(2, mib)...)
	return b, old, b.push(t, "tahoe", files{"disk.img": content}), content
}

// TestRoomOnlyWithoutTheBase has a volume on which an image has room only once the one that
// it would start from is gone.
func TestRoomOnlyWithoutTheBase(t *testing.T) {
	t.Parallel()
	b, old, now, content := updated(t)
	c := b.cache(t, imagecache.Config{MinFree: 100 * mib})
	c.SetFree(func() int64 { return 104*mib - 4*mib*int64(len(entriesOf(t, c))) })
	fetch(t, c, "gs://bucket/tahoe@"+old)
	wantContent(t, ensure(t, c, "gs://bucket/tahoe@"+now), files{"disk.img": content})
	wantCached(t, c, now)
}

// TestCopiesNeedRoom updates an image on a volume without clones: what is kept of the old one
// is written all the same, and never into the room that must stay free.
func TestCopiesNeedRoom(t *testing.T) {
	t.Parallel()
	b, old, now, content := updated(t)
	c := b.cache(t, imagecache.Config{MinFree: 100 * mib})
	if assemble.Clones(c.Dir()) {
		t.Skip("this volume has copy-on-write clones")
	}
	least := int64(1 << 40)
	var mu sync.Mutex // guards least
	free := func() int64 {
		taken := int64(0)
		for _, dir := range []string{"images", "partial", "trash"} {
			taken += sizeOf(t, filepath.Join(c.Dir(), ".cache", dir))
		}
		mu.Lock()
		defer mu.Unlock()
		least = min(least, 106*mib-taken)
		return 106*mib - taken
	}
	c.SetFree(free)
	fetch(t, c, "gs://bucket/tahoe@"+old)
	img, err := c.Ensure(t.Context(), "gs://bucket/tahoe@"+now, func(imagecache.Progress) { free() })
	if err != nil {
		t.Fatal(err)
	}
	defer img.Release()
	wantContent(t, img, files{"disk.img": content})
	wantCached(t, c, now)
	if least < 100*mib {
		t.Errorf("%d MiB were free at one time, and 100 must stay so", least/mib)
	}
}

// sizeOf sums what is written of the files below a folder.
func sizeOf(t *testing.T, dir string) (sum int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && !e.Type().IsRegular() {
			return nil
		}
		if err != nil {
			return err
		}
		var s unix.Stat_t
		if err := unix.Lstat(path, &s); err == nil {
			sum += s.Blocks * 512
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return sum
}

// TestLocalAfterAnEviction takes chunks from other images although room was made first.
func TestLocalAfterAnEviction(t *testing.T) {
	t.Parallel()
	b := newBucket()
	refs, digests := b.images(t, 3)
	mixed := slices.Concat(noise(3, 2*mib)[mib:], noise(2, mib))
	digest := b.push(t, "mixed", files{"other.img": mixed})
	c := b.cache(t, imagecache.Config{MaxImages: 3})
	for _, ref := range refs {
		fetch(t, c, ref)
	}
	fetch(t, c, refs[1])
	b.chunks()
	wantContent(t, ensure(t, c, "gs://bucket/mixed@"+digest), files{"other.img": mixed})
	if n := b.chunks(); n != 0 {
		t.Errorf("%d chunks were fetched that are on this host", n)
	}
	wantCached(t, c, digests[1], digests[2], digest)
}

// TestALimitThrowsNothingAway: what was fetched is not lost because something keeps the
// room of the rest for the moment.
func TestALimitThrowsNothingAway(t *testing.T) {
	t.Parallel()
	b := newBucket()
	refs, _ := b.images(t, 1)
	large, _ := b.image(t, "large", 9, 6)
	c := b.cache(t, imagecache.Config{})
	using := ensure(t, c, refs[0])
	last := manifest.ChunkObject(manifest.SumOf(noise(9, 6*mib)[5*mib:]))
	b.hook(func(ctx context.Context, name string, _ int) error {
		if name == last {
			<-ctx.Done()
		}
		return ctx.Err()
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := c.Ensure(ctx, large, func(p imagecache.Progress) {
		if p.WrittenBytes == 5*mib {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	b.hook(nil)
	next := b.cache(t, imagecache.Config{Dir: c.Dir(), MaxImages: 1})
	if _, err := next.Ensure(t.Context(), large, nil); !errors.As(err, new(*imagecache.NoRoomError)) {
		t.Error(err)
	}
	using.Release()
	b.chunks()
	fetch(t, next, large)
	if n := b.chunks(); n != 1 {
		t.Errorf("%d chunks were fetched again", n)
	}
}

// TestAGlanceIsNoUse: who looks whether an image is in use has its lock for a moment, and is
// in nobody's way.
func TestAGlanceIsNoUse(t *testing.T) {
	t.Parallel()
	b, old, now, _ := updated(t)
	other, _ := b.image(t, "other", 9, 1)
	c := b.cache(t, imagecache.Config{MaxImages: 1})
	fetch(t, c, "gs://bucket/tahoe@"+old)
	b.hook(func(_ context.Context, name string, _ int) error {
		if strings.HasPrefix(name, manifest.DirManifests) {
			c.Glance(t, old)
		}
		return nil
	})
	b.chunks()
	fetch(t, c, "gs://bucket/tahoe@"+now)
	if n := b.chunks(); n != 1 {
		t.Errorf("%d chunks were fetched", n)
	}
	old = now
	fetch(t, c, other)
}
