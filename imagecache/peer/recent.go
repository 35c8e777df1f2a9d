// SPDX-License-Identifier: MIT

package peer

import (
	"sync"

	"github.com/minifleet/minifleet/imagecache/assemble"
	"github.com/minifleet/minifleet/imagecache/manifest"
)

// recent keeps the chunks that were fetched last, up to so many bytes: they may be on their
// way to the disk still, and others ask for them now.
type recent struct {
	most int64

	mu    sync.Mutex // guards the rest
	order []manifest.Sum
	held  map[manifest.Sum]assemble.Fetched
	bytes int64
}

func newRecent(most int64) *recent {
	return &recent{most: most, held: map[manifest.Sum]assemble.Fetched{}}
}

func (r *recent) get(sum manifest.Sum) (assemble.Fetched, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	got, ok := r.held[sum]
	return got, ok
}

func (r *recent) add(sum manifest.Sum, f assemble.Fetched) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.held[sum]; ok || int64(len(f.Content)) > r.most {
		return
	}
	r.held[sum] = f
	r.order = append(r.order, sum)
	for r.bytes += int64(len(f.Content)); r.bytes > r.most; r.order = r.order[1:] {
		r.bytes -= int64(len(r.held[r.order[0]].Content))
		delete(r.held, r.order[0])
	}
}

// clear forgets all.
func (r *recent) clear() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.order, r.bytes = nil, 0
	clear(r.held)
}
