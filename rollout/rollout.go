// SPDX-License-Identifier: MIT

// Package rollout follows the tags of the pools' images, and does what an operator asks
// of a rollout. It learns which digest a tag names and stores it; which image a runner
// is made from, and when the next one serves, is the decision's affair.
package rollout

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/minifleet/minifleet/fleet"
)

// Store keeps the rollouts.
type Store interface {
	ConfigureRollouts(context.Context, []fleet.Pool) error
	ImageResolved(ctx context.Context, reference, digest string) error
	ImageUnresolved(ctx context.Context, reference, why string) error
	ChangeRollout(ctx context.Context, pool string, next func(fleet.Rollout, time.Time) (fleet.Rollout, error)) (fleet.Rollout, error)
}

// Resolver finds out which image a reference names.
type Resolver interface {
	// Resolve returns the digest that the reference's tag names now. Of a reference with a
	// digest it returns that, if there is such an image.
	Resolve(ctx context.Context, reference string) (digest string, err error)
}

// Config wires a Tracker.
type Config struct {
	Store    Store    // required
	Resolver Resolver // required
	Pools    []fleet.Pool
	// Refresh is how often a tag is read. 0 means one minute.
	Refresh time.Duration
	// Timeout bounds one reading. 0 means 30 s.
	Timeout time.Duration
	Log     *slog.Logger // nil discards
}

// Tracker follows the tags of the pools' images.
type Tracker struct {
	c     Config
	pools map[string]fleet.Pool
	turns map[string]chan struct{} // by reference with a tag; holds one element while somebody has it
}

// New returns a tracker that Run starts.
func New(c Config) (*Tracker, error) {
	if c.Store == nil || c.Resolver == nil {
		return nil, errors.New("rollout: a store and a resolver are required")
	}
	if c.Refresh == 0 {
		c.Refresh = time.Minute
	}
	if c.Timeout == 0 {
		c.Timeout = 30 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	t := &Tracker{c: c, pools: map[string]fleet.Pool{}, turns: map[string]chan struct{}{}}
	for _, p := range c.Pools {
		t.pools[p.Name] = p
	}
	for _, reference := range t.references() {
		t.turns[reference] = make(chan struct{}, 1)
	}
	return t, nil
}

// Configure makes the stored rollouts those of the configured pools. It comes before
// anything is decided.
func (t *Tracker) Configure(ctx context.Context) error {
	return t.c.Store.ConfigureRollouts(ctx, t.c.Pools)
}

// Run reads the tags until ctx ends: each reference by itself, so that a bucket that does
// not answer holds up no other.
func (t *Tracker) Run(ctx context.Context) error {
	var running sync.WaitGroup
	for _, reference := range t.references() {
		running.Go(func() { t.follow(ctx, reference) })
	}
	running.Wait()
	return nil
}

// references lists those that have a tag, each once.
func (t *Tracker) references() (list []string) {
	for _, p := range t.c.Pools {
		if fleet.RemoteImage(p.Image) && fleet.ImageDigest(p.Image) == "" && !slices.Contains(list, p.Image) {
			list = append(list, p.Image)
		}
	}
	return list
}

// The pauses after readings that failed: they double from firstPause, and never exceed
// the longer of longestPause and the usual time between two readings.
const (
	firstPause   = 5 * time.Second
	longestPause = 5 * time.Minute
)

func (t *Tracker) follow(ctx context.Context, reference string) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	failures, last := 0, ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		digest, err, unstored := t.read(ctx, reference)
		if ctx.Err() != nil {
			return
		}
		log := t.c.Log.With("image", reference)
		if err != nil {
			if failures++; failures == 1 {
				log.Warn("the tag of an image cannot be read: what serves goes on serving", "error", errors.Join(err, unstored))
			}
			timer.Reset(t.pause(failures))
			continue
		}
		if unstored != nil {
			if failures++; failures == 1 {
				log.Error("what the tag of an image names is not stored", "error", unstored)
			}
			timer.Reset(t.pause(failures))
			continue
		}
		if digest != last {
			log.Info("the tag of an image is read", "digest", digest)
		}
		failures, last = 0, digest
		timer.Reset(t.c.Refresh)
	}
}

// read reads a tag once and has stored what came of it.
func (t *Tracker) read(ctx context.Context, reference string) (digest string, err, unstored error) {
	done, err := t.turn(ctx, reference)
	if err != nil {
		return "", err, nil
	}
	defer done()
	digest, err = t.resolve(ctx, reference)
	switch {
	case ctx.Err() != nil:
		return "", context.Cause(ctx), nil
	case err != nil:
		return "", err, t.c.Store.ImageUnresolved(ctx, reference, sentence(err))
	default:
		return digest, nil, t.c.Store.ImageResolved(ctx, reference, digest)
	}
}

// turn waits until nobody else is between reading a tag and storing what it names: what was
// read before the tag moved, and came late, would undo what was read and taken since. done
// gives the turn to the next.
func (t *Tracker) turn(ctx context.Context, reference string) (done func(), err error) {
	turn := t.turns[reference]
	if turn == nil { // it has no tag, and its digest does not move
		return func() {}, nil
	}
	select {
	case turn <- struct{}{}:
		return func() { <-turn }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// pause is how long a tag is left alone after so many failures in a row: between half of
// the time and all of it, so that many references do not come in step.
func (t *Tracker) pause(failures int) time.Duration {
	most := min(firstPause<<min(failures-1, 16), max(longestPause, t.c.Refresh))
	return most/2 + rand.N(most/2)
}

// resolve asks once, within the timeout, and holds the answer to what a digest is.
func (t *Tracker) resolve(ctx context.Context, reference string) (string, error) {
	within, cancel := context.WithTimeoutCause(ctx, t.c.Timeout, fmt.Errorf("no answer within %s", t.c.Timeout))
	defer cancel()
	digest, err := t.c.Resolver.Resolve(within, reference)
	switch {
	case err != nil && within.Err() != nil:
		return "", fmt.Errorf("%w: %w", context.Cause(within), err)
	case err != nil:
		return "", err
	case !fleet.ValidDigest(digest):
		return "", fmt.Errorf("%.80q is not the digest of an image", digest)
	}
	return digest, nil
}

// maxSentence bounds what is kept of an error, which may quote a server's answer.
const maxSentence = 500

// sentence makes an error fit for a row and a terminal.
func sentence(err error) string {
	text := strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(err.Error(), "\uFFFD"))
	if len(text) > maxSentence {
		text = strings.ToValidUTF8(text[:maxSentence], "") + "..."
	}
	return text
}

// Take rolls out what the tag of a pool's image names now, or the digest if one is given;
// at once, if now is set, without a wait for hosts or canaries.
func (t *Tracker) Take(ctx context.Context, pool, digest string, now bool) (fleet.Rollout, error) {
	p, err := t.pool(pool)
	if err != nil {
		return fleet.Rollout{}, err
	}
	reference, tagged := p.Image, digest == "" && fleet.ImageDigest(p.Image) == ""
	if digest != "" {
		reference = fleet.ImageAt(p.Image, digest)
	}
	done, err := t.turn(ctx, reference)
	if err != nil {
		return fleet.Rollout{}, err
	}
	defer done()
	found, err := t.resolve(ctx, reference)
	if err != nil {
		return fleet.Rollout{}, fmt.Errorf("%w: %s: %s", fleet.ErrNoImage, reference, sentence(err))
	}
	return t.change(ctx, pool, func(r fleet.Rollout, at time.Time) (fleet.Rollout, error) {
		r = r.Asked(found, tagged, at)
		if now && r.Next != "" {
			return r.Promoted("an operator had it serve at once", at)
		}
		return r, nil
	})
}

// Promote lets the image serve that is being rolled out, without a wait for hosts or
// canaries.
func (t *Tracker) Promote(ctx context.Context, pool string) (fleet.Rollout, error) {
	return t.change(ctx, pool, func(r fleet.Rollout, at time.Time) (fleet.Rollout, error) {
		return r.Promoted("an operator promoted it", at)
	})
}

// Back goes back: from what is being rolled out, or else from what serves. If leave is
// given that must have this digest: who asks twice goes back once.
func (t *Tracker) Back(ctx context.Context, pool, leave string) (fleet.Rollout, error) {
	return t.change(ctx, pool, func(r fleet.Rollout, at time.Time) (fleet.Rollout, error) {
		from := r.Next
		if from == "" {
			from = r.Current
		}
		if leave != "" && fleet.ImageDigest(from) != leave {
			return r, fmt.Errorf("%w: %s is the newest image by now", fleet.ErrConflict, from)
		}
		return r.WentBack("an operator went back from "+fleet.ImageShort(from), at)
	})
}

func (t *Tracker) change(ctx context.Context, pool string, next func(fleet.Rollout, time.Time) (fleet.Rollout, error)) (fleet.Rollout, error) {
	if _, err := t.pool(pool); err != nil {
		return fleet.Rollout{}, err
	}
	r, err := t.c.Store.ChangeRollout(ctx, pool, next)
	if err != nil {
		return r, fmt.Errorf("pool %s: %w", pool, err)
	}
	return r, nil
}

func (t *Tracker) pool(name string) (fleet.Pool, error) {
	p, ok := t.pools[name]
	switch {
	case !ok:
		return p, fmt.Errorf("pool %.40q: %w", name, fleet.ErrNotFound)
	case !fleet.RemoteImage(p.Image):
		return p, fmt.Errorf("pool %s: %w", name, fleet.ErrLocalImage)
	}
	return p, nil
}
