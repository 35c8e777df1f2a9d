// SPDX-License-Identifier: MIT

package reconcile

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

const (
	// GitHub's limits of one installation, until its answers say otherwise: calls in an
	// hour, and points in a minute, of which a call that reads costs one.
	assumedLimit = 5000
	minutePoints = 900
	// A part of a share can be spent at once, and the rest flows in over the hour: so
	// that no hour, whenever it begins, sees more than the share.
	atOnce = 4
	// Of what can be spent at once a part is kept for what is in doubt.
	reserved = 4
	// What a look costs at most, mostly: less is not begun with.
	usualLook = 5
	// Below these parts of what the installation has left nothing is looked at, and
	// nothing is asked for either, until GitHub's hour is over: runners need it.
	floorLooks  = 5
	floorDoubts = 20
)

// overBudget ends a call that would cost more than the share allows for now.
type overBudget struct{ until time.Time }

func (e *overBudget) Error() string {
	return fmt.Sprintf("put off until %s: what GitHub is asked keeps to its share of the rate limit", e.until.UTC().Format(time.RFC3339))
}

// putOff returns until when an error puts things off, if it is for the budget.
func putOff(err error) (until time.Time, is bool) {
	over, is := errors.AsType[*overBudget](err)
	if !is {
		return time.Time{}, false
	}
	return over.until, true
}

// budget is what may be spent on one installation.
type budget struct {
	share float64 // of the limits

	mu           sync.Mutex // guards all below
	rate         fleet.Rate // as GitHub said last
	known        bool
	hour, minute flow
}

// flow is an allowance that fills up as time goes by.
type flow struct {
	level, size float64
	at          time.Time // when it had that level; zero: it is full
}

func (f *flow) fill(now time.Time, size, perSecond float64) {
	switch {
	case f.at.IsZero():
		f.level = size
	case f.size != size: // GitHub's limit is another
		f.level *= size / f.size
	}
	f.size = size
	f.level = min(size, f.level+max(0, now.Sub(f.at).Seconds())*perSecond)
	f.at = now
}

// flows brings both allowances up to date and returns the size and the speed of the
// hourly one, and the speed of the other. Without a limit the size is 0. The caller holds mu.
func (b *budget) flows(now time.Time) (size, perSecond, perSecondOfMinute float64) {
	limit := float64(assumedLimit)
	if b.known {
		limit = float64(b.rate.Limit)
	}
	if limit == 0 {
		return 0, 0, 0
	}
	size = max(4, b.share*limit/atOnce)
	perSecond = b.share * limit * (1 - 1.0/atOnce) / 3600
	b.hour.fill(now, size, perSecond)
	perSecondOfMinute = b.share * minutePoints * (1 - 1.0/atOnce) / 60
	b.minute.fill(now, b.share*minutePoints/atOnce, perSecondOfMinute)
	return size, perSecond, perSecondOfMinute
}

// begin takes one call out of the budget of which part must stay; the caller then waits.
func (b *budget) begin(now time.Time, part, floor float64) (wait time.Duration, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if until := b.spent(now, floor); until.After(now) {
		return 0, &overBudget{until}
	}
	size, perSecond, perSecondOfMinute := b.flows(now)
	if size == 0 {
		return 0, nil
	}
	if lacks := part*size + 1 - b.hour.level; lacks > 0 {
		return 0, &overBudget{now.Add(seconds(lacks/perSecond) + time.Second)}
	}
	b.hour.level--
	b.minute.level--
	return seconds(max(0, -b.minute.level) / perSecondOfMinute), nil
}

// spent returns until when nothing may be asked because little of the limit is left.
func (b *budget) spent(now time.Time, floor float64) (until time.Time) {
	if b.rate.Limit == 0 || float64(b.rate.Remaining)*floor >= float64(b.rate.Limit) || !now.Before(b.rate.Reset) {
		return time.Time{}
	}
	if latest := now.Add(time.Hour); b.rate.Reset.After(latest) { // a clock is wrong
		return latest
	}
	return b.rate.Reset
}

// end takes in what a call has cost.
func (b *budget) end(free bool, rate fleet.Rate, known bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if free {
		b.hour.level++
	}
	if known {
		b.rate, b.known = rate, true
	}
}

// ready returns when there is enough again for some looks.
func (b *budget) ready(now time.Time) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	if until := b.spent(now, floorLooks); until.After(now) {
		return until
	}
	size, perSecond, _ := b.flows(now)
	if lacks := size/reserved + max(usualLook, min(10, size/8)) - b.hour.level; size > 0 && lacks > 0 {
		return now.Add(seconds(lacks / perSecond))
	}
	return now
}

func seconds(n float64) time.Duration { return time.Duration(n * float64(time.Second)) }

// purpose is what calls are made for: looks, or what is in doubt.
type purpose struct {
	*budget
	part, floor float64
}

func (b *budget) looks() purpose  { return purpose{b, 1.0 / reserved, floorLooks} }
func (b *budget) doubts() purpose { return purpose{b, 0, floorDoubts} }

// Begin implements fleet.Meter. What is too fast for GitHub's limit of a minute waits.
func (p purpose) Begin(ctx context.Context) error {
	wait, err := p.begin(time.Now(), p.part, p.floor)
	if err != nil || wait == 0 {
		return err
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// End implements fleet.Meter.
func (p purpose) End(free bool, rate fleet.Rate, known bool) { p.end(free, rate, known) }
