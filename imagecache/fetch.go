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
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/imagecache/assemble"
	"github.com/minifleet/minifleet/imagecache/layout"
	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/imagecache/oci"
	"github.com/minifleet/minifleet/internal/durable"
)

// errAbsent says that an image is not in the cache, or not fit to be given out.
var errAbsent = errors.New("the image is not in the cache")

// maxRounds bounds how often an image is fetched that is evicted before it can be used.
const maxRounds = 3

// fetched returns an image of a remote reference, pinned.
func (c *Cache) fetched(ctx context.Context, ref manifest.Reference, o Options, progress func(Progress)) (*Image, error) {
	digest, err := c.resolve(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	at := ref.At(digest)
	for round := 0; round < maxRounds; {
		img, err := c.take(ctx, at)
		if !errors.Is(err, errAbsent) {
			return img, err
		}
		f, leave, err := c.join(at, o)
		if err != nil {
			return nil, err
		}
		err = f.wait(ctx, progress)
		leave()
		if errors.Is(err, errAbandoned) {
			continue // we came just when all others had left
		}
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", at, err)
		}
		round++
	}
	return nil, fmt.Errorf("image %s was fetched and evicted %d times before it could be used: give the cache more room (cache.max_gib, cache.max_images), or pin the image", at, maxRounds)
}

// resolve returns the digest of a reference. Where a tag leads is asked once: whatever
// happens to the tag then, one image is fetched.
func (c *Cache) resolve(ctx context.Context, ref manifest.Reference) (string, error) {
	if ref.Digest != "" {
		return ref.Digest, nil
	}
	if ref.Scheme == manifest.SchemeOCI {
		r, err := oci.Open(ref, c.cfg.OCI)
		if err != nil {
			return "", err
		}
		return r.Resolve(ctx)
	}
	s, err := c.source(ctx, ref, nil)
	if err != nil {
		return "", err
	}
	return s.tag(ctx, ref.Name, ref.Tag)
}

// take pins an image that is whole. It waits for nothing but another's rename.
func (c *Cache) take(ctx context.Context, ref manifest.Reference) (*Image, error) {
	hex, p := hexOf(ref.Digest), c.places
	if !there(p.whole(hex)) {
		return nil, errAbsent
	}
	lock, err := p.waitLock(ctx, hex, unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	rec, err := p.readRecord(hex)
	if err != nil || !there(p.whole(hex)) || !rec.holds(p.whole(hex)) {
		lock.release()
		return nil, errAbsent // flights find out what there is to do
	}
	c.used(hex)
	img := &Image{
		Name: ref.Name, Digest: ref.Digest, Dir: p.whole(hex), Bytes: rec.Bytes, Stored: rec.Stored,
		GuestOS: rec.GuestOS, Description: rec.Description,
	}
	c.pin(img)
	unpin := img.release
	img.release = func() { unpin(); lock.release() }
	return img, nil
}

// used notes that an image was used now. That the note is durable nobody waits for.
func (c *Cache) used(hex string) {
	c.mu.Lock()
	if c.counter == 0 {
		c.counter = c.places.latest()
	}
	c.counter++
	at, closed := c.counter, c.closed
	c.mu.Unlock()
	f, err := c.places.setUse(hex, at)
	if err != nil {
		c.log.Warn("the use of an image cannot be noted", slog.String("image", digestPrefix+hex), slog.Any("error", err))
		return
	}
	if closed {
		f.Close()
		return
	}
	c.work.Go(func() { _ = errors.Join(f.Sync(), f.Close()) })
}

// fly makes an image whole.
func (c *Cache) fly(ctx context.Context, f *flight) error {
	p, hex := c.places, hexOf(f.digest())
	if err := p.make(); err != nil {
		return err
	}
	if err := c.gate(ctx, f); err != nil {
		return err
	}
	lock, err := p.waitLock(ctx, hex, unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer lock.release()
	rec, err := p.readRecord(hex)
	if err != nil {
		rec = &record{Reference: f.ref.String()}
	}
	switch {
	case there(p.whole(hex)) && rec.holds(p.whole(hex)):
		return nil // of another process, or just now
	case there(p.whole(hex)):
		// It is read, and what is not right is fetched.
		c.catalog.remove(hex)
		if err := errors.Join(p.throwAway(p.partial(hex)), os.Rename(p.whole(hex), p.partial(hex))); err != nil {
			return err
		}
	case there(p.partial(hex)) && rec.holds(p.partial(hex)):
		return c.place(hex, rec)
	}
	if len(rec.Damage) > 0 {
		c.log.Warn("a damaged image is repaired", slog.String("image", f.ref.String()))
	}
	rec.Stamps, rec.Damage = nil, nil
	if err := p.writeRecord(hex, rec); err != nil {
		return roomless(err)
	}
	c.used(hex)
	crashpoint.Reached(crashpoint.ImageBegun)
	c.log.Info("image is fetched", slog.String("image", f.ref.String()))
	if f.ref.Scheme == manifest.SchemeOCI {
		err = c.pullOCI(ctx, f, hex, rec)
	} else {
		err = c.pullChunks(ctx, f, hex, rec)
	}
	switch {
	case err == nil:
		if err := c.place(hex, rec); err != nil {
			return err
		}
		c.settle(ctx, f, rec)
		return nil
	case full(err) && !onlyLimited(err):
		// What runs on this host needs the room more than a fetch that cannot end.
		if clearErr := errors.Join(p.throwAway(p.partial(hex)), p.forget(hex), p.emptyTrash()); clearErr != nil {
			c.log.Warn("what was fetched of an image stays on the disk", slog.String("image", f.ref.String()), slog.Any("error", clearErr))
		}
		return roomless(err)
	default:
		return err
	}
}

// place gives a whole image its name, durably.
func (c *Cache) place(hex string, rec *record) error {
	p := c.places
	if err := p.writeRecord(hex, rec); err != nil {
		return roomless(err)
	}
	crashpoint.Reached(crashpoint.ImageRecorded)
	if err := os.Rename(p.partial(hex), p.whole(hex)); err != nil {
		return err
	}
	crashpoint.Reached(crashpoint.ImagePlaced)
	if err := errors.Join(durable.Sync(p.at(dirWhole)), durable.Sync(p.at(dirPartial))); err != nil {
		return err
	}
	c.log.Info("image is whole", slog.String("image", rec.Reference), slog.Int64("bytes", rec.Bytes))
	return nil
}

// pullChunks makes an image of our format.
func (c *Cache) pullChunks(ctx context.Context, f *flight, hex string, rec *record) error {
	s, err := c.source(ctx, f.ref, f.limit)
	if err != nil {
		return err
	}
	m, err := c.bringManifest(ctx, s, f, hex)
	if err != nil {
		return err
	}
	rec.describe(m, f.digest())
	f.show(Progress{TotalBytes: rec.Bytes})
	c.indexWhole()
	base, release := c.nearest(ctx, f, m)
	defer release()
	var of *manifest.Manifest
	if base != nil {
		of = base.Manifest
	}
	// What is kept of the base is written too, unless its files can be cloned.
	_, need := assemble.Shared(m, of)
	if there(c.places.partial(hex)) || !c.clones(c.places.at(dirTrash)) {
		need = max(0, rec.Stored-allocated(c.places.partial(hex)))
	}
	f.setNeed(need)
	err = c.makeRoom(ctx, f, rec.Stored, need)
	if base != nil && errors.As(err, new(*NoRoomError)) {
		// Without the image it would start from there may be room for one that is needed.
		release()
		f.base, base = "", nil
		need = max(0, rec.Stored-allocated(c.places.partial(hex)))
		f.setNeed(need)
		err = c.makeRoom(ctx, f, rec.Stored, need)
	}
	if err != nil {
		return err
	}
	c.indexWhole() // what was evicted took the others out of the index
	fetcher, done := c.fetcher(f, m, c.places.partial(hex), s)
	defer done()
	made, err := assemble.Assemble(ctx, assemble.Job{
		Manifest: m, Dir: c.places.partial(hex), Fetcher: fetcher, Base: base, Memory: c.memory,
		Gate: func(ctx context.Context) error { return c.gate(ctx, f) },
		Room: func(ctx context.Context) error {
			err := c.makeRoom(ctx, f, rec.Stored, f.unwritten())
			c.indexWhole()
			return err
		},
		Progress: f.show,
	})
	if err != nil {
		return err
	}
	rec.Stamps = made.Stamps
	return nil
}

// bringManifest returns the image's manifest, which is kept from then on.
func (c *Cache) bringManifest(ctx context.Context, s *source, f *flight, hex string) (*manifest.Manifest, error) {
	if m, err := c.places.readManifest(hex, f.digest()); err == nil {
		return m, nil
	}
	b, m, err := s.manifest(ctx, f.digest())
	if err != nil {
		return nil, err
	}
	if err := durable.WriteFile(c.places.manifest(hex), b, 0o644); err != nil {
		return nil, err
	}
	crashpoint.Reached(crashpoint.ManifestKept)
	return m, nil
}

// pullOCI makes an image of tart's format. What chunks it has is known only afterwards.
func (c *Cache) pullOCI(ctx context.Context, f *flight, hex string, rec *record) error {
	o := c.cfg.OCI
	o.Limit = f.limit
	r, err := oci.Open(f.ref, o)
	if err != nil {
		return err
	}
	img, err := r.Image(ctx, f.digest())
	if err != nil {
		return err
	}
	dir := c.places.partial(hex)
	need := img.Bytes() + img.Scratch()
	if there(dir) {
		need = max(0, need-allocated(dir))
	}
	f.show(Progress{TotalBytes: img.Bytes()})
	f.setNeed(need)
	older, release := c.older(ctx, f)
	defer release()
	err = c.makeRoom(ctx, f, img.Bytes(), need)
	if older != "" && errors.As(err, new(*NoRoomError)) {
		release()
		f.base, older = "", ""
		err = c.makeRoom(ctx, f, img.Bytes(), need)
	}
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if older != "" {
		// Where it does not work the image is fetched whole. What is cloned is read, and
		// compared with what it should be.
		for _, file := range img.Template().Files {
			path := filepath.FromSlash(file.Path)
			_ = assemble.Clone(filepath.Join(c.places.whole(older), path), filepath.Join(dir, path))
		}
		release()
	}
	m, err := img.Pull(ctx, dir, oci.PullOptions{
		Progress: f.show,
		Gate:     func(ctx context.Context) error { return c.gate(ctx, f) },
		Room: func(ctx context.Context, left int64) error {
			f.setNeed(left)
			return c.makeRoom(ctx, f, img.Bytes(), left)
		},
	})
	if err != nil {
		return err
	}
	b, err := m.Encode()
	if err != nil {
		return err
	}
	rec.describe(m, manifest.Digest(b))
	if err := durable.WriteFile(c.places.manifest(hex), b, 0o644); err != nil {
		return err
	}
	crashpoint.Reached(crashpoint.ManifestKept)
	for i := range m.Files {
		path := filepath.Join(dir, filepath.FromSlash(m.Files[i].Path))
		if err := durable.Sync(path); err != nil {
			return err
		}
		stamp, err := assemble.StampOf(dir, m.Files[i].Path)
		if err != nil {
			return err
		}
		rec.Stamps = append(rec.Stamps, stamp)
	}
	return nil
}

// settle has the cache within its limits again, where the image that this one started from
// was let stay until now. What cannot go now goes another time.
func (c *Cache) settle(ctx context.Context, f *flight, rec *record) {
	if f.base != "" {
		_ = c.makeRoom(ctx, f, rec.Stored, 0)
	}
}

// nearest returns the whole image that has the most in common with a manifest, pinned; nil
// if there is none.
func (c *Cache) nearest(ctx context.Context, f *flight, m *manifest.Manifest) (*assemble.Base, func()) {
	hex := hexOf(f.digest())
	most, nearest := int64(0), ""
	var of *manifest.Manifest
	for _, other := range c.wholeOnes() {
		if other == hex {
			continue
		}
		rec, err := c.places.readRecord(other)
		if err != nil || len(rec.Damage) > 0 {
			continue
		}
		known, err := c.catalog.manifest(other, rec.Manifest)
		if err != nil {
			continue
		}
		if shared, _ := assemble.Shared(m, known); shared > most {
			most, nearest, of = shared, other, known
		}
	}
	if nearest == "" {
		return nil, func() {}
	}
	rec, release := c.startFrom(ctx, f, nearest)
	if rec == nil {
		return nil, release
	}
	dir := c.places.whole(nearest)
	return &assemble.Base{Dir: dir, Manifest: of, Holds: func(path string) bool { return rec.fileHolds(dir, path) }}, release
}

// older returns, pinned, the whole image of the same repository that was used last, to start
// an image of tart's format from, unless that is begun already; "" if there is none.
func (c *Cache) older(ctx context.Context, f *flight) (hex string, release func()) {
	if there(c.places.partial(hexOf(f.digest()))) {
		return "", func() {}
	}
	for _, e := range slices.Backward(c.entries()) {
		ref, err := manifest.ParseReference(e.rec.Reference)
		if err != nil || e.partial || len(e.rec.Damage) > 0 || ref.Scheme != f.ref.Scheme || ref.Location != f.ref.Location || ref.Name != f.ref.Name {
			continue
		}
		if rec, release := c.startFrom(ctx, f, e.hex); rec != nil {
			return e.hex, release
		}
	}
	return "", func() {}
}

// startFrom keeps a whole image for as long as another is made from it. The record is nil if
// it is not there any more.
func (c *Cache) startFrom(ctx context.Context, f *flight, hex string) (*record, func()) {
	lock, err := c.places.soonLock(ctx, hex, unix.LOCK_SH)
	if err != nil {
		return nil, func() {}
	}
	rec, err := c.places.readRecord(hex)
	if err != nil || !there(c.places.whole(hex)) {
		lock.release()
		return nil, func() {}
	}
	c.mu.Lock()
	c.bases[hex]++
	c.mu.Unlock()
	f.base = hex
	return rec, sync.OnceFunc(func() {
		c.mu.Lock()
		if c.bases[hex]--; c.bases[hex] == 0 {
			delete(c.bases, hex)
		}
		c.mu.Unlock()
		lock.release()
	})
}

// wholeOnes lists the images that are whole.
func (c *Cache) wholeOnes() []string { return hexNames(c.places.at(dirWhole)) }

func hexNames(dir string) []string {
	entries, _ := os.ReadDir(dir) // nothing was ever fetched
	var list []string
	for _, e := range entries {
		if e.IsDir() && validHex(e.Name()) {
			list = append(list, e.Name())
		}
	}
	return list
}

// allocated returns how much the disk has of a folder's files.
func allocated(dir string) int64 {
	sum := int64(0)
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil //nolint:nilerr // what cannot be seen takes nothing
		}
		if info, err := e.Info(); err == nil {
			if s, ok := info.Sys().(*syscall.Stat_t); ok {
				sum += s.Blocks * 512
			}
		}
		return nil
	})
	return sum
}

// full reports whether an error is for want of room.
func full(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

// onlyLimited reports whether an image has no room because of the cache's limits alone. What
// was fetched of it hurts nobody then: others may evict it.
func onlyLimited(err error) bool {
	var room *NoRoomError
	return errors.As(err, &room) && !room.volume
}

// roomless says what to do about a full volume.
func roomless(err error) error {
	var known *NoRoomError
	if !full(err) || errors.As(err, &known) {
		return err
	}
	return fmt.Errorf("the volume became full; what was fetched is deleted, so that machines can go on: free some space there, or raise cache.min_free_gib: %w", err)
}

// remoteManifest returns what an image says of itself, from the cache or from where it is
// published.
func (c *Cache) remoteManifest(ctx context.Context, text string) (layout.Image, error) {
	ref, err := manifest.ParseReference(text)
	if err != nil {
		return layout.Image{}, err
	}
	digest, err := c.resolve(ctx, ref)
	if err != nil {
		return layout.Image{}, fmt.Errorf("image %s: %w", ref, err)
	}
	at := ref.At(digest)
	if rec, err := c.places.readRecord(hexOf(digest)); err == nil && rec.GuestOS != "" {
		return layout.Image{Schema: layout.ImageSchema, Name: ref.Name, GuestOS: rec.GuestOS, Description: rec.Description}, nil
	}
	m, err := c.askManifest(ctx, at)
	if err != nil {
		return layout.Image{}, fmt.Errorf("image %s: %w", at, err)
	}
	return layout.Image{
		Schema: layout.ImageSchema, Name: ref.Name, GuestOS: m.GuestOS, Description: m.Description, Arch: m.Arch,
		MinHostOS: m.MinHostOS, MinCPUs: m.MinCPUs, MinMemoryMiB: m.MinMemoryMiB, Display: m.Display, HardwareModel: m.HardwareModel,
	}, nil
}

func (c *Cache) askManifest(ctx context.Context, at manifest.Reference) (*manifest.Manifest, error) {
	if at.Scheme == manifest.SchemeOCI {
		r, err := oci.Open(at, c.cfg.OCI)
		if err != nil {
			return nil, err
		}
		img, err := r.Image(ctx, at.Digest)
		if err != nil {
			return nil, err
		}
		m := img.Template()
		return &m, nil
	}
	s, err := c.source(ctx, at, nil)
	if err != nil {
		return nil, err
	}
	_, m, err := s.manifest(ctx, at.Digest)
	return m, err
}
