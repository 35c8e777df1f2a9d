// SPDX-License-Identifier: MIT

package imagecache_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minifleet/minifleet/imagecache"
	"github.com/minifleet/minifleet/imagecache/manifest"
)

// TestInTheBackground has one fetch wait for another, until somebody waits for it too.
func TestInTheBackground(t *testing.T) {
	t.Parallel()
	synctest.Test(t, inTheBackground)
}

func inTheBackground(t *testing.T) {
	b := newBucket()
	refs, digests := b.images(t, 3)
	c := b.cache(t, imagecache.Config{})
	hold, asked := make(chan struct{}), make(chan string, 100)
	b.hook(func(ctx context.Context, name string, _ int) error {
		if strings.HasPrefix(name, manifest.DirManifests) {
			asked <- name
			select {
			case <-hold:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	done := make(chan error, 4)
	begin := func(ref string, o imagecache.Options) {
		go func() {
			img, err := c.EnsureWith(t.Context(), ref, o, nil)
			if err == nil {
				img.Release()
			}
			done <- err
		}()
	}
	await := func(digest string) {
		t.Helper()
		if name := <-asked; name != manifest.ManifestObject(digest) {
			t.Errorf("%s was asked for", name)
		}
	}
	state := func(digest, want string) {
		t.Helper()
		synctest.Wait()
		if s := status(t, c, digest); s.State != want {
			t.Fatalf("%+v, want %s", s, want)
		}
	}
	begin(refs[0], imagecache.Options{})
	await(digests[0])
	begin(refs[1], imagecache.Options{Background: true})
	state(digests[1], imagecache.StateWaiting)
	begin(refs[2], imagecache.Options{Background: true, BytesPerSecond: 1})
	state(digests[2], imagecache.StateWaiting)
	begin(refs[2], imagecache.Options{}) // somebody waits for it: neither the turn nor the limit counts
	await(digests[2])
	state(digests[1], imagecache.StateWaiting)
	close(hold)
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	await(digests[1])
	wantCached(t, c, digests...)
}

// TestLimit fetches by a clock that costs no time.
func TestLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBucket()
		ref, digest := b.image(t, "tahoe", 1, 3)
		c := b.cache(t, imagecache.Config{})
		begun := time.Now()
		half := false
		img, err := c.EnsureWith(t.Context(), ref, imagecache.Options{Background: true, BytesPerSecond: mib / 4}, func(p imagecache.Progress) {
			if p.DoneBytes >= mib && !half {
				half = true
				c.Limit(digest, mib/2)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		img.Release()
		// All at the lower limit would take 12 s, and all at the higher one 6 s.
		if took := time.Since(begun).Seconds(); took < 5.5 || took > 12.5 {
			t.Errorf("it took %.1f s", took)
		}
		c.Limit(digest, 1) // of nothing
		cause := errors.New("the test's cause")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(cause)
		if _, err := c.EnsureWith(ctx, "gs://bucket/none", imagecache.Options{}, nil); err == nil {
			t.Error("fetched by one who does not wait")
		}
	})
}
