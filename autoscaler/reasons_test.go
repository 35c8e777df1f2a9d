// SPDX-License-Identifier: MIT

package autoscaler_test

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/minifleet/minifleet/autoscaler"
	"github.com/minifleet/minifleet/fleet"
)

// untrueReasons says which reasons to wait do not hold in the snapshot, in words of
// its own for what each code means.
func untrueReasons(s autoscaler.Snapshot, p fleet.Plan) (out []string) {
	for _, w := range p.Waits {
		at := slices.IndexFunc(s.State.Jobs, func(j fleet.Job) bool { return j.ID == w.Job })
		if at < 0 {
			out = append(out, fmt.Sprintf("a reason for job %d, which is not queued", w.Job))
			continue
		}
		if !(oracle{s, p, s.State.Jobs[at]}).holds(w) {
			out = append(out, fmt.Sprintf("job %d waits for %s, which is not true: %s", w.Job, w.Code, w.Reason))
		}
	}
	return out
}

type oracle struct {
	autoscaler.Snapshot
	plan fleet.Plan
	job  fleet.Job
}

func (o oracle) holds(w fleet.Wait) bool {
	switch w.Code {
	case fleet.WaitNoPool:
		return len(o.serving()) == 0
	case fleet.WaitAssignment:
		return o.is(w.Runner, fleet.PhaseIdle)
	case fleet.WaitUnnamed:
		return o.is(w.Runner, fleet.PhaseBusy)
	case fleet.WaitRegistering:
		return o.is(w.Runner, fleet.PhaseRegistering, fleet.PhaseArmed)
	case fleet.WaitStandby:
		return o.is(w.Runner, fleet.PhaseStandby) && slices.ContainsFunc(o.plan.Arms, func(a fleet.Arm) bool { return a.Runner == w.Runner && a.Job == o.job.ID })
	case fleet.WaitMintBudget:
		return o.is(w.Runner, fleet.PhaseStandby) && o.Rules.MintsPerMinute > 0 && o.grants() >= o.Rules.MintsPerMinute
	case fleet.WaitBooting:
		if w.Runner != "" {
			return o.is(w.Runner, fleet.PhasePlaced, fleet.PhasePreparing, fleet.PhaseBooting)
		}
		return slices.ContainsFunc(o.plan.Places, func(a fleet.Place) bool {
			return slices.ContainsFunc(o.pools(), func(p fleet.Pool) bool { return p.Name == a.Pool })
		})
	case fleet.WaitPolicy:
		v := o.Verdicts[o.job.ID]
		return slices.ContainsFunc(o.serving(), func(p fleet.Pool) bool { return !v.In(p.Name).Allowed() }) &&
			!slices.ContainsFunc(o.serving(), func(p fleet.Pool) bool { return v.In(p.Name).Allowed() })
	case fleet.WaitPoolLimit:
		spoken := 0
		if strings.Contains(w.Reason, "with those for which a slot is being freed") {
			spoken = len(slices.DeleteFunc(slices.Clone(o.plan.Waits), func(w fleet.Wait) bool { return !roomIsMade(w) }))
		}
		return o.some(func(p fleet.Pool) bool { return p.MaxRunners > 0 && o.live(p)+spoken >= p.MaxRunners })
	case fleet.WaitImage:
		return o.some(func(p fleet.Pool) bool { return fleet.RemoteImage(p.Image) && o.State.Rollouts[p.Name].Current == "" })
	case fleet.WaitNoHost:
		return !o.some(func(p fleet.Pool) bool { return len(o.hosts(p)) > 0 })
	case fleet.WaitUnreachable:
		return !o.some(func(p fleet.Pool) bool { return slices.ContainsFunc(o.hosts(p), o.heard) })
	case fleet.WaitNoSlot:
		return o.noSlot(w)
	case fleet.WaitBackoff:
		return o.some(func(p fleet.Pool) bool {
			h := o.State.Pools[p.Name]
			return o.rests(h.Failures, h.FailedAt) || slices.ContainsFunc(o.hosts(p), func(h fleet.Host) bool { return o.rests(h.Failures, h.FailedAt) })
		})
	case fleet.WaitNotAssigned:
		return o.job.PassedOver > 1 && o.job.PassedAt.Add(fleet.PatienceAfter(o.job.PassedOver)).After(o.Now)
	case fleet.WaitQueueLimit:
		return o.Now.Sub(o.job.QueuedAt) >= 24*time.Hour && o.job.AskedAt.Sub(o.job.QueuedAt) < 24*time.Hour
	case fleet.WaitRefused:
		return o.some(func(p fleet.Pool) bool {
			scope, _ := p.ScopeFor(o.job.Owner, o.job.Repo)
			return o.State.Refused[fleet.PoolScope{Pool: p.Name, Scope: scope.Key()}].Times > 0
		})
	default:
		return false
	}
}

// noSlot: some pool could have one more runner if a host of it had room, and none has
// room that this plan does not use itself.
func (o oracle) noSlot(w fleet.Wait) bool {
	if roomIsMade(w) {
		return o.some(func(p fleet.Pool) bool { return slices.ContainsFunc(o.hosts(p), o.heard) })
	}
	return o.some(func(p fleet.Pool) bool {
		return !slices.ContainsFunc(o.hosts(p), func(h fleet.Host) bool { return o.heard(h) && o.free(h) > 0 })
	})
}

func roomIsMade(w fleet.Wait) bool {
	return w.Code == fleet.WaitNoSlot && (strings.Contains(w.Reason, "is being freed") || strings.Contains(w.Reason, "makes room"))
}

// is reports whether the runner is in one of the phases, could run the job, and has
// no other.
func (o oracle) is(id fleet.RunnerID, phases ...fleet.Phase) bool {
	at := slices.IndexFunc(o.State.Runners, func(r fleet.Runner) bool { return r.ID == id })
	if at < 0 {
		return false
	}
	r := o.State.Runners[at]
	return slices.Contains(phases, r.Phase()) && r.Job == 0 && (&snap{o.Snapshot}).fits(o.job, r)
}

// pools that could serve the job and take it; where none is known to, those that may.
func (o oracle) pools() []fleet.Pool {
	v := o.Verdicts[o.job.ID]
	all := o.serving()
	takes := slices.DeleteFunc(slices.Clone(all), func(p fleet.Pool) bool { return !v.In(p.Name).Allowed() })
	if len(takes) > 0 {
		return takes
	}
	return slices.DeleteFunc(all, func(p fleet.Pool) bool { return v.In(p.Name).Refused })
}

// serving are the pools that could serve the job if their policies let them.
func (o oracle) serving() (out []fleet.Pool) {
	for _, p := range o.Pools {
		if p.Serves(o.job) {
			out = append(out, p)
		}
	}
	return out
}

func (o oracle) some(is func(fleet.Pool) bool) bool { return slices.ContainsFunc(o.pools(), is) }

// hosts that could ever run the pool.
func (o oracle) hosts(p fleet.Pool) (out []fleet.Host) {
	for _, h := range o.State.Hosts {
		if h.Slots > 0 && (p.Backend == "" || slices.Contains(h.Backends, p.Backend)) {
			out = append(out, h)
		}
	}
	return out
}

func (o oracle) heard(h fleet.Host) bool { return o.Now.Sub(h.SeenAt) < o.Rules.HostDeadline }

func (o oracle) rests(failures int, at time.Time) bool {
	return failures > 0 && at.Add(fleet.BackoffAfter(failures)).After(o.Now)
}

// free is what is left on a host after the plan.
func (o oracle) free(h fleet.Host) int {
	n := h.Slots
	for _, r := range o.State.Runners {
		if r.Host == h.ID && r.TakesSlot() {
			n--
		}
	}
	for _, a := range o.plan.Places {
		if a.Host == h.ID {
			n--
		}
	}
	return n
}

// live counts as a pool's limit does, after the plan.
func (o oracle) live(p fleet.Pool) (n int) {
	for _, r := range o.State.Runners {
		if r.Pool == p.Name && counts(o.Snapshot, r) {
			n++
		}
	}
	for _, a := range o.plan.Places {
		if a.Pool == p.Name {
			n++
		}
	}
	return n
}

// counts: a runner on a host that is not heard of counts no more, unless it has a job.
func counts(s autoscaler.Snapshot, r fleet.Runner) bool {
	if !r.TakesSlot() {
		return false
	}
	if r.Job != 0 {
		return true
	}
	for _, h := range s.State.Hosts {
		if h.ID == r.Host {
			return s.Now.Sub(h.SeenAt) < s.Rules.HostDeadline || !s.Fresh.Hosts && !h.SeenAt.IsZero()
		}
	}
	return true
}

// grants used within a minute or not yet, for the job's owner, after the plan.
func (o oracle) grants() int {
	n := len(o.State.Mints[strings.ToLower(o.job.Owner)].Begun) + len(o.plan.Arms)
	for _, r := range o.State.Runners {
		if r.Phase() == fleet.PhaseArmed {
			n++
		}
	}
	return n
}
