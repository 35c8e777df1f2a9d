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

	"github.com/minifleet/minifleet/imagecache/assemble"
	"github.com/minifleet/minifleet/imagecache/layout"
	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/imagecache/objects"
	"github.com/minifleet/minifleet/imagecache/oci"
)

// Config says where the images are.
type Config struct {
	// Dir is the folder with one folder for each image. It must exist. What is fetched is
	// below .cache in it.
	Dir string
	// MaxBytes is what all fetched images may take together, and what CountToo named with
	// them; clones count in full. Zero sets no limit.
	MaxBytes int64
	// MaxImages is how many fetched images there may be. Zero sets no limit.
	MaxImages int
	// MinFree is how many bytes of the volume fetching leaves free.
	MinFree int64
	// Objects says how places of images in our format are opened; scheme and location are
	// those of the references.
	Objects objects.Options
	// OpenStore opens them. Nil means objects.Open.
	OpenStore func(context.Context, objects.Options) (objects.Store, error)
	// OCI says how registries are spoken to.
	OCI oci.Options
	// Beside says that another process serves the cache: what it left half made, or is
	// making, is its own affair.
	Beside bool
	// Log defaults to none.
	Log *slog.Logger
}

// Validate checks the configuration without touching the disk.
func (c Config) Validate() error {
	if !filepath.IsAbs(c.Dir) {
		return fmt.Errorf("the folder of images is %q: give an absolute path", c.Dir)
	}
	if c.MaxBytes < 0 || c.MaxImages < 0 || c.MinFree < 0 {
		return errors.New("the limits of the cache of images must not be negative")
	}
	return nil
}

// memory bounds what all fetches together hold of chunks.
const memory = 64 << 20

// errClosed says that the cache is closed.
var errClosed = errors.New("the cache of images is closed")

// Cache gives out images. Its methods may be called by several goroutines.
type Cache struct {
	cfg     Config
	dir     string
	log     *slog.Logger
	places  places
	catalog *catalog
	memory  *assemble.Memory
	free    func(dir string) (int64, error) // of the volume
	clones  func(dir string) bool           // has it copy-on-write clones?
	work    sync.WaitGroup                  // what goes on beside the callers

	opening  sync.Mutex // guards stores, and is held while one is opened
	stores   map[string]objects.Store
	holding  sync.Mutex    // one sets what is held at a time
	clearing chan struct{} // has room for who makes room

	mu     sync.Mutex // guards the rest, never held over input or output
	busy   map[string]chan struct{}
	hashes map[string]map[string]fileHash // by image and path
	pins   map[string]int                 // by digest
	bases  map[string]int                 // by hex: images that others are being made from

	closed   bool
	counter  int64              // of uses
	started  int64              // flights
	flights  map[string]*flight // by digest
	failures map[string]failure // by digest
	turned   chan struct{}      // closed and replaced when a flight may have its turn
	peers    Peers
	others   Others
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
	if cfg.OpenStore == nil {
		cfg.OpenStore = objects.Open
	}
	p := places{root: filepath.Join(cfg.Dir, dirCache)}
	c := &Cache{
		cfg: cfg, dir: cfg.Dir, log: cfg.Log, places: p, catalog: newCatalog(p), memory: assemble.NewMemory(memory), free: freeBytes, clones: assemble.Clones,
		stores: map[string]objects.Store{}, clearing: make(chan struct{}, 1),
		busy: map[string]chan struct{}{}, hashes: map[string]map[string]fileHash{}, pins: map[string]int{}, bases: map[string]int{},
		flights: map[string]*flight{}, failures: map[string]failure{}, turned: make(chan struct{}), others: noOthers{},
	}
	if p.exists() && !cfg.Beside {
		if err := p.make(); err != nil {
			return nil, err
		}
		c.recover()
	}
	return c, nil
}

// Close ends all fetching and waits for its end. What was fetched stays. Images that were
// given out stay pinned until they are released.
func (c *Cache) Close() error {
	c.mu.Lock()
	c.closed = true
	for _, f := range c.flights {
		f.cancel(errClosed)
	}
	c.mu.Unlock()
	c.work.Wait()
	c.opening.Lock()
	defer c.opening.Unlock()
	var errs []error
	for key, s := range c.stores {
		errs = append(errs, s.Close())
		delete(c.stores, key)
	}
	return errors.Join(errs...)
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
type Progress = assemble.Progress

// Ensure returns the image that ref names, pinned, calling progress, if set, now and then,
// one call at a time.
//
// One that was put there by hand ("name" or "name@sha256:...") is read the first time. If
// it is not there the error is a *NotFoundError, and a *DigestError if it is of another
// version.
//
// One that is published somewhere ("gs://bucket/name@sha256:...") is fetched if it is not
// there, once however many wait; the fetch ends with the last of them. What was fetched by
// then is kept for the next. Without a digest, that of the tag at this moment is meant. If
// there is no room the error is a *NoRoomError.
func (c *Cache) Ensure(ctx context.Context, ref string, progress func(Progress)) (*Image, error) {
	return c.EnsureWith(ctx, ref, Options{}, progress)
}

// EnsureWith is Ensure with a say in how the image is fetched.
func (c *Cache) EnsureWith(ctx context.Context, ref string, o Options, progress func(Progress)) (*Image, error) {
	if remote(ref) {
		r, err := manifest.ParseReference(ref)
		if err != nil {
			return nil, err
		}
		return c.fetched(ctx, r, o, progress)
	}
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
// content, or a digest in ref to one that was put there by hand. An image that is not there
// is a *NotFoundError; of one that was not fetched yet, only its manifest is.
func (c *Cache) Manifest(ctx context.Context, ref string) (layout.Image, error) {
	if remote(ref) {
		return c.remoteManifest(ctx, ref)
	}
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
	Name    string // "" of one that was fetched
	Digest  string
	Bytes   int64
	GuestOS string
	Pins    int // how many users it has now
}

// List returns the images that could be given out at once: those put there by hand, in the
// order of their names, and those that were fetched. It reads what it does not know yet. An image that is broken is logged and left out.
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
	return append(entries, c.listFetched()...), nil
}

// listFetched lists the fetched images that are whole and need no second look.
func (c *Cache) listFetched() []Entry {
	var entries []Entry
	for _, hex := range c.wholeOnes() {
		rec, err := c.places.readRecord(hex)
		if err != nil || !rec.holds(c.places.whole(hex)) {
			continue
		}
		c.mu.Lock()
		pins := c.pins[digestPrefix+hex]
		c.mu.Unlock()
		entries = append(entries, Entry{Digest: digestPrefix + hex, Bytes: rec.Bytes, GuestOS: rec.GuestOS, Pins: pins})
	}
	return entries
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
