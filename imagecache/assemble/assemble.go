// SPDX-License-Identifier: MIT

// Package assemble makes an image's files out of chunks: fetched side by side, verified,
// and written by one writer for each file, in order. What is on the disk already, of an
// earlier attempt or of another image, is kept where it is what the manifest says.
package assemble

import (
	"context"

	"github.com/minifleet/minifleet/imagecache/manifest"
)

// Fetcher brings chunks. It is called by several goroutines.
type Fetcher interface {
	// Fetch returns the content of a chunk of size bytes, verified by its sum: a lie never
	// gets through. An error is final: what is worth a retry was retried.
	Fetch(ctx context.Context, c manifest.Chunk, size int64) (Fetched, error)
}

// Fetched is a chunk that was brought.
type Fetched struct {
	Content []byte
	Network int64 // bytes that crossed the network for it
	Peer    bool  // it came from another host of the site
}

// Progress tells how far an image has come.
type Progress struct {
	DoneBytes, TotalBytes int64 // of the image's files, holes included
	FetchedBytes          int64 // over the network
	PeerBytes             int64 // of these, from other hosts of the site
}
