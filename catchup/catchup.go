// SPDX-License-Identifier: MIT

package catchup

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// GitHub is its API for the App's deliveries. Its errors are those of package fleet.
type GitHub interface {
	// Deliveries returns one page of the list, the newest attempt first, and the cursor of
	// the next page, "" at the end. The first page's cursor is "".
	Deliveries(ctx context.Context, cursor string) (page []fleet.Attempt, next string, err error)
	// Delivery returns what was, or would have been, sent in an attempt, and false if
	// GitHub has that attempt no more.
	Delivery(ctx context.Context, of fleet.Attempt) (fleet.Pulled, bool, error)
	// Redeliver asks for another attempt, and returns false if GitHub has that one no more.
	Redeliver(ctx context.Context, of fleet.Attempt) (bool, error)
}

// Store remembers what was caught up with.
type Store interface {
	// CaughtUp returns the time, by GitHub's clock, up to which every delivery of an App
	// was dealt with, zero if none ever was.
	CaughtUp(ctx context.Context, app int64) (time.Time, error)
	// SetCaughtUp moves it forward.
	SetCaughtUp(ctx context.Context, app int64, at time.Time) error
	// SettledDeliveries returns which of the deliveries are stored and have not failed.
	SettledDeliveries(ctx context.Context, guids []string) (map[string]bool, error)
	// Redeliveries returns how often GitHub was asked for a delivery again, which
	// CountRedelivery notes.
	Redeliveries(ctx context.Context, guid string) (int, error)
	CountRedelivery(ctx context.Context, guid string) error
}

// Config is what a Puller needs. App, GitHub, Store and Take have no default.
type Config struct {
	App    int64 // whose deliveries they are
	GitHub GitHub
	Store  Store
	// Take stores a delivery with its news. That it can never be stored is an
	// fleet.ErrRefused; after any other error it comes again.
	Take func(ctx context.Context, d fleet.Pulled) error
	// Handles reports whether deliveries of an event mean anything. nil: all do.
	Handles func(event string) bool
	// All takes every delivery that is not stored, and not only those that failed: for a
	// controller that nothing is delivered to.
	All bool
	// Every is the time between two looks at the list. 0 means 3 min.
	Every time.Duration
	Log   *slog.Logger // nil: discard
}

// Counts are of what a Puller has done since it was made.
type Counts struct {
	Looks       int // at the list, complete ones
	Taken       int // deliveries, stored from GitHub's copy
	Redelivered int // deliveries that GitHub was asked for again
	Vanished    int // deliveries that GitHub had no more when they were read
	GivenUp     int // deliveries that GitHub gave no payload of, however often asked
}

// Plus adds the counts of another Puller.
func (n Counts) Plus(m Counts) Counts {
	return Counts{n.Looks + m.Looks, n.Taken + m.Taken, n.Redelivered + m.Redelivered, n.Vanished + m.Vanished, n.GivenUp + m.GivenUp}
}

// Puller pulls deliveries.
type Puller struct {
	c     Config
	floor floor

	mu     sync.Mutex // guards counts
	counts Counts

	// Of the one goroutine that runs it:
	dealt  map[string]time.Time // deliveries that were dealt with and may be listed still, with their newest attempt's time
	failed map[string]int       // in how many looks a delivery could not be read
	fails  bool                 // the latest look, and the log says so
}

// New returns a Puller that Run starts.
func New(c Config) *Puller {
	c.Every = cmp.Or(c.Every, 3*time.Minute)
	if c.Handles == nil {
		c.Handles = func(string) bool { return true }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Puller{c: c, dealt: map[string]time.Time{}, failed: map[string]int{}}
}

// Counts returns what was done so far.
func (p *Puller) Counts() Counts {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts
}

func (p *Puller) count(add func(*Counts)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	add(&p.counts)
}

// Run looks at once, and then now and then, until ctx ends.
func (p *Puller) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		next := p.c.Every
		err := p.look(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			next = min(next, time.Minute)
			if !p.fails {
				p.c.Log.Warn("GitHub's list of deliveries could not be worked through; it is tried again", "error", err)
			}
		case p.fails:
			p.c.Log.Info("GitHub's list of deliveries can be worked through again")
		}
		p.fails = err != nil
		timer.Reset(next)
	}
}

// tries is how often a call is made that GitHub does not answer.
const tries = 3

// call makes calls to GitHub as far as its limit allows, and those that fail again.
func (p *Puller) call(ctx context.Context, f func(context.Context) error) error {
	ctx = fleet.WithMeter(ctx, &p.floor)
	for try := 1; ; {
		err := f(ctx)
		limited, waits := errors.AsType[*fleet.RateLimited](err)
		pause := time.Second << (2 * try)
		switch {
		case err == nil || ctx.Err() != nil:
			return err
		case waits:
			pause = max(time.Second, time.Until(limited.Until))
			if limited.Outage.IsZero() { // of an outage whoever finds it out tells, once
				p.c.Log.Warn("deliveries wait for the App's rate limit", "until", limited.Until.UTC())
			}
		case errors.Is(err, fleet.ErrRefused) || try == tries:
			return err
		default:
			try++
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// floor keeps a fifth of the App's own limit for whatever else is asked as the App: the
// tokens of its installations above all.
type floor struct {
	mu   sync.Mutex // guards rate
	rate fleet.Rate
}

// Begin implements fleet.Meter.
func (f *floor) Begin(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if f.rate.Remaining >= f.rate.Limit/5 || !now.Before(f.rate.Reset) {
		return nil
	}
	until := f.rate.Reset
	if latest := now.Add(time.Hour); until.After(latest) { // a clock is wrong
		until = latest
	}
	return &fleet.RateLimited{Until: until}
}

// End implements fleet.Meter.
func (f *floor) End(_ bool, rate fleet.Rate, known bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if known {
		f.rate = rate
	}
}
