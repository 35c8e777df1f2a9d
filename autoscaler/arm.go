// SPDX-License-Identifier: MIT

package autoscaler

import (
	"strings"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// arm grants registrations to the standbys that demand calls for, as far as the
// policy and GitHub allow.
func (d *decision) arm(m *matching) {
	budgets := map[string]*budget{} // by owner
	for i := range d.runners {
		if r := &d.runners[i]; r.Phase() == fleet.PhaseArmed {
			d.budget(budgets, r.Scope).granted++
		}
	}
	for i := range m.jobs { // oldest first
		n := m.nodeOf[i]
		if n == nil || n.tier != tierStandby {
			continue
		}
		j := &m.jobs[i]
		r := n.runner(i)
		if v := d.Verdicts[j.ID].In(n.pool.Name); !v.Allowed() {
			d.wait(j, fleet.WaitPolicy, r.ID, "policy of pool %s: %s", n.pool.Name, v.Reason)
			continue
		}
		scope, ok := n.pool.ScopeOf(*j)
		if !ok {
			continue
		}
		at := fleet.PoolScope{Pool: n.pool.Name, Scope: scope.Key()}
		if t, ok := d.Troubles[at]; ok { // it is over before anything is armed
			d.wakeAt(t.Until)
			d.wait(j, t.Code, r.ID, "standby %s is ready; %s", r.ID, t.Reason)
			continue
		}
		b := d.budget(budgets, scope)
		if next, wait := b.next(d.Now); wait {
			d.wakeAt(next)
			d.wait(j, fleet.WaitMintBudget, r.ID, "standby %s is ready; %d registrations were begun for %s within a minute, which is the limit: its turn is expected at %s UTC",
				r.ID, b.limit, scope.Owner, next.UTC().Format(time.TimeOnly))
			continue
		}
		d.plan.Arms = append(d.plan.Arms, fleet.Arm{Runner: r.ID, Version: r.Version, Scope: scope, Job: j.ID})
		d.wait(j, fleet.WaitStandby, r.ID, "standby %s is being armed", r.ID)
	}
}

// budget is what is left of the registrations of one owner, and its queue.
type budget struct {
	limit   int // 0: none
	begun   []time.Time
	granted int // and not begun yet
	waiting int // behind the limit
}

func (d *decision) budget(all map[string]*budget, scope fleet.Scope) *budget {
	owner := strings.ToLower(scope.Owner)
	b := all[owner]
	if b == nil {
		b = &budget{limit: d.Rules.MintsPerMinute, begun: d.State.Mints[owner].Begun}
		all[owner] = b
	}
	return b
}

// next takes the next place. Where there is none within the limit it says when the one
// that it has in the queue is expected to be free: a minute after the registration that
// is as many places before it as the limit allows, be it begun already or yet to begin.
func (b *budget) next(now time.Time) (at time.Time, wait bool) {
	if b.limit <= 0 || len(b.begun)+b.granted < b.limit {
		b.granted++
		return time.Time{}, false
	}
	before := len(b.begun) + b.granted + b.waiting - b.limit
	b.waiting++
	rounds := time.Duration(1 + before/b.limit)
	if before %= b.limit; before < len(b.begun) {
		return b.begun[before].Add(rounds * time.Minute), true
	}
	return now.Add(rounds * time.Minute), true // granted now, and begun any moment
}
