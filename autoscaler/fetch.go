// SPDX-License-Identifier: MIT

package autoscaler

import (
	"cmp"
	"slices"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// prefetch decides what each host is to have in its cache, and whose turn it is to fetch.
// A host has one turn at a time, for one image. What it has is listed all the same, held,
// so that it is not evicted.
func (d *decision) prefetch() {
	if !d.fetching() {
		return
	}
	rules := d.Rules.Images.withDefaults()
	lists := make([][]fetchItem, len(d.sheets))
	var waiting, resting []*fetchItem
	turns := 0
	for i := range d.sheets {
		lists[i] = d.wantedOn(&d.sheets[i])
		waits, rests := d.standing(&d.sheets[i], lists[i], rules)
		if waits != nil {
			waiting = append(waiting, waits)
		}
		if rests != nil {
			resting = append(resting, rests)
		}
		if slices.ContainsFunc(lists[i], func(f fetchItem) bool { return !f.Hold }) {
			turns++
		}
	}
	first := func(a, b *fetchItem) int {
		return cmp.Or(cmp.Compare(a.rank, b.rank), a.Turn.Compare(b.Turn), cmp.Compare(a.host.Name, b.host.Name))
	}
	slices.SortStableFunc(waiting, first)
	slices.SortStableFunc(resting, first)
	for _, f := range slices.Concat(waiting, resting) {
		if turns >= rules.PrefetchHosts {
			if f.had {
				f.Turn = d.Now // the end of its turn
			}
			continue
		}
		if !f.had {
			f.Turn = d.Now
		}
		f.Hold = false
		turns++
	}
	for i := range d.sheets {
		d.emit(&d.sheets[i], lists[i], rules.share(turns))
	}
}

// fetching reports whether there is anything to decide: without references, hosts fetch
// nothing.
func (d *decision) fetching() bool {
	if len(d.State.Rollouts) > 0 {
		return true
	}
	for i := range d.sheets {
		if len(d.sheets[i].Prefetch) > 0 {
			return true
		}
	}
	return false
}

// share is what each of those that fetch at once may use.
func (r ImageRules) share(turns int) int64 {
	if r.BytesPerSecond == 0 || turns == 0 {
		return 0
	}
	return max(r.BytesPerSecond/int64(turns), 64<<10) // less would stall it
}

// fetchItem is one image for one host.
type fetchItem struct {
	fleet.Prefetch
	host *hostSheet
	rank int  // 0 serves, 1 is next
	had  bool // it is its turn, which leads nowhere
}

// wantedOn lists what a host is to have: what serves the pools that it serves, then what
// is next, then what a pool could go back to, as long as the host has that and what serves.
// All are held.
func (d *decision) wantedOn(h *hostSheet) (list []fetchItem) {
	add := func(p *poolSheet, image string, rank int) {
		if image == "" || !fleet.RemoteImage(image) || !p.serves(h) ||
			slices.ContainsFunc(list, func(f fetchItem) bool { return fleet.SameImage(f.Image, image) }) {
			return
		}
		list = append(list, fetchItem{Prefetch: fleet.Prefetch{Image: image, Hold: true}, host: h, rank: rank})
	}
	for _, p := range d.order {
		add(p, p.image, 0)
	}
	for _, p := range d.order {
		add(p, p.next, 1)
	}
	for _, p := range d.order {
		if h.Holds(p.rollout.Previous) && h.Holds(p.image) { // or it could be in the way of what serves
			add(p, p.rollout.Previous, 2)
		}
	}
	return list
}

// standing carries on with the turn that a host has. It returns the image for which a host
// without a turn waits, or, if there is none, one whose turn leads or led nowhere, which goes
// on only if nobody else waits.
func (d *decision) standing(h *hostSheet, list []fetchItem, rules ImageRules) (waits, rests *fetchItem) {
	turn := false
	for i := range list {
		f := &list[i]
		if h.Holds(f.Image) {
			continue
		}
		at := slices.IndexFunc(h.Prefetch, func(p fleet.Prefetch) bool { return fleet.SameImage(p.Image, f.Image) })
		if at >= 0 {
			f.Turn = h.Prefetch[at].Turn
		}
		if at >= 0 && !h.Prefetch[at].Hold && !turn {
			if d.goesOn(h, f, rules) {
				f.Hold, turn = false, true
				continue
			}
			if f.had = h.live; !f.had {
				f.Turn = d.Now // the end of its turn
			}
		}
		if waits != nil || !h.live {
			continue
		}
		// After a turn that led nowhere it waits for a while, so that the others have theirs.
		if again := f.Turn.Add(rules.Stall); f.had || !f.Turn.IsZero() && again.After(d.Now) {
			if !f.had {
				d.wakeAt(again)
			}
			if f.had || rests == nil {
				rests = f
			}
			continue
		}
		waits = f
	}
	switch {
	case turn:
		return nil, nil
	case waits == nil:
		return nil, rests
	case rests != nil && rests.had:
		rests.Turn = d.Now
	}
	return waits, nil
}

// goesOn reports whether a host's turn leads anywhere: it ends with the host's silence, a
// failure, or when nothing has come for long.
func (d *decision) goesOn(h *hostSheet, f *fetchItem, rules ImageRules) bool {
	if !h.live {
		return d.hoped(h.Host)
	}
	moved := later(f.Turn, h.BackAt)
	digest := fleet.ImageDigest(f.Image)
	if at := slices.IndexFunc(h.Cached, func(c fleet.CachedImage) bool { return c.Digest == digest }); at >= 0 {
		c := h.Cached[at]
		if c.State == fleet.CacheFailed && c.MovedAt.After(f.Turn) {
			return false
		}
		moved = later(moved, c.MovedAt)
	}
	if !d.Fresh.Hosts {
		return true // it had no time yet to say how far it is
	}
	due := moved.Add(rules.Stall)
	if due.After(d.Now) {
		d.wakeAt(due)
		return true
	}
	return false
}

// emit tells a host what differs from what it was told.
func (d *decision) emit(h *hostSheet, list []fetchItem, rate int64) {
	out := make([]fleet.Prefetch, len(list))
	for i, f := range list {
		out[i] = f.Prefetch
		if h.Holds(f.Image) {
			out[i].Turn = time.Time{}
		}
		if !f.Hold {
			out[i].BytesPerSecond = rate
		}
	}
	if len(out) == 0 {
		out = nil
	}
	if !slices.EqualFunc(out, h.Prefetch, func(a, b fleet.Prefetch) bool {
		return a.Image == b.Image && a.BytesPerSecond == b.BytesPerSecond && a.Hold == b.Hold && a.Turn.Equal(b.Turn)
	}) {
		d.plan.Fetches = append(d.plan.Fetches, fleet.Fetch{Host: h.ID, Images: out})
	}
}
