// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/imagecache/objects"
	"github.com/minifleet/minifleet/imagecache/oci"
)

// resolver finds out which image a reference names: in a bucket, a folder or a registry.
type resolver struct {
	// open opens the place that holds a reference's objects.
	open func(ctx context.Context, scheme, location string) (objects.Store, error)
	// registry asks the registry of a reference.
	registry func(ctx context.Context, ref manifest.Reference) (digest string, err error)

	mu     sync.Mutex // guards places
	places map[string]objects.Store
}

// newResolver reads places with the credentials of the configuration.
func newResolver(s imageSettings) *resolver {
	return &resolver{
		open: func(ctx context.Context, scheme, location string) (objects.Store, error) {
			return objects.Open(ctx, objects.Options{Scheme: scheme, Location: location, KeyFile: s.KeyFile, Endpoint: s.Endpoint})
		},
		registry: func(ctx context.Context, ref manifest.Reference) (string, error) {
			r, err := oci.Open(ref, oci.Options{TokenFile: s.RegistryFile, Keychain: s.RegistryFile == ""})
			if err != nil {
				return "", err
			}
			if ref.Digest != "" {
				_, err := r.Image(ctx, ref.Digest)
				return ref.Digest, err
			}
			return r.Resolve(ctx)
		},
		places: map[string]objects.Store{},
	}
}

// maxTagObject is far above what a tag's object has.
const maxTagObject = 64 << 10

// Resolve returns the digest that the reference's tag names, or its own if there is such
// an image.
func (r *resolver) Resolve(ctx context.Context, reference string) (string, error) {
	ref, err := manifest.ParseReference(reference)
	if err != nil {
		return "", err
	}
	if ref.Scheme == manifest.SchemeOCI {
		return r.registry(ctx, ref)
	}
	place, err := r.place(ctx, ref)
	if err != nil {
		return "", err
	}
	digest, err := lookUp(ctx, place, ref)
	if errors.Is(err, objects.ErrNotFound) {
		return "", fmt.Errorf("%s has no image %s: push one with minifleet image push, or correct the pool's image (%w)", place, ref, err)
	}
	return digest, err
}

func lookUp(ctx context.Context, place objects.Store, ref manifest.Reference) (string, error) {
	if ref.Digest != "" {
		_, err := place.Stat(ctx, manifest.ManifestObject(ref.Digest))
		return ref.Digest, err
	}
	body, _, err := place.Get(ctx, manifest.TagObject(ref.Name, ref.Tag))
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(io.LimitReader(body, maxTagObject+1))
	if err := errors.Join(err, body.Close()); err != nil {
		return "", fmt.Errorf("read tag %s: %w", ref, err)
	}
	if len(b) > maxTagObject {
		return "", fmt.Errorf("tag %s: its object is larger than %d bytes", ref, maxTagObject)
	}
	digest, err := manifest.ParseTag(b)
	if err != nil {
		return "", fmt.Errorf("tag %s: %w", ref, err)
	}
	return digest, nil
}

// place returns the store of a reference's location. One that was opened stays open: the
// tags in it are read every minute.
func (r *resolver) place(ctx context.Context, ref manifest.Reference) (objects.Store, error) {
	key := ref.Scheme + "://" + ref.Location
	r.mu.Lock()
	known := r.places[key]
	r.mu.Unlock()
	if known != nil {
		return known, nil
	}
	place, err := r.open(context.WithoutCancel(ctx), ref.Scheme, ref.Location)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if known := r.places[key]; known != nil { // somebody else was quicker
		return known, place.Close()
	}
	r.places[key] = place
	return place, nil
}

// close closes what was opened.
func (r *resolver) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for _, place := range r.places {
		errs = append(errs, place.Close())
	}
	clear(r.places)
	return errors.Join(errs...)
}
