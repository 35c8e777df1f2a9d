// SPDX-License-Identifier: MIT

package autoscaler

import (
	"fmt"
	"strings"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// doubt ends runners that listen for long while the job they stand for waits for
// as long: GitHub does not give it to them, whatever the reason, and another may
// fare better. It takes fresh knowledge to say that.
func (d *decision) doubt(m *matching) {
	if !d.Fresh.Demand || !d.Fresh.Hosts {
		return
	}
	for i := range m.jobs {
		n := m.nodeOf[i]
		if n == nil || n.tier != tierIdle {
			continue
		}
		j := &m.jobs[i]
		r := n.runner(i)
		since := d.heardSince(r, r.Since)
		if j.QueuedAt.After(since) {
			since = j.QueuedAt
		}
		limit := n.pool.limits.Assignment
		d.whenDue(since.Add(limit), func() {
			why := fmt.Sprintf("it listened for %s and GitHub did not give it the job that waits", limit)
			before := len(d.plan.Deletes)
			d.end(r, false, why)
			if len(d.plan.Deletes) > before && j.AskedAt.After(r.Since) { // GitHub itself has said that it is queued
				d.plan.Deletes[before].PassedOver = j.ID
			}
			d.wait(j, fleet.WaitAssignment, r.ID, "runner %s is replaced: %s", r.ID, why)
		})
	}
}

// runner returns the runner that stands for the job in the matching.
func (n *node) runner(job int) *runnerSheet {
	for i, taken := range n.taken {
		if taken == job {
			return n.runners[i]
		}
	}
	return nil
}

// makeRoom frees a slot for each job that found none, out of what nobody needs:
// slots that are freeing anyway first, then clean VMs, then idle runners.
func (d *decision) makeRoom(m *matching) {
	unneeded := d.unneeded(m)
	for i := range m.jobs {
		if m.nodeOf[i] != nil {
			continue
		}
		j := &m.jobs[i]
		for _, p := range m.classOf[i].pools {
			if p.hasRoom() && !p.resumes.After(d.Now) && d.freeSlotFor(p, j, unneeded) {
				p.live++ // one job, one slot
				p.waiting++
				break
			}
		}
	}
}

// unneeded lists the runners that may go for the sake of a job, the least costly
// first.
func (d *decision) unneeded(m *matching) []*runnerSheet {
	if !d.Fresh.Demand {
		return nil
	}
	var list []*runnerSheet
	for _, t := range []tier{tierStandby, tierComing, tierIdle} {
		for _, n := range m.nodes {
			if n.tier == t {
				list = append(list, n.runners[len(n.taken):]...)
			}
		}
	}
	return list
}

// freeSlotFor finds a slot that is being freed, or frees one. What a pool has
// passed by once is of no use to it later, so that each pool looks at every host
// and runner only once.
func (d *decision) freeSlotFor(p *poolSheet, j *fleet.Job, unneeded []*runnerSheet) bool {
	for ; p.hostsSeen < len(d.sheets); p.hostsSeen++ {
		h := &d.sheets[p.hostsSeen]
		if h.freeing > 0 && h.free+h.freeing > 0 && d.usable(p, h) {
			h.freeing--
			d.wait(j, fleet.WaitNoSlot, "", "a slot on %s is being freed", h.Name)
			return true
		}
	}
	for ; p.unneededSeen < len(unneeded); p.unneededSeen++ {
		r := unneeded[p.unneededSeen]
		h := r.host
		if r.leaving || !d.usable(p, h) || h.free+h.freeing < 0 || d.unheard(r) {
			continue
		}
		if r.DeleteAfter.After(d.Now) {
			d.wakeAt(r.DeleteAfter)
			continue
		}
		d.end(r, false, "makes room for pool "+p.Name)
		h.freeing-- // spoken for
		d.wait(j, fleet.WaitNoSlot, "", "%s, which nobody needs, makes room on %s", r.ID, h.Name)
		return true
	}
	return false
}

// surplus takes back grants and ends runners that no demand calls for, once they
// have been so for long enough.
func (d *decision) surplus(m *matching) {
	if !d.Fresh.Demand {
		return
	}
	kept := map[*poolSheet]int{}
	for _, n := range m.nodes {
		if n.tier == tierUnnamed || n.tier == tierNew {
			continue
		}
		for _, r := range n.runners[len(n.taken):] {
			if r.leaving {
				continue
			}
			due := r.Since.Add(n.pool.limits.Surplus)
			switch n.tier {
			case tierArmed:
				if r.Registration == fleet.RegDeleting {
					continue // its mint is deleting an earlier one
				}
				d.plan.Disarms = append(d.plan.Disarms, fleet.Disarm{Runner: r.ID, Version: r.Version, Reason: "no job waits for it any more"})
			case tierStandby:
				if kept[n.pool]++; kept[n.pool] > n.pool.Standby {
					d.whenDue(due, func() { d.retire(r, true, false, "surplus: no job waits for it") })
				}
			case tierIdle:
				d.whenDue(due, func() { d.end(r, false, "surplus: no job waits for it") })
			}
		}
	}
}

func (d *decision) whenDue(due time.Time, do func()) {
	if due.After(d.Now) {
		d.wakeAt(due)
		return
	}
	do()
}

func (d *decision) wait(j *fleet.Job, code fleet.WaitCode, r fleet.RunnerID, format string, args ...any) {
	d.plan.Waits = append(d.plan.Waits, fleet.Wait{Job: j.ID, Code: code, Runner: r, Reason: fmt.Sprintf(format, args...)})
}

// explain gives every job that has no reason yet the one that holds.
func (d *decision) explain(m *matching) {
	said := make(map[fleet.JobID]bool, len(d.plan.Waits))
	for _, w := range d.plan.Waits {
		said[w.Job] = true
	}
	for i := range m.jobs {
		j := &m.jobs[i]
		if said[j.ID] {
			continue
		}
		n := m.nodeOf[i]
		if n == nil {
			d.explainUncovered(j, m.classOf[i])
			continue
		}
		if n.tier == tierNew {
			d.wait(j, fleet.WaitBooting, "", "a runner of pool %s is being placed", n.pool.Name)
			continue
		}
		r := n.runner(i)
		switch n.tier {
		case tierUnnamed:
			d.wait(j, fleet.WaitUnnamed, r.ID, "runner %s has begun a job that GitHub has not named yet; it may be this one", r.ID)
		case tierIdle:
			d.wait(j, fleet.WaitAssignment, r.ID, "runner %s listens: GitHub has yet to assign the job", r.ID)
		case tierRegistering, tierArmed:
			if t, ok := d.troubleOf(r); ok && (n.tier == tierArmed || r.Registration == fleet.RegMinting) {
				d.wait(j, t.Code, r.ID, "runner %s is armed; %s", r.ID, t.Reason)
				continue
			}
			d.wait(j, fleet.WaitRegistering, r.ID, "runner %s is registering", r.ID)
		default:
			d.wait(j, fleet.WaitBooting, r.ID, "runner %s is coming: %s%s", r.ID, r.Phase(), withProgress(r.Progress))
		}
	}
}

func withProgress(p string) string {
	if p == "" {
		return ""
	}
	return " (" + p + ")"
}

// explainUncovered names the obstacle of the pool that comes nearest to serving the job:
// for all of a class it is the same.
func (d *decision) explainUncovered(j *fleet.Job, c *class) {
	if c.why == nil {
		c.why = d.whyUncovered(j, c)
	}
	reason := c.why.reason
	if reason == "" {
		reason = d.refusal(j, c) // alike but for the words
	}
	d.plan.Waits = append(d.plan.Waits, fleet.Wait{Job: j.ID, Code: c.why.code, Reason: reason})
}

// whyUncovered is why the jobs of a class wait that nothing covers, told of one of them.
func (d *decision) whyUncovered(j *fleet.Job, c *class) *hold {
	if c.held != nil {
		return c.held
	}
	if c.barred != nil && len(c.pools) == 0 {
		return &hold{c.barred.Code, c.barred.Reason}
	}
	var nearest *obstacle
	for _, p := range c.pools {
		if p.obstacle == nil {
			p.obstacle = d.obstacleOf(p)
		}
		if nearest == nil || p.obstacle.distance < nearest.distance {
			nearest = p.obstacle
		}
	}
	if nearest == nil && len(c.refusing) > 0 {
		return &hold{code: fleet.WaitPolicy}
	}
	if nearest == nil {
		return &hold{fleet.WaitNoPool, d.noPool(j)}
	}
	for _, p := range c.pools {
		scope, _ := p.ScopeFor(j.Owner, j.Repo)
		if t := d.Troubles[fleet.PoolScope{Pool: p.Name, Scope: scope.Key()}]; t.Code == fleet.WaitGitHub { // which lets no slot go
			return &hold{t.Code, nearest.reason + "; " + t.Reason}
		}
	}
	return &hold{nearest.code, nearest.reason}
}

// refusal names the rule by which each pool that could serve a job refuses it.
func (d *decision) refusal(j *fleet.Job, c *class) string {
	var rules []string
	for _, p := range c.refusing {
		rules = append(rules, fmt.Sprintf("refused by pool %s: %s", p.Name, d.Verdicts[j.ID].In(p.Name).Reason))
	}
	return strings.Join(rules, "; ")
}

// obstacle is why a pool can have no further runner now.
type obstacle struct {
	distance int // 0 is nearest to an end of the wait
	code     fleet.WaitCode
	reason   string
}

func (d *decision) obstacleOf(p *poolSheet) *obstacle {
	var fitting, silent int
	var resting *hostSheet // has a slot, and is left alone after failures
	for i := range d.sheets {
		sheet := &d.sheets[i]
		if !p.serves(sheet) {
			continue
		}
		fitting++
		switch {
		case !sheet.live:
			silent++
		case sheet.free > 0 && sheet.resumes.After(d.Now) && (resting == nil || sheet.resumes.Before(resting.resumes)):
			resting = sheet
		}
	}
	switch {
	case fitting == 0:
		return &obstacle{4, fleet.WaitNoHost, fmt.Sprintf("no host can run pool %s%s", p.Name, needs(p))}
	case silent == fitting:
		return &obstacle{3, fleet.WaitUnreachable, fmt.Sprintf("all %d hosts that could run it are unreachable", fitting)}
	case p.image == "":
		return &obstacle{3, fleet.WaitImage, d.unresolved(p)}
	case !p.hasRoom() && p.waiting > 0:
		return &obstacle{2, fleet.WaitPoolLimit, fmt.Sprintf("pool %s is at its limit of %d runners, with those for which a slot is being freed", p.Name, p.MaxRunners)}
	case !p.hasRoom():
		return &obstacle{2, fleet.WaitPoolLimit, fmt.Sprintf("pool %s is at its limit of %d runners", p.Name, p.MaxRunners)}
	case p.resumes.After(d.Now):
		return &obstacle{1, fleet.WaitBackoff, fmt.Sprintf("runners of pool %s failed %d times in a row: the next try at %s UTC; the last failure: %s",
			p.Name, d.State.Pools[p.Name].Failures, p.resumes.UTC().Format(time.TimeOnly), orUnknown(d.State.Pools[p.Name].Reason))}
	case resting != nil:
		return &obstacle{1, fleet.WaitBackoff, fmt.Sprintf("runners on host %s failed %d times in a row: the next try at %s UTC",
			resting.Name, resting.Failures, resting.resumes.UTC().Format(time.TimeOnly))}
	default:
		return &obstacle{0, fleet.WaitNoSlot, "every slot that could run it is taken"}
	}
}

func orUnknown(reason string) string {
	if reason == "" {
		return "unknown"
	}
	return reason
}

func needs(p *poolSheet) string {
	if p.Backend == "" {
		return ": none has enrolled with a slot"
	}
	return ": none offers backend " + p.Backend
}
