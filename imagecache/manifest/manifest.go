// SPDX-License-Identifier: MIT

// Package manifest is the form in which an image is published: a manifest, addressed by
// its digest, that lists files made of chunks, addressed by theirs; and references, by
// which people and pools name images. docs/image-format.md describes it for other
// programs. It moves no bytes: others fetch, write and keep them.
package manifest

// Schema is the version of manifests that this program reads and writes.
const Schema = 1

// ChunkBytes is the chunk size of the images that this program publishes. It reads
// others: docs/image-format.md says why it is this one.
const ChunkBytes = 2 << 20

// Manifest is what an image is made of. Two manifests with the same bytes are the same
// image, under whatever name: it holds neither a name nor a time.
type Manifest struct {
	Schema      int    `json:"schema"`
	GuestOS     string `json:"guest_os"`       // "darwin" or "linux"
	Arch        string `json:"arch,omitempty"` // "arm64" or "amd64", "" if nobody said
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
	Files      []File `json:"files"` // in the order of their paths' bytes
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
	Sum Sum // of its content
	// Stored is how many bytes it took, compressed, when the manifest was made; 0 if that
	// is not known. It is for sums and progress: nothing may rely on it.
	Stored int64
}

// Zero reports whether the chunk is all zeros.
func (c Chunk) Zero() bool { return c.Sum == Sum{} }

// Bytes is the sum of the files' sizes, holes included.
func (m *Manifest) Bytes() int64 {
	n := int64(0)
	for i := range m.Files {
		n += m.Files[i].Size
	}
	return n
}

// ChunkSize is the size of the content of the file's i-th chunk, counted from 0.
func (f *File) ChunkSize(i int, m *Manifest) int64 {
	return min(m.ChunkBytes, f.Size-int64(i)*m.ChunkBytes)
}

// chunksOf is how many chunks a file of a size has.
func chunksOf(size, chunkBytes int64) int64 {
	n := size / chunkBytes
	if size%chunkBytes != 0 {
		n++
	}
	return n
}
