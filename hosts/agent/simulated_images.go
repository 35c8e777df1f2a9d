// SPDX-License-Identifier: MIT

package agent

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/imagecache/manifest"
)

// simulatedImageBytes is how large an image pretends to be.
const simulatedImageBytes = 64 << 30

// simulatedImages are images that a host pretends to fetch, and never loses.
type simulatedImages struct {
	takes time.Duration

	mu   sync.Mutex // guards all
	byID map[string]*simulatedImage
}

type simulatedImage struct {
	ref   string
	began time.Time
	over  chan struct{} // closed when the fetch that goes on ends; nil if none does
	whole bool
}

// ensure returns when the image is there. One fetches it, the others wait.
func (s *simulatedImages) ensure(ctx context.Context, image string) error {
	ref, err := manifest.ParseReference(image)
	if err != nil || !ref.Remote() || ref.Digest == "" {
		return nil // put there by hand, whatever it is called
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.byID[ref.Digest]
	if i == nil {
		i = &simulatedImage{ref: image}
		s.byID[ref.Digest] = i
	}
	for i.over != nil {
		over := i.over
		s.mu.Unlock()
		select {
		case <-over:
		case <-ctx.Done():
		}
		s.mu.Lock()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	if i.whole {
		return nil
	}
	i.began, i.over = time.Now(), make(chan struct{})
	s.mu.Unlock()
	came := sleep(ctx, s.takes)
	s.mu.Lock()
	close(i.over)
	i.over = nil
	if i.whole = came; !came {
		return context.Cause(ctx)
	}
	return nil
}

// Prefetch takes its time, whatever the limit is.
func (s *Simulated) Prefetch(ctx context.Context, image string, _ int64) error {
	return s.images.ensure(ctx, image)
}

// LimitPrefetch changes nothing.
func (s *Simulated) LimitPrefetch(string, int64) {}

// HoldImages need do nothing: no image is ever evicted.
func (s *Simulated) HoldImages([]string) error { return nil }

// CachedImages tells of those that were fetched.
func (s *Simulated) CachedImages() []protocol.ImageReport {
	s.images.mu.Lock()
	defer s.images.mu.Unlock()
	var list []protocol.ImageReport
	for digest, i := range s.images.byID {
		r := protocol.ImageReport{Image: i.ref, Digest: digest, State: protocol.ImageWaiting, TotalBytes: simulatedImageBytes}
		switch {
		case i.whole:
			r.State, r.DoneBytes = protocol.ImageWhole, simulatedImageBytes
		case i.over != nil:
			r.State = protocol.ImageFetching
			if s.images.takes > 0 {
				r.DoneBytes = int64(min(1, float64(time.Since(i.began))/float64(s.images.takes)) * simulatedImageBytes)
			}
			r.FetchedBytes = r.DoneBytes
		}
		list = append(list, r)
	}
	return list
}

// Images returns what the configuration says, and the digests of what was fetched.
func (s *Simulated) Images(context.Context) ([]string, error) {
	var fetched []string
	for _, i := range s.CachedImages() {
		if i.State == protocol.ImageWhole {
			fetched = append(fetched, i.Digest)
		}
	}
	slices.Sort(fetched)
	return slices.Concat(s.cfg.Images, fetched), nil
}

// fetchFor has a VM wait for its image.
func (s *Simulated) fetchFor(ctx context.Context, image string, progress func(string)) (time.Duration, error) {
	began := time.Now()
	progress("pretending to have the image")
	if err := s.images.ensure(ctx, image); err != nil {
		return 0, fmt.Errorf("image %s: %w", image, err)
	}
	return time.Since(began), nil
}
