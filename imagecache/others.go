// SPDX-License-Identifier: MIT

package imagecache

import (
	"context"
	"errors"
	"log/slog"
	"math"
)

// Others are what takes room beside images and counts for the limits of the cache: saved
// states of machines, which only save time. They go after the images that nothing keeps and
// before an image is refused.
type Others interface {
	// Bytes is what they take.
	Bytes() int64
	// Idle is how much of that DeleteOldest can free.
	Idle() int64
	// DeleteOldest deletes one that nobody has in use, and reports whether it did.
	DeleteOldest() bool
}

// CountToo has others count for the limits from now on.
func (c *Cache) CountToo(o Others) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.others = o
}

// noOthers are none.
type noOthers struct{}

func (noOthers) Bytes() int64       { return 0 }
func (noOthers) Idle() int64        { return 0 }
func (noOthers) DeleteOldest() bool { return false }

func (c *Cache) beside() Others {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.others
}

// Left is what the images leave of MaxBytes to others, those that are being fetched counted
// as whole.
func (c *Cache) Left() int64 {
	if c.cfg.MaxBytes == 0 {
		return math.MaxInt64
	}
	left := c.cfg.MaxBytes
	for _, e := range c.entries() {
		left -= max(e.bytes, e.rec.Stored)
	}
	return max(0, left)
}

// EvictOldest makes room on the volume for who needs it more than what could be of use some
// day: the image goes that nothing keeps and that was used longest ago, or, where all are
// kept, one of the others. It reports whether anything went.
func (c *Cache) EvictOldest(ctx context.Context) bool {
	select {
	case c.clearing <- struct{}{}:
		defer func() { <-c.clearing }()
	case <-ctx.Done():
		return false
	}
	held := c.places.held()
	for _, e := range c.entries() {
		if c.keptBy(e.hex, held) != "" {
			continue
		}
		err := c.evict(ctx, e.hex)
		if errors.Is(err, errInUse) {
			continue
		}
		if err = errors.Join(err, c.places.emptyTrash()); err == nil {
			c.log.Info("image evicted", slog.String("image", e.rec.Reference), slog.Int64("bytes", e.bytes), slog.String("reason", "a machine needs its room"))
			return true
		}
		c.log.Warn("evicted images stay on the disk", slog.String("folder", c.places.at(dirTrash)), slog.Any("error", err))
	}
	return c.beside().DeleteOldest()
}
