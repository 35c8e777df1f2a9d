// SPDX-License-Identifier: MIT

package publish

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/imagecache/assemble"
	"github.com/minifleet/minifleet/imagecache/layout"
	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/imagecache/objects"
	"github.com/minifleet/minifleet/internal/durable"
	"github.com/minifleet/minifleet/internal/flock"
)

// pullMemory bounds what a pull holds of chunks.
const pullMemory = 128 << 20

// EndPulling is behind the name of a folder that a pull has not finished.
const EndPulling = ".pulling"

// Pull writes the image with a digest into the folder dir, which must not be there or be
// empty, as an image of ours with the name. Until it is whole it is in a folder beside it;
// one that was cut off goes on there when it is run again.
func (l Location) Pull(ctx context.Context, digest, name, dir string, progress func(Progress)) (*manifest.Manifest, error) {
	m, err := l.Manifest(ctx, digest)
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	if err := vacant(dir); err != nil {
		return nil, err
	}
	aside := dir + EndPulling
	if err := os.MkdirAll(aside, 0o755); err != nil {
		return nil, err
	}
	lock, err := lockFolder(aside)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	meter := newMeter(progress)
	meter.begin("pulling", m.Bytes())
	_, err = assemble.Assemble(ctx, assemble.Job{
		Manifest: m, Dir: aside, Fetcher: fetcher{l.Store}, Memory: assemble.NewMemory(pullMemory),
		Progress: func(p assemble.Progress) {
			meter.add(func(q *Progress) { q.Done, q.Sent = p.DoneBytes, p.FetchedBytes })
		},
	})
	if err != nil {
		return nil, err
	}
	if err := describe(aside, name, m); err != nil {
		return nil, err
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err := durable.Rename(aside, dir); err != nil {
		return nil, err
	}
	return m, nil
}

// vacant refuses a folder that has something in it.
func vacant(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("%s is not empty: give a folder that is not there yet, or remove this one", dir)
}

func lockFolder(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := flock.Try(f, unix.LOCK_EX); err != nil {
		f.Close()
		if errors.Is(err, flock.ErrHeld) {
			return nil, fmt.Errorf("another pull writes into %s: wait for its end", dir)
		}
		return nil, err
	}
	return f, nil
}

// describe writes the image.json of an image of ours.
func describe(dir, name string, m *manifest.Manifest) error {
	i := layout.Image{
		Schema: layout.ImageSchema, Name: name, GuestOS: m.GuestOS, Description: m.Description, Arch: m.Arch, MinHostOS: m.MinHostOS,
		MinCPUs: m.MinCPUs, MinMemoryMiB: m.MinMemoryMiB, Display: m.Display, HardwareModel: m.HardwareModel,
	}
	b, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, layout.FileImage), append(b, '\n'), 0o644)
}

// fetcher brings chunks of a location.
type fetcher struct{ store objects.Store }

// Fetch reads and checks a chunk. A store that gives something wrong is asked once more.
func (f fetcher) Fetch(ctx context.Context, c manifest.Chunk, size int64) (assemble.Fetched, error) {
	got, err := f.once(ctx, c, size)
	if errors.Is(err, manifest.ErrCorrupt) {
		got, err = f.once(ctx, c, size)
	}
	switch {
	case errors.Is(err, objects.ErrNotFound):
		err = fmt.Errorf("the image lacks a chunk: push it again, or see `minifleet image verify`: %w", err)
	case errors.Is(err, manifest.ErrCorrupt):
		err = fmt.Errorf("%s of %s: %w; see `minifleet image verify`", manifest.ChunkObject(c.Sum), f.store, err)
	}
	return got, err
}

func (f fetcher) once(ctx context.Context, c manifest.Chunk, size int64) (assemble.Fetched, error) {
	stored, err := readChunk(ctx, f.store, c.Sum, size)
	if err != nil {
		return assemble.Fetched{}, err
	}
	content, err := manifest.Decompress(stored, size, c.Sum)
	return assemble.Fetched{Content: content, Network: int64(len(stored))}, err
}

// readChunk returns what is stored of a chunk, no more than that can be.
func readChunk(ctx context.Context, store objects.Store, sum manifest.Sum, size int64) ([]byte, error) {
	r, a, err := store.Get(ctx, manifest.ChunkObject(sum))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	most := manifest.MaxStored(size)
	if a.Size > most {
		return nil, fmt.Errorf("%w: it has %d bytes, and its content only %d", manifest.ErrCorrupt, a.Size, size)
	}
	return io.ReadAll(io.LimitReader(r, most+1))
}
