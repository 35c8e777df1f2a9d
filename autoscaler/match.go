// SPDX-License-Identifier: MIT

package autoscaler

import (
	"cmp"
	"slices"
	"strconv"
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
	run     int64          // of tierUnnamed: whose job it has, 0 if the guest did not say
	runners []*runnerSheet // of the snapshot, in the order in which they are taken
	taken   []int          // jobs, each with the runner of the same index
	placed  []*room        // of tierNew: where each taken one goes
	spare   *room          // of tierNew: that of a job that was moved elsewhere
	dead    bool           // no way to a free place leads from here
	visited int            // number of the search that was here last
}

// class is demand that is alike: jobs of one repository with one set of labels, or those
// of one scale set.
type class struct {
	owner, repo string
	run         int64 // 0: no guest's word concerns it
	labels      fleet.Labels
	verdict     fleet.Verdict  // alike but for the words
	pending     bool           // no pool is known to take it, and one may
	nodes       [tiers][]*node // that can serve it, best first
	pools       []*poolSheet   // the same for pools, the smallest label set first
	refusing    []*poolSheet   // that could serve it, and whose policy refuses it
	failed      [tiers]bool    // no place is left up to that tier
	held        *hold          // why it is no demand now, nil if it is
	why         *hold          // what is not covered of it waits, once it is asked for
	barred      *fleet.Trouble // why a pool for it is left out
}

// matching is the result: for each queued job the node that covers it.
type matching struct {
	jobs     []fleet.Job // oldest first
	classOf  []*class
	nodeOf   []*node // nil: not covered
	nodes    []*node
	pending  bool // some of the jobs lack a verdict
	placer   func(*poolSheet) *room
	searches int
	trail    []*node // nodes that the present search came by
}

// match covers as much demand as the present supply and free room can. Within a
// tier each job, oldest first, looks for a free place; where all of its places are
// taken, one that holds a job which could go elsewhere is freed (an augmenting
// path), so that no overlap of pools leaves a job out that a better arrangement
// would serve. Jobs without a verdict come behind the others: what they hold up may last.
func (d *decision) match() *matching {
	m := &matching{jobs: d.State.Jobs, placer: d.choose}
	m.nodeOf = make([]*node, len(m.jobs))
	d.classify(m, d.supply(m))
	for t := range tiers {
		for _, n := range m.nodes {
			n.dead = false
		}
		m.coverAll(t, false)
		if m.pending {
			m.coverAll(t, true)
		}
	}
	return m
}

// coverAll finds places for the jobs that have none, those with or those without a verdict.
func (m *matching) coverAll(t tier, pending bool) {
	for i := range m.jobs {
		c := m.classOf[i]
		if m.nodeOf[i] != nil || c.failed[t] || c.pending != pending {
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
	runs  map[int64]bool          // of which a guest says that it has a job
}

// supply groups the runners that could still take a job.
func (d *decision) supply(m *matching) lookup {
	look := lookup{bound: map[string][]*node{}, open: map[*poolSheet][]*node{}, pools: map[string][]*poolSheet{}, runs: map[int64]bool{}}
	type key struct {
		tier  tier
		pool  *poolSheet
		scope string
		run   int64
	}
	byKey := map[key]*node{}
	group := func(t tier, p *poolSheet, scope string, run int64) *node {
		k := key{t, p, scope, run}
		n := byKey[k]
		if n == nil {
			n = &node{tier: t, pool: p, run: run}
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
	for i := range d.runners {
		r := &d.runners[i]
		t, ok := d.tierOf(r)
		if !ok {
			continue
		}
		scope := ""
		if t < tierStandby {
			scope = r.Scope.Key()
		}
		run := int64(0)
		if t == tierUnnamed && r.JobRun != 0 {
			run = r.JobRun
			look.runs[run] = true
		}
		n := group(t, r.pool, scope, run)
		n.runners = append(n.runners, r)
	}
	for _, p := range d.order {
		group(tierNew, p, "", 0)
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
func (d *decision) tierOf(r *runnerSheet) (tier, bool) {
	if r.leaving || r.pool == nil || r.Job != 0 || !r.reachable() {
		return 0, false
	}
	switch r.Phase() {
	case fleet.PhaseBusy:
		if r.JobRefused != "" {
			return 0, false // it has a job, and none that it runs
		}
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
	m.classOf = make([]*class, len(m.jobs))
	var k []byte
	for i := range m.jobs {
		j := &m.jobs[i]
		v, judged := d.Verdicts[j.ID]
		if h := d.heldBack(j); h != nil && !d.refusedByAll(j, v) {
			m.classOf[i] = &class{owner: j.Owner, repo: j.Repo, labels: j.Labels, held: h}
			continue
		}
		k = appendKind(k[:0], j)
		if judged {
			k = d.appendStance(k, v)
		}
		run := int64(0)
		if look.runs[j.RunID] {
			run = j.RunID
			k = strconv.AppendInt(append(k, "\n\n"...), run, 10)
		}
		without, why := d.closed(j, v, probes)
		for _, p := range without {
			k = append(append(k, "\nwithout "...), p.Name...)
		}
		c := classes[string(k)]
		if c == nil {
			c = &class{owner: j.Owner, repo: j.Repo, labels: j.Labels, verdict: v, run: run}
			if j.Pool == "" {
				c.find(look)
			} else if p := d.pools[j.Pool]; p != nil && p.ScaleSet != "" {
				c.findSet(look, p)
			}
			d.bar(c, j)
			c.exclude(without, why)
			classes[string(k)] = c
		}
		m.classOf[i] = c
		m.pending = m.pending || c.pending
	}
}

// appendKind writes what is the same for jobs of one repository that ask for the same labels,
// and for those of one scale set.
func appendKind(b []byte, j *fleet.Job) []byte {
	if j.Pool != "" {
		return append(append(b, "scale set "...), j.Pool...)
	}
	b = append(append(b, strings.ToLower(j.Owner)...), '/')
	b = append(b, strings.ToLower(j.Repo)...)
	for _, l := range j.Labels {
		b = append(append(b, '\n'), l...)
	}
	return b
}

// refusedByAll reports whether the policy of every pool that could serve a job refuses it.
func (d *decision) refusedByAll(j *fleet.Job, v fleet.Verdict) bool {
	refused := false
	for _, p := range d.order {
		if !v.In(p.Name).Refused {
			if p.Serves(*j) {
				return false
			}
			continue
		}
		refused = refused || p.Serves(*j)
	}
	return refused
}

// appendStance writes what is the same for verdicts that differ in their words alone.
func (d *decision) appendStance(b []byte, v fleet.Verdict) []byte {
	b = append(b, "\n\n"...)
	for _, p := range d.order {
		switch said := v.In(p.Name); {
		case said.Refused:
			b = append(b, 'r')
		case said.Pending:
			b = append(b, 'p')
		default:
			b = append(b, 'a')
		}
	}
	return b
}

// sift leaves the class the pools whose policies take its jobs, or, where none is known to,
// those that may. For a job that a policy refuses nothing is booted or armed, and nothing is
// kept, whatever GitHub may give it to: it is no demand.
func (c *class) sift(all []*poolSheet) {
	var pending []*poolSheet
	for _, p := range all {
		switch v := c.verdict.In(p.Name); {
		case v.Refused:
			c.refusing = append(c.refusing, p)
		case v.Pending:
			pending = append(pending, p)
		default:
			c.pools = append(c.pools, p)
		}
	}
	if len(c.pools) == 0 {
		c.pools, c.pending = pending, len(pending) > 0
	}
}

// takes reports whether a runner of the pool counts for the class.
func (c *class) takes(p *poolSheet) bool {
	v := c.verdict.In(p.Name)
	return v.Allowed() || v.Pending && c.pending
}

func (c *class) find(look lookup) {
	owner := strings.ToLower(c.owner)
	scopes := []string{owner + "/" + strings.ToLower(c.repo), owner}
	var all []*poolSheet
	for _, scope := range scopes {
		for _, p := range look.pools[scope] {
			if p.ScaleSet == "" && !slices.Contains(all, p) && c.labels.Within(p.Labels) {
				all = append(all, p)
			}
		}
	}
	c.sift(all)
	for _, scope := range scopes {
		for _, n := range look.bound[scope] {
			if n.pool.ScaleSet == "" && c.labels.Within(n.pool.Labels) && c.takes(n.pool) && (n.run == 0 || n.run == c.run) {
				c.nodes[n.tier] = append(c.nodes[n.tier], n)
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

// findSet finds the supply for jobs of a scale set: GitHub gives them to its runners alone.
func (c *class) findSet(look lookup, p *poolSheet) {
	c.sift([]*poolSheet{p})
	if !c.takes(p) {
		return
	}
	for _, scope := range p.Scopes {
		for _, n := range look.bound[scope.Key()] {
			if n.pool == p && (n.run == 0 || n.run == c.run) {
				c.nodes[n.tier] = append(c.nodes[n.tier], n)
			}
		}
	}
	for _, n := range look.open[p] {
		c.nodes[n.tier] = append(c.nodes[n.tier], n)
	}
}

// bar leaves out the pools of which no runner could register for the class: nothing is
// booted or armed in vain.
func (d *decision) bar(c *class, j *fleet.Job) {
	if len(d.Troubles) == 0 {
		return
	}
	c.pools = slices.DeleteFunc(c.pools, func(p *poolSheet) bool {
		scope, _ := p.ScopeOf(*j)
		t, ok := d.Troubles[fleet.PoolScope{Pool: p.Name, Scope: scope.Key()}]
		if !ok || !t.Barred {
			return false
		}
		c.barred = &t
		for k := tierStandby; k < tiers; k++ {
			c.nodes[k] = slices.DeleteFunc(c.nodes[k], func(n *node) bool { return n.pool == p })
		}
		return true
	})
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
