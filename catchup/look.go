// SPDX-License-Identifier: MIT

package catchup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/fleet"
)

const (
	// Payloads that are read at once. They are taken in their order.
	atOnce = 4
	// After so many deliveries it is noted how far it has come.
	noteAfter = 100
	// After so many failures in a row GitHub itself is in trouble, not what was asked for.
	maxFailures = 3
	// A delivery that cannot be read in so many looks is asked for again instead.
	maxLooks = 5
	// GitHub is asked for a delivery again so often.
	maxRedeliveries = 3
)

// look takes what is to be taken, the oldest first, and notes how far it has come: after
// what that covers is stored. A delivery that cannot be read for now holds the note back,
// but not the deliveries behind it.
func (p *Puller) look(ctx context.Context) error {
	since, err := p.c.Store.CaughtUp(ctx, p.c.App)
	if err != nil {
		return err
	}
	todo, newest, err := p.list(ctx, since)
	if err != nil {
		return err
	}
	before := p.Counts()
	// A time in the future, by a clock that was wrong, would hide what comes until then.
	held := earliest(newest, time.Now())
	reach := func(at time.Time) error {
		if at = earliest(at, held); !at.After(since) {
			return nil
		}
		since = at
		return p.c.Store.SetCaughtUp(ctx, p.c.App, at)
	}
	var failures []error
	var unread []string
	for i, part := 0, []result(nil); i < len(todo); i++ {
		if len(part) == 0 {
			part = p.read(ctx, todo[i:min(len(todo), i+atOnce)])
		}
		o, got := todo[i], part[0]
		part = part[1:]
		err := p.settle(ctx, o, got)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, errNotNow):
			held = earliest(held, o.first)
			unread = append(unread, o.guid())
			if failures = append(failures, err); len(failures) >= maxFailures {
				return errors.Join(failures...)
			}
		case err != nil:
			return err
		default:
			failures = nil
			delete(p.failed, o.guid())
			p.dealt[o.guid()] = o.attempts[0].At
		}
		if (i+1)%noteAfter == 0 {
			if err := reach(o.first); err != nil {
				return err
			}
		}
	}
	if err := reach(newest); err != nil {
		return err
	}
	for _, guid := range unread {
		p.failed[guid]++
	}
	p.count(func(c *Counts) { c.Looks++ })
	if now := p.Counts(); len(todo) > 0 {
		level := slog.LevelInfo
		if p.c.All {
			level = slog.LevelDebug // it is the rule there
		}
		p.c.Log.Log(ctx, level, "deliveries caught up", "taken", now.Taken-before.Taken, "asked_again", now.Redelivered-before.Redelivered,
			"vanished", now.Vanished-before.Vanished, "given_up", now.GivenUp-before.GivenUp)
	}
	return errors.Join(failures...)
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// errNotNow: a delivery could not be read, and may be later.
var errNotNow = errors.New("not to be read for now")

// result is what reading a delivery gave.
type result struct {
	pulled fleet.Pulled
	there  bool
	err    error
}

// read reads a few deliveries at once.
func (p *Puller) read(ctx context.Context, some []*open) []result {
	out := make([]result, len(some))
	var reading sync.WaitGroup
	for i, o := range some {
		reading.Go(func() {
			for _, a := range o.attempts { // any of them has the payload
				there := false
				out[i].err = p.call(ctx, func(ctx context.Context) (err error) {
					out[i].pulled, there, err = p.c.GitHub.Delivery(ctx, a)
					return err
				})
				out[i].there = out[i].there || there
				if out[i].err != nil || out[i].pulled.Payload != nil {
					return
				}
			}
		})
	}
	reading.Wait()
	return out
}

// settle deals with a delivery for good, or returns an error.
func (p *Puller) settle(ctx context.Context, o *open, got result) error {
	switch {
	case got.err != nil:
		if p.failed[o.guid()] < maxLooks {
			return fmt.Errorf("%w: %w", errNotNow, got.err)
		}
		return p.askAgain(ctx, o)
	case !got.there:
		p.c.Log.Warn("a delivery is lost: GitHub has it no more", "delivery", o.guid(), "event", o.attempts[0].Event)
		p.count(func(c *Counts) { c.Vanished++ })
		return nil
	case got.pulled.Payload == nil:
		return p.askAgain(ctx, o)
	}
	err := p.c.Take(ctx, got.pulled)
	if errors.Is(err, fleet.ErrRefused) {
		p.c.Log.Warn("a delivery of GitHub's list is none", "delivery", o.guid(), "error", err)
		return nil
	}
	if err == nil {
		crashpoint.Reached(crashpoint.DeliveryPulled)
		p.count(func(c *Counts) { c.Taken++ })
	}
	return err
}

// askAgain asks GitHub to deliver once more what it does not show. The attempt will be in
// its list, with the payload or as one more failure.
func (p *Puller) askAgain(ctx context.Context, o *open) error {
	log := p.c.Log.With("delivery", o.guid(), "event", o.attempts[0].Event)
	times, err := p.c.Store.Redeliveries(ctx, o.guid())
	if err != nil {
		return err
	}
	if times >= maxRedeliveries {
		log.Warn("a delivery is given up: GitHub does not show its payload, and its redeliveries fail")
		p.count(func(c *Counts) { c.GivenUp++ })
		return nil
	}
	there := false
	for _, a := range o.attempts {
		if err = p.call(ctx, func(ctx context.Context) (err error) {
			there, err = p.c.GitHub.Redeliver(ctx, a)
			return err
		}); there || ctx.Err() != nil {
			break
		}
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fmt.Errorf("%w: %w", errNotNow, err)
	case !there:
		log.Warn("a delivery is lost: GitHub has it no more")
		p.count(func(c *Counts) { c.Vanished++ })
		return nil
	}
	crashpoint.Reached(crashpoint.RedeliveryAsked)
	log.Info("a delivery is asked for again: GitHub does not show its payload", "times", times+1)
	p.count(func(c *Counts) { c.Redelivered++ })
	// Noted after it was asked for: once too often does no harm.
	return p.c.Store.CountRedelivery(ctx, o.guid())
}
