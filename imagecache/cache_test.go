// SPDX-License-Identifier: MIT

package imagecache_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/imagecache"
	"github.com/minifleet/minifleet/imagecache/layout"
	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/internal/leakcheck"
)

func TestMain(m *testing.M) {
	// The coders of chunks are made here: in a bubble of synctest their channels would be
	// that bubble's, and all other tests fail.
	content := []byte("chunk")
	if _, err := manifest.Decompress(manifest.Compress(nil, content), int64(len(content)), manifest.SumOf(content)); err != nil {
		panic(err)
	}
	leakcheck.Main(m)
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask says
		t.Fatal(err)
	}
}

func imageJSON(name string) string {
	return `{"schema":1,"name":"` + name + `","guest_os":"linux","description":"for tests"}`
}

// addImage makes the image that the golden digest below is that of, if it is named dev.
func addImage(t *testing.T, dir, name string) string {
	t.Helper()
	image := filepath.Join(dir, name)
	write(t, filepath.Join(image, "image.json"), imageJSON(name), 0o644)
	write(t, filepath.Join(image, "root/bin/tool"), "#!/bin/sh\n", 0o755)
	write(t, filepath.Join(image, "root/data"), "data", 0o600)
	if err := os.Symlink("bin/tool", filepath.Join(image, "root/alias")); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"root", "root/bin"} {
		if err := os.Chmod(filepath.Join(image, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return image
}

func open(t *testing.T, dir string) *imagecache.Cache {
	t.Helper()
	c, err := imagecache.Open(imagecache.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func ensure(t *testing.T, c *imagecache.Cache, ref string) *imagecache.Image {
	t.Helper()
	img, err := c.Ensure(t.Context(), ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(img.Release)
	return img
}

// goldenDigest must never change: pools and reports name images by it.
const goldenDigest = "sha256:bca54e96c4f021a9ce5417677eae51de23a4785b49434984b1741878f50dcfb0"

func TestEnsure(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	image := addImage(t, dir, "dev")
	c := open(t, dir)
	var last imagecache.Progress
	img, err := c.Ensure(t.Context(), "dev", func(p imagecache.Progress) { last = p })
	if err != nil {
		t.Fatal(err)
	}
	defer img.Release()
	size := int64(len(imageJSON("dev")) + len("#!/bin/sh\n") + len("data"))
	if img.Name != "dev" || img.Digest != goldenDigest || img.Dir != image || img.Bytes != size || img.GuestOS != "linux" || img.Description != "for tests" {
		t.Errorf("image %+v", img)
	}
	if last != (imagecache.Progress{DoneBytes: size, TotalBytes: size}) {
		t.Errorf("progress ended with %+v", last)
	}
	pinned := ensure(t, c, "dev@"+goldenDigest)
	if pinned.Digest != img.Digest {
		t.Errorf("by digest: %s", pinned.Digest)
	}
	var wrong *imagecache.DigestError
	if _, err := c.Ensure(t.Context(), "dev@sha256:"+strings.Repeat("0", 64), nil); !errors.As(err, &wrong) || wrong.Have != goldenDigest {
		t.Errorf("another digest: %v", err)
	}
}

func TestEnsureRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	addImage(t, dir, "dev")
	addImage(t, dir, "ci")
	if err := os.Rename(addImage(t, dir, "was"), filepath.Join(dir, "renamed")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "unknown-key", "image.json"), `{"schema":1,"name":"unknown-key","guest_os":"linux","os":"linux"}`, 0o644)
	write(t, filepath.Join(dir, "newer", "image.json"), `{"schema":2,"name":"newer"}`, 0o644)
	write(t, filepath.Join(dir, "plan9", "image.json"), `{"schema":1,"name":"plan9","guest_os":"plan9"}`, 0o644)
	write(t, filepath.Join(dir, "large", "image.json"), strings.Repeat(" ", 1<<20), 0o644)
	if err := syscall.Mkfifo(filepath.Join(addImage(t, dir, "pipe"), "root/pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "no-image"), 0o755); err != nil {
		t.Fatal(err)
	}
	c := open(t, dir)
	for ref, want := range map[string]string{
		"":                                      "0 characters",
		"..":                                    "start with a letter",
		"../dev":                                "a-z",
		"a/b":                                   "a-z",
		"dev@":                                  "digest",
		"dev@sha256:ab":                         "digest",
		"dev@md5:" + strings.Repeat("0", 64):    "digest",
		"dev@sha256:" + strings.Repeat("g", 64): "digest",
		strings.Repeat("a", 101):                "101 characters",
		"unknown-key":                           `unknown field "os"`,
		"newer":                                 "schema 2",
		"plan9":                                 "darwin or linux",
		"large":                                 "larger than",
		"renamed":                               "says that it is was",
		"pipe":                                  "neither a file",
		"no-image":                              "there are: ci, dev",
		"missing@sha256:" + strings.Repeat("0", 64): "there are: ci, dev",
	} {
		if _, err := c.Ensure(t.Context(), ref, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", ref, err, want)
		}
	}
	var missing *imagecache.NotFoundError
	if _, err := c.Ensure(t.Context(), "missing", nil); !errors.As(err, &missing) || missing.Ref != "missing" {
		t.Errorf("a missing image: %v", err)
	}
	if _, err := open(t, t.TempDir()).Ensure(t.Context(), "dev", nil); err == nil || !strings.Contains(err.Error(), "there is none") {
		t.Errorf("an empty cache: %v", err)
	}
}

// changedAt is when a file was changed last, in nanoseconds.
func changedAt(t *testing.T, path string) int64 {
	t.Helper()
	var s unix.Stat_t
	if err := unix.Stat(path, &s); err != nil {
		t.Fatal(err)
	}
	return s.Ctim.Nano()
}

// TestDigestTellsChanges changes one thing at a time.
func TestDigestTellsChanges(t *testing.T) {
	t.Parallel()
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, change := range map[string]func(*testing.T, string){
		"content of the same size and time": func(t *testing.T, image string) {
			path := filepath.Join(image, "root/data")
			info, err := os.Stat(path)
			must(t, err)
			for known := changedAt(t, path); changedAt(t, path) == known; { // the clock of files ticks slowly
				write(t, path, "atad", 0o600)
				must(t, os.Chtimes(path, info.ModTime(), info.ModTime()))
			}
		},
		"mode":           func(t *testing.T, image string) { must(t, os.Chmod(filepath.Join(image, "root/data"), 0o640)) },
		"mode of folder": func(t *testing.T, image string) { must(t, os.Chmod(filepath.Join(image, "root/bin"), 0o700)) },
		"name": func(t *testing.T, image string) {
			must(t, os.Rename(filepath.Join(image, "root/data"), filepath.Join(image, "root/date")))
		},
		"target of a link": func(t *testing.T, image string) {
			must(t, os.Remove(filepath.Join(image, "root/alias")))
			must(t, os.Symlink("data", filepath.Join(image, "root/alias")))
		},
		"more":         func(t *testing.T, image string) { write(t, filepath.Join(image, "root/more"), "", 0o600) },
		"empty folder": func(t *testing.T, image string) { must(t, os.Mkdir(filepath.Join(image, "root/empty"), 0o755)) },
		"less":         func(t *testing.T, image string) { must(t, os.Remove(filepath.Join(image, "root/data"))) },
		"manifest": func(t *testing.T, image string) {
			write(t, filepath.Join(image, "image.json"), strings.Replace(imageJSON("dev"), "for tests", "changed", 1), 0o644)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			image := addImage(t, dir, "dev")
			c := open(t, dir)
			before := ensure(t, c, "dev").Digest
			change(t, image)
			if after := ensure(t, c, "dev").Digest; after == before {
				t.Error("the digest did not change")
			}
			// What is remembered and what is read anew agree.
			if fresh := ensure(t, open(t, dir), "dev").Digest; fresh != ensure(t, c, "dev").Digest {
				t.Error("a fresh cache finds another digest")
			}
		})
	}
}

// TestDigestIsRemembered tells reading from remembering by the progress: a file that is
// read counts piece by piece, a remembered one as a whole.
func TestDigestIsRemembered(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	disk := filepath.Join(addImage(t, dir, "dev"), "disk.img")
	write(t, disk, "", 0o600)
	if err := os.Truncate(disk, 40<<20); err != nil {
		t.Fatal(err)
	}
	c := open(t, dir)
	calls := func() (n int) {
		t.Helper()
		img, err := c.Ensure(t.Context(), "dev", func(imagecache.Progress) { n++ })
		if err != nil {
			t.Fatal(err)
		}
		img.Release()
		return n
	}
	const files = 4
	if n := calls(); n <= files {
		t.Fatalf("%d calls for a first reading", n)
	}
	if n := calls(); n != files {
		t.Errorf("%d calls for a known image of %d files: it was read again", n, files)
	}
	if err := os.Chtimes(disk, time.Time{}, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if n := calls(); n <= files {
		t.Errorf("%d calls after a file changed: it was not read again", n)
	}
}

func TestListAndPins(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	addImage(t, dir, "dev")
	addImage(t, dir, "ci")
	write(t, filepath.Join(dir, "broken", "image.json"), "{", 0o644)
	write(t, filepath.Join(dir, "README"), "", 0o644)
	if err := os.Symlink(addImage(t, t.TempDir(), "linked"), filepath.Join(dir, "linked")); err != nil {
		t.Fatal(err)
	}
	c := open(t, dir)
	one, two := ensure(t, c, "dev"), ensure(t, c, "dev")
	pins := func() map[string]int {
		t.Helper()
		list, err := c.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]int{}
		for _, e := range list {
			if e.Digest == "" || e.Bytes == 0 || e.GuestOS != "linux" {
				t.Errorf("entry %+v", e)
			}
			got[e.Name] = e.Pins
		}
		return got
	}
	if diff := cmp.Diff(map[string]int{"ci": 0, "dev": 2, "linked": 0}, pins()); diff != "" {
		t.Error(diff)
	}
	one.Release()
	one.Release()
	if diff := cmp.Diff(map[string]int{"ci": 0, "dev": 1, "linked": 0}, pins()); diff != "" {
		t.Error(diff)
	}
	two.Release()
	if diff := cmp.Diff(map[string]int{"ci": 0, "dev": 0, "linked": 0}, pins()); diff != "" {
		t.Error(diff)
	}
}

func TestParallelUse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	addImage(t, dir, "dev")
	addImage(t, dir, "ci")
	c := open(t, dir)
	var users sync.WaitGroup
	for i := range 20 {
		users.Go(func() {
			img, err := c.Ensure(t.Context(), []string{"dev", "ci"}[i%2], nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer img.Release()
			if _, err := c.List(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	users.Wait()
}

func TestEnsureCalledOff(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	addImage(t, dir, "dev")
	c := open(t, dir)
	cause := errors.New("the test's cause")
	ctx, cancel := context.WithCancelCause(t.Context())
	if _, err := c.Ensure(ctx, "dev", func(imagecache.Progress) { cancel(cause) }); !errors.Is(err, cause) {
		t.Errorf("ensure: %v", err)
	}
	if _, err := c.List(ctx); !errors.Is(err, cause) {
		t.Errorf("list: %v", err)
	}
	ensure(t, c, "dev") // the next one is not disturbed
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, "", 0o600)
	for _, dir := range []string{"", "relative", "/no/such/folder", file} {
		if _, err := imagecache.Open(imagecache.Config{Dir: dir}); err == nil {
			t.Errorf("%q was accepted", dir)
		}
	}
}

func TestWhatTheDiskHasOfAnImage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "sparse"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sparse", layout.FileImage), []byte(`{"schema":1,"name":"sparse","guest_os":"darwin"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(dir, "sparse", "disk.img")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 64<<20); err != nil {
		t.Fatal(err)
	}
	c, err := imagecache.Open(imagecache.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	img, err := c.Ensure(t.Context(), "sparse", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Release()
	if img.Bytes < 64<<20 || img.Stored < 1<<20 || img.Stored > 8<<20 {
		t.Errorf("of %d bytes %d are stored: want a bit more than a MiB", img.Bytes, img.Stored)
	}
}

func TestManifestByReference(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "tahoe"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "tahoe", layout.FileImage), []byte(`{"schema":1,"name":"tahoe","guest_os":"darwin"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := imagecache.Open(imagecache.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := c.Manifest(t.Context(), "tahoe"); err != nil || m.GuestOS != "darwin" {
		t.Errorf("%+v, %v", m, err)
	}
	var missing *imagecache.NotFoundError
	if _, err := c.Manifest(t.Context(), "sonoma"); !errors.As(err, &missing) || !slices.Equal(missing.Available, []string{"tahoe"}) {
		t.Errorf("an image that is not there: %v", err)
	}
	if _, err := c.Manifest(t.Context(), "../tahoe"); err == nil {
		t.Error("a path is taken for a name")
	}
}
