// SPDX-License-Identifier: MIT

package peer

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/minifleet/minifleet/imagecache/assemble"
	"github.com/minifleet/minifleet/imagecache/manifest"
)

// share is what one answer holds of the memory for answers.
type share struct {
	of   *semaphore.Weighted
	held int64
}

// take waits for so many bytes in place of those that it has.
func (s *share) take(ctx context.Context, bytes int64) error {
	s.release()
	if s.of.Acquire(ctx, bytes) != nil {
		return errQueue
	}
	s.held = bytes
	return nil
}

func (s *share) release() {
	s.of.Release(s.held)
	s.held = 0
}

// find returns a chunk of the memory or of the disk, or one that this host needs too and
// fetches now, for as long as mine is held.
func (x *Exchange) find(w http.ResponseWriter, r *http.Request, sum manifest.Sum, mine *share) ([]byte, int, error) {
	soon, cancel := context.WithTimeout(r.Context(), x.cfg.Limits.Queue)
	defer cancel()
	if got, ok := x.recent.get(sum); ok {
		return x.hand(soon, got, mine)
	}
	content, err := x.fromDisk(soon, sum, mine)
	if content != nil {
		return content, 0, nil
	}
	if err != nil {
		return nil, http.StatusServiceUnavailable, err
	}
	pulls := x.pulling(sum)
	if len(pulls) == 0 {
		return nil, http.StatusNotFound, errAbsent
	}
	p, wait := pulls[0], r.URL.Query().Get(queryWait)
	if wait == "" || wait == waitSoon && p.Patient() { // whose limit is not for who is in a hurry
		return nil, http.StatusTooEarly, errEarly
	}
	w.WriteHeader(http.StatusProcessing) // which tells the other side that it is worth waiting
	ctx, cancel := context.WithTimeout(r.Context(), x.cfg.Limits.Hold)
	defer cancel()
	got, err := x.bringFor(ctx, p, sum)
	if err != nil {
		return nil, http.StatusTooEarly, errEarly
	}
	return x.hand(ctx, got, mine)
}

// hand gives out what is in memory.
func (x *Exchange) hand(ctx context.Context, got assemble.Fetched, mine *share) ([]byte, int, error) {
	if err := mine.take(ctx, int64(len(got.Content))); err != nil {
		return nil, http.StatusServiceUnavailable, err
	}
	return got.Content, 0, nil
}

// bringFor fetches a chunk for another host, within the memory for what this one fetches.
func (x *Exchange) bringFor(ctx context.Context, p *pull, sum manifest.Sum) (assemble.Fetched, error) {
	size := p.where[sum].size
	if p.Memory != nil {
		release, err := p.Memory.Hold(ctx, 2*size) // as for a chunk of its own
		if err != nil {
			return assemble.Fetched{}, err
		}
		defer release()
	}
	return x.bring(ctx, p, manifest.Chunk{Sum: sum}, size, nil)
}

var errQueue = errors.New("this host gives to others already")

// fromDisk reads a chunk. So few are read at once that the disk's other users, guests and
// clones, hardly see it. Threads of a low priority would be no kinder: one that does not get
// the CPU holds up this whole process.
func (x *Exchange) fromDisk(ctx context.Context, sum manifest.Sum, mine *share) ([]byte, error) {
	select {
	case x.readers <- struct{}{}:
		defer func() { <-x.readers }()
	case <-ctx.Done():
		return nil, errQueue
	}
	room := func(size int64) ([]byte, error) {
		if err := mine.take(ctx, size); err != nil {
			return nil, err
		}
		return make([]byte, size), nil
	}
	content, err := x.cfg.Chunks.OpenChunk(ctx, sum, room)
	if err == nil && manifest.Sum(sha256.Sum256(content)) == sum { // nothing unverified leaves this host
		return content, nil
	}
	for _, p := range x.pulling(sum) {
		if errors.Is(err, errQueue) {
			break
		}
		if content, err = p.read(sum, room); err == nil {
			return content, nil
		}
	}
	if errors.Is(err, errQueue) {
		return nil, errQueue
	}
	return nil, nil
}

// send writes a chunk, no faster than all may be given.
func (x *Exchange) send(w http.ResponseWriter, r *http.Request, content []byte) {
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(len(content)))
	out := http.NewResponseController(w)
	for len(content) > 0 {
		n := min(len(content), piece)
		if x.out.WaitN(r.Context(), n) != nil {
			panic(http.ErrAbortHandler) // the answer is cut: nobody may take it for whole
		}
		if err := out.SetWriteDeadline(time.Now().Add(pieceTime)); err != nil {
			panic(http.ErrAbortHandler)
		}
		if _, err := w.Write(content[:n]); err != nil {
			return
		}
		content = content[n:]
	}
}
