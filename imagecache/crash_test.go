// SPDX-License-Identifier: MIT

package imagecache_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/imagecache"
)

// buildPull builds the program that dies where it is told to.
func buildPull(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "pull")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-tags=crashpoints", "-o", program, "./testdata/pull")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return program
}

// TestKilled kills a process at every point, of a fetch, of one that starts from another
// image, of an eviction and of a start, and has the next one heal it.
func TestKilled(t *testing.T) {
	t.Parallel()
	program := buildPull(t)
	deaths := map[crashpoint.Point]bool{}
	const chunks = 6
	b := newBucket()
	oldContent := noise(1, chunks*mib)
	newContent := slices.Concat(oldContent[:2*mib], noise(2, 2*mib), make([]byte, mib), oldContent[5*mib:])
	old, now := b.push(t, "tahoe", files{"disk.img": oldContent}), b.push(t, "tahoe", files{"disk.img": newContent})
	places := filepath.Join(t.TempDir(), "objects")
	for name, content := range b.objects {
		write(t, filepath.Join(places, name), string(content), 0o600)
	}
	pull := func(t *testing.T, points, dir, digest string, evict ...string) (killed bool) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), program, append([]string{dir, places, "gs://bucket/tahoe@" + digest}, evict...)...)
		cmd.Env = []string{crashpoint.Variable + "=" + points}
		out, err := cmd.CombinedOutput()
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			killed = exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
		}
		if err != nil && !killed {
			t.Errorf("pull: %v\n%s", err, out)
		}
		return killed
	}
	type death struct {
		at     crashpoint.Point
		passes int
	}
	for name, test := range map[string]struct {
		first, digest string
		evict         []string
		want          []byte
		deaths        []death
	}{
		"a fetch": {"", old, nil, oldContent, []death{
			{crashpoint.ImageBegun, 0},
			{crashpoint.ManifestKept, 0},
			{crashpoint.ChunkWritten, 0},
			{crashpoint.ChunkWritten, chunks - 1},
			{crashpoint.ImageRecorded, 0},
			{crashpoint.ImagePlaced, 0},
		}},
		"a fetch from another image": {old, now, nil, newContent, []death{
			{crashpoint.ImageBegun, 0}, {crashpoint.ManifestKept, 0}, {crashpoint.ChunkWritten, 0}, {crashpoint.ImageRecorded, 0}, {crashpoint.ImagePlaced, 0},
		}},
		"an eviction": {old, now, []string{old}, newContent, []death{{crashpoint.ImageTrashed, 0}}},
		"a start":     {old, now, nil, newContent, []death{{crashpoint.CacheSwept, 0}}},
	} {
		for _, d := range test.deaths {
			t.Run(name+"/"+d.at.String(), func(t *testing.T) {
				dir, points := t.TempDir(), t.TempDir()
				if test.first != "" && pull(t, t.TempDir(), dir, test.first) {
					t.Fatal("killed although nothing is armed")
				}
				if err := crashpoint.Arm(points, d.at, d.passes); err != nil {
					t.Fatal(err)
				}
				if !pull(t, points, dir, test.digest, test.evict...) {
					t.Fatalf("it did not die at %s", d.at)
				}
				deaths[d.at] = true
				// Whatever the dead one wrote last may be wrong.
				partial := filepath.Join(dir, ".cache", "partial", strings.TrimPrefix(test.digest, "sha256:"), "disk.img")
				if info, err := os.Stat(partial); err == nil && d.at == crashpoint.ChunkWritten && d.passes > 0 && info.Size() > 0 {
					if err := writeAt(partial, mib/2); err != nil {
						t.Fatal(err)
					}
				}
				b.chunks()
				c := b.cache(t, imagecache.Config{Dir: dir})
				img := ensure(t, c, "gs://bucket/tahoe@"+test.digest)
				wantContent(t, img, files{"disk.img": test.want})
				if n := b.chunks(); n > chunks {
					t.Errorf("%d chunks were fetched anew", n)
				}
				if d, err := c.Verify(t.Context(), test.digest, nil); err != nil || len(d) > 0 {
					t.Errorf("verify: %v, %v", d, err)
				}
				if left := trash(t, c); len(left) > 0 {
					t.Errorf("left: %v", left)
				}
				if left, err := os.ReadDir(filepath.Join(dir, ".cache", "partial")); err != nil || len(left) > 0 {
					t.Errorf("left: %v, %v", left, err)
				}
			})
		}
	}
	for _, p := range crashpoint.Cache() {
		if !deaths[p] {
			t.Errorf("nothing died at %s", p)
		}
	}
}
