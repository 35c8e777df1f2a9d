// SPDX-License-Identifier: MIT

package imagecache

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// SetFree says how much is free on the cache's volume.
func (c *Cache) SetFree(free func() int64) {
	c.free = func(string) (int64, error) { return free(), nil }
}

// StopClearing keeps all others from making room until the function that it returns is
// called.
func (c *Cache) StopClearing() func() {
	c.clearing <- struct{}{}
	return func() { <-c.clearing }
}

// KeptUses is how many uses an idle partial image stays.
const KeptUses = keptUses

// Dir is the folder of images.
func (c *Cache) Dir() string { return c.dir }

// Glance looks whether an image is in use, for some looks of those who wait for its lock.
func (c *Cache) Glance(t *testing.T, digest string) {
	t.Helper()
	l, err := c.places.tryLock(hexOf(digest), unix.LOCK_EX)
	if err != nil {
		t.Error(err)
		return
	}
	time.AfterFunc(5*lockAgain, l.release)
}
