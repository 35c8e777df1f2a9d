// SPDX-License-Identifier: MIT

package imagecache

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/crashpoint"
)

// keptUses is how many uses of images a fetch that was cut off stays without being
// resumed.
const keptUses = 200

// recover looks over what an earlier process left: what is whole stays, what is half made
// can be resumed, and what is neither goes. What another process has in use is left alone.
func (c *Cache) recover() {
	p := c.places
	latest := p.latest()
	for _, hex := range hexNames(p.at(dirPartial)) {
		c.alone(hex, func() error { return c.recoverPartial(hex, latest) })
	}
	for _, hex := range hexNames(p.at(dirWhole)) {
		c.alone(hex, func() error {
			rec, err := p.readRecord(hex)
			if err == nil {
				_, err = os.Lstat(p.manifest(hex))
			}
			if err == nil && rec.Manifest != "" {
				return nil // whether it is still what it was, its first use asks
			}
			c.log.Warn("an image of which nothing is known is removed", slog.String("image", digestPrefix+hex), slog.Any("error", err))
			return p.throwAway(p.whole(hex))
		})
	}
	c.sweep()
	crashpoint.Reached(crashpoint.CacheSwept)
	if err := p.emptyTrash(); err != nil {
		c.log.Warn("evicted images stay on the disk", slog.String("folder", p.at(dirTrash)), slog.Any("error", err))
	}
}

func (c *Cache) recoverPartial(hex string, latest int64) error {
	p := c.places
	rec, err := p.readRecord(hex)
	switch {
	case err != nil:
		return p.throwAway(p.partial(hex))
	case there(p.whole(hex)): // it cannot be, and the whole one is worth more
		return p.throwAway(p.partial(hex))
	case rec.holds(p.partial(hex)):
		return c.place(hex, rec)
	case latest-p.lastUse(hex) > keptUses:
		c.log.Info("a fetch that nobody resumed is removed", slog.String("image", rec.Reference))
		return p.throwAway(p.partial(hex))
	}
	return nil
}

// alone calls f while nobody else has the image.
func (c *Cache) alone(hex string, f func() error) {
	lock, err := c.places.tryLock(hex, unix.LOCK_EX)
	if errors.Is(err, errInUse) {
		return
	}
	if err == nil {
		err = f()
		lock.release()
	}
	if err != nil {
		c.log.Warn("what was left of an image stays on the disk", slog.String("image", digestPrefix+hex), slog.Any("error", err))
	}
}

// sweep removes what belongs to no image, and files that were never finished.
func (c *Cache) sweep() {
	p := c.places
	known := func(hex string) bool { return there(p.whole(hex)) || there(p.partial(hex)) }
	for _, dir := range []string{dirWhole, dirPartial, dirManifests, dirRecords, dirUses, dirPinned, dirLocks} {
		entries, _ := os.ReadDir(p.at(dir)) // the next start sees it again
		for _, e := range entries {
			hex := strings.TrimSuffix(e.Name(), endJSON)
			path := filepath.Join(p.at(dir), e.Name())
			switch {
			case !validHex(hex):
				if err := os.RemoveAll(path); err != nil {
					c.log.Warn("what is no image stays on the disk", slog.String("file", path), slog.Any("error", err))
				}
			case dir == dirWhole || dir == dirPartial || known(hex):
			default:
				c.alone(hex, func() error {
					if known(hex) {
						return nil
					}
					return errors.Join(os.Remove(p.lock(hex)), p.forget(hex))
				})
			}
		}
	}
}
