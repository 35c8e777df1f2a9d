// SPDX-License-Identifier: MIT

package autoscaler

import (
	"fmt"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// images are what a pool's runners are made from.
type images struct {
	rollout  fleet.Rollout
	image    string // of new runners, "" while it is not known
	next     string // is tried by some, or waited for
	canaries int    // runners with next, of those that count
	trying   *shelves
}

func imagesOf(p fleet.Pool, all map[string]fleet.Rollout) images {
	if !fleet.RemoteImage(p.Image) {
		return images{image: p.Image}
	}
	r := all[p.Name]
	return images{rollout: r, image: r.Current, next: r.Next}
}

// wantsCanary reports whether the pool's next new runner is one that tries the next image.
func (p *poolSheet) wantsCanary() bool { return p.next != "" && p.canaries < p.canaryShare(p.live+1) }

// canaryShare is how many of so many runners try the next image: at least one, or it
// would never be tried in a small pool.
func (p *poolSheet) canaryShare(of int) int {
	if p.Canary.Percent == 0 {
		return 0
	}
	return max(1, of*p.Canary.Percent/100)
}

// unresolved says why nothing can be placed.
func (d *decision) unresolved(p *poolSheet) string {
	if p.rollout.Error == "" {
		return fmt.Sprintf("the image of pool %s, %s, is being looked up for the first time", p.Name, p.Image)
	}
	return fmt.Sprintf("the image of pool %s, %s, was never found: %s", p.Name, p.Image, p.rollout.Error)
}

// left reports whether the pool went back from the runner's image and it runs no job: no
// further one is to run on it.
func (r *runnerSheet) left() bool {
	return r.pool != nil && fleet.SameImage(r.Image, r.pool.rollout.Held) && r.Job == 0 && r.Phase() != fleet.PhaseBusy
}

// rollOut decides which pools take their next image for good, and which go back from it.
func (d *decision) rollOut() {
	for _, p := range d.order {
		if p.next == "" {
			continue
		}
		r, c := p.rollout, p.Canary
		if c.Percent > 0 && r.Failures >= c.TooMany() {
			d.act(p, fleet.ActBack, fmt.Sprintf("%d runners with %s failed, the last: %s", r.Failures, fleet.ImageShort(r.Next), orUnknown(r.Failure)))
			continue
		}
		if c.Percent > 0 && (c.For == 0 || r.TriedAt.IsZero()) {
			continue // until an operator says so, or a guest with it answers
		}
		if due := later(r.TriedAt, r.FailedAt).Add(c.For); c.Percent > 0 && due.After(d.Now) {
			d.wakeAt(due)
			continue
		}
		if why, ok := d.ready(p); ok {
			d.act(p, fleet.ActPromote, why)
		}
	}
}

// act changes a rollout; the rest of the plan is made as if that were done.
func (d *decision) act(p *poolSheet, act fleet.RolloutAct, why string) {
	d.plan.Rollouts = append(d.plan.Rollouts, fleet.RolloutStep{Pool: p.Name, Version: p.rollout.Version, Act: act, Reason: why})
	if is, err := p.rollout.Acted(act, why, d.Now); err == nil {
		p.rollout, p.image, p.next = is, is.Current, is.Next
	}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// ready reports whether enough hosts hold the pool's next image for it to serve.
func (d *decision) ready(p *poolSheet) (why string, ok bool) {
	var fitting, live, holding int
	for i := range d.sheets {
		h := &d.sheets[i]
		if !p.serves(h) {
			continue
		}
		fitting++
		if d.hoped(h.Host) && !d.Fresh.Reported[h.ID] {
			return "", false // who is silent now may be back in a moment
		}
		if h.live {
			live++
			if h.Holds(p.next) {
				holding++
			}
		}
	}
	rules := d.Rules.Images.withDefaults()
	switch {
	case fitting == 0:
		return "no host serves the pool yet", true
	case live > 0 && holding*100 >= live*rules.ReadyPercent:
		return fmt.Sprintf("%d of %d hosts hold it", holding, live), true
	case rules.PrefetchLimit == 0 || holding == 0:
		return "", false
	}
	limit := p.rollout.StartedAt.Add(rules.PrefetchLimit)
	if limit.After(d.Now) {
		d.wakeAt(limit)
		return "", false
	}
	return fmt.Sprintf("%d of %d hosts hold it after %s", holding, live, rules.PrefetchLimit), true
}

// renew ends standbys whose image new runners are not made from any more, or that stand
// where one is to try the next image; few at once, and only where their successors have
// their image already. Those that jobs are matched to stay.
func (d *decision) renew(m *matching) {
	if !d.Fresh.Demand {
		return
	}
	for _, p := range d.order {
		if p.Standby == 0 || p.image == "" || p.resumes.After(d.Now) {
			continue // no successor would be made
		}
		booted, changing := d.spares(m, p)
		d.renewPool(p, booted, changing)
	}
}

// spares are a pool's standbys that no job is matched to, and how many are changing: on
// their way, up or down.
func (d *decision) spares(m *matching, p *poolSheet) (booted []*runnerSheet, changing int) {
	for _, n := range m.nodes {
		if n.pool != p || n.tier != tierStandby && n.tier != tierComing {
			continue
		}
		for _, r := range n.runners[len(n.taken):] {
			switch {
			case r.leaving:
			case n.tier == tierStandby:
				booted = append(booted, r)
			default:
				changing++
			}
		}
	}
	for i := range d.runners {
		r := &d.runners[i]
		if r.pool == p && !r.HasConfig && r.TakesSlot() && r.reachable() && (r.leaving || onItsWayOut(r)) {
			changing++
		}
	}
	for _, a := range d.plan.Places {
		if a.Pool == p.Name {
			changing++
		}
	}
	return booted, changing
}

// renewPool replaces as many at once as leave most standbys where they are.
func (d *decision) renewPool(p *poolSheet, booted []*runnerSheet, changing int) {
	atOnce := max(1, p.Standby/4)
	tries := 0 // standbys that are to make room for one that tries the next image
	if p.next != "" {
		tries = p.canaryShare(p.live) - p.canaries
	}
	for _, r := range booted {
		if changing >= atOnce {
			return
		}
		image, why := p.image, "replaced: new runners of pool %s are made from %s"
		switch {
		case r.Image == "" || fleet.SameImage(r.Image, p.next):
			continue
		case !fleet.SameImage(r.Image, p.image):
		case tries > 0:
			image, why = p.next, "replaced: a runner of pool %s is to try %s"
		default:
			continue
		}
		if !d.canSucceed(p, r, image) {
			continue
		}
		if image == p.next {
			tries--
		}
		d.retire(r, true, false, fmt.Sprintf(why, p.Name, fleet.ImageShort(image)))
		changing++
	}
}

// canSucceed reports whether a runner with the image could take the place of another: on
// its host, or on one with a free slot.
func (d *decision) canSucceed(p *poolSheet, r *runnerSheet, image string) bool {
	if h := r.host; h != nil && d.usable(p, h) && h.Holds(image) && h.free+h.freeing >= 0 {
		return true
	}
	for i := range d.sheets {
		if h := &d.sheets[i]; h.free > 0 && d.usable(p, h) && h.Holds(image) {
			return true
		}
	}
	return false
}
