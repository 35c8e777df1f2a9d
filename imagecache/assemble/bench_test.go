// SPDX-License-Identifier: MIT

package assemble_test

import (
	"context"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/minifleet/minifleet/imagecache/assemble"
	"github.com/minifleet/minifleet/imagecache/manifest"
)

// compressed gives out chunks as a bucket does that costs nothing: decoded and verified.
type compressed map[manifest.Sum][]byte

func (c compressed) Fetch(_ context.Context, k manifest.Chunk, size int64) (assemble.Fetched, error) {
	content, err := manifest.Decompress(c[k.Sum], size, k.Sum)
	return assemble.Fetched{Content: content, Network: int64(len(c[k.Sum]))}, err
}

// benchImage is content of which half can be compressed.
func benchImage(b *testing.B, chunks int) (*manifest.Manifest, compressed) {
	b.Helper()
	m := &manifest.Manifest{Schema: manifest.Schema, GuestOS: "linux", ChunkBytes: manifest.ChunkBytes}
	f := manifest.File{Path: "disk.img", Mode: 0o644, Size: int64(chunks) * manifest.ChunkBytes}
	store := compressed{}
	for i := range chunks {
		content := noise(uint64(i), manifest.ChunkBytes)
		for at := 0; at < len(content)/2; at += 8 {
			copy(content[at:at+8], "text "+strconv.Itoa(at%977))
		}
		k := manifest.Chunk{Sum: manifest.SumOf(content)}
		store[k.Sum] = manifest.Compress(nil, content)
		f.Chunks = append(f.Chunks, k)
	}
	m.Files = []manifest.File{f}
	return m, store
}

const benchChunks = 128 // 512 MiB

// BenchmarkPlain decodes and hashes all chunks side by side, and writes nothing.
func BenchmarkPlain(b *testing.B) {
	m, store := benchImage(b, benchChunks)
	b.SetBytes(m.Bytes())
	for b.Loop() {
		var group errgroup.Group
		group.SetLimit(2 * runtime.GOMAXPROCS(0))
		for _, k := range m.Files[0].Chunks {
			group.Go(func() error {
				_, err := store.Fetch(b.Context(), k, m.ChunkBytes)
				return err
			})
		}
		if err := group.Wait(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAssemble makes an image of them.
func BenchmarkAssemble(b *testing.B) {
	m, store := benchImage(b, benchChunks)
	b.SetBytes(m.Bytes())
	for b.Loop() {
		dir := filepath.Join(b.TempDir(), "image")
		if _, err := assemble.Assemble(b.Context(), assemble.Job{Manifest: m, Dir: dir, Fetcher: store, Memory: assemble.NewMemory(96 << 20)}); err != nil {
			b.Fatal(err)
		}
	}
}
