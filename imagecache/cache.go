// SPDX-License-Identifier: MIT

package imagecache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/minifleet/minifleet/imagecache/layout"
)

// Config says where the images are.
type Config struct {
	// Dir is the folder with one folder for each image. It must exist.
	Dir string
	// Log defaults to none.
	Log *slog.Logger
}

// Validate checks the configuration without touching the disk.
func (c Config) Validate() error {
	if !filepath.IsAbs(c.Dir) {
		return fmt.Errorf("the folder of images is %q: give an absolute path", c.Dir)
	}
	return nil
}

// Cache gives out images. Its methods may be called by several goroutines.
type Cache struct {
	dir string
	log *slog.Logger

	mu     sync.Mutex // guards the maps, never held over input or output
	busy   map[string]chan struct{}
	hashes map[string]map[string]fileHash // by image and path
	pins   map[string]int                 // by digest
}

// Open opens the cache.
func Open(cfg Config) (*Cache, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	info, err := os.Stat(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("open the folder of images: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("open the folder of images: %s is no folder", cfg.Dir)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Cache{
		dir: cfg.Dir, log: cfg.Log,
		busy: map[string]chan struct{}{}, hashes: map[string]map[string]fileHash{}, pins: map[string]int{},
	}, nil
}

// Image is an image in the cache. Until Release nothing takes it away.
type Image struct {
	Name        string
	Digest      string // "sha256:" and 64 of 0-9 and a-f
	Dir         string // what a machine is cloned from
	Bytes       int64  // the sum of its files' sizes
	Stored      int64  // how much of that the disk has: holes are not stored
	GuestOS     string
	Description string

	once    sync.Once
	release func()
}

// Release gives up the pin. Only the first call counts.
func (i *Image) Release() { i.once.Do(i.release) }

// Progress tells how far Ensure has come.
type Progress struct {
	DoneBytes  int64
	TotalBytes int64
}

// Ensure returns the image that ref names ("name" or "name@sha256:..."), pinned. The
// first time it reads the whole image, calling progress, if set, now and then, one call
// at a time. An image that is not there is a *NotFoundError, one of another version a
// *DigestError.
func (c *Cache) Ensure(ctx context.Context, ref string, progress func(Progress)) (*Image, error) {
	r, err := parseReference(ref)
	if err != nil {
		return nil, err
	}
	img, err := c.load(ctx, r.name, progress)
	if errors.Is(err, errNoImage) {
		return nil, c.notFound(ref)
	}
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", r.name, err)
	}
	if r.digest != "" && r.digest != img.Digest {
		return nil, &DigestError{Name: r.name, Want: r.digest, Have: img.Digest}
	}
	c.pin(img)
	return img, nil
}

// Manifest returns what the image that ref names says of itself, without looking at its
// content, or a digest in ref. An image that is not there is a *NotFoundError.
func (c *Cache) Manifest(ref string) (layout.Image, error) {
	r, err := parseReference(ref)
	if err != nil {
		return layout.Image{}, err
	}
	m, err := layout.ReadImage(filepath.Join(c.dir, r.name))
	if errors.Is(err, fs.ErrNotExist) {
		return layout.Image{}, c.notFound(ref)
	}
	if err != nil {
		return layout.Image{}, fmt.Errorf("image %s: %w", r.name, err)
	}
	return m, nil
}

// notFound says which images there are instead.
func (c *Cache) notFound(ref string) error {
	available, err := c.names()
	return errors.Join(&NotFoundError{Ref: ref, Dir: c.dir, Available: available}, err)
}

// errNoImage says that there is no folder of this name with a manifest.
var errNoImage = errors.New("no such image")

func (c *Cache) pin(img *Image) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pins[img.Digest]++
	img.release = func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.pins[img.Digest]--; c.pins[img.Digest] == 0 {
			delete(c.pins, img.Digest)
		}
	}
}

// load reads one image. One call at a time works on it; the others then find the hashes.
func (c *Cache) load(ctx context.Context, name string, progress func(Progress)) (*Image, error) {
	done, err := c.claim(ctx, name)
	if err != nil {
		return nil, err
	}
	defer done()
	// Resolved: an image's folder may be a link, and a walk does not follow its root.
	dir, err := filepath.EvalSymlinks(filepath.Join(c.dir, name))
	var m layout.Image
	if err == nil {
		m, err = layout.ReadImage(dir)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNoImage
	}
	if err != nil {
		return nil, err
	}
	if m.Name != name {
		return nil, fmt.Errorf("its %s says that it is %s: rename the folder", layout.FileImage, m.Name)
	}
	c.mu.Lock()
	known := c.hashes[name]
	c.mu.Unlock()
	sum, err := digest(ctx, dir, known, progress)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.hashes[name] = sum.hashes
	c.mu.Unlock()
	return &Image{
		Name: name, Digest: sum.digest, Dir: dir, Bytes: sum.bytes, Stored: sum.stored, GuestOS: m.GuestOS, Description: m.Description,
		release: func() {},
	}, nil
}

// claim makes the caller the only one who works on an image.
func (c *Cache) claim(ctx context.Context, name string) (done func(), err error) {
	for {
		c.mu.Lock()
		other, taken := c.busy[name]
		if !taken {
			mine := make(chan struct{})
			c.busy[name] = mine
			c.mu.Unlock()
			return func() {
				c.mu.Lock()
				delete(c.busy, name)
				c.mu.Unlock()
				close(mine)
			}, nil
		}
		c.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Entry is an image in a report.
type Entry struct {
	Name    string
	Digest  string
	Bytes   int64
	GuestOS string
	Pins    int // how many users it has now
}

// List returns the images that could be given out, in the order of their names. It
// reads what it does not know yet. An image that is broken is logged and left out.
func (c *Cache) List(ctx context.Context) ([]Entry, error) {
	names, err := c.names()
	if err != nil {
		return nil, err
	}
	entries := make([]Entry, 0, len(names))
	for _, name := range names {
		img, err := c.load(ctx, name, nil)
		if ctx.Err() != nil {
			return nil, fmt.Errorf("list images: %w", context.Cause(ctx))
		}
		if err != nil {
			c.log.Warn("image is broken", slog.String("image", name), slog.Any("error", err))
			continue
		}
		c.mu.Lock()
		pins := c.pins[img.Digest]
		c.mu.Unlock()
		entries = append(entries, Entry{Name: name, Digest: img.Digest, Bytes: img.Bytes, GuestOS: img.GuestOS, Pins: pins})
	}
	return entries, nil
}

// names lists the folders that are images.
func (c *Cache) names() ([]string, error) {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var names []string
	for _, e := range entries {
		if ValidateName(e.Name()) != nil {
			continue
		}
		if info, err := os.Lstat(filepath.Join(c.dir, e.Name(), layout.FileImage)); err == nil && info.Mode().IsRegular() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}
