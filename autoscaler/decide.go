// SPDX-License-Identifier: MIT

package autoscaler

import (
	"fmt"
	"strings"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// Decide returns what to do now. It is pure: the same snapshot gives the same
// plan.
//
// It settles what is over or overdue, matches the queued jobs, oldest first, to
// the runners there are and then to runners there could be, and looks last at what
// nobody needs. A job is never tied to a runner: the matching only counts, as
// GitHub hands any job to any runner that fits.
func Decide(s Snapshot) fleet.Plan {
	d := newDecision(&s)
	for i := range d.runners {
		d.settle(&d.runners[i])
	}
	d.fit()
	d.rollOut()
	m := d.match()
	d.doubt(m)
	d.arm(m)
	d.place(m)
	d.makeRoom(m)
	d.topUp(m)
	d.surplus(m)
	d.renew(m)
	d.explain(m)
	d.prefetch()
	return d.plan
}

// decision is the work sheet of one Decide.
type decision struct {
	*Snapshot
	plan   fleet.Plan
	pools  map[string]*poolSheet
	order  []*poolSheet // as configured
	sheets []hostSheet  // of all hosts, in the snapshot's order: a large fleet is looked at often
	// runners are in the snapshot's order.
	runners []runnerSheet
}

// runnerSheet is a runner, with what belongs to it.
type runnerSheet struct {
	*fleet.Runner
	pool    *poolSheet // nil: it is not configured any more
	host    *hostSheet // nil: there is none
	leaving bool       // this plan retires or deletes it: no supply any more
	freeing bool       // its slot is counted as about to be free
}

type poolSheet struct {
	fleet.Pool
	images
	live    int // runners that count against MaxRunners
	waiting int // of these, those for which a slot is still being freed
	limits  fleet.Limits
	resumes time.Time // after failures; zero: no backoff
	shelves *shelves  // hosts that could take a runner, made when first needed

	hostsSeen, unneededSeen int // how far makeRoom has looked for it

	obstacle *obstacle // to a further runner, found when first asked for
}

type hostSheet struct {
	*fleet.Host
	free      int  // slots
	freeing   int  // slots of runners on their way out
	live      bool // can be given work
	reachable bool // what is known of its runners counts
	resumes   time.Time
}

func newDecision(s *Snapshot) *decision {
	d := &decision{
		Snapshot: s, pools: map[string]*poolSheet{}, sheets: make([]hostSheet, len(s.State.Hosts)),
		runners: make([]runnerSheet, len(s.State.Runners)),
	}
	d.plan.Waits = make([]fleet.Wait, 0, len(s.State.Jobs)) // one for each, in the end
	for _, p := range s.Pools {
		sheet := &poolSheet{Pool: p, limits: p.Limits.WithDefaults(), images: imagesOf(p, s.State.Rollouts)}
		if h := s.State.Pools[p.Name]; h.Failures > 0 {
			sheet.resumes = h.FailedAt.Add(fleet.BackoffAfter(h.Failures))
		}
		d.pools[p.Name] = sheet
		d.order = append(d.order, sheet)
	}
	d.lookAtHosts()
	for i := range d.runners {
		r := &d.runners[i]
		r.pool = d.pools[r.Pool]
		if !r.TakesSlot() {
			continue
		}
		h := r.host
		if h != nil {
			h.free--
			if onItsWayOut(r) {
				d.willFree(r)
			}
		}
		if p := r.pool; p != nil && (h == nil || h.reachable || r.Job != 0) {
			p.live++
			if fleet.SameImage(r.Image, p.next) {
				p.canaries++
			}
		}
	}
	return d
}

// lookAtHosts fills the sheets of all hosts, and tells the runners which is theirs.
func (d *decision) lookAtHosts() {
	used := make(map[fleet.HostID]*hostSheet, min(len(d.sheets), len(d.runners)))
	for i := range d.runners {
		d.runners[i].Runner = &d.State.Runners[i]
		used[d.runners[i].Host] = nil
	}
	var oldest time.Time // word of a live host
	for i := range d.sheets {
		h, sheet := &d.State.Hosts[i], &d.sheets[i]
		live := d.live(h)
		*sheet = hostSheet{Host: h, free: h.Slots, live: live, reachable: live || d.hoped(h)}
		if h.Failures > 0 {
			sheet.resumes = h.FailedAt.Add(fleet.BackoffAfter(h.Failures))
		}
		if live && (oldest.IsZero() || h.SeenAt.Before(oldest)) {
			oldest = h.SeenAt
		}
		if _, ok := used[h.ID]; ok {
			used[h.ID] = sheet
		}
	}
	for i := range d.runners {
		d.runners[i].host = used[d.runners[i].Host]
	}
	if !oldest.IsZero() {
		d.wakeAt(oldest.Add(d.Rules.HostDeadline))
	}
}

// onItsWayOut reports whether the runner's slot will be free without anything more
// being decided.
func onItsWayOut(r *runnerSheet) bool {
	switch r.Observed {
	case fleet.ObservedFinished, fleet.ObservedFailed, fleet.ObservedDestroying:
		return true
	}
	if r.Wanted == fleet.WantGone || r.JobDone {
		return true
	}
	return r.Phase() != fleet.PhaseBusy && r.Wanted == fleet.WantDrain
}

// willFree counts the slot of a runner as about to be free, once.
func (d *decision) willFree(r *runnerSheet) {
	if r.host != nil && r.TakesSlot() && !r.freeing {
		r.host.freeing++
		r.freeing = true
	}
}

// wakeAt asks for another look at t, or earlier.
func (d *decision) wakeAt(t time.Time) {
	if t.After(d.Now) && (d.plan.WakeAt.IsZero() || t.Before(d.plan.WakeAt)) {
		d.plan.WakeAt = t
	}
}

func (d *decision) limits(r *runnerSheet) fleet.Limits {
	if r.pool != nil {
		return r.pool.limits
	}
	return fleet.Limits{}.WithDefaults()
}

func (r *runnerSheet) reachable() bool { return r.host != nil && r.host.reachable }

func (d *decision) retire(r *runnerSheet, drain, failure bool, reason string) {
	d.plan.Retires = append(d.plan.Retires, fleet.Retire{Runner: r.ID, Version: r.Version, Drain: drain, Failure: failure, Reason: reason})
	d.willFree(r)
	r.leaving = true
}

// delete asks GitHub to let go of a runner. For up to a minute after it has assigned a
// job GitHub may not know of it, deletes the registration, and the job with it. So the
// guest's word comes first: it has to be from this controller's time, and while the
// guest runs a job GitHub is given the time to know.
func (d *decision) delete(r *runnerSheet, failure bool, reason string) {
	if known := r.Since.Add(d.limits(r).Unnamed); r.Observed == fleet.ObservedBusy && known.After(d.Now) {
		d.wakeAt(known)
		return // it runs somebody's job, and GitHub may not know yet
	}
	r.leaving = true
	if d.unheard(r) {
		return // its host's first report makes another decision
	}
	if r.DeleteAfter.After(d.Now) {
		d.wakeAt(r.DeleteAfter)
		return
	}
	if r.Phase() != fleet.PhaseBusy {
		d.willFree(r)
	}
	d.plan.Deletes = append(d.plan.Deletes, fleet.Delete{Runner: r.ID, Version: r.Version, Failure: failure, Reason: reason})
}

// unheard reports whether what is known of a runner that may hold a registration is
// from before the controller began.
func (d *decision) unheard(r *runnerSheet) bool {
	none := r.Registration == fleet.RegNone || r.Registration == fleet.RegGone
	return !none && r.Observed != fleet.ObservedGone && !d.Fresh.Hosts && !d.Fresh.Reported[r.Host]
}

// end brings a runner that may hold a registration to its end without ever
// killing a job: GitHub is asked to let go of it first, and its refusal is a veto;
// then the guest is asked.
func (d *decision) end(r *runnerSheet, failure bool, reason string) {
	switch r.Registration {
	case fleet.RegNone, fleet.RegGone:
		d.retire(r, true, failure, reason)
	default:
		d.delete(r, failure, reason)
	}
}

// fit ends what is beyond the slots of a host that has fewer than it had, the least
// costly first. What runs a job is let end by itself.
func (d *decision) fit() {
	for i := range d.sheets {
		if sheet := &d.sheets[i]; sheet.live && sheet.free+sheet.freeing < 0 {
			d.fitHost(sheet)
		}
	}
}

func (d *decision) fitHost(h *hostSheet) {
	for _, t := range []tier{tierComing, tierStandby, tierArmed, tierIdle} {
		for i := range d.runners {
			r := &d.runners[i]
			if h.free+h.freeing >= 0 {
				return
			}
			if r.host != h || d.unheard(r) {
				continue
			}
			if r.DeleteAfter.After(d.Now) {
				d.wakeAt(r.DeleteAfter)
				continue
			}
			if at, ok := d.tierOf(r); ok && at == t {
				d.end(r, false, fmt.Sprintf("host %s has %d slots by now, and more runners", h.Name, h.Slots))
			}
		}
	}
}

// settle takes care of one runner whatever the demand.
func (d *decision) settle(r *runnerSheet) {
	switch {
	case r.Observed == fleet.ObservedGone:
		d.settleGone(r)
	case r.Wanted == fleet.WantGone:
		r.leaving = true
	case r.JobDone:
		d.retire(r, false, false, "its job is completed")
	case r.Observed == fleet.ObservedFailed:
		d.retire(r, false, false, r.Failure)
	case r.Observed == fleet.ObservedFinished || r.Observed == fleet.ObservedDestroying:
		d.retire(r, false, false, "its listener has ended")
	case r.Wanted == fleet.WantDrain:
		d.settleDraining(r)
	case r.Registration == fleet.RegDeleting:
		d.settleDeleting(r)
	case r.Registration == fleet.RegGone && (r.Observed == fleet.ObservedIdle || r.Observed == fleet.ObservedRegistering):
		reason := r.Retired
		if reason == "" {
			reason = "its registration at GitHub is gone"
		}
		d.retire(r, true, false, reason)
	case r.Unvouched():
		d.settleUnvouched(r)
	case r.left():
		d.end(r, false, fmt.Sprintf("pool %s went back from its image %s", r.Pool, fleet.ImageShort(r.Image)))
	case r.pool == nil && r.Job == 0 && r.Phase() != fleet.PhaseBusy:
		d.end(r, false, "its pool is not configured any more")
	default:
		d.settleOverdue(r)
	}
}

// mintsOwn is how long a mint has to delete an earlier registration by itself. A second
// DELETE beside its own would find nothing, which proves nothing so early, and would hold
// up the mint.
const mintsOwn = 30 * time.Second

// settleDeleting repeats a deletion that is not confirmed. Where GitHub will not
// answer it for long, the guest alone is asked: a registration that cannot be
// deleted is no reason to keep a slot.
func (d *decision) settleDeleting(r *runnerSheet) {
	l := d.limits(r)
	reason, due := r.Retired, r.RetiredAt.Add(l.Ending)
	if r.RetiredAt.IsZero() { // it is the mint that begins with the deletion of an earlier attempt
		if own := r.Since.Add(mintsOwn); own.After(d.Now) && r.Observed == fleet.ObservedStandby && !r.HasConfig {
			d.wakeAt(own)
			return // the mint is at it, and goes on afterwards
		}
		reason, due = "its earlier registration has to go first", r.ArmedAt.Add(l.Arming+l.Ending)
	}
	if r.Phase() != fleet.PhaseBusy && r.reachable() {
		due = d.heardSince(r, due)
		if !due.After(d.Now) {
			d.retire(r, true, false, reason+"; GitHub does not confirm that its registration is gone")
			return
		}
		d.wakeAt(due)
	}
	d.delete(r, false, reason)
}

// settleUnvouched ends a runner for which only its agent vouches, as after an older
// database was restored. Its job may end; it is no supply for any other.
func (d *decision) settleUnvouched(r *runnerSheet) {
	r.leaving = true
	if r.Phase() == fleet.PhaseBusy || r.Job != 0 {
		d.settleOverdue(r) // GitHub may have called it busy once and taken the job back
		return
	}
	d.end(r, false, "the controller has no record of having armed it")
}

// settleDraining waits for a drained runner, and insists when its guest has not
// answered whether it runs a job for so long that it never will: GitHub has let go
// of it by then.
func (d *decision) settleDraining(r *runnerSheet) {
	r.leaving = true
	if r.Phase() == fleet.PhaseBusy || r.Job != 0 {
		return
	}
	if r.Registration != fleet.RegNone && r.Registration != fleet.RegGone {
		d.delete(r, false, r.Retired) // GitHub's refusal would take the drain back
		return
	}
	if !d.Fresh.Hosts || !r.reachable() {
		return
	}
	l := d.limits(r)
	since := r.Since
	if r.MovedAt.After(since) {
		since = r.MovedAt // such as the moment when the registration went
	}
	d.whenDue(d.heardSince(r, since).Add(l.Ending), func() {
		d.retire(r, false, true, fmt.Sprintf("told to drain, it did not end within %s", l.Ending))
	})
}

// settleGone deletes what a VM left at GitHub. A guest that reported its one job
// finished leaves nothing.
func (d *decision) settleGone(r *runnerSheet) {
	switch r.Registration {
	case fleet.RegNone, fleet.RegGone:
	default:
		d.delete(r, false, "its VM is gone")
	}
}

// settleOverdue ends a runner that is too long in a phase. A host that is not
// heard of, or had no time to be since the controller began, is another matter:
// nothing is known of its runners.
func (d *decision) settleOverdue(r *runnerSheet) {
	if !d.Fresh.Hosts || !r.reachable() {
		return
	}
	l := d.limits(r)
	since, limit, failure := r.Since, time.Duration(0), true
	phase := r.Phase()
	switch phase {
	case fleet.PhasePlaced:
		limit = l.Placed
	case fleet.PhasePreparing:
		since, limit = r.MovedAt, l.Preparing
	case fleet.PhaseBooting:
		limit = l.Booting
	case fleet.PhaseArmed: // from the grant on: a refused mint goes back to armed
		since, limit, failure = r.ArmedAt, l.Arming, false // GitHub's fault, or the controller's
		if since.IsZero() {
			since = r.Since
		}
		if t, ok := d.troubleOf(r); ok { // nor while no registration can be made
			d.wakeAt(t.Until)
			return
		}
		if at := d.Troubled[fleet.PoolScope{Pool: r.Pool, Scope: r.Scope.Key()}]; at.After(since) {
			since = at
		}
	case fleet.PhaseRegistering:
		limit = l.Registering
	case fleet.PhaseBusy:
		// GitHub called it busy once, and neither its guest nor a delivery does: the
		// job was taken back. GitHub is asked to let go; if it will not, it is busy.
		if r.Observed == fleet.ObservedBusy || r.Job != 0 {
			d.settleLong(r, l.Job)
			return
		}
		limit, failure = l.Unnamed, false
	default:
		return
	}
	due := d.heardSince(r, since).Add(limit)
	if due.After(d.Now) {
		d.wakeAt(due)
		return
	}
	d.end(r, failure, fmt.Sprintf("%s for longer than %s", phase, limit))
}

// settleLong ends a runner whose job runs beyond the pool's limit: the one case in which a
// job that runs is ended, by the operator's word.
func (d *decision) settleLong(r *runnerSheet, limit time.Duration) {
	if r.Observed != fleet.ObservedBusy {
		return // only GitHub calls it busy, and knows when that began
	}
	d.whenDue(r.Since.Add(limit), func() {
		d.retire(r, false, false, fmt.Sprintf("its job ran for longer than %s, the limit of pool %s (limits.job)", limit, r.Pool))
	})
}

// troubleOf is what keeps a runner that is armed from being registered.
func (d *decision) troubleOf(r *runnerSheet) (fleet.Trouble, bool) {
	t, ok := d.Troubles[fleet.PoolScope{Pool: r.Pool, Scope: r.Scope.Key()}]
	return t, ok
}

// heardSince is when a limit began to run: not while the host was silent, as
// nothing is known of that time.
func (d *decision) heardSince(r *runnerSheet, since time.Time) time.Time {
	if r.host != nil && r.host.BackAt.After(since) {
		return r.host.BackAt
	}
	return since
}

// noPool says why no pool serves a job.
func (d *decision) noPool(j *fleet.Job) string {
	if j.Pool != "" {
		return "GitHub gave it to the scale set of pool " + j.Pool + ", which is not configured any more"
	}
	if len(j.Labels) == 0 {
		return "the job asks for no label, and no pool is matched by none"
	}
	for _, p := range d.order {
		if p.Claims(*j) {
			return fmt.Sprintf("it is for the scale set of pool %s, whose own jobs show what becomes of it", p.Name)
		}
		if j.Labels.Within(p.Labels) {
			return fmt.Sprintf("pool %s has its labels, but not %s among its scopes", p.Name, j.Repository())
		}
	}
	return "no pool has all of its labels: " + strings.Join(j.Labels, ", ")
}
