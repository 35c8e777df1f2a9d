// SPDX-License-Identifier: MIT

package autoscaler

import (
	"fmt"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// hold is why a job that GitHub has queued is no demand for a while.
type hold struct {
	code   fleet.WaitCode
	reason string
}

// heldBack returns why a job gets no runner now although one could be had, nil if it does.
func (d *decision) heldBack(j *fleet.Job) *hold {
	if over := j.QueuedAt.Add(fleet.LongestQueue); !over.After(d.Now) && j.AskedAt.Before(over) && !j.QueuedAt.IsZero() {
		return &hold{fleet.WaitQueueLimit, fmt.Sprintf("it has been queued since %s UTC, and GitHub cancels what is queued for more than %s: GitHub is asked whether it has it still",
			j.QueuedAt.UTC().Format(time.DateTime), fleet.LongestQueue)}
	}
	next := j.PassedAt.Add(fleet.PatienceAfter(j.PassedOver))
	if j.PassedOver == 0 || !next.After(d.Now) {
		return nil
	}
	d.wakeAt(next)
	return &hold{fleet.WaitNotAssigned, fmt.Sprintf("not assigned by GitHub: %d runners with its labels listened one after the other, and GitHub kept it queued; "+
		"look whether the pool's runner group may be used by %s, and which group the job asks for (runs-on: group); the next runner tries at %s UTC",
		j.PassedOver, j.Repository(), next.UTC().Format(time.TimeOnly))}
}

// closed returns the pools that GitHub refuses to register anything for where the job is.
// While it does, one job at a time tries whether it still does, and none that could not be
// armed for.
func (d *decision) closed(j *fleet.Job, v fleet.Verdict, probes map[fleet.PoolScope]bool) (without []*poolSheet, why *hold) {
	if len(d.State.Refused) == 0 {
		return nil, nil
	}
	for _, p := range d.order {
		scope, serves := p.ScopeOf(*j)
		if !serves || v.In(p.Name).Refused {
			continue
		}
		at := fleet.PoolScope{Pool: p.Name, Scope: scope.Key()}
		r := d.State.Refused[at]
		if r.Times == 0 {
			continue
		}
		next := r.LastAt.Add(fleet.BackoffAfter(r.Times))
		tried := ""
		switch {
		case next.After(d.Now):
			d.wakeAt(next)
			tried = fmt.Sprintf("the next try at %s UTC", next.UTC().Format(time.TimeOnly))
		case probes[at]:
			tried = "another job tries now"
		case v.In(p.Name).Pending:
			tried = "the next try with a job that its policy allows"
		default:
			probes[at] = true
			continue
		}
		without = append(without, p)
		why = &hold{fleet.WaitRefused, fmt.Sprintf("GitHub has refused pool %s a runner in %s, %d times in a row: %s; %s", p.Name, scope, r.Times, orUnknown(r.Reason), tried)}
	}
	return without, why
}
