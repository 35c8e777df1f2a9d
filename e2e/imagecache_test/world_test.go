// SPDX-License-Identifier: MIT

//go:build linux

package imagecache_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/e2e/disks"
	"github.com/minifleet/minifleet/e2e/emulator"
	"github.com/minifleet/minifleet/imagecache"
	"github.com/minifleet/minifleet/imagecache/layout"
	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/imagecache/objects"
	"github.com/minifleet/minifleet/imagecache/publish"
)

// patience is far more than anything here takes; it only ends a test that hangs.
const patience = 2 * time.Minute

// lacking skips a test whose prerequisite this machine has not; in CI that is a failure.
func lacking(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// volume makes a file system of a kind and mounts it at a new folder.
func volume(t *testing.T, kind string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		lacking(t, "only root can mount a file system of %s", kind)
	}
	dir := filepath.Join(t.TempDir(), kind)
	device := dir + ".device"
	f, err := os.Create(device)
	if err == nil {
		err = errors.Join(f.Truncate(600<<20), f.Close(), os.Mkdir(dir, 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"mkfs." + kind, "-q", device}, {"mount", "-o", "loop", device, dir}} {
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			lacking(t, "%s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return dir
}

// onEach runs a test on each file system that clones.
func onEach(t *testing.T, test func(t *testing.T, dir string)) {
	for _, kind := range []string{"xfs", "btrfs"} {
		t.Run(kind, func(t *testing.T) { test(t, volume(t, kind)) })
	}
}

// sources are read once.
var sources = sync.OnceValues(func() (*disks.Sources, error) { return disks.Load(context.Background(), 4<<20) })

// world is a bucket and a folder from which images are published there.
type world struct {
	t      *testing.T
	ctx    context.Context
	bucket *emulator.Server
	dir    string // of the image that is published
}

const diskSize = 48 << 20

// newWorld publishes nothing yet: its image has a disk and a small file.
func newWorld(t *testing.T) *world {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	s, err := emulator.Start(emulator.Options{Buckets: []string{"images"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	w := &world{t: t, ctx: ctx, bucket: s, dir: filepath.Join(t.TempDir(), "image")}
	if err := errors.Join(os.Mkdir(w.dir, 0o755), os.WriteFile(filepath.Join(w.dir, "image.json"), []byte(`{"schema": 1, "name": "image", "guest_os": "linux"}`), 0o644),
		os.WriteFile(filepath.Join(w.dir, "kernel"), bytes.Repeat([]byte("a kernel"), 1000), 0o644)); err != nil {
		t.Fatal(err)
	}
	d, err := sources()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Write(ctx, w.disk(), diskSize, 1); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) disk() string { return filepath.Join(w.dir, "disk.img") }

func (w *world) options() objects.Options { return objects.Options{Endpoint: w.bucket.URL} }

// push publishes the folder as it is, and returns a reference to that version and its
// manifest.
func (w *world) push() (string, *manifest.Manifest) {
	w.t.Helper()
	o := w.options()
	o.Scheme, o.Location = manifest.SchemeGCS, "images/site"
	store, err := objects.Open(w.ctx, o)
	if err != nil {
		w.t.Fatal(err)
	}
	defer store.Close()
	template, err := layout.Open(w.dir)
	if err != nil {
		w.t.Fatal(err)
	}
	l := publish.Location{Store: store}
	p, err := l.Push(w.ctx, template, publish.PushOptions{Name: "image", Tag: "latest"})
	if err != nil {
		w.t.Fatal(err)
	}
	m, err := l.Manifest(w.ctx, p.Digest)
	if err != nil {
		w.t.Fatal(err)
	}
	return "gs://images/site/image@" + p.Digest, m
}

// update changes the image as its guest would, has a part of it discarded, and returns
// what changed.
func (w *world) update(seed uint64) {
	w.t.Helper()
	d, err := sources()
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := d.Update(w.ctx, w.disk(), seed, 0.03); err != nil {
		w.t.Fatal(err)
	}
}

// discard makes a range of the disk zeros.
func (w *world) discard(from, n int64) {
	w.t.Helper()
	f, err := os.OpenFile(w.disk(), os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(make([]byte, n), from)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) cache(dir string) *imagecache.Cache {
	w.t.Helper()
	c, err := imagecache.Open(imagecache.Config{Dir: dir, Objects: w.options()})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			w.t.Error(err)
		}
	})
	return c
}

// ensure has an image in the cache, and returns its folder.
func (w *world) ensure(c *imagecache.Cache, ref string) string {
	w.t.Helper()
	img, err := c.Ensure(w.ctx, ref, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	img.Release()
	return img.Dir
}

// chunks counts the chunks that were asked for so far.
func (w *world) chunks() int { return w.bucket.Asked("GET", "/chunks/") }

// contents are what the image that is published has now.
func (w *world) contents() map[string][]byte {
	w.t.Helper()
	all := map[string][]byte{}
	for _, name := range []string{"disk.img", "kernel"} {
		b, err := os.ReadFile(filepath.Join(w.dir, name))
		if err != nil {
			w.t.Fatal(err)
		}
		all[name] = b
	}
	return all
}

// holds demands that a folder of the cache has an image's very bytes.
func (w *world) holds(dir string, want map[string][]byte) {
	w.t.Helper()
	for name, content := range want {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			w.t.Error(err)
			continue
		}
		if !bytes.Equal(b, content) {
			w.t.Errorf("%s: %d bytes are not the %d that were published", name, len(b), len(content))
		}
	}
}

// taken is how much of a volume is in use, once everything is written.
func taken(t *testing.T, dir string) int64 {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var s unix.Statfs_t
	if err := errors.Join(unix.Syncfs(int(f.Fd())), unix.Fstatfs(int(f.Fd()), &s)); err != nil {
		t.Fatal(err)
	}
	return int64(s.Blocks-s.Bfree) * s.Bsize
}

// hole reports whether a range of a file is stored nowhere.
func hole(t *testing.T, path string, from, n int64) bool {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	at, err := unix.Seek(int(f.Fd()), from, unix.SEEK_DATA)
	return errors.Is(err, unix.ENXIO) || err == nil && at >= from+n
}

// changed counts the chunks of an image that an older one has nowhere, and what they are
// when they are written.
func changed(older, newer *manifest.Manifest) (chunks int, size int64) {
	had := map[manifest.Sum]bool{{}: true}
	for _, f := range older.Files {
		for _, c := range f.Chunks {
			had[c.Sum] = true
		}
	}
	for i := range newer.Files {
		f := &newer.Files[i]
		for n, c := range f.Chunks {
			if !had[c.Sum] {
				had[c.Sum] = true
				chunks++
				size += f.ChunkSize(n, newer)
			}
		}
	}
	return chunks, size
}

// fill takes all room of a volume but so much, and returns how to give it back.
func fill(t *testing.T, dir string, leave int64) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for at, step := int64(0), int64(64<<20); step >= 4<<10; {
		var s unix.Statfs_t
		if err := errors.Join(unix.Syncfs(int(f.Fd())), unix.Statfs(dir, &s)); err != nil {
			t.Fatal(err)
		}
		if n := min(step, int64(s.Bavail)*s.Bsize-leave); n < step {
			step /= 2
			continue
		}
		if err := unix.Fallocate(int(f.Fd()), 0, at, step); errors.Is(err, unix.ENOSPC) {
			step /= 2
		} else if err != nil {
			t.Fatal(err)
		} else {
			at += step
		}
	}
	return sync.OnceFunc(func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
		_ = taken(t, dir) // which waits until it is given back
	})
}
