// SPDX-License-Identifier: MIT

package oci

import (
	"crypto/sha256"
	"hash"

	"github.com/minifleet/minifleet/imagecache/manifest"
)

// blockBytes is the unit in which zeros are looked for. Every chunk has a whole number of
// them.
const blockBytes = 64 << 10

var zeros [blockBytes]byte

func isZero(b []byte) bool { return string(b) == string(zeros[:len(b)]) }

// chunkSums takes a part of a file in order, and knows the sums of the chunks that lie
// within it. What it takes at once lies within one block.
type chunkSums struct {
	begin, end int64 // the part
	size       int64 // of the file
	at         int64
	sum        hash.Hash
	pending    int64 // zeros that are not in sum yet: perhaps the chunk has nothing else
	empty      bool  // it has nothing but pending
	known      map[int]manifest.Sum
}

func newChunkSums(begin, end, size int64) *chunkSums {
	return &chunkSums{begin: begin, end: end, size: size, at: begin, sum: sha256.New(), empty: true, known: map[int]manifest.Sum{}}
}

func (c *chunkSums) take(b []byte, zero bool) {
	if zero {
		c.pending += int64(len(b))
	} else {
		c.settle()
		c.sum.Write(b)
		c.empty = false
	}
	c.at += int64(len(b))
	if c.at%manifest.ChunkBytes != 0 && c.at != c.size {
		return
	}
	n := (c.at - 1) / manifest.ChunkBytes
	if n*manifest.ChunkBytes >= c.begin {
		var sum manifest.Sum
		if !c.empty {
			c.settle()
			c.sum.Sum(sum[:0])
		}
		c.known[int(n)] = sum
	}
	c.sum.Reset()
	c.pending, c.empty = 0, true
}

func (c *chunkSums) settle() {
	for ; c.pending > 0; c.pending -= min(c.pending, blockBytes) {
		c.sum.Write(zeros[:min(c.pending, blockBytes)])
	}
}
