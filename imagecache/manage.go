// SPDX-License-Identifier: MIT

package imagecache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/imagecache/assemble"
	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/internal/durable"
)

// The states of a fetched image.
const (
	StateWhole    = "whole"
	StateFetching = "fetching"
	StateWaiting  = "waiting" // for its turn
	StatePartial  = "partial" // cut off, nobody fetches it
	StateDamaged  = "damaged" // repaired when it is needed
	StateFailed   = "failed"  // the last attempt
	maxFailures   = 100       // that are remembered
	maxHeld       = 1 << 12   // digests that a controller may hold
	shortDigest   = 8         // digits of a digest that an operator has to type at least
)

// Status is what there is of a fetched image on this host.
type Status struct {
	Image  string `json:"image"` // the reference by which it was asked for first, with its digest
	Digest string `json:"digest"`
	State  string `json:"state"`
	// DoneBytes of TotalBytes are on the disk; of an image that is being fetched,
	// FetchedBytes came over the network for it.
	DoneBytes    int64 `json:"done_bytes"`
	TotalBytes   int64 `json:"total_bytes"`
	FetchedBytes int64 `json:"fetched_bytes,omitempty"`
	// StoredBytes is what it takes on the disk, blocks that it shares with others included.
	StoredBytes int64 `json:"stored_bytes"`
	// LastUse is a count of uses: the image with the lowest goes first.
	LastUse int64    `json:"last_use"`
	Pins    []string `json:"pins,omitempty"` // why it may not be evicted
	Failure string   `json:"failure,omitempty"`
}

// failure is the last attempt to fetch an image that could not be.
type failure struct {
	ref  manifest.Reference
	at   Progress
	text string
}

// trimFailures bounds what is remembered. The caller holds mu.
func (c *Cache) trimFailures() {
	for digest := range c.failures {
		if len(c.failures) <= maxFailures {
			return
		}
		delete(c.failures, digest)
	}
}

// Status lists the images that were fetched or are being, in the order of their references.
func (c *Cache) Status() []Status {
	held := c.places.held()
	byDigest := map[string]*Status{}
	for _, e := range c.entries() {
		digest := digestPrefix + e.hex
		s := &Status{
			Image: e.rec.Reference, Digest: digest, State: StateWhole,
			DoneBytes: e.rec.Bytes, TotalBytes: e.rec.Bytes, StoredBytes: e.bytes, LastUse: e.used,
		}
		switch {
		case e.partial:
			s.State, s.DoneBytes = StatePartial, 0
		case len(e.rec.Damage) > 0:
			s.State, s.Failure = StateDamaged, e.rec.Damage[0].String()
		case !e.rec.holds(c.places.whole(e.hex)):
			s.State, s.Failure = StateDamaged, "its files do not look as they did when they were right"
		}
		if why := c.keptBy(e.hex, held); why != "" {
			s.Pins = strings.Split(why, ", ")
		} else if lock, err := c.places.tryLock(e.hex, unix.LOCK_EX); errors.Is(err, errInUse) {
			s.Pins = []string{"in use by another process"}
		} else if err == nil {
			lock.release()
		}
		byDigest[digest] = s
	}
	c.mu.Lock()
	for digest, f := range c.failures {
		s := byDigest[digest]
		if s == nil {
			s = &Status{Image: f.ref.String(), Digest: digest}
			byDigest[digest] = s
		}
		if s.State != StateWhole {
			s.State, s.Failure = StateFailed, f.text
			s.DoneBytes, s.TotalBytes, s.FetchedBytes = f.at.DoneBytes, f.at.TotalBytes, f.at.FetchedBytes
		}
	}
	for digest, f := range c.flights {
		at, waiting := f.look()
		s := byDigest[digest]
		if s == nil {
			s = &Status{Image: f.ref.String(), Digest: digest}
			byDigest[digest] = s
		}
		s.State, s.Failure = StateFetching, ""
		if waiting {
			s.State = StateWaiting
		}
		s.DoneBytes, s.TotalBytes, s.FetchedBytes = at.DoneBytes, at.TotalBytes, at.FetchedBytes
	}
	c.mu.Unlock()
	list := make([]Status, 0, len(byDigest))
	for _, s := range byDigest {
		list = append(list, *s)
	}
	slices.SortFunc(list, func(a, b Status) int { return strings.Compare(a.Image+a.Digest, b.Image+b.Digest) })
	return list
}

// Hold keeps images from being evicted, those of these digests and no others, until the
// next call, and beyond the end of this process.
func (c *Cache) Hold(digests []string) error {
	list := slices.Compact(slices.Sorted(slices.Values(digests)))
	for _, d := range list {
		if !validDigest(d) {
			return fmt.Errorf("hold %.80q: it is no digest", d)
		}
	}
	if len(list) > maxHeld {
		return fmt.Errorf("%d images are to be held: at most %d can be", len(list), maxHeld)
	}
	c.holding.Lock()
	defer c.holding.Unlock()
	held := c.places.held()
	if len(held) == len(list) && !slices.ContainsFunc(list, func(d string) bool { return !held[d] }) {
		return nil
	}
	if err := c.places.make(); err != nil {
		return err
	}
	b, err := json.Marshal(list)
	if err == nil {
		err = durable.WriteFile(c.places.at(fileHeld), b, 0o644)
	}
	if err != nil {
		return fmt.Errorf("hold images: %w", err)
	}
	return nil
}

// Find returns the status of the one fetched image that an operator means by a reference,
// a name, a digest or the beginning of one.
func (c *Cache) Find(text string) (Status, error) {
	var found []Status
	all := c.Status()
	for _, s := range all {
		name := ""
		if ref, err := manifest.ParseReference(s.Image); err == nil {
			name = ref.Name
		}
		begins := len(text) >= shortDigest && (strings.HasPrefix(s.Digest, text) || strings.HasPrefix(hexOf(s.Digest), text))
		if text == s.Image || text == s.Digest || text == name || begins {
			found = append(found, s)
		}
	}
	if len(found) == 1 {
		return found[0], nil
	}
	var names []string
	for _, s := range append(found, all...)[:max(len(found), min(len(all), 20))] {
		names = append(names, s.Image)
	}
	switch {
	case len(found) > 1:
		return Status{}, fmt.Errorf("%q may be any of %s: give a digest, or %d digits of it", text, strings.Join(names, ", "), shortDigest)
	case len(all) == 0:
		return Status{}, fmt.Errorf("no image %q: nothing was fetched to %s", text, c.dir)
	default:
		return Status{}, fmt.Errorf("no image %q among those that were fetched: %s", text, strings.Join(names, ", "))
	}
}

// Pin keeps an image until Unpin, whoever evicts.
func (c *Cache) Pin(digest string) error {
	hex := hexOf(digest)
	lock, err := c.places.tryLock(hex, unix.LOCK_SH)
	if errors.Is(err, errInUse) && there(c.places.partial(hex)) {
		err = durable.WriteFile(c.places.pin(hex), nil, 0o644) // it is being fetched, and not evicted meanwhile
		return err
	}
	if err != nil {
		return fmt.Errorf("pin %s: %w", digest, err)
	}
	defer lock.release()
	if !there(c.places.whole(hex)) && !there(c.places.partial(hex)) {
		return fmt.Errorf("pin %s: %w", digest, errAbsent)
	}
	return durable.WriteFile(c.places.pin(hex), nil, 0o644)
}

// Unpin ends what Pin began.
func (c *Cache) Unpin(digest string) error {
	err := os.Remove(c.places.pin(hexOf(digest)))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("image %s is not pinned", digest)
	}
	return err
}

// Evict deletes an image that nothing keeps. What the controller holds goes only by force:
// it would have it fetched again.
func (c *Cache) Evict(digest string, force bool) error {
	hex := hexOf(digest)
	held := c.places.held()
	if force {
		held = nil
	}
	if why := c.keptBy(hex, held); why != "" {
		return fmt.Errorf("image %s stays: it is %s", digest, why)
	}
	if !there(c.places.whole(hex)) && !there(c.places.partial(hex)) {
		return fmt.Errorf("evict %s: %w", digest, errAbsent)
	}
	if err := c.evict(context.Background(), hex); err != nil {
		if errors.Is(err, errInUse) {
			err = errors.New("it is in use by the agent or pinned: try again, or unpin it")
		}
		return fmt.Errorf("image %s stays: %w", digest, err)
	}
	c.log.Info("image evicted", slog.String("image", digest), slog.String("reason", "an operator asked for it"))
	return c.places.emptyTrash()
}

// Verify reads an image, all of it, and compares it with its manifest. A damaged one is
// given to nobody until the next Ensure has repaired it.
func (c *Cache) Verify(ctx context.Context, digest string, progress func(Progress)) ([]assemble.Damage, error) {
	hex := hexOf(digest)
	lock, err := c.places.waitLock(ctx, hex, unix.LOCK_SH)
	if err != nil {
		return nil, fmt.Errorf("verify %s: %w", digest, err)
	}
	defer lock.release()
	dir := c.places.whole(hex)
	if !there(dir) {
		return nil, fmt.Errorf("verify %s: it is not whole: %w", digest, errAbsent)
	}
	rec, err := c.places.readRecord(hex)
	if err != nil {
		return nil, fmt.Errorf("verify %s: %w", digest, err)
	}
	m, err := c.places.readManifest(hex, rec.Manifest)
	if err != nil {
		return nil, fmt.Errorf("verify %s: %w", digest, err)
	}
	damages, stamps, err := assemble.Verify(ctx, dir, m, progress)
	if err != nil {
		return nil, fmt.Errorf("verify %s: %w", digest, err)
	}
	if len(damages) > 0 {
		rec.Damage = nil
		c.condemn(hex, damages)
		return damages, nil
	}
	if len(rec.Damage) > 0 || !slices.Equal(rec.Stamps, stamps) {
		rec.Damage, rec.Stamps = nil, stamps
		return nil, c.places.writeRecord(hex, rec)
	}
	return nil, nil
}
