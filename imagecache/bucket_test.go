// SPDX-License-Identifier: MIT

package imagecache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/minifleet/minifleet/imagecache"
	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/imagecache/objects"
)

const mib = 1 << 20

// bucket is a place of images in memory, and fails as it is told.
type bucket struct {
	mu      sync.Mutex
	objects map[string][]byte
	got     []string // names that were asked for
	// before, if set, is called before an object is given out, n times so far.
	before func(ctx context.Context, name string, n int) error
}

func newBucket() *bucket { return &bucket{objects: map[string][]byte{}} }

func (b *bucket) Get(ctx context.Context, name string) (io.ReadCloser, objects.Attributes, error) {
	b.mu.Lock()
	b.got = append(b.got, name)
	n, before := len(b.got), b.before
	b.mu.Unlock()
	if before != nil {
		if err := before(ctx, name, n); err != nil {
			return nil, objects.Attributes{}, err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	content, ok := b.objects[name]
	if !ok {
		return nil, objects.Attributes{}, fmt.Errorf("%s: %w", name, objects.ErrNotFound)
	}
	return io.NopCloser(bytes.NewReader(content)), objects.Attributes{Name: name, Size: int64(len(content))}, nil
}

var errNotAsked = errors.New("the cache does not ask this")

func (b *bucket) Stat(context.Context, string) (objects.Attributes, error) {
	return objects.Attributes{}, errNotAsked
}

func (b *bucket) List(context.Context, string) iter.Seq2[objects.Attributes, error] {
	return func(yield func(objects.Attributes, error) bool) { yield(objects.Attributes{}, errNotAsked) }
}

func (b *bucket) Put(context.Context, string, []byte, objects.Condition) (objects.Attributes, error) {
	return objects.Attributes{}, errNotAsked
}

func (b *bucket) Touch(context.Context, string, objects.Condition) (objects.Attributes, error) {
	return objects.Attributes{}, errNotAsked
}

func (b *bucket) Delete(context.Context, string, objects.Condition) error { return errNotAsked }
func (b *bucket) String() string                                          { return "gs://bucket" }
func (b *bucket) Close() error                                            { return nil }

func (b *bucket) set(name string, content []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.objects[name] = content
}

func (b *bucket) hook(before func(ctx context.Context, name string, n int) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.before = before
}

// chunks says how many chunks were asked for since the last time.
func (b *bucket) chunks() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, name := range b.got {
		if strings.HasPrefix(name, manifest.DirChunks) {
			n++
		}
	}
	b.got = nil
	return n
}

// asked says how often anything was asked for since the last time.
func (b *bucket) asked() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(b.got)
	b.got = nil
	return n
}

func noise(seed byte, size int) []byte {
	content := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(content)
	return content
}

type files map[string][]byte

// push publishes an image and returns its digest.
func (b *bucket) push(t *testing.T, name string, content files) string {
	t.Helper()
	m := &manifest.Manifest{Schema: manifest.Schema, GuestOS: "linux", Description: "of " + name, ChunkBytes: mib}
	packed := map[manifest.Sum][]byte{} // compressing takes long under the race detector
	for path, bytes := range content {
		f := manifest.File{Path: path, Mode: 0o644, Size: int64(len(bytes))}
		for chunk := range slices.Chunk(bytes, mib) {
			var c manifest.Chunk
			if !manifest.AllZero(chunk) {
				c.Sum = manifest.SumOf(chunk)
				stored := packed[c.Sum]
				if stored == nil {
					stored = manifest.Compress(nil, chunk)
					packed[c.Sum] = stored
				}
				c.Stored = int64(len(stored))
				b.set(manifest.ChunkObject(c.Sum), stored)
			}
			f.Chunks = append(f.Chunks, c)
		}
		m.Files = append(m.Files, f)
	}
	slices.SortFunc(m.Files, func(a, b manifest.File) int { return strings.Compare(a.Path, b.Path) })
	raw, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	digest := manifest.Digest(raw)
	b.set(manifest.ManifestObject(digest), raw)
	b.set(manifest.TagObject(name, "latest"), manifest.EncodeTag(digest))
	return digest
}

// image publishes an image of so many chunks that no other has.
func (b *bucket) image(t *testing.T, name string, seed byte, chunks int) (ref, digest string) {
	t.Helper()
	digest = b.push(t, name, files{"disk.img": noise(seed, chunks*mib)})
	return "gs://bucket/" + name + "@" + digest, digest
}

// cache opens a cache of images that come from the bucket.
func (b *bucket) cache(t *testing.T, cfg imagecache.Config) *imagecache.Cache {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	cfg.OpenStore = func(context.Context, objects.Options) (objects.Store, error) { return b, nil }
	c, err := imagecache.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// fetch ensures an image and gives it back at once.
func fetch(t *testing.T, c *imagecache.Cache, ref string) {
	t.Helper()
	img, err := c.Ensure(t.Context(), ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	img.Release()
}

func wantContent(t *testing.T, img *imagecache.Image, content files) {
	t.Helper()
	for path, want := range content {
		if have, err := os.ReadFile(filepath.Join(img.Dir, path)); err != nil || !bytes.Equal(have, want) {
			t.Errorf("%s is not what it should be: %v", path, err)
		}
	}
}

// cached lists the digests that are whole.
func cached(t *testing.T, c *imagecache.Cache) []string {
	t.Helper()
	list, err := c.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var digests []string
	for _, e := range list {
		digests = append(digests, e.Digest)
	}
	return digests
}

func wantCached(t *testing.T, c *imagecache.Cache, want ...string) {
	t.Helper()
	have := cached(t, c)
	slices.Sort(have)
	want = slices.Sorted(slices.Values(want))
	if !slices.Equal(have, want) {
		t.Errorf("cached are %v, want %v", have, want)
	}
}

func status(t *testing.T, c *imagecache.Cache, digest string) imagecache.Status {
	t.Helper()
	for _, s := range c.Status() {
		if s.Digest == digest {
			return s
		}
	}
	return imagecache.Status{}
}

func (b *bucket) clone() map[string][]byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.objects)
}

func (b *bucket) restore(objects map[string][]byte) {
	b.hook(nil)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.objects = objects
}
