// SPDX-License-Identifier: MIT

package archives

import "io"

// ParseContentRange is parseContentRange.
var ParseContentRange = parseContentRange

// Parse is parse, without what it finds.
func (r Ref) Parse() (digest string, err error) {
	_, digest, err = r.parse()
	return digest, err
}

// WriteThrough has whatever is written to a part pass w first.
func (c *Cache) WriteThrough(w func(io.Writer) io.Writer) { c.writer = w }
