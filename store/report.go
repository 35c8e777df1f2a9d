// SPDX-License-Identifier: MIT

package store

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// adoptionMargin is how many runners beyond its slots a host may have that the
// controller knows nothing of: those whose files are being deleted.
const adoptionMargin = 4

// Report takes an agent's full observed state. A report that is not newer than
// the last one of the same instance changes nothing; one of another instance is
// refused. A runner that was observed before and is in the report no more is lost;
// one that was never here is taken into the books, to stay if it holds a config
// and to go if it does not.
func (s *Store) Report(ctx context.Context, id fleet.HostID, rep fleet.HostReport, live time.Duration) error {
	silent, due, err := s.mirror.heard(id, rep.Instance, s.now(), live)
	if err != nil {
		return err
	}
	if due {
		s.savePresences(ctx)
	}
	if !silent {
		if same, moved := s.mirror.same(id, rep, s.now()); same {
			if moved {
				s.watch.tell(nil, true)
			}
			return nil
		}
	}
	s.mirror.reportBegins(id)
	defer s.mirror.reportEnds(id)
	return s.change(ctx, func(t *tx) error {
		h, err := t.host(id)
		if err != nil {
			return err
		}
		if err := t.heard(h, rep.Instance, live); err != nil {
			return err
		}
		if rep.Sequence <= h.Sequence {
			return nil
		}
		t.touched.reported[id] = true
		if err := t.exec(`UPDATE hosts SET sequence = $1, seen_at = $2 WHERE id = $3`, rep.Sequence, micros(t.now), string(id)); err != nil {
			return err
		}
		t.after = append(t.after, func() { s.mirror.note(id, rep.Instance, rep.Sequence, t.now) })
		t.cached(id, rep.Images)
		if err := t.saveFacts(h, rep.Facts); err != nil {
			return err
		}
		if err := t.overtake(h, rep.Revision); err != nil {
			return err
		}
		ours, err := t.runnersOn(id)
		if err != nil {
			return err
		}
		return t.compare(h, ours, rep.Runners)
	})
}

// overtake raises the host's revision above one that its agent has obeyed: where
// an older copy of the database was restored, the agent would refuse the next word.
func (t *tx) overtake(h fleet.Host, obeyed int64) error {
	if obeyed <= h.Revision {
		return nil
	}
	t.hosts[h.ID], t.touched.hosts[h.ID] = true, true
	return t.exec(`UPDATE hosts SET revision = $1 WHERE id = $2`, obeyed, string(h.ID))
}

// compare holds what an agent says against the books.
func (t *tx) compare(h fleet.Host, ours []fleet.Runner, said []fleet.RunnerReport) error {
	known := make(map[fleet.RunnerID]fleet.Runner, len(ours))
	strangers := h.Slots + adoptionMargin // that may be adopted
	for _, r := range ours {
		known[r.ID] = r
		if r.Adopted() {
			strangers--
		}
	}
	for _, s := range said {
		r, ok := known[s.ID]
		delete(known, s.ID)
		var err error
		switch {
		case ok:
			err = t.observe(r, s)
		case s.Observed == fleet.ObservedGone:
			// What this database never knew has ended.
		case strangers > 0:
			strangers--
			err = t.adopt(h.ID, s)
		}
		if err != nil {
			return err
		}
	}
	for _, r := range known {
		if err := t.missing(r); err != nil {
			return err
		}
	}
	return nil
}

// observe takes what the agent says of one runner.
func (t *tx) observe(r fleet.Runner, said fleet.RunnerReport) error {
	next := r
	next.Observed = r.Observed.Next(said.Observed)
	next.HoldsSlot = said.HoldsSlot && next.Observed != fleet.ObservedGone
	next.HasConfig = r.HasConfig || said.HasConfig
	next.Progress = said.Progress
	next.Took = r.Took.With(said.Took)
	if next.Runner == "" {
		next.Runner = said.Runner
	}
	if next.Failure == "" {
		next.Failure = said.Failure
	}
	if next.Result == "" {
		next.Result = said.Result
	}
	if next.JobRun == 0 {
		next.JobRepository, next.JobRun = said.JobRepository, said.JobRun
	}
	if next.JobRefused == "" {
		next.JobRefused = said.JobRefused
	}
	if next.HasConfig && next.Registration == fleet.RegNone {
		// This database is older than what the agent was told: the registration is real.
		if err := t.believe(&next, said); err != nil {
			return err
		}
	}
	if said.Result != "" && (r.Registration == fleet.RegBusy || r.Job != 0) && (next.Observed == fleet.ObservedFinished || next.Observed == fleet.ObservedDestroying || next.Observed == fleet.ObservedGone) {
		// The guest saw its one job end, so GitHub has removed the registration.
		next.Registration = next.Registration.Next(fleet.RegFinished)
	}
	detail := next.Failure
	if detail == "" && next.Result != r.Result {
		detail = "job " + next.Result
		if next.JobRefused != "" {
			detail += ", which its guest ended: " + next.JobRefused
		}
	} else if detail == "" && next.JobRefused != "" && next.Observed.Ended() {
		detail = "its guest ended the job: " + next.JobRefused
	}
	if _, err := t.saveRunner(r, next, detail); err != nil {
		return err
	}
	if err := t.worked(r, next); err != nil {
		return err
	}
	fails := next.Failure != "" && r.Failure == ""
	if err := t.versions(r, next, fails && said.Refused); err != nil {
		return err
	}
	if fails && !blameless(r) {
		return t.failed(next, said.Refused)
	}
	return nil
}

// blameless reports whether a failure says nothing of pool and host: what a job
// does to its own VM, and what follows when a registration is gone or the runner
// was to go anyway.
func blameless(r fleet.Runner) bool {
	return r.Observed == fleet.ObservedBusy || r.Job != 0 || r.Adopted() || r.Unvouched() ||
		r.Registration == fleet.RegDeleting || r.Registration == fleet.RegGone && r.Attempt > 0 ||
		r.Wanted == fleet.WantDrain || r.Wanted == fleet.WantGone
}

// ours reports whether a runner's name at GitHub bears our site id.
func (t *tx) ours(name string) bool { return strings.HasPrefix(name, t.site+"-") }

// believe takes an agent's word for a registration that this database did not
// make, so that it can be found and deleted: a name of our site, in a scope, that no
// other runner has.
func (t *tx) believe(r *fleet.Runner, said fleet.RunnerReport) error {
	if !t.ours(said.RunnerName) || said.Scope.IsZero() {
		return nil
	}
	if err := t.exec(`INSERT INTO mints (name, runner, attempt, owner, scope, at) VALUES ($1,$2,$3,$4,$5,$6) ON CONFLICT (name) DO NOTHING`,
		said.RunnerName, string(r.ID), r.Attempt, strings.ToLower(said.Scope.Owner), said.Scope.String(), micros(t.now.Add(-time.Hour))); err != nil {
		return err
	}
	var owner string
	if err := t.row(`SELECT runner FROM mints WHERE name = $1`, said.RunnerName).Scan(&owner); err != nil {
		return err
	}
	if owner == string(r.ID) {
		r.Registration, r.RunnerName, r.Scope = fleet.RegMinted, said.RunnerName, said.Scope
	}
	return nil
}

// adopt takes a VM into the books that this database has never heard of, as after
// an older copy of it was restored: absence never destroys.
func (t *tx) adopt(host fleet.HostID, said fleet.RunnerReport) error {
	was, err := t.runner(said.ID)
	switch {
	case err == nil && was.Observed == fleet.ObservedGone:
		if was.Host != host {
			if _, err := t.host(was.Host); !errors.Is(err, fleet.ErrNoHost) {
				return err // another host's past is none of this one's business
			}
		}
		return t.revive(was, host, said)
	case err == nil:
		return nil // it lives on another host: that one's word counts
	case !errors.Is(err, fleet.ErrNotFound):
		return err
	}
	r := fleet.Runner{
		ID: said.ID, Pool: said.Pool, Host: host, Reason: fleet.AdoptedReason,
		Wanted: fleet.WantGone, Scope: said.Scope, Observed: said.Observed, HoldsSlot: said.HoldsSlot, HasConfig: said.HasConfig,
		Failure: said.Failure, Result: said.Result, Took: said.Took, Runner: said.Runner, JobRepository: said.JobRepository, JobRun: said.JobRun, JobRefused: said.JobRefused, Retired: "unknown to the controller and without a config",
	}
	if said.HasConfig {
		r.Wanted, r.Retired = fleet.WantArmed, ""
		if err := t.believe(&r, said); err != nil {
			return err
		}
	}
	t.hosts[host] = true
	return t.insertRunner(r)
}

// revive reopens the books on a VM that was written off, as when its host was
// removed and came back. It may end its job and then goes.
func (t *tx) revive(r fleet.Runner, host fleet.HostID, said fleet.RunnerReport) error {
	t.changed, t.hosts[host] = true, true
	t.touched.runner(r.ID, host)
	if err := t.exec(`UPDATE runners SET host = $1, observed = $2, holds_slot = $3, wanted = $4, is_over = 0, since = $5, version = version + 1 WHERE id = $6`,
		string(host), string(said.Observed), bit(said.HoldsSlot), string(fleet.WantDrain), micros(t.now), string(r.ID)); err != nil {
		return err
	}
	return t.moment(r.ID, fleet.PhaseOf(true, fleet.WantDrain, said.Observed, r.Registration), "it was written off, and its host still runs it")
}

// missing is what becomes of a runner that a full report leaves out: nothing, if
// its agent has not begun with it.
func (t *tx) missing(r fleet.Runner) error {
	if r.Observed == fleet.ObservedNone || r.Observed == fleet.ObservedGone {
		return nil
	}
	next := r
	next.Observed, next.HoldsSlot = fleet.ObservedGone, false
	detail := "the agent has it no more"
	if r.Observed != fleet.ObservedDestroying && r.Wanted != fleet.WantGone && next.Failure == "" {
		next.Failure = "the agent lost it"
	}
	if next.Failure != r.Failure && !blameless(r) {
		if err := t.failed(next, false); err != nil {
			return err
		}
	}
	_, err := t.saveRunner(r, next, detail)
	return err
}
