// SPDX-License-Identifier: MIT

package imagecache

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/imagecache/assemble"
	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/imagecache/peer"
)

// maxIndexed bounds the index of chunks: 16 bytes each, and a map's overhead. It is far
// more than the chunks of the images that a host has room for.
const maxIndexed = 1 << 19

// ErrNoChunk says that no whole image here has a chunk.
var ErrNoChunk = errors.New("no image here has this chunk")

// catalog knows the manifests of whole images, and where each chunk stands. Nothing in it
// needs to be true: what it leads to is checked.
type catalog struct {
	places places

	mu      sync.Mutex // guards the rest
	images  map[string]*manifest.Manifest
	indexed map[string]int32 // images whose chunks are in index, by hex
	list    []string         // by number
	index   map[uint64]chunkPlace
}

// chunkPlace is where a chunk stands.
type chunkPlace struct {
	image       int32
	file, chunk uint32
}

func newCatalog(p places) *catalog {
	return &catalog{places: p, images: map[string]*manifest.Manifest{}, indexed: map[string]int32{}, index: map[uint64]chunkPlace{}}
}

// manifest returns the manifest of a whole image.
func (k *catalog) manifest(hex, digest string) (*manifest.Manifest, error) {
	k.mu.Lock()
	m := k.images[hex]
	k.mu.Unlock()
	if m != nil {
		return m, nil
	}
	m, err := k.places.readManifest(hex, digest)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.images[hex] = m
	return m, nil
}

// remove forgets an image.
func (k *catalog) remove(hex string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.images, hex)
	if _, ok := k.indexed[hex]; ok { // numbers are not used again: the index is made anew
		clear(k.indexed)
		clear(k.index)
		k.list = nil
	}
}

// add puts the chunks of an image into the index, as long as there is room.
func (k *catalog) add(hex string, m *manifest.Manifest) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.indexed[hex]; ok {
		return
	}
	number := int32(len(k.list)) //nolint:gosec // images are few
	k.list = append(k.list, hex)
	k.indexed[hex] = number
	for file := range m.Files {
		for chunk, c := range m.Files[file].Chunks {
			if c.Zero() {
				continue
			}
			if len(k.index) >= maxIndexed {
				return
			}
			k.index[keyOf(c.Sum)] = chunkPlace{number, uint32(file), uint32(chunk)} //nolint:gosec // manifests are bounded
		}
	}
}

// keyOf is a part of a sum: two sums with the same part only cost a chunk its place.
func keyOf(s manifest.Sum) uint64 { return binary.LittleEndian.Uint64(s[:8]) }

// find returns where a chunk is said to stand.
func (k *catalog) find(sum manifest.Sum) (hex string, m *manifest.Manifest, file *manifest.File, chunk int, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	at, ok := k.index[keyOf(sum)]
	if !ok {
		return "", nil, nil, 0, false
	}
	hex = k.list[at.image]
	if m = k.images[hex]; m == nil {
		return "", nil, nil, 0, false
	}
	file, chunk = &m.Files[at.file], int(at.chunk)
	return hex, m, file, chunk, file.Chunks[chunk].Sum == sum
}

// indexWhole brings the index up to date.
func (c *Cache) indexWhole() {
	for _, hex := range c.wholeOnes() {
		c.catalog.mu.Lock()
		_, ok := c.catalog.indexed[hex]
		c.catalog.mu.Unlock()
		if ok {
			continue
		}
		rec, err := c.places.readRecord(hex)
		if err != nil || len(rec.Damage) > 0 {
			continue
		}
		if m, err := c.catalog.manifest(hex, rec.Manifest); err == nil {
			c.catalog.add(hex, m)
		}
	}
}

// OpenChunk returns the content of a chunk that a whole image has, verified as it was
// read, in a slice that room made; ErrNoChunk if there is none.
func (c *Cache) OpenChunk(ctx context.Context, sum manifest.Sum, room func(size int64) ([]byte, error)) ([]byte, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	hex, m, file, chunk, ok := c.catalog.find(sum)
	if !ok {
		c.indexWhole()
		if hex, m, file, chunk, ok = c.catalog.find(sum); !ok {
			return nil, ErrNoChunk
		}
	}
	content, err := room(file.ChunkSize(chunk, m))
	if err != nil {
		return nil, err
	}
	lock, err := c.places.tryLock(hex, unix.LOCK_SH)
	if errors.Is(err, errInUse) {
		return nil, ErrNoChunk // it is on its way out
	}
	if err != nil {
		return nil, err
	}
	defer lock.release()
	err = readAt(filepath.Join(c.places.whole(hex), filepath.FromSlash(file.Path)), content, int64(chunk)*m.ChunkBytes)
	if !there(c.places.whole(hex)) {
		c.catalog.remove(hex)
		return nil, ErrNoChunk
	}
	problem := "its content has another sum"
	if err != nil {
		problem = "it cannot be read: " + err.Error()
	} else if manifest.SumOf(content) == sum {
		return content, nil
	}
	c.condemn(hex, []assemble.Damage{{Path: file.Path, Chunk: chunk, Problem: problem}})
	return nil, ErrNoChunk
}

func readAt(path string, content []byte, off int64) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.ReadAt(content, off)
	return err
}

// condemn notes damage of an image, which is given to nobody until it is made whole. The
// caller holds the image's lock, shared or alone.
func (c *Cache) condemn(hex string, damages []assemble.Damage) {
	c.catalog.remove(hex)
	rec, err := c.places.readRecord(hex)
	if err == nil && len(rec.Damage) == 0 {
		rec.Damage = damages
		err = c.places.writeRecord(hex, rec)
	}
	c.log.Error("image is damaged", slog.String("image", digestPrefix+hex), slog.String("damage", damages[0].String()), slog.Any("error", err))
}

// localChunks brings chunks from whole images of this host.
type localChunks struct{ cache *Cache }

// Fetch reads a chunk.
func (l localChunks) Fetch(ctx context.Context, c manifest.Chunk, size int64) (assemble.Fetched, error) {
	// It does not look for new images each time: there are many chunks that none has.
	if _, _, _, _, ok := l.cache.catalog.find(c.Sum); !ok {
		return assemble.Fetched{}, ErrNoChunk
	}
	var buf []byte
	got := assemble.Fetched{Release: func() { l.cache.memory.Reuse(buf) }}
	var err error
	got.Content, err = l.cache.OpenChunk(ctx, c.Sum, func(has int64) ([]byte, error) {
		if has != size {
			return nil, fmt.Errorf("%w of %d bytes", ErrNoChunk, size)
		}
		buf = l.cache.memory.Buffer(size)
		return buf, nil
	})
	if err != nil {
		if buf != nil {
			got.Release()
		}
		return assemble.Fetched{}, err
	}
	return got, nil
}

// Peers are other hosts that give out chunks.
type Peers interface {
	// First returns a fetcher that asks them before p.Next, for the time of one pull.
	First(p peer.Pull) (f assemble.Fetcher, release func())
}

// SetPeers has chunks fetched from other hosts first, and from where an image is published
// only what they do not bring. It is for fetches that begin from then on. Nil ends that.
func (c *Cache) SetPeers(p Peers) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.peers = p
}

// fetcher returns where the chunks of a flight come from: images of this host, other hosts,
// and where the image is published.
func (c *Cache) fetcher(f *flight, m *manifest.Manifest, dir string, s *source) (assemble.Fetcher, func()) {
	c.mu.Lock()
	peers := c.peers
	c.mu.Unlock()
	if peers == nil {
		return assemble.First{localChunks{c}, s}, func() {}
	}
	s.shared = true
	first, release := peers.First(peer.Pull{Manifest: m, Dir: dir, Patient: f.background, Next: s, Memory: c.memory})
	return assemble.First{localChunks{c}, first}, release
}
