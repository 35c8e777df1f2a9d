// SPDX-License-Identifier: MIT

package autoscaler

import (
	"cmp"
	"slices"
	"strings"

	"github.com/minifleet/minifleet/fleet"
)

// tier orders supply by how near it is to running a job. Jobs are matched to the
// nearest tier first, as many as can be, and only the rest to the next.
type tier int

const (
	tierUnnamed     tier = iota // busy, and GitHub has not said with which job
	tierIdle                    // listening
	tierRegistering             // listener starting
	tierArmed                   // granted, not minted
	tierStandby                 // booted and clean
	tierComing                  // VM on its way
	tierNew                     // could be placed
	tiers
)

// node is supply that is alike: runners of one tier, pool and scope, or the
// runners of a pool that could be placed.
type node struct {
	tier    tier
	pool    *poolSheet
	runners []*fleet.Runner // of the snapshot, in the order in which they are taken
	taken   []int           // jobs, each with the runner of the same index
	placed  []*room         // of tierNew: where each taken one goes
	spare   *room           // of tierNew: that of a job that was moved elsewhere
	dead    bool            // no way to a free place leads from here
	visited int             // number of the search that was here last
}

// class is demand that is alike: jobs of one repository with one set of labels.
type class struct {
	owner, repo string
	labels      fleet.Labels
	nodes       [tiers][]*node // that can serve it, best first
	pools       []*poolSheet   // the same for pools, the smallest label set first
	failed      [tiers]bool    // no place is left up to that tier
	held        *hold          // why it is no demand now, nil if it is
}

// matching is the result: for each queued job the node that covers it.
type matching struct {
	jobs     []fleet.Job // oldest first
	classOf  []*class
	nodeOf   []*node // nil: not covered
	nodes    []*node
	placer   func(*poolSheet) *room
	searches int
	trail    []*node // nodes that the present search came by
}

// match covers as much demand as the present supply and free room can. Within a
// tier each job, oldest first, looks for a free place; where all of its places are
// taken, one that holds a job which could go elsewhere is freed (an augmenting
// path), so that no overlap of pools leaves a job out that a better arrangement
// would serve.
func (d *decision) match() *matching {
	m := &matching{jobs: d.State.Jobs, placer: d.choose}
	m.nodeOf = make([]*node, len(m.jobs))
	d.classify(m, d.supply(m))
	for t := range tiers {
		for _, n := range m.nodes {
			n.dead = false
		}
		for i := range m.jobs {
			c := m.classOf[i]
			if m.nodeOf[i] != nil || c.failed[t] {
				continue
			}
			m.searches++
			m.trail = m.trail[:0]
			if !m.cover(i, c, t) {
				c.failed[t] = true
				for _, n := range m.trail {
					n.dead = true
				}
			}
		}
	}
	return m
}

// cover finds a place for a job in the tiers up to t.
func (m *matching) cover(job int, c *class, t tier) bool {
	for k := range t + 1 {
		for _, n := range c.nodes[k] {
			if !n.dead && m.take(n, job) {
				return true
			}
		}
	}
	for k := range t + 1 {
		for _, n := range c.nodes[k] {
			if m.free(n, t) {
				return m.take(n, job)
			}
		}
	}
	return false
}

// take puts a job on a node that has room.
func (m *matching) take(n *node, job int) bool {
	if n.tier == tierNew {
		h := n.spare
		if h == nil {
			h = m.placer(n.pool)
		}
		if h == nil {
			return false
		}
		n.spare = nil
		n.placed = append(n.placed, h)
	} else if len(n.taken) >= len(n.runners) {
		return false
	}
	n.taken = append(n.taken, job)
	m.nodeOf[job] = n
	return true
}

// free makes room on a full node by moving one of its jobs elsewhere. The nodes of
// a search that failed stay dead for the tier: places only ever fill.
func (m *matching) free(n *node, t tier) bool {
	if n.dead || n.visited == m.searches {
		return false
	}
	n.visited = m.searches
	m.trail = append(m.trail, n)
	tried := map[*class]bool{}
	for at, job := range n.taken {
		c := m.classOf[job]
		if tried[c] {
			continue
		}
		tried[c] = true
		// It keeps its place until it has another: nobody else must take it.
		if m.moveOn(job, c, n, t) {
			n.taken = slices.Delete(n.taken, at, at+1)
			if n.tier == tierNew {
				n.spare = n.placed[at]
				n.placed = slices.Delete(n.placed, at, at+1)
			}
			return true
		}
	}
	return false
}

func (m *matching) moveOn(job int, c *class, from *node, t tier) bool {
	for k := range t + 1 {
		for _, n := range c.nodes[k] {
			if n != from && !n.dead && m.take(n, job) {
				return true
			}
		}
	}
	for k := range t + 1 {
		for _, n := range c.nodes[k] {
			if n != from && m.free(n, t) {
				return m.take(n, job)
			}
		}
	}
	return false
}

// lookup finds supply by scope, so that a class never looks at all of it.
type lookup struct {
	bound map[string][]*node      // by scope key
	open  map[*poolSheet][]*node  // not bound to a scope
	pools map[string][]*poolSheet // by scope key
}

// supply groups the runners that could still take a job.
func (d *decision) supply(m *matching) lookup {
	look := lookup{bound: map[string][]*node{}, open: map[*poolSheet][]*node{}, pools: map[string][]*poolSheet{}}
	type key struct {
		tier  tier
		pool  *poolSheet
		scope string
	}
	byKey := map[key]*node{}
	group := func(t tier, p *poolSheet, scope string) *node {
		k := key{t, p, scope}
		n := byKey[k]
		if n == nil {
			n = &node{tier: t, pool: p}
			byKey[k] = n
			m.nodes = append(m.nodes, n)
			if scope == "" {
				look.open[p] = append(look.open[p], n)
			} else {
				look.bound[scope] = append(look.bound[scope], n)
			}
		}
		return n
	}
	for i := range d.State.Runners {
		r := &d.State.Runners[i]
		t, ok := d.tierOf(*r)
		if !ok {
			continue
		}
		scope := ""
		if t < tierStandby {
			scope = r.Scope.Key()
		}
		n := group(t, d.pools[r.Pool], scope)
		n.runners = append(n.runners, r)
	}
	for _, p := range d.order {
		group(tierNew, p, "")
		for _, s := range p.Scopes {
			if k := s.Key(); !slices.Contains(look.pools[k], p) {
				look.pools[k] = append(look.pools[k], p)
			}
		}
	}
	for _, n := range m.nodes {
		if n.tier == tierIdle || n.tier == tierStandby {
			slices.Reverse(n.runners) // the newest is kept, older ones are surplus
		}
	}
	return look
}

// tierOf says what a runner is worth to demand, and false if nothing.
func (d *decision) tierOf(r fleet.Runner) (tier, bool) {
	if d.leaving[r.ID] || d.pools[r.Pool] == nil || r.Job != 0 || !d.reachableHost(r) {
		return 0, false
	}
	switch r.Phase() {
	case fleet.PhaseBusy:
		until := r.Since.Add(d.limits(r).Unnamed)
		d.wakeAt(until)
		return tierUnnamed, until.After(d.Now)
	case fleet.PhaseIdle:
		return tierIdle, true
	case fleet.PhaseRegistering:
		return tierRegistering, true
	case fleet.PhaseArmed:
		return tierArmed, true
	case fleet.PhaseStandby:
		return tierStandby, true
	case fleet.PhaseRequested, fleet.PhasePlaced, fleet.PhasePreparing, fleet.PhaseBooting:
		return tierComing, true
	default:
		return 0, false
	}
}

// classify finds for every job the supply that could serve it.
func (d *decision) classify(m *matching, look lookup) {
	classes := map[string]*class{}
	probes := map[fleet.PoolScope]bool{}
	for _, j := range m.jobs {
		if h := d.heldBack(j); h != nil {
			m.classOf = append(m.classOf, &class{owner: j.Owner, repo: j.Repo, labels: j.Labels, held: h})
			continue
		}
		refused := d.Verdicts[j.ID].Refused
		k := strings.ToLower(j.Owner) + "/" + strings.ToLower(j.Repo) + "\n" + strings.Join(j.Labels, "\n")
		if refused {
			k = "refused " + k
		}
		without, why := d.closed(j, refused, probes)
		for _, p := range without {
			k += "\nwithout " + p.Name
		}
		c := classes[k]
		if c == nil {
			c = &class{owner: j.Owner, repo: j.Repo, labels: j.Labels}
			c.find(look)
			if refused {
				c.listenersOnly()
			}
			c.exclude(without, why)
			classes[k] = c
		}
		m.classOf = append(m.classOf, c)
	}
}

func (c *class) find(look lookup) {
	owner := strings.ToLower(c.owner)
	for _, scope := range []string{owner + "/" + strings.ToLower(c.repo), owner} {
		for _, n := range look.bound[scope] {
			if c.labels.Within(n.pool.Labels) {
				c.nodes[n.tier] = append(c.nodes[n.tier], n)
			}
		}
		for _, p := range look.pools[scope] {
			if !slices.Contains(c.pools, p) && c.labels.Within(p.Labels) {
				c.pools = append(c.pools, p)
			}
		}
	}
	slices.SortStableFunc(c.pools, func(a, b *poolSheet) int { return cmp.Compare(len(a.Labels), len(b.Labels)) })
	for _, p := range c.pools {
		for _, n := range look.open[p] {
			c.nodes[n.tier] = append(c.nodes[n.tier], n)
		}
	}
	for t := range tierStandby {
		slices.SortStableFunc(c.nodes[t], func(a, b *node) int { return cmp.Compare(len(a.pool.Labels), len(b.pool.Labels)) })
	}
}

// listenersOnly keeps for a job that the policy refuses what GitHub may give it to
// whatever we want: nothing is booted or armed for it.
func (c *class) listenersOnly() {
	c.pools = nil
	for t := tierStandby; t < tiers; t++ {
		c.nodes[t] = nil
	}
}

// exclude keeps for a job of a pool that cannot register anything for it what listens already.
func (c *class) exclude(pools []*poolSheet, why *hold) {
	if len(pools) == 0 {
		return
	}
	c.pools = slices.DeleteFunc(c.pools, func(p *poolSheet) bool { return slices.Contains(pools, p) })
	for t := tierStandby; t < tiers; t++ {
		c.nodes[t] = slices.DeleteFunc(c.nodes[t], func(n *node) bool { return slices.Contains(pools, n.pool) })
	}
	if len(c.pools) == 0 {
		c.held = why
	}
}
