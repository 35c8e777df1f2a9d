// SPDX-License-Identifier: MIT

package publish_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/imagecache/layout"
	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/imagecache/objects"
	"github.com/minifleet/minifleet/imagecache/publish"
)

const chunk = manifest.ChunkBytes

func push(t *testing.T, l publish.Location, of *layout.Template, tag string) publish.Pushed {
	t.Helper()
	p, err := l.Push(t.Context(), of, publish.PushOptions{Name: "image", Tag: tag})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// wantWhole demands that nothing that is published lacks anything.
func wantWhole(t *testing.T, l publish.Location) {
	t.Helper()
	v, err := l.Verify(t.Context(), "", nil)
	if err != nil || len(v.Problems) > 0 {
		t.Errorf("%+v, %v", v.Problems, err)
	}
}

// names lists the objects below a folder.
func (m *memory) names(folder string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(func(yield func(string) bool) {
		for name := range m.objects {
			if kind(name) == folder && !yield(name) {
				return
			}
		}
	})
}

func (m *memory) set(name string, change func(*object)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o := m.objects[name]
	change(&o)
	m.objects[name] = o
}

func (m *memory) drop(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, name)
}

func object40(letter string) string {
	return manifest.ChunkObject(manifest.SumOf([]byte(strings.Repeat(letter, 40))))
}

func TestPushUploadsOnlyWhatIsMissing(t *testing.T) {
	t.Parallel()
	store := newMemory()
	l := publish.Location{Store: store}
	first := push(t, l, template("abca"), "v1") // a twice
	if first.Chunks != 3 || first.Uploaded != 3 || first.Bytes != 160 || first.Previous != "" || first.UploadedBytes != first.StoredBytes {
		t.Errorf("%+v", first)
	}
	store.counted()
	again := push(t, l, template("abca"), "v1")
	if again.Digest != first.Digest || again.Uploaded != 0 || again.Previous != first.Digest {
		t.Errorf("%+v", again)
	}
	c := store.counted()
	if c["put chunks"]+c["touch chunks"]+c["put manifests"]+c["put tags"] != 0 {
		t.Errorf("an image that is there as it is costs %v", c)
	}
	if other := push(t, l, template("abca"), "v2"); other.Uploaded != 0 || other.Previous != "" {
		t.Errorf("%+v", other)
	}
	if c := store.counted(); c["put chunks"]+c["touch chunks"]+c["put manifests"] != 0 || c["put tags"] != 1 {
		t.Errorf("another tag costs %v", c)
	}
	next := push(t, l, template("abd"), "v1")
	if next.Uploaded != 1 || next.Previous != first.Digest {
		t.Errorf("%+v", next)
	}
	if c := store.counted(); c["put chunks"] != 1 || c["touch chunks"] != 2 {
		t.Errorf("a chunk more costs %v", c)
	}
	wantWhole(t, l)
}

// A push that takes longer than half a lease touches again what it touched before.
func TestPushThatTakesLong(t *testing.T) {
	t.Parallel()
	store := newMemory()
	store.before = func(_ context.Context, op, name string) error {
		if op == "put" && kind(name) == "chunks" {
			store.advance(publish.Lease / 3)
		}
		return nil
	}
	push(t, publish.Location{Store: store, Parallel: 1}, template("abcd"), "v1")
	if c := store.counted(); c["touch chunks"] < 2 {
		t.Errorf("%v", c)
	}
}

// folder makes an image's folder. Content nil is a hole of 3 chunks.
func folder(t *testing.T, files map[string][]byte) (*layout.Template, string) {
	t.Helper()
	dir := t.TempDir()
	files["image.json"] = []byte(`{"schema":1,"name":"dev","guest_os":"linux","arch":"amd64","description":"for tests","min_cpus":2}`)
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, content, 0o640)); err != nil {
			t.Fatal(err)
		}
		if content == nil {
			if err := os.Truncate(path, 3*chunk); err != nil {
				t.Fatal(err)
			}
		}
	}
	return open(t, dir), dir
}

func open(t *testing.T, dir string) *layout.Template {
	t.Helper()
	tmpl, err := layout.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return tmpl
}

func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed)}).Read(b) //nolint:errcheck // it cannot fail
	return b
}

// A folder with holes, zeros, an empty file and the same chunk twice comes back as it was.
func TestPushOfAFolder(t *testing.T) {
	t.Parallel()
	part := noise(1, chunk)
	disk := slices.Concat(part, make([]byte, chunk), part, []byte("the end"))
	tmpl, dir := folder(t, map[string][]byte{"disk.img": disk, "hole": nil, "empty": {}, "root/bin/tool": []byte("tool"), "zeros": make([]byte, 100)})
	store := newMemory()
	l := publish.Location{Store: store}
	var last publish.Progress
	p, err := l.Push(t.Context(), tmpl, publish.PushOptions{Name: "image", Tag: "v1", Progress: func(p publish.Progress) {
		if p.Doing == "pushing" {
			last = p
		}
	}})
	if err != nil || p.Chunks != 3 || p.Uploaded != 3 {
		t.Fatalf("%+v, %v", p, err)
	}
	if want := int64(len(disk) + 3*chunk + 4 + 100); p.Bytes != want || last.Done != want || last.Total != want {
		t.Errorf("%d bytes are %d, and %+v", want, p.Bytes, last)
	}
	to := filepath.Join(t.TempDir(), "pulled")
	m, err := l.Pull(t.Context(), p.Digest, "other", to, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range m.Files {
		want, err := os.ReadFile(filepath.Join(dir, f.Path))
		have, err2 := os.ReadFile(filepath.Join(to, f.Path))
		if err != nil || err2 != nil || !bytes.Equal(want, have) {
			t.Errorf("%s: %v, %v, equal: %t", f.Path, err, err2, bytes.Equal(want, have))
		}
	}
	image, err := layout.ReadImage(to)
	if err != nil || image.Name != "other" || image.Description != "for tests" || image.MinCPUs != 2 {
		t.Errorf("%+v, %v", image, err)
	}
	if again := push(t, l, open(t, to), "v1"); again.Digest != p.Digest {
		t.Errorf("what was pulled is pushed as %s, and was %s", again.Digest, p.Digest)
	}
}

// TestHolesCostNothing: half a terabyte of hole is not read.
func TestHolesCostNothing(t *testing.T) {
	t.Parallel()
	tmpl, dir := folder(t, map[string][]byte{"disk.img": []byte("begin")})
	f, err := os.OpenFile(filepath.Join(dir, "disk.img"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	const far = 512 << 30
	_, err = f.WriteAt([]byte("end"), far)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Skipf("there is no such large file here: %v", err)
	}
	l := publish.Location{Store: newMemory()}
	p := push(t, l, tmpl, "v1")
	if p.Chunks != 2 || p.Bytes != far+3 {
		t.Errorf("%+v", p)
	}
}

// dying makes a store fail from its n-th request on, or with it alone.
func dying(store *memory, n int, alone bool) {
	left := n
	store.before = func(context.Context, string, string) error {
		store.mu.Lock()
		defer store.mu.Unlock()
		left--
		if left == -1 || left < 0 && !alone {
			return errKilled
		}
		return nil
	}
}

func healthy(store *memory) {
	store.mu.Lock()
	defer store.mu.Unlock()
	store.before = func(ctx context.Context, _, _ string) error { return ctx.Err() }
}

// TestCutAtEveryRequest: whatever the request with which a push or a collection ends,
// nothing that is published lacks anything, and run again it is done.
func TestCutAtEveryRequest(t *testing.T) {
	t.Parallel()
	doing := map[string]func(publish.Location) error{
		"push": func(l publish.Location) error {
			_, err := l.Push(context.Background(), template("abde"), publish.PushOptions{Name: "image", Tag: "v1"})
			return err
		},
		"push under a new name": func(l publish.Location) error {
			_, err := l.Push(context.Background(), template("abc"), publish.PushOptions{Name: "another", Tag: "v1"})
			return err
		},
		"gc": func(l publish.Location) error {
			_, err := l.GC(context.Background(), collecting)
			return err
		},
		"tag": func(l publish.Location) error {
			_, err := l.Tag(context.Background(), ref("v1"), "v3")
			return err
		},
	}
	for name, do := range doing {
		for _, alone := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, alone %t", name, alone), func(t *testing.T) {
				t.Parallel()
				for n := 0; ; n++ {
					if n > 500 {
						t.Fatal("it has no end")
					}
					store := newMemory()
					l := publish.Location{Store: store, Parallel: 2}
					push(t, l, template("abc"), "v1")
					push(t, l, template("xyz"), "v2")
					if _, err := l.Delete(t.Context(), ref("v2"), false); err != nil {
						t.Fatal(err)
					}
					store.advance(2 * publish.Lease)
					dying(store, n, alone)
					err := do(l)
					healthy(store)
					wantWhole(t, l)
					if err == nil {
						return
					}
					if !errors.Is(err, errKilled) {
						t.Fatalf("request %d: %v", n, err)
					}
					if err := do(l); err != nil {
						t.Fatalf("again, after request %d: %v", n, err)
					}
					wantWhole(t, l)
				}
			})
		}
	}
}

// A chunk that vanishes between a push's listing and its manifest, or right after, is
// there again before the tag moves.
func TestPushRestoresWhatVanished(t *testing.T) {
	t.Parallel()
	for name, at := range map[string]string{
		"before it is touched": "touch chunks", "before the manifest": "put manifests",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := newMemory()
			l := publish.Location{Store: store, Parallel: 1}
			push(t, l, template("abc"), "v1")
			store.advance(publish.Lease)
			var once atomic.Bool
			store.before = func(_ context.Context, op, name string) error {
				if op+" "+kind(name) == at && once.CompareAndSwap(false, true) {
					store.drop(object40("a"))
					// Long enough for a collection, and so for another look.
					store.advance(publish.Lease)
				}
				return nil
			}
			p := push(t, l, template("abx"), "v1")
			if p.Uploaded != 2 || !once.Load() {
				t.Errorf("%+v", p)
			}
			if b, err := l.Verify(t.Context(), p.Digest, nil); err != nil || len(b.Problems) > 0 {
				t.Errorf("%+v, %v", b, err)
			}
		})
	}
}

// A push heals what is missing of an image that is published already.
func TestPushHeals(t *testing.T) {
	t.Parallel()
	store := newMemory()
	l := publish.Location{Store: store}
	p := push(t, l, template("abc"), "v1")
	store.drop(object40("b"))
	if p := push(t, l, template("abc"), "v1"); p.Uploaded != 1 {
		t.Errorf("%+v", p)
	}
	wantWhole(t, l)
	store.set(manifest.ManifestObject(p.Digest), func(o *object) { o.content, o.Size = []byte("cut"), 3 })
	push(t, l, template("abc"), "v1")
	wantWhole(t, l)
	store.drop(manifest.ManifestObject(p.Digest))
	push(t, l, template("abc"), "v1")
	wantWhole(t, l)
}

// What a broken-off push left without a tag is not taken for whole.
func TestPushTrustsNoManifestWithoutATag(t *testing.T) {
	t.Parallel()
	store := newMemory()
	l := publish.Location{Store: store}
	p := push(t, l, template("abc"), "v1")
	if _, err := l.Delete(t.Context(), ref("v1"), false); err != nil {
		t.Fatal(err)
	}
	store.drop(object40("b"))
	if _, err := l.Tag(t.Context(), ref("").At(p.Digest), "v1"); err == nil || !strings.Contains(err.Error(), "push it again") {
		t.Errorf("a tag for an image that lacks a chunk: %v", err)
	}
	store.counted()
	push(t, l, template("abc"), "v2")
	if c := store.counted(); c["touch chunks"] != 2 || c["put chunks"] != 1 {
		t.Errorf("%v", c)
	}
	if _, err := l.Tag(t.Context(), ref("").At(p.Digest), "v1"); err != nil {
		t.Error(err)
	}
	wantWhole(t, l)
}

// untilToldOf changes a file until it shows: the clock of files ticks slowly.
func untilToldOf(change func(path string) error) func(path string) error {
	return func(path string) error {
		var before, after unix.Stat_t
		err := unix.Stat(path, &before)
		for after = before; err == nil && after.Ctim == before.Ctim; {
			err = errors.Join(change(path), unix.Stat(path, &after))
		}
		return err
	}
}

func TestFilesThatChange(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(path string) error{
		"written": untilToldOf(func(path string) error { return os.WriteFile(path, noise(9, 90_000), 0o640) }),
		"cut":     func(path string) error { return os.Truncate(path, 1000) },
		"longer":  func(path string) error { return os.Truncate(path, 100_000) },
		"removed": os.Remove,
		"replaced": func(path string) error {
			return errors.Join(os.Rename(path, path+".old"), os.WriteFile(path, noise(2, 90_000), 0o640))
		},
		"written, its time set back": untilToldOf(func(path string) error {
			info, err := os.Stat(path)
			return errors.Join(err, os.WriteFile(path, noise(9, 90_000), 0o640), os.Chtimes(path, time.Time{}, info.ModTime()))
		}),
	} {
		for _, at := range []string{"put chunks", "touch chunks"} {
			t.Run(name+" at "+at, func(t *testing.T) {
				t.Parallel()
				tmpl, dir := folder(t, map[string][]byte{"disk.img": noise(2, 90_000), "kernel": []byte("kernel")})
				store := newMemory()
				l := publish.Location{Store: store, Parallel: 1}
				if _, err := l.Push(t.Context(), template("a"), publish.PushOptions{Name: "image", Tag: "v1"}); err != nil {
					t.Fatal(err)
				}
				kernel := []byte("kernel")
				if _, err := store.Put(t.Context(), manifest.ChunkObject(manifest.SumOf(kernel)), manifest.Compress(nil, kernel), objects.Condition{}); err != nil {
					t.Fatal(err)
				}
				var once atomic.Bool
				store.before = func(_ context.Context, op, name string) error {
					if op+" "+kind(name) == at && once.CompareAndSwap(false, true) {
						return change(filepath.Join(dir, "disk.img"))
					}
					return nil
				}
				before := store.names("manifests")
				_, err := l.Push(t.Context(), tmpl, publish.PushOptions{Name: "image", Tag: "v1"})
				if changed, ok := errors.AsType[*publish.ChangedError](err); !ok || filepath.Base(changed.Path) != "disk.img" || !strings.Contains(err.Error(), "push again") {
					t.Errorf("error %v", err)
				}
				if diff := cmp.Diff(before, store.names("manifests")); diff != "" || !once.Load() {
					t.Error(diff)
				}
			})
		}
	}
}

func TestTagsMovedMeanwhile(t *testing.T) {
	t.Parallel()
	store := newMemory()
	l := publish.Location{Store: store}
	other := push(t, l, template("xyz"), "v2")
	var once atomic.Bool
	meanwhile := func(do func()) { // when a tag is about to be written
		once.Store(false)
		store.before = func(_ context.Context, op, name string) error {
			if op == "put" && kind(name) == "tags" && once.CompareAndSwap(false, true) {
				do()
			}
			return nil
		}
	}
	direct := func(tag, digest string) func() {
		return func() {
			if _, err := store.Put(t.Context(), manifest.TagObject("image", tag), manifest.EncodeTag(digest), objects.Condition{}); err != nil {
				t.Error(err)
			}
		}
	}
	meanwhile(direct("v1", other.Digest))
	_, err := l.Push(t.Context(), template("abc"), publish.PushOptions{Name: "image", Tag: "v1"})
	if moved, ok := errors.AsType[*publish.MovedError](err); !ok || moved.Tag != "v1" || !strings.Contains(err.Error(), "run the command again") {
		t.Errorf("a push: %v", err)
	}
	push(t, l, template("q"), "q")
	meanwhile(direct("v1", push(t, l, template("r"), "r").Digest))
	if _, err := l.Tag(t.Context(), ref("q"), "v1"); !errors.As(err, new(*publish.MovedError)) {
		t.Errorf("a tag is moved over another's: %v", err)
	}
	// To what it was to be moved to.
	meanwhile(direct("v1", other.Digest))
	if n, err := l.Tag(t.Context(), ref("v2"), "v1"); err != nil || n.Digest != other.Digest {
		t.Errorf("%+v, %v", n, err)
	}
	wantWhole(t, l)
}

// An image that is deleted while its tag is made gets it from a push, and none from tag.
func TestDeletedMeanwhile(t *testing.T) {
	t.Parallel()
	store := newMemory()
	l := publish.Location{Store: store}
	p := push(t, l, template("abc"), "v1")
	var once atomic.Bool
	store.before = func(_ context.Context, op, name string) error {
		if op == "put" && name == manifest.TagObject("image", "v2") && once.CompareAndSwap(false, true) {
			store.drop(manifest.ManifestObject(p.Digest))
		}
		return nil
	}
	if _, err := l.Tag(t.Context(), ref("v1"), "v2"); !errors.Is(err, publish.ErrNoImage) {
		t.Errorf("error %v", err)
	}
	if tags := store.names("tags"); len(tags) != 1 {
		t.Errorf("tags %v", tags)
	}
	push(t, l, template("abc"), "v1")
	once.Store(false)
	if got := push(t, l, template("abc"), "v2"); got.Digest != p.Digest || !once.Load() {
		t.Errorf("%+v", got)
	}
	wantWhole(t, l)
}

func TestGC(t *testing.T) {
	t.Parallel()
	store := newMemory()
	l := publish.Location{Store: store}
	old := push(t, l, template("abc"), "v1")
	push(t, l, template("abx"), "v1") // abc is untagged from now on
	store.advance(2 * publish.Lease)
	orphan := []byte("of a push that was broken off")
	if _, err := store.Put(t.Context(), manifest.ChunkObject(manifest.SumOf(orphan)), manifest.Compress(nil, orphan), objects.Condition{}); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Put(t.Context(), "chunks/README", []byte("not ours"), objects.Condition{}); err != nil {
		t.Fatal(err)
	}
	for _, o := range []publish.GCOptions{{Grace: publish.Lease - 1, KeepUntagged: publish.Lease}, {Grace: publish.Lease, KeepUntagged: 0}} {
		if _, err := l.GC(t.Context(), o); err == nil || !strings.Contains(err.Error(), "1h0m0s at least") {
			t.Errorf("%+v: %v", o, err)
		}
	}
	all := len(store.names("chunks"))
	dry := collecting
	dry.DryRun = true
	would, err := l.GC(t.Context(), dry)
	if err != nil || len(store.names("chunks")) != all || len(store.names("manifests")) != 2 {
		t.Fatalf("a dry run leaves %v, %v", store.names("chunks"), err)
	}
	kept, err := l.GC(t.Context(), publish.GCOptions{Grace: publish.Lease, KeepUntagged: 3 * publish.Lease})
	if err != nil || kept.KeptManifests != 1 || len(kept.Manifests)+kept.Chunks != 0 || kept.KeptChunks != 1 {
		t.Errorf("%+v, %v", kept, err)
	}
	did, err := l.GC(t.Context(), collecting)
	if diff := cmp.Diff(would, did); diff != "" || err != nil {
		t.Errorf("what a dry run says is not what is done: %v\n%s", err, diff)
	}
	if len(did.Manifests) != 1 || did.Manifests[0] != old.Digest || did.Chunks != 1 || did.Bytes == 0 || did.KeptChunks != 1 {
		t.Errorf("%+v", did)
	}
	wantWhole(t, l)
	store.advance(2 * publish.Lease)
	if did, err := l.GC(t.Context(), collecting); err != nil || did.Chunks != 1 || len(store.names("chunks")) != 4 {
		t.Errorf("%+v, %v: %v", did, err, store.names("chunks"))
	}
}

// A collection deletes no chunk that may belong to what it cannot read.
func TestGCBesideWhatItCannotRead(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(*memory, string){
		"another schema": func(m *memory, digest string) {
			later := []byte(`{"schema":9,"files":[]}`)
			o := m.objects[manifest.ManifestObject(digest)]
			o.content, o.Size, o.Name = later, int64(len(later)), manifest.ManifestObject(manifest.Digest(later))
			m.objects[o.Name] = o
			delete(m.objects, manifest.ManifestObject(digest))
			tag := manifest.EncodeTag(manifest.Digest(later))
			m.objects["tags/image/v1.json"] = object{objects.Attributes{Name: "tags/image/v1.json", Size: int64(len(tag)), Generation: 99}, tag}
		},
		"another content": func(m *memory, digest string) {
			o := m.objects[manifest.ManifestObject(digest)]
			o.content[len(o.content)/2]++
		},
		"a tag of another schema": func(m *memory, _ string) {
			o := m.objects["tags/image/v1.json"]
			o.content = []byte(`{"schema":9}`)
			o.Size = int64(len(o.content))
			m.objects["tags/image/v1.json"] = o
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := newMemory()
			l := publish.Location{Store: store}
			p := push(t, l, template("abc"), "v1")
			store.mu.Lock()
			damage(store, p.Digest)
			store.mu.Unlock()
			store.advance(2 * publish.Lease)
			before := store.names("chunks")
			if did, err := l.GC(t.Context(), collecting); !errors.Is(err, publish.ErrDamaged) || did.Chunks != 0 {
				t.Errorf("%+v, %v", did, err)
			}
			if diff := cmp.Diff(before, store.names("chunks")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDelete(t *testing.T) {
	t.Parallel()
	store := newMemory()
	l := publish.Location{Store: store}
	p := push(t, l, template("abc"), "v1")
	push(t, l, template("abc"), "v2")
	byDigest := ref("").At(p.Digest)
	store.advance(2 * publish.Lease)
	_, err := l.Delete(t.Context(), byDigest, false)
	if tagged, ok := errors.AsType[*publish.TaggedError](err); !ok || !slices.Equal(tagged.Tags, []string{"image:v1", "image:v2"}) {
		t.Errorf("error %v", err)
	}
	for _, tag := range []string{"v1", "v2"} {
		if d, err := l.Delete(t.Context(), ref(tag), false); err != nil || d.Digest != "" || len(d.Tags) != 1 {
			t.Errorf("%+v, %v", d, err)
		}
	}
	if _, err := l.Delete(t.Context(), ref("v1"), false); !errors.Is(err, publish.ErrNoImage) {
		t.Errorf("a tag that is gone: %v", err)
	}
	if _, err := l.Delete(t.Context(), byDigest, false); !errors.As(err, new(*publish.YoungError)) {
		t.Errorf("right after it was untagged: %v", err)
	}
	store.advance(publish.Lease + 1)
	if d, err := l.Delete(t.Context(), byDigest, false); err != nil || d.Digest != p.Digest {
		t.Errorf("%+v, %v", d, err)
	}
	if _, err := l.Delete(t.Context(), byDigest, false); !errors.Is(err, publish.ErrNoImage) {
		t.Errorf("an image that is gone: %v", err)
	}
	push(t, l, template("abc"), "v1")
	if d, err := l.Delete(t.Context(), byDigest, true); err != nil || d.Digest != p.Digest || !slices.Equal(d.Tags, []string{"image:v1"}) {
		t.Errorf("by force: %+v, %v", d, err)
	}
	if left := slices.Concat(store.names("tags"), store.names("manifests")); len(left) != 0 || len(store.names("chunks")) != 3 {
		t.Errorf("left: %v, %v", left, store.names("chunks"))
	}
	if _, err := store.Put(t.Context(), manifest.TagObject("image", "bad"), []byte("no tag"), objects.Condition{}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Delete(t.Context(), ref("bad"), false); err != nil {
		t.Errorf("a damaged tag cannot be deleted: %v", err)
	}
}

func TestVerify(t *testing.T) {
	t.Parallel()
	store := newMemory()
	l := publish.Location{Store: store}
	one := push(t, l, template("abc"), "v1")
	two := push(t, l, template("cde"), "v2")
	wantWhole(t, l)
	store.drop(object40("a"))
	store.set(object40("c"), func(o *object) { o.content = manifest.Compress(nil, []byte("a lie")); o.Size = int64(len(o.content)) })
	store.set(object40("d"), func(o *object) { o.content = make([]byte, 1<<20); o.Size = 1 << 20 })
	store.set(object40("e"), func(o *object) { o.content = o.content[:len(o.content)-1] })
	gone := "sha256:" + strings.Repeat("0", 64)
	if _, err := store.Put(t.Context(), manifest.TagObject("image", "v3"), manifest.EncodeTag(gone), objects.Condition{}); err != nil {
		t.Fatal(err)
	}
	v, err := l.Verify(t.Context(), "", nil)
	if err != nil || v.Images != 2 || v.Chunks != 5 {
		t.Fatalf("%+v, %v", v, err)
	}
	found := map[string][]string{}
	for _, p := range v.Problems {
		found[p.Object] = slices.Sorted(slices.Values(p.Images))
		if !strings.Contains(p.What, "push the image again") {
			t.Errorf("%+v does not say what to do", p)
		}
	}
	want := map[string][]string{
		object40("a"): {one.Digest}, object40("c"): slices.Sorted(slices.Values([]string{one.Digest, two.Digest})),
		object40("d"): {two.Digest}, object40("e"): {two.Digest}, "tags/image/v3.json": {gone},
	}
	if diff := cmp.Diff(want, found); diff != "" {
		t.Error(diff)
	}
	if v, err := l.Verify(t.Context(), one.Digest, nil); err != nil || len(v.Problems) != 2 {
		t.Errorf("%+v, %v", v, err)
	}
	broken := errors.New("the line is down")
	store.before = func(_ context.Context, op, name string) error {
		if op == "get" && kind(name) == "chunks" {
			return broken
		}
		return nil
	}
	if _, err := l.Verify(t.Context(), "", nil); !errors.Is(err, broken) {
		t.Errorf("what cannot be looked at is no problem of the image, and no success: %v", err)
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	store := newMemory()
	l := publish.Location{Store: store}
	if all, err := l.List(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
	old := push(t, l, template("ab"), "v1")
	now := push(t, l, template("aab"), "v1")
	push(t, l, template("aab"), "latest")
	if _, err := store.Put(t.Context(), manifest.TagObject("gone", "v1"), manifest.EncodeTag("sha256:"+strings.Repeat("0", 64)), objects.Condition{}); err != nil {
		t.Fatal(err)
	}
	all, err := l.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, i := range all {
		line := fmt.Sprintf("%s:%s %s", i.Name, i.Tag, i.Digest)
		if i.Summary != nil {
			line += fmt.Sprintf(" %s %d bytes, %d files, %d chunks", i.GuestOS, i.Bytes, i.Files, i.Chunks)
		}
		lines = append(lines, line)
	}
	want := []string{
		"gone:v1 sha256:" + strings.Repeat("0", 64),
		"image:latest " + now.Digest + " linux 120 bytes, 3 files, 2 chunks", "image:v1 " + now.Digest + " linux 120 bytes, 3 files, 2 chunks",
		": " + old.Digest + " linux 80 bytes, 2 files, 2 chunks",
	}
	if diff := cmp.Diff(want, lines); diff != "" || all[0].Error == "" {
		t.Errorf("%s\n%q", diff, all[0].Error)
	}
}

func TestDiff(t *testing.T) {
	t.Parallel()
	describe := func(letters string) *manifest.Manifest {
		m, err := publish.Describe(t.Context(), template(letters), func(manifest.Sum) bool { return letters == "abd" }, nil)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	d := publish.Diff(describe("abca"), describe("abd"))
	if d.Shared.Chunks != 2 || d.Shared.Bytes != 80 || d.New.Chunks != 1 || d.New.Bytes != 40 || d.New.StoredBytes == 0 || d.New.Unsized != 0 || d.Gone.Chunks != 1 || d.Gone.Unsized != 1 {
		t.Errorf("%+v", d)
	}
	if diff := cmp.Diff([]publish.FileChange{{Path: "file-2", Change: "changed", Chunks: 1}, {Path: "file-3", Change: "gone"}}, d.Files); diff != "" {
		t.Error(diff)
	}
	if back := publish.Diff(describe("abd"), describe("abca")).Files; len(back) != 2 || back[1] != (publish.FileChange{Path: "file-3", Change: "new", Chunks: 1}) {
		t.Errorf("%+v", back)
	}
}

func TestPull(t *testing.T) {
	t.Parallel()
	tmpl, _ := folder(t, map[string][]byte{"disk.img": noise(3, 2*chunk+9), "hole": nil})
	store := newMemory()
	l := publish.Location{Store: store}
	p := push(t, l, tmpl, "v1")
	dir := filepath.Join(t.TempDir(), "image")
	if _, err := l.Pull(t.Context(), "sha256:"+strings.Repeat("0", 64), "dev", dir, nil); !errors.Is(err, publish.ErrNoImage) {
		t.Errorf("error %v", err)
	}
	for n := 0; ; n++ { // cut at every request, and on from there
		dying(store, n, false)
		_, err := l.Pull(t.Context(), p.Digest, "dev", dir, nil)
		healthy(store)
		if err == nil {
			break
		}
		if _, statErr := os.Stat(dir); !errors.Is(err, errKilled) || statErr == nil || n > 20 {
			t.Fatalf("%v, and there is %v", err, statErr)
		}
	}
	if _, err := l.Pull(t.Context(), p.Digest, "dev", dir, nil); err == nil || !strings.Contains(err.Error(), "is not empty") {
		t.Errorf("over an image: %v", err)
	}
	if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Pull(t.Context(), p.Digest, "dev", dir, nil); err != nil {
		t.Errorf("into an empty folder: %v", err)
	}
	if again := push(t, l, open(t, dir), "v1"); again.Digest != p.Digest {
		t.Errorf("it is %s", again.Digest)
	}
	chunks := store.names("chunks")
	store.set(chunks[0], func(o *object) { o.content = slices.Clone(store.objects[chunks[1]].content) })
	if _, err := l.Pull(t.Context(), p.Digest, "dev", dir+"2", nil); !errors.Is(err, manifest.ErrCorrupt) || !strings.Contains(err.Error(), "image verify") {
		t.Errorf("of a store that lies: %v", err)
	}
	store.drop(chunks[0])
	if _, err := l.Pull(t.Context(), p.Digest, "dev", dir+"2", nil); !errors.Is(err, objects.ErrNotFound) || !strings.Contains(err.Error(), "push it again") {
		t.Errorf("of a chunk that vanished: %v", err)
	}
	if _, err := os.Stat(dir + "2"); err == nil {
		t.Error("an image that cannot be had is there")
	}
}

// Two pulls into one folder do not mix.
func TestPullBesideAnother(t *testing.T) {
	t.Parallel()
	store := newMemory()
	l := publish.Location{Store: store}
	p := push(t, l, template("abc"), "v1")
	dir := filepath.Join(t.TempDir(), "image")
	var second error
	var once atomic.Bool
	store.before = func(ctx context.Context, op, name string) error {
		if op == "get" && kind(name) == "chunks" && once.CompareAndSwap(false, true) {
			_, second = l.Pull(context.WithoutCancel(ctx), p.Digest, "dev", dir, nil)
		}
		return nil
	}
	if _, err := l.Pull(t.Context(), p.Digest, "dev", dir, nil); err != nil {
		t.Error(err)
	}
	if second == nil || !strings.Contains(second.Error(), "another pull") {
		t.Errorf("the other: %v", second)
	}
}

// Pushes of one image at once, under several names, upload each chunk once.
func TestPushesAtOnce(t *testing.T) {
	t.Parallel()
	store := newMemory()
	l := publish.Location{Store: store}
	errs := make(chan error)
	for _, tag := range []string{"v1", "v2", "v3", "v4"} {
		go func() {
			_, err := l.Push(t.Context(), template("abcdefgh"), publish.PushOptions{Name: "image", Tag: tag})
			errs <- err
		}()
	}
	for range 4 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	generations := map[int64]bool{}
	for _, o := range maps.All(store.objects) {
		generations[o.Generation] = true
	}
	if len(store.names("tags")) != 4 || len(store.names("chunks")) != 8 || store.last != int64(len(store.objects)) || len(generations) != len(store.objects) {
		t.Errorf("%v, %d writes", store.names("tags"), store.last)
	}
	wantWhole(t, l)
}
