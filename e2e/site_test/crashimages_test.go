// SPDX-License-Identifier: MIT

package site_test

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/e2e/emulator"
)

// publisher is an operator whose program dies where it is told to.
type publisher struct {
	t        *testing.T
	program  string
	env      []string
	dir      string // of the image
	location string
	died     func(crashpoint.Point)
}

// run runs a command of images, which may be killed, by a point in a folder, and must not
// fail.
func (p *publisher) run(points string, args ...string) (out string, killed bool) {
	p.t.Helper()
	cmd := exec.CommandContext(p.t.Context(), p.program, append([]string{"image"}, args...)...)
	cmd.Env = slices.Concat(os.Environ(), p.env, []string{crashpoint.Variable + "=" + points})
	text, err := cmd.CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		killed = exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
	}
	if err != nil && !killed {
		p.t.Fatalf("minifleet image %s: %v\n%s", strings.Join(args, " "), err, text)
	}
	return string(text), killed
}

// must runs a command that nothing kills.
func (p *publisher) must(args ...string) string {
	p.t.Helper()
	out, killed := p.run("", args...)
	if killed {
		p.t.Fatalf("minifleet image %s was killed", strings.Join(args, " "))
	}
	return out
}

// dies runs a command that a point kills.
func (p *publisher) dies(at crashpoint.Point, args ...string) {
	p.t.Helper()
	points := p.t.TempDir()
	if err := crashpoint.Arm(points, at, 0); err != nil {
		p.t.Fatal(err)
	}
	if out, killed := p.run(points, args...); !killed {
		p.t.Fatalf("minifleet image %s did not die at %s:\n%s", strings.Join(args, " "), at, out)
	}
	p.died(at)
	p.whole(at)
}

func (p *publisher) ref() string { return p.location + "/demo:latest" }

var digestOf = regexp.MustCompile(`sha256:[0-9a-f]{64}`)

func (p *publisher) push() (digest, out string) {
	p.t.Helper()
	out = p.must("push", p.dir, p.ref())
	return digestOf.FindString(out), out
}

// names returns what the tag names.
func (p *publisher) names() string {
	p.t.Helper()
	return digestOf.FindString(p.must("inspect", p.ref()))
}

// whole demands that no image, and no tag's above all, lacks anything, and returns how many
// images and chunks there are.
func (p *publisher) whole(after crashpoint.Point) (images, chunks int) {
	p.t.Helper()
	var v struct{ Images, Chunks int }
	out := p.must("verify", "-o", "json", p.location+"/")
	_, object, _ := strings.Cut(out, "{") // behind its progress
	if err := json.NewDecoder(strings.NewReader("{" + object)).Decode(&v); err != nil {
		p.t.Fatalf("after %s: %v\n%s", after, err, out)
	}
	return v.Images, v.Chunks
}

// change makes another image of the folder: a chunk of several is another.
func (p *publisher) change(seed uint64) {
	p.t.Helper()
	const chunk = 2 << 20
	noise := func(seed uint64) []byte {
		b := make([]byte, chunk)
		_, _ = rand.NewChaCha8([32]byte{byte(seed), 7}).Read(b) // it never fails
		return b
	}
	disk := slices.Concat(noise(0), noise(seed), make([]byte, chunk), noise(1)[:chunk/2])
	if err := os.WriteFile(filepath.Join(p.dir, "disk.img"), disk, 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// The operator's program is killed at each point of a push to a bucket and of a collection,
// and run again (imagecache/publish does it with a folder): at no moment a tag names what lacks anything, the push comes to its end, and what
// the dead ones left is collected.
func TestEveryCrashOfImages(t *testing.T) {
	turn(t)
	programs(t)
	bin, err := crashPrograms()
	if err != nil {
		t.Fatal(err)
	}
	deaths := map[crashpoint.Point]bool{}
	publish := func(location string, env ...string) *publisher {
		dir := folder(t)
		p := &publisher{
			t: t, program: filepath.Join(bin, "minifleet"), env: env, dir: filepath.Join(dir, "demo"), location: location,
			died: func(at crashpoint.Point) { deaths[at] = true },
		}
		if err := errors.Join(os.Mkdir(p.dir, 0o700), os.WriteFile(filepath.Join(p.dir, "image.json"), []byte(`{"schema": 1, "name": "demo", "guest_os": "linux"}`), 0o600)); err != nil {
			t.Fatal(err)
		}
		return p
	}
	bucket, err := emulator.Start(emulator.Options{Buckets: []string{"images"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(bucket.Stop)
	p := publish("gs://images/site", "STORAGE_EMULATOR_HOST="+strings.TrimPrefix(bucket.URL, "http://"))
	p.pushes()
	p.collections(bucket)
	for _, at := range crashpoint.Images() {
		if !deaths[at] && !t.Failed() {
			t.Errorf("no program died at %s", at)
		}
	}
}

// pushes kills a push at each of its points and goes on with it.
func (p *publisher) pushes() {
	p.t.Helper()
	p.change(2)
	tagged, _ := p.push()
	for at := crashpoint.ChunkStored; at <= crashpoint.TagMoved; at++ {
		p.change(uint64(at))
		p.dies(at, "push", p.dir, p.ref())
		now := p.names()
		next, out := p.push()
		if moved := at == crashpoint.TagMoved; moved && now != next || !moved && now != tagged {
			p.t.Errorf("killed at %s, it left the tag at %s, which was %s and is to be %s", at, now, tagged, next)
		}
		if next == tagged {
			p.t.Errorf("killed at %s, it was run again and published %s, which was there before", at, next)
		}
		if !strings.Contains(out, ": 0 of 3 chunks uploaded") {
			p.t.Errorf("killed at %s, it was run again and uploaded more than nothing:\n%s", at, out)
		}
		p.whole(at)
		tagged = next
	}
	// And one that nobody goes on with: its chunks belong to no image.
	p.change(200)
	p.dies(crashpoint.ChunksKept, "push", p.dir, p.ref())
	if p.names() != tagged {
		p.t.Errorf("the tag was moved by a push that was killed")
	}
}

// collections kills a collection at each of its points and goes on with it. All that there
// is has been there for long.
func (p *publisher) collections(bucket *emulator.Server) {
	p.t.Helper()
	tagged := p.names()
	gc := []string{"gc", "--grace", "1h", "--keep-untagged", "1h", p.location}
	images, _ := p.whole(crashpoint.ChunksKept)
	p.must(gc...)
	if n, _ := p.whole(crashpoint.ChunksKept); n != images || images < 3 {
		p.t.Errorf("a collection leaves %d images of what is too young to go, %d", n, images)
	}
	bucket.Age(2 * time.Hour)
	for at := crashpoint.ManifestsMarked; at <= crashpoint.ChunkDeleted; at++ {
		p.dies(at, gc...)
		if p.names() != tagged {
			p.t.Errorf("killed at %s, it left the tag at %s", at, p.names())
		}
	}
	p.must(gc...)
	images, chunks := p.whole(crashpoint.ChunkDeleted)
	if m, c := bucket.Objects("images", "site/manifests/"), bucket.Objects("images", "site/chunks/"); images != 1 || m != 1 || chunks != 3 || c != 3 {
		p.t.Errorf("%d manifests and %d chunks are left, and the one image has %d chunks", m, c, chunks)
	}
	if next, _ := p.push(); next == tagged || p.names() != next {
		p.t.Errorf("an image whose chunks were collected is pushed, and the tag names %s, want %s", p.names(), next)
	}
	p.whole(crashpoint.ChunkDeleted)
}
