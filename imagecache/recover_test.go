// SPDX-License-Identifier: MIT

package imagecache_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/imagecache"
)

// TestStart begins with a folder in which an earlier process left all that it can leave.
func TestStart(t *testing.T) {
	t.Parallel()
	b := newBucket()
	refs, digests := b.images(t, 5)
	c := b.cache(t, imagecache.Config{})
	for _, ref := range refs {
		fetch(t, c, ref)
	}
	if err := c.Pin(digests[4]); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(c.Dir(), ".cache")
	hex := func(i int) string { return strings.TrimPrefix(digests[i], "sha256:") }
	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(filepath.Join(root, from), filepath.Join(root, to)); err != nil {
			t.Fatal(err)
		}
	}
	move("images/"+hex(0), "partial/"+hex(0)) // whole, but for its name
	move("images/"+hex(1), "partial/"+hex(1)) // half made
	if err := os.Truncate(filepath.Join(root, "partial", hex(1), "disk.img"), mib); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(root, "records", hex(2)+".json")); err != nil { // of which nobody knows what it is
		t.Fatal(err)
	}
	move("images/"+hex(3), "trash/evicted")
	stray := strings.Repeat("ab", 32)
	for _, path := range []string{
		"images/stray", "images/." + hex(0), "partial/x", "partial/" + stray + "/disk.img", "manifests/" + stray + ".json",
		"records/.new-1", "uses/" + stray, "pinned/" + stray, "locks/" + stray, "trash/half/disk.img",
	} {
		write(t, filepath.Join(root, path), "x", 0o600)
	}
	beside := b.cache(t, imagecache.Config{Dir: c.Dir(), Beside: true})
	if s := status(t, beside, digests[1]); s.State != imagecache.StatePartial {
		t.Errorf("a process beside sees %+v", s)
	}
	if left := trash(t, beside); len(left) != 2 {
		t.Errorf("a process beside has cleared up: %v", left)
	}

	c = b.cache(t, imagecache.Config{Dir: c.Dir()})
	wantCached(t, c, digests[0], digests[4])
	if s := status(t, c, digests[4]); len(s.Pins) != 1 {
		t.Errorf("the pin is lost: %+v", s)
	}
	var have []string
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(root, path)
		known := false
		for _, i := range []int{0, 1, 4} {
			known = known || strings.Contains(rel, hex(i)) && !strings.HasPrefix(filepath.Base(rel), ".")
		}
		if err == nil && strings.Contains(rel, "/") && !known {
			have = append(have, rel)
		}
		return err
	})
	if err != nil || len(have) > 0 {
		t.Errorf("left: %v, %v", have, err)
	}
	b.chunks()
	fetch(t, c, refs[1])
	if n := b.chunks(); n != 1 {
		t.Errorf("%d chunks were fetched where one was missing", n)
	}
	fetch(t, c, refs[0])
	if n := b.asked(); n != 0 {
		t.Errorf("%d objects were asked for of an image that was whole", n)
	}
}

// TestIdlePartialGoes at the start, when many others were used since.
func TestIdlePartialGoes(t *testing.T) {
	t.Parallel()
	b := newBucket()
	refs, digests := b.images(t, 2)
	c := b.cache(t, imagecache.Config{})
	fetch(t, c, refs[0])
	fetch(t, c, refs[1])
	root := filepath.Join(c.Dir(), ".cache")
	hex := strings.TrimPrefix(digests[0], "sha256:")
	if err := errors.Join(os.Rename(filepath.Join(root, "images", hex), filepath.Join(root, "partial", hex)),
		os.Truncate(filepath.Join(root, "partial", hex, "disk.img"), mib)); err != nil {
		t.Fatal(err)
	}
	c = b.cache(t, imagecache.Config{Dir: c.Dir()})
	for range imagecache.KeptUses {
		fetch(t, c, refs[1])
	}
	if s := status(t, b.cache(t, imagecache.Config{Dir: c.Dir()}), digests[0]); s.State != "" {
		t.Errorf("it is there: %+v", s)
	}
}

// TestFilesThatChangedAreRead: what no longer looks as it did is read before it is used,
// and what is wrong of it is fetched.
func TestFilesThatChangedAreRead(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		do   func(path string) error
		want int // chunks that are fetched
	}{
		"touched":  {func(path string) error { return os.Chtimes(path, time.Time{}, time.Unix(1, 0)) }, 0},
		"changed":  {func(path string) error { return writeAt(path, mib+1) }, 1},
		"shorter":  {func(path string) error { return os.Truncate(path, 2*mib) }, 1},
		"unlinked": {os.Remove, 3},
		"replaced": {func(path string) error {
			return errors.Join(os.Remove(path), os.Symlink("/etc/hostname", path))
		}, 3},
		"emptied": {func(path string) error { return os.RemoveAll(filepath.Dir(path)) }, 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBucket()
			ref, digest := b.image(t, "tahoe", 1, 3)
			c := b.cache(t, imagecache.Config{})
			fetch(t, c, ref)
			path := filepath.Join(c.Dir(), ".cache", "images", strings.TrimPrefix(digest, "sha256:"), "disk.img")
			if err := test.do(path); err != nil {
				t.Fatal(err)
			}
			if name != "emptied" {
				wantCached(t, c)
				// Nobody is told that it is whole: it would not be repaired before a machine needs it.
				if s := status(t, c, digest); s.State != imagecache.StateDamaged || s.Failure == "" {
					t.Errorf("status %+v", s)
				}
			}
			b.chunks()
			img := ensure(t, c, ref)
			wantContent(t, img, files{"disk.img": noise(1, 3*mib)})
			if n := b.chunks(); n != test.want {
				t.Errorf("%d chunks were fetched, want %d", n, test.want)
			}
		})
	}
}

func writeAt(path string, off int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte("changed"), off)
	// Also where the clock ticks too slowly to tell.
	return errors.Join(err, f.Close(), os.Chtimes(path, time.Time{}, time.Unix(1, 0)))
}

func TestVerify(t *testing.T) {
	t.Parallel()
	b := newBucket()
	ref, digest := b.image(t, "tahoe", 1, 3)
	c := b.cache(t, imagecache.Config{})
	if _, err := c.Verify(t.Context(), digest, nil); err == nil {
		t.Error("what is not there was verified")
	}
	fetch(t, c, ref)
	var last imagecache.Progress
	if d, err := c.Verify(t.Context(), digest, func(p imagecache.Progress) { last = p }); err != nil || len(d) != 0 || last.DoneBytes != 3*mib {
		t.Errorf("%v, %v, %+v", d, err, last)
	}
	spoil(t, c, digest, "disk.img", 2*mib)
	beside := b.cache(t, imagecache.Config{Dir: c.Dir(), Beside: true})
	d, err := beside.Verify(t.Context(), digest, nil)
	if err != nil || len(d) != 1 || d[0].Path != "disk.img" || d[0].Chunk != 2 {
		t.Fatalf("%v, %v", d, err)
	}
	wantCached(t, c)
	if s := status(t, c, digest); s.State != imagecache.StateDamaged {
		t.Errorf("status %+v", s)
	}
	b.chunks()
	img := ensure(t, c, ref)
	wantContent(t, img, files{"disk.img": noise(1, 3*mib)})
	if n := b.chunks(); n != 1 {
		t.Errorf("%d chunks were fetched", n)
	}
	if d, err := beside.Verify(t.Context(), digest, nil); err != nil || len(d) != 0 {
		t.Errorf("after the repair: %v, %v", d, err)
	}
}

func TestFind(t *testing.T) {
	t.Parallel()
	b := newBucket()
	c := b.cache(t, imagecache.Config{})
	if _, err := c.Find("tahoe"); err == nil || !strings.Contains(err.Error(), "nothing was fetched") {
		t.Error(err)
	}
	ref, digest := b.image(t, "tahoe", 1, 1)
	refTwo, two := b.image(t, "tahoe", 2, 1)
	fetch(t, c, ref)
	for _, text := range []string{ref, "tahoe", digest, digest[:16], strings.TrimPrefix(digest, "sha256:")[:8]} {
		if s, err := c.Find(text); err != nil || s.Digest != digest {
			t.Errorf("%s: %+v, %v", text, s, err)
		}
	}
	fetch(t, c, refTwo)
	if _, err := c.Find("tahoe"); err == nil || !strings.Contains(err.Error(), digest) || !strings.Contains(err.Error(), two) {
		t.Error(err)
	}
	if _, err := c.Find("sonoma"); err == nil || !strings.Contains(err.Error(), ref) {
		t.Error(err)
	}
}
