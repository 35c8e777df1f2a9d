// SPDX-License-Identifier: MIT

package catchup

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

const (
	// An attempt is listed when it is over, at the time when it began: GitHub waits 10 s
	// for an answer, an Enterprise Server 30 s. So far before the cursor it may be new.
	overlap = time.Minute
	// What github.com keeps. An Enterprise Server keeps more, which is of no use by then.
	lookBack = 72 * time.Hour
	// A time so far in the future is none: GitHub's clock or this one is wrong.
	odd = time.Hour
	// What one look takes in at most, the newest: a site that was never caught up with has
	// no use for all that it did without.
	maxOpen      = 20_000
	maxOpenFirst = 2_000
	maxPages     = 2_000
	// Of how many attempts of a delivery the ids are kept: GitHub may have lost some.
	keptAttempts = 4
	// So many deliveries are looked up in the store at once.
	batch = 500
)

var errPages = errors.New("GitHub's list of deliveries does not end")

// open is a delivery that is still to be taken.
type open struct {
	attempts []fleet.Attempt // the newest first
	first    time.Time       // the oldest that is listed
}

func (o *open) guid() string { return o.attempts[0].GUID }

// list reads GitHub's list back to what was dealt with before, and returns the deliveries
// that are to be taken, the oldest first, with the time of the newest attempt of all.
func (p *Puller) list(ctx context.Context, since time.Time) (todo []*open, newest time.Time, err error) {
	limit := maxOpen
	if since.IsZero() {
		limit = maxOpenFirst
	}
	byGUID, succeeded := map[string]*open{}, map[string]bool{}
	cursors := map[string]bool{}
	for cursor := ""; ; {
		var page []fleet.Attempt
		var next string
		err := p.call(ctx, func(ctx context.Context) (err error) {
			page, next, err = p.c.GitHub.Deliveries(ctx, cursor)
			return err
		})
		if err != nil {
			return nil, newest, err
		}
		for _, a := range page {
			if a.At.After(newest) && !a.At.After(time.Now().Add(odd)) {
				newest = a.At
			}
		}
		oldest := newest.Add(-lookBack)
		// A cursor that is beyond all that is listed was noted by a clock that was wrong.
		if from := since.Add(-overlap); !since.IsZero() && from.After(oldest) && !from.After(newest) {
			oldest = from
		}
		for _, a := range page {
			if !a.At.Before(oldest) && p.c.Handles(a.Event) {
				p.note(a, byGUID, succeeded)
			}
		}
		if cursors[next] || len(cursors) == maxPages {
			return nil, newest, errPages
		}
		if next == "" || len(page) > 0 && page[len(page)-1].At.Before(oldest) {
			break
		}
		if len(byGUID) >= limit {
			p.c.Log.Warn("too many deliveries are to be caught up with; the older ones are left out", "deliveries", len(byGUID))
			break
		}
		cursors[next], cursor = true, next
	}
	for guid, at := range p.dealt {
		if at.Before(since.Add(-2 * overlap)) {
			delete(p.dealt, guid)
		}
	}
	todo, err = p.unsettled(ctx, byGUID)
	return todo, newest, err
}

// note takes in one line of the list.
func (p *Puller) note(a fleet.Attempt, byGUID map[string]*open, succeeded map[string]bool) {
	switch at, dealt := p.dealt[a.GUID]; {
	case succeeded[a.GUID], dealt && !a.At.After(at):
		return
	case a.OK && !p.c.All:
		delete(byGUID, a.GUID)
		if a.Redelivery { // the attempts before it are still to come in the list
			succeeded[a.GUID] = true
		}
		return
	}
	o := byGUID[a.GUID]
	if o == nil {
		o = &open{}
		byGUID[a.GUID] = o
	}
	if o.first = a.At; len(o.attempts) < keptAttempts && !slices.ContainsFunc(o.attempts, func(b fleet.Attempt) bool { return b.ID == a.ID }) {
		o.attempts = append(o.attempts, a)
	}
}

// unsettled returns those of the deliveries that the store has not, in the order in which
// GitHub made them.
func (p *Puller) unsettled(ctx context.Context, byGUID map[string]*open) ([]*open, error) {
	guids := make([]string, 0, len(byGUID))
	for guid := range byGUID {
		guids = append(guids, guid)
	}
	for part := range slices.Chunk(guids, batch) {
		settled, err := p.c.Store.SettledDeliveries(ctx, part)
		if err != nil {
			return nil, err
		}
		for guid := range settled {
			delete(byGUID, guid)
		}
	}
	todo := make([]*open, 0, len(byGUID))
	for _, o := range byGUID {
		todo = append(todo, o)
	}
	slices.SortFunc(todo, func(a, b *open) int {
		return cmp.Or(a.first.Compare(b.first), cmp.Compare(a.attempts[len(a.attempts)-1].ID, b.attempts[len(b.attempts)-1].ID))
	})
	return todo, nil
}
