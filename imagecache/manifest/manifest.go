// SPDX-License-Identifier: MIT

// Package manifest is the form in which an image is published: a manifest, addressed by
// its digest, that lists files made of chunks, addressed by theirs; and references, by
// which people and pools name images. docs/image-format.md describes it for other
// programs. It moves no bytes: others fetch, write and keep them.
package manifest

import (
	"crypto/sha256"
	"encoding/hex"
)

// Schema is the version of manifests that this program reads and writes.
const Schema = 1

// Manifest is what an image is made of. Two manifests with the same bytes are the same
// image, under whatever name: it holds neither a name nor a time.
type Manifest struct {
	Schema      int    `json:"schema"`
	GuestOS     string `json:"guest_os"` // "darwin" or "linux"
	Arch        string `json:"arch,omitempty"`
	Description string `json:"description,omitempty"`
	// MinHostOS is the oldest version of the host's system that runs it, "" for any.
	MinHostOS    string   `json:"min_host_os,omitempty"`
	MinCPUs      int      `json:"min_cpus,omitempty"`
	MinMemoryMiB int      `json:"min_memory_mib,omitempty"`
	Display      *Display `json:"display,omitempty"`
	// HardwareModel of a Mac, as the framework writes it: a binary property list.
	HardwareModel []byte `json:"hardware_model,omitempty"`
	// ChunkBytes is the size of every chunk but the last of a file.
	ChunkBytes int64  `json:"chunk_bytes"`
	Files      []File `json:"files"` // in the order of their paths
}

// Display is the screen that an image was made with.
type Display struct {
	Width  int `json:"width"`
	Height int `json:"height"`
	PPI    int `json:"ppi,omitempty"`
}

// File is one file of an image.
type File struct {
	Path   string  `json:"path"` // relative, with slashes
	Mode   uint32  `json:"mode"` // permission bits
	Size   int64   `json:"size"`
	Chunks []Chunk `json:"chunks"` // in order, one for each ChunkBytes begun
}

// Chunk is a piece of a file. The zero Chunk is one of zeros, which is not stored.
type Chunk struct {
	Sum Sum `json:"sum,omitzero"` // of its content
	// Stored is how many bytes it took, compressed, when the manifest was made. It is for
	// sums and progress: nothing may rely on it.
	Stored int64 `json:"stored,omitempty"`
}

// Zero reports whether the chunk is all zeros.
func (c Chunk) Zero() bool { return c.Sum == Sum{} }

// Sum is a SHA-256.
type Sum [sha256.Size]byte

// String returns it in hex.
func (s Sum) String() string { return hex.EncodeToString(s[:]) }
