// SPDX-License-Identifier: MIT

package imagecache_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/minifleet/minifleet/imagecache"
	"github.com/minifleet/minifleet/imagecache/assemble"
	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/imagecache/objects"
	"github.com/minifleet/minifleet/imagecache/peer"
)

func TestFetch(t *testing.T) {
	t.Parallel()
	b := newBucket()
	content := files{"disk.img": append(noise(1, 3*mib), make([]byte, 2*mib)...), "efi/vars": noise(2, 10)}
	digest := b.push(t, "tahoe", content)
	c := b.cache(t, imagecache.Config{})
	addImage(t, c.Dir(), "dev")
	var last imagecache.Progress
	img, err := c.Ensure(t.Context(), "gs://bucket/tahoe", func(p imagecache.Progress) { last = p })
	if err != nil {
		t.Fatal(err)
	}
	wantContent(t, img, content)
	size := int64(5*mib + 10)
	if img.Name != "tahoe" || img.Digest != digest || img.Bytes != size || img.Stored != 3*mib+10 || img.GuestOS != "linux" || img.Description != "of tahoe" {
		t.Errorf("image %+v", img)
	}
	if last.DoneBytes != size || last.TotalBytes != size || last.FetchedBytes < 3*mib || last.FetchedBytes > 4*mib {
		t.Errorf("progress ended with %+v", last)
	}
	if s := status(t, c, digest); s.State != imagecache.StateWhole || s.Image != "gs://bucket/tahoe@"+digest || len(s.Pins) != 1 || s.TotalBytes != size {
		t.Errorf("status %+v", s)
	}
	img.Release()
	img.Release()
	if s := status(t, c, digest); len(s.Pins) != 0 {
		t.Errorf("status %+v", s)
	}
	wantCached(t, c, goldenDigest, digest)

	// It is there now, for the next process too; only where the tag leads is asked.
	b.asked()
	fetch(t, c, "gs://bucket/tahoe@"+digest)
	if n := b.asked(); n != 0 {
		t.Errorf("%d objects were asked for", n)
	}
	fetch(t, c, "gs://elsewhere/other@"+digest)
	next := b.cache(t, imagecache.Config{Dir: c.Dir()})
	fetch(t, next, "gs://bucket/tahoe:latest")
	if n := b.asked(); n != 1 {
		t.Errorf("%d objects were asked for", n)
	}
	if m, err := next.Manifest(t.Context(), "gs://bucket/tahoe@"+digest); err != nil || m.GuestOS != "linux" || b.asked() != 0 {
		t.Errorf("manifest %+v, %v", m, err)
	}
}

func TestManifestBeforeTheFetch(t *testing.T) {
	t.Parallel()
	b := newBucket()
	ref, _ := b.image(t, "tahoe", 1, 2)
	c := b.cache(t, imagecache.Config{})
	if m, err := c.Manifest(t.Context(), ref); err != nil || m.GuestOS != "linux" || b.chunks() != 0 {
		t.Errorf("%+v, %v", m, err)
	}
	if _, err := c.Manifest(t.Context(), "gs://bucket/sonoma"); !errors.Is(err, objects.ErrNotFound) {
		t.Errorf("an image that is not there: %v", err)
	}
}

// TestFetchIsShared has many wait for one fetch, of whom some lose patience.
func TestFetchIsShared(t *testing.T) {
	t.Parallel()
	b := newBucket()
	ref, digest := b.image(t, "tahoe", 1, 4)
	c := b.cache(t, imagecache.Config{})
	hold, asked := make(chan struct{}), make(chan struct{}, 100)
	b.hook(func(ctx context.Context, name string, _ int) error {
		if strings.HasPrefix(name, manifest.DirChunks) {
			asked <- struct{}{}
			select {
			case <-hold:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	const users = 10
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("the test's cause")
	var done, left sync.WaitGroup
	left.Add(users / 2)
	for i := range users {
		done.Go(func() {
			if i%2 == 0 {
				_, err := c.Ensure(ctx, ref, nil)
				if !errors.Is(err, cause) {
					t.Errorf("one without patience: %v", err)
				}
				left.Done()
				return
			}
			img, err := c.Ensure(t.Context(), ref, nil)
			if err != nil {
				t.Error(err)
				return
			}
			img.Release()
		})
	}
	<-asked
	if s := status(t, c, digest); s.State != imagecache.StateFetching {
		t.Errorf("status %+v", s)
	}
	cancel(cause)
	left.Wait()
	close(hold)
	done.Wait()
	if n := b.chunks(); n != 4 {
		t.Errorf("%d chunks were asked for", n)
	}
}

// TestFetchEndsWithTheLast leaves a fetch alone, and then resumes it.
func TestFetchEndsWithTheLast(t *testing.T) {
	t.Parallel()
	b := newBucket()
	const chunks, written = 20, 5
	ref, digest := b.image(t, "tahoe", 1, chunks)
	content := noise(1, chunks*mib)
	held := manifest.ChunkObject(manifest.SumOf(content[written*mib : (written+1)*mib]))
	b.hook(func(ctx context.Context, name string, _ int) error {
		if name == held { // until nobody waits any more
			<-ctx.Done()
			return context.Cause(ctx)
		}
		return nil
	})
	c := b.cache(t, imagecache.Config{})
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("the test's cause")
	if _, err := c.Ensure(ctx, ref, func(p imagecache.Progress) {
		if p.DoneBytes >= written*mib {
			cancel(cause)
		}
	}); !errors.Is(err, cause) {
		t.Fatal(err)
	}
	if s := status(t, c, digest); s.State != imagecache.StatePartial || s.Failure != "" {
		t.Errorf("status %+v", s)
	}
	b.hook(nil)
	b.chunks()
	c = b.cache(t, imagecache.Config{Dir: c.Dir()})
	img := ensure(t, c, ref)
	wantContent(t, img, files{"disk.img": content})
	if n := b.chunks(); n != chunks-written {
		t.Errorf("%d chunks were fetched, and %d of %d were there", n, written, chunks)
	}
}

func TestTagMovesWhileItIsFetched(t *testing.T) {
	t.Parallel()
	b := newBucket()
	_, old := b.image(t, "tahoe", 1, 3)
	c := b.cache(t, imagecache.Config{})
	var moved string
	var once sync.Once
	b.hook(func(_ context.Context, name string, _ int) error {
		if strings.HasPrefix(name, manifest.DirChunks) {
			once.Do(func() { _, moved = b.image(t, "tahoe", 2, 3) })
		}
		return nil
	})
	img := ensure(t, c, "gs://bucket/tahoe:latest")
	wantContent(t, img, files{"disk.img": noise(1, 3*mib)})
	if img.Digest != old {
		t.Errorf("%s was fetched, and the tag led to %s", img.Digest, old)
	}
	if next := ensure(t, c, "gs://bucket/tahoe"); next.Digest != moved {
		t.Errorf("then %s, and the tag leads to %s", next.Digest, moved)
	}
}

// TestFaultsOfTheBucket does each thing to a bucket that can go wrong there.
func TestFaultsOfTheBucket(t *testing.T) {
	t.Parallel()
	chunk := manifest.ChunkObject(manifest.SumOf(noise(1, 3*mib)[mib : 2*mib]))
	other := manifest.Compress(nil, noise(9, mib))
	for name, test := range map[string]struct {
		do   func(b *bucket, digest string)
		want string
		is   error
	}{
		"no manifest":    {func(b *bucket, d string) { delete(b.objects, manifest.ManifestObject(d)) }, "push it there", objects.ErrNotFound},
		"wrong manifest": {func(b *bucket, d string) { b.set(manifest.ManifestObject(d), []byte(`{"schema":1}`)) }, "has the digest sha256:", nil},
		"large manifest": {func(b *bucket, d string) { b.set(manifest.ManifestObject(d), make([]byte, manifest.MaxBytes+1)) }, "longer", nil},
		"chunk vanished": {func(b *bucket, _ string) { delete(b.objects, chunk) }, "push the image there again", objects.ErrNotFound},
		"chunk lies":     {func(b *bucket, _ string) { b.set(chunk, other) }, "is damaged", manifest.ErrCorrupt},
		"chunk is cut":   {func(b *bucket, _ string) { b.objects[chunk] = b.objects[chunk][:mib/2] }, "is damaged", manifest.ErrCorrupt},
		"chunk is long":  {func(b *bucket, _ string) { b.objects[chunk] = append(b.objects[chunk], make([]byte, mib)...) }, "is damaged", nil},
		"chunk is empty": {func(b *bucket, _ string) { b.set(chunk, nil) }, "is damaged", manifest.ErrCorrupt},
		"forbidden": {func(b *bucket, _ string) {
			b.hook(func(context.Context, string, int) error { return objects.ErrForbidden })
		}, "denied", objects.ErrForbidden},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBucket()
			ref, digest := b.image(t, "tahoe", 1, 3)
			was := b.clone()
			test.do(b, digest)
			c := b.cache(t, imagecache.Config{})
			_, err := c.Ensure(t.Context(), ref, nil)
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), ref) || test.is != nil && !errors.Is(err, test.is) {
				t.Errorf("%v, want %q", err, test.want)
			}
			if s := status(t, c, digest); s.State != imagecache.StateFailed || !strings.Contains(s.Failure, test.want) {
				t.Errorf("status %+v", s)
			}
			wantCached(t, c)
			b.restore(was)
			fetch(t, c, ref)
			if s := status(t, c, digest); s.State != imagecache.StateWhole || s.Failure != "" {
				t.Errorf("status %+v", s)
			}
		})
	}
	t.Run("a manifest of another schema", func(t *testing.T) {
		t.Parallel()
		b := newBucket()
		raw := []byte(`{"schema":7,"guest_os":"linux"}`)
		digest := manifest.Digest(raw)
		b.set(manifest.ManifestObject(digest), raw)
		var schema *manifest.SchemaError
		if _, err := b.cache(t, imagecache.Config{}).Ensure(t.Context(), "gs://bucket/tahoe@"+digest, nil); !errors.As(err, &schema) || schema.Have != 7 {
			t.Errorf("%v", err)
		}
	})
	t.Run("a lie once", func(t *testing.T) {
		t.Parallel()
		b := newBucket()
		ref, _ := b.image(t, "tahoe", 1, 3)
		right, times := b.objects[chunk], 0
		b.hook(func(_ context.Context, name string, _ int) error {
			if name == chunk {
				if times++; times == 1 {
					b.set(chunk, other)
				} else {
					b.set(chunk, right)
				}
			}
			return nil
		})
		img := ensure(t, b.cache(t, imagecache.Config{}), ref)
		wantContent(t, img, files{"disk.img": noise(1, 3*mib)})
	})
}

func TestReferencesThatAreNone(t *testing.T) {
	t.Parallel()
	c := newBucket().cache(t, imagecache.Config{})
	for ref, want := range map[string]string{
		"gs://bucket":                     "name is missing",
		"gs://bucket/../x/tahoe":          "..",
		"gs://bucket/tahoe@sha256:12":     "digest",
		"ftp://bucket/tahoe":              "scheme",
		"gs://bucket/tahoe:none":          "no image tahoe:none",
		"gs://bucket/../../../etc/passwd": "..",
	} {
		if _, err := c.Ensure(t.Context(), ref, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", ref, err, want)
		}
	}
}

// TestPeersFirst asks peers before the bucket, and the bucket for what they do not bring.
func TestPeersFirst(t *testing.T) {
	t.Parallel()
	b := newBucket()
	ref, _ := b.image(t, "tahoe", 1, 4)
	content := noise(1, 4*mib)
	c := b.cache(t, imagecache.Config{})
	c.SetPeers(peers(func(_ context.Context, k manifest.Chunk, _ int64) (assemble.Fetched, error) {
		for _, i := range []int{0, 2} {
			if chunk := content[i*mib : (i+1)*mib]; manifest.SumOf(chunk) == k.Sum {
				return assemble.Fetched{Content: chunk, Network: 1000, Peer: true}, nil
			}
		}
		return assemble.Fetched{}, errors.New("no peer has it")
	}))
	var last imagecache.Progress
	img, err := c.Ensure(t.Context(), ref, func(p imagecache.Progress) { last = p })
	if err != nil {
		t.Fatal(err)
	}
	defer img.Release()
	wantContent(t, img, files{"disk.img": content})
	if n := b.chunks(); n != 2 || last.PeerBytes != 2000 {
		t.Errorf("%d chunks came from the bucket, %+v", n, last)
	}
}

// peers bring some chunks.
type peers fetcher

func (p peers) First(pull peer.Pull) (assemble.Fetcher, func()) {
	return assemble.First{fetcher(p), pull.Next}, func() {}
}

type fetcher func(context.Context, manifest.Chunk, int64) (assemble.Fetched, error)

func (f fetcher) Fetch(ctx context.Context, c manifest.Chunk, size int64) (assemble.Fetched, error) {
	return f(ctx, c, size)
}

func anew(size int64) ([]byte, error) { return make([]byte, size), nil }

func TestOpenChunk(t *testing.T) {
	t.Parallel()
	b := newBucket()
	ref, digest := b.image(t, "tahoe", 1, 3)
	c := b.cache(t, imagecache.Config{})
	content := noise(1, 3*mib)
	sum := manifest.SumOf(content[mib : 2*mib])
	if _, err := c.OpenChunk(t.Context(), sum, anew); !errors.Is(err, imagecache.ErrNoChunk) {
		t.Errorf("before the fetch: %v", err)
	}
	fetch(t, c, ref)
	if have, err := c.OpenChunk(t.Context(), sum, anew); err != nil || string(have) != string(content[mib:2*mib]) {
		t.Errorf("%d bytes, %v", len(have), err)
	}
	if _, err := c.OpenChunk(t.Context(), manifest.SumOf(nil), anew); !errors.Is(err, imagecache.ErrNoChunk) {
		t.Errorf("one that nobody has: %v", err)
	}
	// One that rots is given to nobody, and neither is its image until it is repaired.
	spoil(t, c, digest, "disk.img", mib+7)
	if _, err := c.OpenChunk(t.Context(), sum, anew); !errors.Is(err, imagecache.ErrNoChunk) {
		t.Errorf("a rotten one: %v", err)
	}
	if s := status(t, c, digest); s.State != imagecache.StateDamaged || !strings.Contains(s.Failure, "disk.img, chunk 1") {
		t.Errorf("status %+v", s)
	}
	b.chunks()
	fetch(t, c, ref)
	if n := b.chunks(); n != 1 {
		t.Errorf("%d chunks were fetched for the repair of one", n)
	}
	if have, err := c.OpenChunk(t.Context(), sum, anew); err != nil || string(have) != string(content[mib:2*mib]) {
		t.Errorf("after the repair: %v", err)
	}
	if err := c.Evict(digest, false); err != nil {
		t.Fatal(err)
	}
	if _, err := c.OpenChunk(t.Context(), sum, anew); !errors.Is(err, imagecache.ErrNoChunk) {
		t.Errorf("after the eviction: %v", err)
	}
}

// spoil changes a byte of an image's file, as a disk would: what the file looks like stays.
func spoil(t *testing.T, c *imagecache.Cache, digest, name string, off int64) {
	t.Helper()
	path := filepath.Join(c.Dir(), ".cache", "images", strings.TrimPrefix(digest, "sha256:"), name)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0xff
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

// TestLocalFirst makes an image out of what others on the host have, wherever it stands
// there.
func TestLocalFirst(t *testing.T) {
	t.Parallel()
	b := newBucket()
	a, second := noise(1, 4*mib), noise(2, 4*mib)
	refA := "gs://bucket/a@" + b.push(t, "a", files{"disk.img": a})
	refB := "gs://bucket/b@" + b.push(t, "b", files{"disk.img": second})
	mixed := append(append(append([]byte{}, second[2*mib:3*mib]...), a[:mib]...), noise(3, mib)...)
	ref := "gs://bucket/mixed@" + b.push(t, "mixed", files{"other.img": mixed})
	c := b.cache(t, imagecache.Config{})
	fetch(t, c, refA)
	fetch(t, c, refB)
	b.chunks()
	img := ensure(t, c, ref)
	wantContent(t, img, files{"other.img": mixed})
	if n := b.chunks(); n != 1 {
		t.Errorf("%d chunks were fetched", n)
	}
}
