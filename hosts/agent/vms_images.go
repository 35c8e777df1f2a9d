// SPDX-License-Identifier: MIT

package agent

import (
	"context"

	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/imagecache"
	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/imagecache/peer"
)

var (
	_ ImageStore = (*VMs)(nil)
	_ ChunkStore = (*VMs)(nil)
)

// Prefetch brings an image into the cache.
func (v *VMs) Prefetch(ctx context.Context, image string, bytesPerSecond int64) error {
	img, err := v.images.EnsureWith(ctx, image, imagecache.Options{BytesPerSecond: bytesPerSecond, Background: true}, nil)
	if err != nil {
		return err
	}
	img.Release()
	return nil
}

// LimitPrefetch changes how fast that goes.
func (v *VMs) LimitPrefetch(digest string, bytesPerSecond int64) {
	v.images.Limit(digest, bytesPerSecond)
}

// HoldImages keeps images from being evicted.
func (v *VMs) HoldImages(digests []string) error { return v.images.Hold(digests) }

// CachedImages lists the images that were fetched, or are being.
func (v *VMs) CachedImages() []protocol.ImageReport {
	var list []protocol.ImageReport
	for _, s := range v.images.Status() {
		r := protocol.ImageReport{
			Image: s.Image, Digest: s.Digest, State: s.State, Failure: s.Failure,
			DoneBytes: s.DoneBytes, TotalBytes: s.TotalBytes, FetchedBytes: s.FetchedBytes,
		}
		switch s.State {
		case imagecache.StatePartial:
			r.State = protocol.ImageWaiting
		case imagecache.StateDamaged:
			r.State = protocol.ImageFailed
		}
		list = append(list, r)
	}
	return list
}

// OpenChunk returns a chunk of an image that is whole.
func (v *VMs) OpenChunk(ctx context.Context, sum manifest.Sum, room func(size int64) ([]byte, error)) ([]byte, error) {
	return v.images.OpenChunk(ctx, sum, room)
}

// SetPeers has chunks taken from other hosts first.
func (v *VMs) SetPeers(x *peer.Exchange) { v.images.SetPeers(x) }
