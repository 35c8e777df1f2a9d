// SPDX-License-Identifier: MIT

package oci

import (
	"context"
	"time"
)

// DecodeLZ4 is the decoder alone.
var DecodeLZ4 = decodeLZ4

// ParseManifest returns how many disk layers a manifest has and how many bytes they unpack
// to.
func ParseManifest(b []byte) (layers int, bytes int64, err error) {
	p, err := parseManifest(b)
	if err != nil {
		return 0, 0, err
	}
	last := p.disk[len(p.disk)-1]
	return len(p.disk), last.offset + last.bytes, nil
}

// Tries is how often in vain a request is made.
const Tries = maxTries

// Hasten has a repository's pauses take no time, and tells of each. A registry that says
// nothing for so long has stalled.
func Hasten(r *Repository, stall time.Duration, paused func(time.Duration)) {
	r.stall = stall
	r.pause = func(ctx context.Context, d time.Duration) error {
		paused(d)
		return context.Cause(ctx)
	}
}
