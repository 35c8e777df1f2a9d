// SPDX-License-Identifier: MIT

package publish_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/imagecache/layout"
	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/imagecache/objects"
	"github.com/minifleet/minifleet/imagecache/publish"
)

// killed runs the program that is built for this, which is to die at a point.
func killed(t *testing.T, program string, at crashpoint.Point, passes int, args ...string) {
	t.Helper()
	points := t.TempDir()
	if err := crashpoint.Arm(points, at, passes); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Env = []string{crashpoint.Variable + "=" + points}
	out, err := cmd.CombinedOutput()
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("it did not die at %s: %v\n%s", at, err, out)
	}
}

// place opens a folder of images.
func place(t *testing.T, dir string) publish.Location {
	t.Helper()
	store, err := objects.Open(t.Context(), objects.Options{Scheme: objects.SchemeFile, Location: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	return publish.Location{Store: store}
}

// imageOf makes an image whose chunks begin with these letters.
func imageOf(t *testing.T, letters string) (string, *layout.Template) {
	t.Helper()
	dir := t.TempDir()
	disk := make([]byte, len(letters)*chunk)
	for i := range letters {
		disk[i*chunk] = letters[i]
	}
	err := errors.Join(os.WriteFile(filepath.Join(dir, "disk.img"), disk, 0o600),
		os.WriteFile(filepath.Join(dir, "image.json"), []byte(`{"schema":1,"name":"image","guest_os":"linux"}`), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	of, err := layout.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return dir, of
}

// stored counts the chunks of a folder.
func stored(t *testing.T, dir string) int {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "chunks", "*", "*.zst"))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// TestKilled kills a push and a collection at every point. What is named lacks nothing
// then, and the next one finishes the work.
func TestKilled(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), "publish")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-tags=crashpoints", "-o", program, "./testdata/publish")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	deaths := map[crashpoint.Point]bool{}
	tagged := manifest.Reference{Name: "image", Tag: "v1"}
	for _, d := range []struct {
		at       crashpoint.Point
		passes   int
		uploaded int // by the next push
		moved    bool
	}{
		{crashpoint.ChunkStored, 0, 2, false},
		{crashpoint.ChunkStored, 2, 0, false},
		{crashpoint.ChunksStored, 0, 0, false},
		{crashpoint.ChunksKept, 0, 0, false},
		{crashpoint.ManifestStored, 0, 0, false},
		{crashpoint.ManifestSealed, 0, 0, false},
		{crashpoint.TagMoved, 0, 0, true},
	} {
		deaths[d.at] = true
		t.Run("push/"+d.at.String(), func(t *testing.T) {
			dir := t.TempDir()
			l := place(t, dir)
			_, old := imageOf(t, "xyz")
			before := push(t, l, old, "v1")
			template, of := imageOf(t, "abc")
			killed(t, program, d.at, d.passes, dir, template)
			wantWhole(t, l)
			if digest, err := l.Resolve(t.Context(), tagged); err != nil || (digest != before.Digest) != d.moved {
				t.Errorf("the tag names %s, %v", digest, err)
			}
			after := push(t, l, of, "v1")
			// Chunks are stored side by side: more than one may have been by then.
			if after.Uploaded > d.uploaded {
				t.Errorf("%d chunks were uploaded again", after.Uploaded)
			}
			if digest, err := l.Resolve(t.Context(), tagged); err != nil || digest != after.Digest {
				t.Errorf("the tag names %s, %v", digest, err)
			}
			wantWhole(t, l)
		})
	}
	for _, d := range []struct {
		at     crashpoint.Point
		passes int
	}{
		{crashpoint.ManifestsMarked, 0}, {crashpoint.ManifestDeleted, 0}, {crashpoint.ChunksMarked, 0}, {crashpoint.ChunkDeleted, 0}, {crashpoint.ChunkDeleted, 1},
	} {
		deaths[d.at] = true
		t.Run("collection/"+d.at.String(), func(t *testing.T) {
			dir := t.TempDir()
			l := place(t, dir)
			_, old := imageOf(t, "axyz")
			push(t, l, old, "v1")
			_, of := imageOf(t, "abc")
			push(t, l, of, "v1")
			killed(t, program, d.at, d.passes, dir)
			wantWhole(t, l)
			if _, err := (publish.Location{Store: later{l.Store}}).GC(t.Context(), publish.GCOptions{Grace: publish.Lease, KeepUntagged: publish.Lease}); err != nil {
				t.Error(err)
			}
			wantWhole(t, l)
			if n := stored(t, dir); n != 3 {
				t.Errorf("%d chunks are left, of an image of 3", n)
			}
			if p := push(t, l, of, "v1"); p.Uploaded != 0 {
				t.Errorf("%d chunks of the image that is tagged were gone", p.Uploaded)
			}
		})
	}
	for _, p := range crashpoint.Images() {
		if !deaths[p] {
			t.Errorf("nothing died at %s", p)
		}
	}
}

// later is a store two days later. A collection learns the time from what it writes.
type later struct{ objects.Store }

func (l later) Put(ctx context.Context, name string, content []byte, c objects.Condition) (objects.Attributes, error) {
	a, err := l.Store.Put(ctx, name, content, c)
	a.Touched = a.Touched.Add(48 * time.Hour)
	return a, err
}
