// SPDX-License-Identifier: MIT

package imagecache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// entry is an image on the disk, whole or not.
type entry struct {
	hex     string
	rec     *record
	partial bool
	used    int64
	bytes   int64 // that it takes; clones count in full
}

// entries lists what there is, what was used longest ago first.
func (c *Cache) entries() []entry {
	var list []entry
	for _, partial := range []bool{false, true} {
		dir := dirWhole
		if partial {
			dir = dirPartial
		}
		for _, hex := range hexNames(c.places.at(dir)) {
			rec, err := c.places.readRecord(hex)
			if err != nil {
				rec = &record{Reference: digestPrefix + hex}
			}
			e := entry{hex: hex, rec: rec, partial: partial, used: c.places.lastUse(hex), bytes: rec.Stored}
			if partial || rec.Stored == 0 {
				e.bytes = allocated(c.places.at(dir, hex))
			}
			list = append(list, e)
		}
	}
	slices.SortFunc(list, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.used, b.used), cmp.Compare(a.hex, b.hex))
	})
	return list
}

// Holder is an image that takes room, and why it stays.
type Holder struct {
	Image string // its reference
	Bytes int64
	Why   string
}

// NoRoomError says that an image has no room in the cache, and what takes it.
type NoRoomError struct {
	Dir     string
	Problem string
	Holders []Holder

	volume bool // lacks the room, and not a limit of the cache's
}

func (e *NoRoomError) Error() string {
	held := "no fetched image takes any"
	if len(e.Holders) > 0 {
		var list []string
		for _, h := range e.Holders {
			list = append(list, fmt.Sprintf("%s (%d MiB, %s)", h.Image, h.Bytes>>20, h.Why))
		}
		held = "what stays: " + strings.Join(list, "; ")
	}
	return fmt.Sprintf("there is no room for it in %s: %s; %s: unpin an image, change a pool, free some space, or change the limits of the cache", e.Dir, e.Problem, held)
}

// Is makes it an error of a full volume.
func (e *NoRoomError) Is(target error) bool { return target == unix.ENOSPC }

// keptAsBase is why an image stays that another one starts from.
const keptAsBase = "another image is being made from it"

// keptBy says why an image must stay, "" if nothing is known to keep it.
func (c *Cache) keptBy(hex string, held map[string]bool) string {
	c.mu.Lock()
	flying, pins, bases := c.flights[digestPrefix+hex] != nil, c.pins[digestPrefix+hex], c.bases[hex]
	c.mu.Unlock()
	var why []string
	if _, err := os.Lstat(c.places.pin(hex)); err == nil {
		why = append(why, "pinned by an operator")
	}
	if held[digestPrefix+hex] {
		why = append(why, "held by the controller")
	}
	if flying {
		why = append(why, "being fetched")
	}
	if pins > 0 {
		why = append(why, "machines are being cloned from it")
	}
	if bases > 0 {
		why = append(why, keptAsBase)
	}
	return strings.Join(why, ", ")
}

// isBaseOfOne reports whether one image and no more is being made from an image.
func (c *Cache) isBaseOfOne(hex string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bases[hex] == 1
}

// makeRoom evicts images that nothing keeps, the one used longest ago first, and then others,
// until an image of bytes, of which write are still to be written, is within the limits. Where
// they cannot be kept, nothing goes.
func (c *Cache) makeRoom(ctx context.Context, f *flight, bytes, write int64) error {
	select {
	case c.clearing <- struct{}{}:
		defer func() { <-c.clearing }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	held := c.places.held()
	own := hexOf(f.digest())
	var others []entry
	for _, e := range c.entries() {
		if e.hex != own {
			others = append(others, e)
		}
	}
	var idle []entry
	var holders []Holder
	// The image that this one starts from, if nothing else keeps it, shares its blocks and
	// goes after it, where only one of the two may stay: the limits count it as gone.
	after := ""
	for _, e := range others {
		switch why := c.keptBy(e.hex, held); {
		case why == "":
			idle = append(idle, e)
		case why == keptAsBase && e.hex == f.base && c.isBaseOfOne(e.hex):
			after = e.hex
		default:
			holders = append(holders, Holder{e.rec.Reference, e.bytes, why})
		}
	}
	others = slices.DeleteFunc(others, func(o entry) bool { return o.hex == after })
	want, problem := c.lacking(f, others, bytes, write)
	if problem == "" {
		return nil
	}
	beside := c.beside()
	reclaimable := beside.Idle()
	for _, e := range idle {
		reclaimable += e.bytes
	}
	if len(idle) < want.images || reclaimable < want.bytes {
		for _, e := range idle {
			holders = append(holders, Holder{e.rec.Reference, e.bytes, "could go, but that would not be enough"})
		}
		if bytes := beside.Bytes(); bytes > 0 {
			holders = append(holders, Holder{"saved states", bytes, "those that nobody uses could go, but that would not be enough"})
		}
		return &NoRoomError{Dir: c.places.root, Problem: problem, Holders: holders, volume: want.volume}
	}
	for _, e := range idle {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		switch err := c.evict(ctx, e.hex); {
		case errors.Is(err, errInUse):
			holders = append(holders, Holder{e.rec.Reference, e.bytes, "in use"})
			continue
		case err != nil:
			return err
		}
		c.log.Info("image evicted", slog.String("image", e.rec.Reference), slog.Int64("bytes", e.bytes), slog.String("reason", problem))
		if err := c.places.emptyTrash(); err != nil {
			return err
		}
		others = slices.DeleteFunc(others, func(o entry) bool { return o.hex == e.hex })
		if want, problem = c.lacking(f, others, bytes, write); problem == "" {
			return nil
		}
	}
	for want.images == 0 && beside.DeleteOldest() {
		if want, problem = c.lacking(f, others, bytes, write); problem == "" {
			return nil
		}
	}
	return &NoRoomError{Dir: c.places.root, Problem: problem, Holders: holders, volume: want.volume}
}

// lack is what has to go at least.
type lack struct {
	images int
	bytes  int64
	volume bool // it is the volume that lacks room
}

// lacking compares what there is with the limits. The problem is "" if they are kept.
func (c *Cache) lacking(f *flight, others []entry, bytes, write int64) (want lack, problem string) {
	if n := len(others) + 1 - c.cfg.MaxImages; c.cfg.MaxImages > 0 && n > 0 {
		want.images, problem = n, fmt.Sprintf("cache.max_images is %d", c.cfg.MaxImages)
	}
	sum := bytes + c.beside().Bytes()
	for _, e := range others {
		sum += e.bytes
	}
	if over := sum - c.cfg.MaxBytes; c.cfg.MaxBytes > 0 && over > 0 {
		want.bytes, problem = over, fmt.Sprintf("it takes %d MiB and all fetched images and saved states may take %d (cache.max_gib)", bytes>>20, c.cfg.MaxBytes>>20)
	}
	free, err := c.free(c.dir)
	if err != nil {
		return lack{}, "" // the disk itself will say
	}
	c.mu.Lock()
	for _, other := range c.flights {
		if other != f {
			free -= other.unwritten()
		}
	}
	c.mu.Unlock()
	if short := write + c.cfg.MinFree - free; short > 0 {
		want.bytes, want.volume = max(want.bytes, short), true
		problem = fmt.Sprintf("%d MiB have to be written, %d are free, and %d must stay so (cache.min_free_gib)", write>>20, max(0, free)>>20, c.cfg.MinFree>>20)
	}
	return want, problem
}

// freeBytes returns what an ordinary user may still write to a folder's volume.
func freeBytes(dir string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(min(s.Bavail, 1<<40)) * int64(s.Bsize), nil
}

// evict takes an image away that nobody uses. What it takes on the disk is free when the
// trash was emptied.
func (c *Cache) evict(ctx context.Context, hex string) error {
	p := c.places
	lock, err := p.soonLock(ctx, hex, unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer lock.release()
	if _, err := os.Lstat(p.pin(hex)); err == nil {
		return errInUse // pinned at this very moment
	}
	c.catalog.remove(hex)
	if err := errors.Join(p.throwAway(p.whole(hex)), p.throwAway(p.partial(hex))); err != nil {
		return err
	}
	return p.forget(hex)
}
