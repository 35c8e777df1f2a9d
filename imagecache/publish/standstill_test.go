// SPDX-License-Identifier: MIT

package publish_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/imagecache/publish"
)

var errFault = errors.New("a fault")

// TestStandstillAtTheTag has a push, or a tag, stand still for so long before it writes the
// tag that the image is collected meanwhile, and then fail in each of the requests that
// follow. Unless it fails to take the tag back, and says so, no tag names what is not there.
func TestStandstillAtTheTag(t *testing.T) {
	t.Parallel()
	commands := map[string]func(context.Context, publish.Location) error{
		"push": func(ctx context.Context, l publish.Location) error {
			_, err := l.Push(ctx, template("abc"), publish.PushOptions{Name: "image", Tag: "v1"})
			return err
		},
		"tag": func(ctx context.Context, l publish.Location) error {
			_, err := l.Tag(ctx, ref("v0"), "v1")
			return err
		},
	}
	// What happens while it stands still, and whether the tag names anything before.
	collected := func(t *testing.T, s *memory, digest string, chunks bool) {
		t.Helper()
		s.drop(manifest.ManifestObject(digest))
		if chunks {
			s.drop(object40("a"))
		}
	}
	meanwhile := map[string]func(*testing.T, *memory, string){
		"collected":              func(t *testing.T, s *memory, d string) { t.Helper(); collected(t, s, d, false) },
		"collected with a chunk": func(t *testing.T, s *memory, d string) { t.Helper(); collected(t, s, d, true) },
		"in another generation": func(t *testing.T, s *memory, d string) {
			t.Helper()
			s.set(manifest.ManifestObject(d), func(o *object) { o.Generation += 1000 })
		},
		"collected with the last": func(t *testing.T, s *memory, d string) {
			t.Helper()
			collected(t, s, d, false)
			s.drop(manifest.ManifestObject(last(t)))
		},
	}
	for name, command := range commands {
		for what, happens := range meanwhile {
			for _, fresh := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s, %s, fresh %t", name, what, fresh), func(t *testing.T) {
					t.Parallel()
					failed := true
					for n := 0; failed; n++ {
						failed = standstill(t, n, fresh, false, command, happens)
					}
					standstill(t, noFault, fresh, true, command, happens)
				})
			}
		}
	}
}

// last is the digest of the image that the tag names before.
func last(t *testing.T) string {
	t.Helper()
	p, err := publish.Location{Store: newMemory()}.Push(t.Context(), template("xyz"), publish.PushOptions{Name: "image", Tag: "v1"})
	if err != nil {
		t.Fatal(err)
	}
	return p.Digest
}

const noFault = 1000

// standstill has request n fail after the tag was written, and reports whether there was one.
// It is called off too in the moment before the tag is written, if so wished.
func standstill(t *testing.T, n int, fresh, calledOff bool, command func(context.Context, publish.Location) error, happens func(*testing.T, *memory, string)) (failed bool) {
	t.Helper()
	store := newMemory()
	l := publish.Location{Store: store, Parallel: 1}
	if !fresh {
		push(t, l, template("xyz"), "v1")
	}
	digest := push(t, l, template("abc"), "v0").Digest
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	var mu sync.Mutex // guards moved and n
	moved, last := false, ""
	store.before = func(within context.Context, op, name string) error {
		mu.Lock()
		defer mu.Unlock()
		if !moved && op == "put" && name == manifest.TagObject("image", "v1") {
			moved = true
			happens(t, store, digest)
			store.drop(manifest.TagObject("image", "v0"))
			if calledOff {
				cancel(errFault)
			}
			return nil
		}
		if moved {
			if n--; n == -1 {
				failed, last = true, op+" "+kind(name)
				return errFault
			}
		}
		return within.Err()
	}
	err := command(ctx, l)
	store.before = func(context.Context, string, string) error { return nil }
	if err != nil && strings.Contains(err.Error(), "may name an image that is gone") {
		if !failed || last != "put tags" && last != "delete tags" && last != "stat manifests" {
			t.Errorf("after %q: %v", last, err)
		}
		return failed
	}
	if !moved || err == nil && failed {
		t.Errorf("request %q failed, the tag was reached: %t: %v", last, moved, err)
	}
	v, verr := l.Verify(t.Context(), "", nil)
	for _, p := range v.Problems {
		if strings.HasPrefix(p.Object, manifest.DirTags) {
			t.Errorf("after %q: %v; left: %+v", last, err, p)
		}
	}
	if verr != nil {
		t.Error(verr)
	}
	// The next push heals whatever is left.
	push(t, l, template("abc"), "v1")
	wantWhole(t, l)
	return failed
}
