// SPDX-License-Identifier: MIT

package store

import (
	"context"
	"errors"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// Report takes an agent's full observed state. A report that is not newer than
// the last one of the same instance changes nothing; one of another instance is
// refused. A runner that was observed before and is in the report no more is lost;
// one that was never here is taken into the books, to stay if it holds a config
// and to go if it does not.
func (s *Store) Report(ctx context.Context, id fleet.HostID, rep fleet.HostReport, live time.Duration) error {
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
		if err := t.exec(`UPDATE hosts SET sequence = $1 WHERE id = $2`, rep.Sequence, string(id)); err != nil {
			return err
		}
		if err := t.saveFacts(h, rep.Facts); err != nil {
			return err
		}
		rows, err := t.QueryContext(ctx, `SELECT `+runnerColumns+` FROM runners WHERE is_over = 0 AND host = $1`, string(id))
		ours, err := collect(rows, err, scanRunner)
		if err != nil {
			return err
		}
		known := make(map[fleet.RunnerID]fleet.Runner, len(ours))
		for _, r := range ours {
			known[r.ID] = r
		}
		for _, said := range rep.Runners {
			r, ok := known[said.ID]
			delete(known, said.ID)
			if !ok {
				if err := t.adopt(id, said); err != nil {
					return err
				}
				continue
			}
			if err := t.observe(r, said); err != nil {
				return err
			}
		}
		for _, r := range known {
			if err := t.missing(r, rep); err != nil {
				return err
			}
		}
		return nil
	})
}

// observe takes what the agent says of one runner.
func (t *tx) observe(r fleet.Runner, said fleet.RunnerReport) error {
	next := r
	next.Observed = r.Observed.Next(said.Observed)
	next.HoldsSlot = said.HoldsSlot && next.Observed != fleet.ObservedGone
	next.HasConfig = r.HasConfig || said.HasConfig
	next.Progress = said.Progress
	if next.Failure == "" {
		next.Failure = said.Failure
	}
	if next.Result == "" {
		next.Result = said.Result
	}
	if said.Result != "" && (next.Observed == fleet.ObservedFinished || next.Observed == fleet.ObservedDestroying || next.Observed == fleet.ObservedGone) {
		// The guest saw its one job end, so GitHub has removed the registration.
		next.Registration = next.Registration.Next(fleet.RegFinished)
	}
	detail := next.Failure
	if detail == "" && next.Result != r.Result {
		detail = "job " + next.Result
	}
	if _, err := t.saveRunner(r, next, detail); err != nil {
		return err
	}
	if err := t.worked(r, next); err != nil {
		return err
	}
	if next.Failure != "" && r.Failure == "" {
		return t.failed(next)
	}
	return nil
}

// adopt takes a VM into the books that this database has never heard of, as after
// an older copy of it was restored: absence never destroys.
func (t *tx) adopt(host fleet.HostID, said fleet.RunnerReport) error {
	if said.Observed == fleet.ObservedGone {
		return nil
	}
	was, err := t.runner(said.ID)
	switch {
	case err == nil && was.Over():
		return t.revive(was, host, said)
	case err == nil:
		return nil // it lives on another host: that one's word counts
	case !errors.Is(err, fleet.ErrNotFound):
		return err
	}
	r := fleet.Runner{
		ID: said.ID, Pool: said.Pool, Host: host, Reason: "adopted: the agent runs it and the controller had no record",
		Wanted: fleet.WantGone, Scope: said.Scope, Observed: said.Observed, HoldsSlot: said.HoldsSlot, HasConfig: said.HasConfig,
		Failure: said.Failure, Result: said.Result, Retired: "unknown to the controller and without a config",
	}
	if said.HasConfig {
		r.Wanted, r.Registration, r.Retired = fleet.WantArmed, fleet.RegMinted, ""
	}
	t.hosts[host] = true
	return t.insertRunner(r)
}

// revive reopens the books on a VM that was written off, as when its host was
// removed and came back. It may end its job and then goes.
func (t *tx) revive(r fleet.Runner, host fleet.HostID, said fleet.RunnerReport) error {
	t.changed, t.hosts[host] = true, true
	if err := t.exec(`UPDATE runners SET host = $1, observed = $2, holds_slot = $3, wanted = $4, is_over = 0, since = $5, version = version + 1 WHERE id = $6`,
		string(host), string(said.Observed), bit(said.HoldsSlot), string(fleet.WantDrain), micros(t.now), string(r.ID)); err != nil {
		return err
	}
	return t.moment(r.ID, fleet.PhaseOf(true, fleet.WantDrain, said.Observed, r.Registration), "it was written off, and its host still runs it")
}

// missing is what becomes of a runner that a full report leaves out. Before its
// agent acted on the revision that asked for it, nothing.
func (t *tx) missing(r fleet.Runner, rep fleet.HostReport) error {
	if r.Observed == fleet.ObservedNone || r.Observed == fleet.ObservedGone {
		return nil
	}
	next := r
	next.Observed, next.HoldsSlot = fleet.ObservedGone, false
	detail := "the agent has it no more"
	if r.Observed != fleet.ObservedDestroying && r.Wanted != fleet.WantGone && next.Failure == "" {
		next.Failure = "the agent lost it"
		if err := t.failed(next); err != nil {
			return err
		}
	}
	_, err := t.saveRunner(r, next, detail)
	return err
}
