// SPDX-License-Identifier: MIT

package peer

import (
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/imagecache/assemble"
	"github.com/minifleet/minifleet/imagecache/manifest"
)

// Pull is an image that this host fetches.
type Pull struct {
	Manifest *manifest.Manifest // as Parse returns them: its paths are trusted
	// Dir is where its files are written. What is in it may be anything.
	Dir string
	// Patient reports whether nobody waits for the image now. Nil means that somebody does.
	Patient func() bool
	// Next brings the chunks that no peer has. Required.
	Next assemble.Fetcher
	// Memory bounds what is fetched for others, before the pull itself comes to it. Nil sets no bound.
	Memory *assemble.Memory
}

// pull is a Pull that goes on.
type pull struct {
	Pull
	ctx   context.Context // of its flights, which serve other hosts too
	where map[manifest.Sum]place
	work  sync.WaitGroup
}

// place is where a chunk belongs.
type place struct {
	file, chunk int
	size        int64
}

func newPull(ctx context.Context, p Pull) *pull {
	if p.Patient == nil {
		p.Patient = func() bool { return false }
	}
	out := &pull{Pull: p, ctx: ctx, where: map[manifest.Sum]place{}}
	for i := range p.Manifest.Files {
		file := &p.Manifest.Files[i]
		for j, c := range file.Chunks {
			if !c.Zero() {
				out.where[c.Sum] = place{i, j, file.ChunkSize(j, p.Manifest)}
			}
		}
	}
	return out
}

var errAbsent = errors.New("the chunk is not here")

// read returns a chunk that is written already, in a slice that room made.
func (p *pull) read(sum manifest.Sum, room func(int64) ([]byte, error)) ([]byte, error) {
	at, ok := p.where[sum]
	if !ok || p.Dir == "" {
		return nil, errAbsent
	}
	f, err := os.OpenFile(filepath.Join(p.Dir, filepath.FromSlash(p.Manifest.Files[at.file].Path)), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	off := int64(at.chunk) * p.Manifest.ChunkBytes
	// What was not written yet is a hole, and need not be read.
	if data, err := f.Seek(off, unix.SEEK_DATA); errors.Is(err, unix.ENXIO) || err == nil && data >= off+at.size {
		return nil, errAbsent
	}
	if info, err := f.Stat(); err != nil || info.Mode()&fs.ModeType != 0 || info.Size() < off+at.size {
		return nil, errAbsent
	}
	content, err := room(at.size)
	if err != nil {
		return nil, err
	}
	if _, err := f.ReadAt(content, off); err != nil {
		return nil, err
	}
	if manifest.Sum(sha256.Sum256(content)) != sum {
		return nil, errAbsent
	}
	return content, nil
}
