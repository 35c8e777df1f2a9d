// SPDX-License-Identifier: MIT

package hosts

import (
	"fmt"
	"slices"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/hosts/protocol"
)

// prefetches puts the images that a host is to have into the words of the protocol.
func prefetches(list []fleet.Prefetch) []protocol.Prefetch {
	var out []protocol.Prefetch
	for _, p := range list {
		out = append(out, protocol.Prefetch{Image: p.Image, BytesPerSecond: p.BytesPerSecond, Hold: p.Hold})
	}
	return out
}

// cachedOf reads what an agent says of the images in its cache.
func cachedOf(in []protocol.ImageReport) ([]fleet.CachedImage, error) {
	if len(in) > protocol.MaxImages {
		return nil, fmt.Errorf("images: %d are more than %d", len(in), protocol.MaxImages)
	}
	var out []fleet.CachedImage
	seen := map[string]bool{}
	for _, i := range in {
		if !fleet.ValidDigest(i.Digest) || seen[i.Digest] {
			return nil, fmt.Errorf("images: digest %.80q is malformed or stands twice", i.Digest)
		}
		seen[i.Digest] = true
		if len(i.Image) > protocol.MaxText || len(i.Failure) > protocol.MaxText {
			return nil, fmt.Errorf("image %s: a text is longer than %d bytes", i.Digest, protocol.MaxText)
		}
		state := fleet.CacheState(i.State)
		if !slices.Contains(fleet.CacheStates(), state) {
			return nil, fmt.Errorf("image %s: state %.40q is not a word of the protocol", i.Digest, i.State)
		}
		for what, n := range map[string]int64{"done_bytes": i.DoneBytes, "total_bytes": i.TotalBytes, "fetched_bytes": i.FetchedBytes} {
			if n < 0 || n > maxCount {
				return nil, fmt.Errorf("image %s: %s %d: want 0 to %d", i.Digest, what, n, int64(maxCount))
			}
		}
		out = append(out, fleet.CachedImage{
			Image: printable(i.Image), Digest: i.Digest, State: state,
			DoneBytes: i.DoneBytes, TotalBytes: i.TotalBytes, FetchedBytes: i.FetchedBytes, Failure: printable(i.Failure),
		})
	}
	return out, nil
}
