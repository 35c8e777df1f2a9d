// SPDX-License-Identifier: MIT

package imagecache

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
