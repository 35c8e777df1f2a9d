// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/imagecache/objects"
)

// shelf is a place that holds objects in memory.
type shelf struct {
	objects.Store
	held   map[string]string
	err    error
	closed int
}

func (s *shelf) Get(_ context.Context, name string) (io.ReadCloser, objects.Attributes, error) {
	if s.err != nil {
		return nil, objects.Attributes{}, s.err
	}
	b, ok := s.held[name]
	if !ok {
		return nil, objects.Attributes{}, objects.ErrNotFound
	}
	return io.NopCloser(bytes.NewReader([]byte(b))), objects.Attributes{Name: name}, nil
}

func (s *shelf) Stat(_ context.Context, name string) (objects.Attributes, error) {
	if _, ok := s.held[name]; !ok {
		return objects.Attributes{}, objects.ErrNotFound
	}
	return objects.Attributes{Name: name}, s.err
}

func (s *shelf) String() string { return "gs://bkt/images" }
func (s *shelf) Close() error   { s.closed++; return nil }

func TestResolver(t *testing.T) {
	t.Parallel()
	digest := func(letter string) string { return "sha256:" + strings.Repeat(letter, 64) }
	s := &shelf{held: map[string]string{
		manifest.TagObject("mac", "stable"):  string(manifest.EncodeTag(digest("a"))),
		manifest.TagObject("mac", "latest"):  string(manifest.EncodeTag(digest("b"))),
		manifest.TagObject("mac", "bad"):     `{"schema":1,"manifest":"no"}`,
		manifest.TagObject("mac", "huge"):    strings.Repeat(" ", 1<<20),
		manifest.ManifestObject(digest("c")): "{}",
	}}
	var opened []string
	r := &resolver{
		places: map[string]objects.Store{},
		open: func(_ context.Context, scheme, location string) (objects.Store, error) {
			opened = append(opened, scheme+"://"+location)
			if location == "locked" {
				return nil, errors.New("no credentials")
			}
			return s, nil
		},
		registry: func(_ context.Context, ref manifest.Reference) (string, error) { return digest("f"), nil },
	}
	for _, c := range []struct{ reference, want, wrong string }{
		{"gs://bkt/images/mac:stable", digest("a"), ""},
		{"gs://bkt/images/mac", digest("b"), ""},
		{"gs://bkt/images/mac@" + digest("c"), digest("c"), ""},
		{"oci://ghcr.io/x/mac:1", digest("f"), ""},
		{"gs://bkt/images/mac@" + digest("d"), "", "push one with minifleet image push"},
		{"gs://bkt/images/mac:none", "", "has no image gs://bkt/images/mac:none"},
		{"gs://bkt/images/mac:bad", "", "tag gs://bkt/images/mac:bad"},
		{"gs://bkt/images/mac:huge", "", "larger than"},
		{"gs://locked/mac", "", "no credentials"},
		{"gs://", "", "missing"},
	} {
		got, err := r.Resolve(t.Context(), c.reference)
		if got != c.want || (err == nil) != (c.wrong == "") || err != nil && !strings.Contains(err.Error(), c.wrong) {
			t.Errorf("%s: %q, %v; want %q, %q", c.reference, got, err, c.want, c.wrong)
		}
	}
	if len(opened) != 2 {
		t.Errorf("opened %q: each place once", opened)
	}
	s.err = objects.ErrForbidden
	if _, err := r.Resolve(t.Context(), "gs://bkt/images/mac"); !errors.Is(err, objects.ErrForbidden) {
		t.Errorf("403: %v", err)
	}
	if err := r.close(); err != nil || s.closed != 1 {
		t.Errorf("closed %d times: %v", s.closed, err)
	}
}

// Two who ask at once for a place that nobody has opened share one.
func TestResolverOpensOnce(t *testing.T) {
	t.Parallel()
	digest := "sha256:" + strings.Repeat("a", 64)
	var (
		mu     sync.Mutex
		opened []*shelf
		both   sync.WaitGroup
	)
	both.Add(2)
	r := &resolver{places: map[string]objects.Store{}, open: func(context.Context, string, string) (objects.Store, error) {
		both.Done()
		both.Wait()
		s := &shelf{held: map[string]string{manifest.TagObject("mac", "latest"): string(manifest.EncodeTag(digest))}}
		mu.Lock()
		defer mu.Unlock()
		opened = append(opened, s)
		return s, nil
	}}
	var asking sync.WaitGroup
	for range 2 {
		asking.Go(func() {
			if got, err := r.Resolve(t.Context(), "gs://bkt/mac"); got != digest || err != nil {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	asking.Wait()
	if err := r.close(); err != nil || len(opened) != 2 || opened[0].closed != 1 || opened[1].closed != 1 {
		t.Errorf("%d opened: %v", len(opened), err)
	}
}
