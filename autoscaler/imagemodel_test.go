// SPDX-License-Identifier: MIT

package autoscaler_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/minifleet/minifleet/autoscaler"
	"github.com/minifleet/minifleet/fleet"
)

const reference = "gs://b/i:stable"

// digest is one of a few, each a letter. That of x is of an image that does not boot.
func digest(letter string) string { return "sha256:" + strings.Repeat(letter, 64) }

func image(letter string) string { return fleet.ImageAt(reference, digest(letter)) }

func broken(image string) bool { return fleet.ImageDigest(image) == digest("x") }

// rolled gives a pool an image by reference.
func rolled(c fleet.Canary) func(*fleet.Pool) {
	return func(p *fleet.Pool) { p.Image, p.Canary = reference, c }
}

// imagine gives some pools of a random snapshot images by reference, in any state.
func (s *snap) imagine(rng *rand.Rand) {
	some := func() string { return image([]string{"a", "b", "c", "d"}[rng.IntN(4)]) }
	for i := range s.Pools {
		p := &s.Pools[i]
		if rng.IntN(3) > 0 {
			continue
		}
		rolled(fleet.Canary{Percent: rng.IntN(3) * 40})(p)
		r := fleet.NewRollout(p.Name, reference, now.Add(-time.Hour))
		r.Version = 7
		if rng.IntN(6) > 0 {
			r.Current = some()
		}
		if next := some(); r.Current != "" && next != r.Current && rng.IntN(2) == 0 {
			r.Next, r.StartedAt, r.Failures = next, now.Add(-time.Duration(rng.IntN(90))*time.Minute), rng.IntN(5)
			if rng.IntN(2) == 0 {
				r.TriedAt = r.StartedAt
			}
		}
		if held := some(); r.Next == "" && held != r.Current && rng.IntN(3) == 0 {
			r.Held = held
		}
		if rng.IntN(3) == 0 && p.Canary.Percent > 0 {
			p.Canary.For = time.Duration(rng.IntN(60)) * time.Minute
		}
		if previous := some(); r.Current != "" && previous != r.Current && rng.IntN(2) == 0 {
			r.Previous = previous
		}
		s.State.Rollouts[p.Name] = r
		for k := range s.State.Runners {
			if run := &s.State.Runners[k]; run.Pool == p.Name && rng.IntN(4) > 0 {
				run.Image = some()
			}
		}
	}
	s.Rules.Images = autoscaler.ImageRules{PrefetchHosts: 1 + rng.IntN(2), PrefetchLimit: time.Hour, BytesPerSecond: int64(rng.IntN(2) * 100 << 20)}
	for i := range s.State.Hosts {
		h := &s.State.Hosts[i]
		h.Images = slices.Clone(h.Images)
		for _, letter := range []string{"a", "b", "c", "d"} {
			switch rng.IntN(4) {
			case 0:
				h.Images = append(h.Images, digest(letter))
			case 1:
				h.Prefetch = append(h.Prefetch, fleet.Prefetch{Image: image(letter), Hold: rng.IntN(3) > 0, Turn: now.Add(-time.Duration(rng.IntN(600)) * time.Second)})
			}
		}
	}
}

// imageLaws says which of the rules for images does not hold for a plan.
func imageLaws(s autoscaler.Snapshot, p fleet.Plan) (out []string) {
	bad := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	pools, hosts := map[string]fleet.Pool{}, map[fleet.HostID]fleet.Host{}
	for _, x := range s.Pools {
		pools[x.Name] = x
	}
	for _, h := range s.State.Hosts {
		hosts[h.ID] = h
	}
	after := map[string]fleet.Rollout{}
	for name, r := range s.State.Rollouts {
		after[name] = r
	}
	for _, a := range p.Rollouts {
		r, ok := after[a.Pool]
		is, err := r.Acted(a.Act, a.Reason, s.Now)
		if !ok || err != nil || r.Version != a.Version || a.Reason == "" {
			bad("%+v of %+v: %v", a, r, err)
		}
		if tooMany := pools[a.Pool].Canary.Percent > 0 && r.Failures >= pools[a.Pool].Canary.TooMany(); (a.Act == fleet.ActBack) != tooMany {
			bad("%s with %d failures", a.Act, r.Failures)
		}
		holds := slices.ContainsFunc(s.State.Hosts, func(h fleet.Host) bool { return h.Holds(r.Next) })
		some := slices.ContainsFunc(s.State.Hosts, func(h fleet.Host) bool { return serves(pools[a.Pool], h) })
		if a.Act == fleet.ActPromote && !holds && some {
			bad("%s serves and no host has it", fleet.ImageShort(r.Next))
		}
		after[a.Pool] = is
	}
	live, tries, tried := map[string]int{}, map[string]int{}, map[string]bool{}
	count := func(pool, image string) {
		live[pool]++
		if fleet.SameImage(image, after[pool].Next) {
			tries[pool]++
		}
	}
	for _, r := range s.State.Runners {
		if counts(s, r) {
			count(r.Pool, r.Image)
		}
	}
	for _, a := range p.Places {
		x, r, h := pools[a.Pool], after[a.Pool], hosts[a.Host]
		count(a.Pool, a.Image)
		switch {
		case !fleet.RemoteImage(x.Image):
			if a.Image != x.Image {
				bad("pool %s is to have %s and not %s", x.Name, x.Image, a.Image)
			}
		case a.Image == "":
			bad("a runner of pool %s has no image", x.Name)
		case a.Image == r.Current:
		case a.Image != r.Next || x.Canary.Percent == 0 || !h.Holds(a.Image):
			bad("a runner with %s on %s: pool %s has %+v", a.Image, h.ID, x.Name, r)
		default:
			tried[a.Pool] = true
		}
	}
	for pool := range tried {
		if most := max(1, live[pool]*pools[pool].Canary.Percent/100); tries[pool] > most {
			bad("%d of %d runners of pool %s try the next image, which are more than %d", tries[pool], live[pool], pool, most)
		}
	}
	ending := map[fleet.RunnerID]bool{}
	for _, a := range p.Retires {
		ending[a.Runner] = true
	}
	for _, a := range p.Deletes {
		ending[a.Runner] = true
	}
	for _, r := range s.State.Runners {
		if r.Phase() == fleet.PhaseStandby && fleet.SameImage(r.Image, s.State.Rollouts[r.Pool].Held) && !ending[r.ID] && pools[r.Pool].Name != "" {
			bad("standby %s goes on with an image that was left", r.ID)
		}
	}
	return append(out, fetchLaws(s, p, after)...)
}

func serves(p fleet.Pool, h fleet.Host) bool {
	return h.Slots > 0 && (p.Backend == "" || slices.Contains(h.Backends, p.Backend))
}

// fetchLaws: few hosts fetch at once, none what it has, and each is told of all that its
// pools need.
func fetchLaws(s autoscaler.Snapshot, p fleet.Plan, after map[string]fleet.Rollout) (out []string) {
	bad := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	lists := map[fleet.HostID][]fleet.Prefetch{}
	turns, before := 0, 0
	var rate int64
	for _, h := range s.State.Hosts {
		lists[h.ID] = h.Prefetch
		if slices.ContainsFunc(h.Prefetch, func(f fleet.Prefetch) bool { return !f.Hold }) {
			before++
		}
	}
	for _, f := range p.Fetches {
		lists[f.Host] = f.Images
	}
	for _, h := range s.State.Hosts {
		n := 0
		for _, f := range lists[h.ID] {
			if f.Hold {
				continue
			}
			n++
			rate += f.BytesPerSecond
			if h.Holds(f.Image) {
				bad("%s fetches %s, which it has", h.ID, fleet.ImageShort(f.Image))
			}
		}
		if n > 1 {
			bad("%s fetches %d images at once", h.ID, n)
		}
		turns += n
		for _, x := range s.Pools {
			for _, want := range []string{after[x.Name].Current, after[x.Name].Next} {
				if want != "" && serves(x, h) && !slices.ContainsFunc(lists[h.ID], func(f fleet.Prefetch) bool { return fleet.SameImage(f.Image, want) }) {
					bad("%s is not told of %s", h.ID, fleet.ImageShort(want))
				}
			}
		}
	}
	if turns > max(cmp.Or(s.Rules.Images.PrefetchHosts, 2), before) {
		bad("%d hosts fetch at once, and at most %d should", turns, s.Rules.Images.PrefetchHosts)
	}
	if all := s.Rules.Images.BytesPerSecond; rate > all {
		bad("all together may fetch %d bytes a second, which is more than %d", rate, all)
	}
	return out
}

// imagine gives some pools of a world images by reference.
func (w *world) imagine(rng *rand.Rand) {
	for i := range w.pools {
		if rng.IntN(2) == 0 {
			rolled([]fleet.Canary{{}, {Percent: 50, For: time.Minute}, {Percent: 10}}[rng.IntN(3)])(&w.pools[i])
		}
	}
	w.rules.Images = autoscaler.ImageRules{PrefetchHosts: 1, PrefetchLimit: []time.Duration{0, 5 * time.Minute}[rng.IntN(2)], Stall: time.Minute}
}

// moveTag lets a tag name another image, or not be readable. An image that does not boot
// is tried before it serves, or nothing could ever run.
func (w *world) moveTag(letter, luck uint32) {
	if luck%5 == 0 {
		w.note("the tag cannot be read")
		w.must(w.ledger.ImageUnresolved(w.ctx, reference, "403"))
		return
	}
	to := []string{"a", "b", "c", "x"}[letter%4]
	for _, p := range w.pools {
		if fleet.RemoteImage(p.Image) && (p.Canary.Percent == 0 || w.books.Rollouts[p.Name].Current == "") && to == "x" {
			to = "a"
		}
	}
	w.note("the tag names %s", to)
	w.must(w.ledger.ImageResolved(w.ctx, reference, digest(to)))
}

// resolve reads the tag where that was never done.
func (w *world) resolve() {
	for _, r := range w.books.Rollouts {
		if r.Current == "" {
			w.note("the tag names a")
			w.must(w.ledger.ImageResolved(w.ctx, reference, digest("a")))
			return
		}
	}
}

// operate is what an operator does to a pool's image.
func (w *world) operate(pool, luck uint32) {
	p, _ := pick(w.pools, pool)
	r, ok := w.books.Rollouts[p.Name]
	if !ok || r.Current == "" {
		return
	}
	_, err := w.ledger.ChangeRollout(w.ctx, p.Name, func(r fleet.Rollout, now time.Time) (fleet.Rollout, error) {
		switch luck % 3 {
		case 0:
			if broken(r.Next) {
				return r, fleet.ErrNoRollout
			}
			return r.Promoted("asked for", now)
		case 1:
			return r.WentBack("asked for", now)
		default:
			return r.Asked(digest([]string{"a", "b", "c"}[luck/3%3]), false, now), nil
		}
	})
	w.note("an operator does %d to %s: %v", luck%3, p.Name, err)
}

// has puts an image into the host's cache.
func (h *mini) has(image string) {
	if d := fleet.ImageDigest(image); d != "" && !slices.Contains(h.facts.Images, d) {
		h.facts.Images = append(slices.Clone(h.facts.Images), d)
	}
}

// pull lets a host's agent fetch a part of what it is its turn to fetch; luck below 2 lets
// it fail, or come to a stop.
func (w *world) pull(h *mini, luck uint32) {
	if h.silent {
		return
	}
	var cache []fleet.CachedImage
	for _, f := range w.books.Host(h.id).Prefetch {
		d := fleet.ImageDigest(f.Image)
		at := slices.IndexFunc(h.cache, func(c fleet.CachedImage) bool { return c.Digest == d })
		c := fleet.CachedImage{Image: f.Image, Digest: d, State: fleet.CacheWaiting, TotalBytes: 3}
		if at >= 0 {
			c = h.cache[at]
		}
		if !f.Hold && luck > 0 {
			c.State, c.DoneBytes = fleet.CacheFetching, c.DoneBytes+1
		}
		if !f.Hold && luck == 1 {
			c.State, c.Failure = fleet.CacheFailed, "404"
		}
		if c.DoneBytes >= c.TotalBytes {
			c.State = fleet.CacheWhole
			h.has(f.Image)
		}
		cache = append(cache, c)
	}
	if !slices.Equal(cache, h.cache) {
		h.cache = cache
		w.note("host %s fetches: %d images", h.name, len(cache))
	}
	w.report(h)
}

// judgeImages holds the images at the fixed point against what was asked for.
func (w *world) judgeImages(p fleet.Plan) {
	for _, pool := range w.pools {
		r, ok := w.books.Rollouts[pool.Name]
		if ok != fleet.RemoteImage(pool.Image) {
			w.fail("pool %s has a rollout: %t", pool.Name, ok)
		}
		if !ok {
			continue
		}
		if r.Next != "" && pool.Canary.Percent == 0 {
			w.fail("pool %s rolls %s out for ever", pool.Name, fleet.ImageShort(r.Next))
		}
		if r.Next != "" && pool.Canary.For > 0 && !r.TriedAt.IsZero() {
			w.fail("pool %s tries %s for ever", pool.Name, fleet.ImageShort(r.Next))
		}
		if broken(r.Current) {
			w.fail("pool %s has an image that does not boot", pool.Name)
		}
		for _, run := range w.books.All() {
			if run.Pool != pool.Name || run.Over() || w.tampered[run.ID] || run.Image == "" {
				continue
			}
			if !fleet.SameImage(run.Image, r.Current) && !fleet.SameImage(run.Image, r.Next) {
				w.fail("runner %s is left with %s", run.ID, fleet.ImageShort(run.Image))
			}
		}
	}
	for _, h := range w.books.Hosts {
		for _, f := range h.Prefetch {
			if !h.Holds(f.Image) {
				w.fail("host %s never had %s", h.ID, fleet.ImageShort(f.Image))
			}
		}
	}
}
