// SPDX-License-Identifier: MIT

package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/fleet"
)

// Carry records a plan in one transaction. An action whose ground has changed
// since the plan was made is left out: the next decision sees why.
func (s *Store) Carry(ctx context.Context, plan fleet.Plan) (fleet.Carried, error) {
	var out fleet.Carried
	err := s.change(ctx, func(t *tx) error {
		out = fleet.Carried{}
		for _, step := range steps(plan) {
			switch err := step(t, &out); {
			case err == nil:
				out.Done++
			case errors.Is(err, fleet.ErrConflict), errors.Is(err, fleet.ErrNotFound):
				out.Void++
			default:
				return err
			}
		}
		crashpoint.Reached(crashpoint.CarryWritten)
		return nil
	})
	if err != nil {
		return fleet.Carried{}, fmt.Errorf("carry out plan: %w", err)
	}
	crashpoint.Reached(crashpoint.CarryCommitted)
	return out, nil
}

// steps orders a plan: what frees comes before what takes.
func steps(p fleet.Plan) []func(*tx, *fleet.Carried) error {
	var list []func(*tx, *fleet.Carried) error
	for _, a := range p.Rollouts {
		list = append(list, func(t *tx, _ *fleet.Carried) error { return t.step(a) })
	}
	for _, a := range p.Fetches {
		list = append(list, func(t *tx, _ *fleet.Carried) error { return t.fetch(a) })
	}
	for _, a := range p.Retires {
		list = append(list, func(t *tx, _ *fleet.Carried) error { return t.retire(a) })
	}
	for _, a := range p.Disarms {
		list = append(list, func(t *tx, _ *fleet.Carried) error { return t.disarm(a) })
	}
	for _, a := range p.Deletes {
		list = append(list, func(t *tx, out *fleet.Carried) error { return t.delete(a, out) })
	}
	for _, a := range p.Arms {
		list = append(list, func(t *tx, _ *fleet.Carried) error { return t.arm(a) })
	}
	for _, a := range p.Places {
		list = append(list, func(t *tx, out *fleet.Carried) error { return t.place(a, out) })
	}
	return list
}

// at returns the runner if it is still the version that the plan saw.
func (t *tx) at(id fleet.RunnerID, version int64) (fleet.Runner, error) {
	r, err := t.runner(id)
	if err == nil && r.Version != version {
		err = fleet.ErrConflict
	}
	return r, err
}

func (t *tx) retire(a fleet.Retire) error {
	r, err := t.at(a.Runner, a.Version)
	if err != nil {
		return err
	}
	next := r
	if a.Drain {
		next.Wanted = r.Wanted.Next(fleet.DoDrain)
	} else {
		next.Wanted = r.Wanted.Next(fleet.DoRetire)
	}
	if err := t.sentence(&next, a.Reason, a.Failure); err != nil {
		return err
	}
	_, err = t.saveRunner(r, next, a.Reason)
	return err
}

// sentence notes why a runner has to go; the first reason stays.
func (t *tx) sentence(r *fleet.Runner, reason string, failure bool) error {
	if r.Retired == "" {
		r.Retired, r.RetiredAt = reason, t.now
	}
	if !failure || r.Failure != "" {
		return nil
	}
	r.Failure = reason
	return t.failed(*r, false)
}

func (t *tx) disarm(a fleet.Disarm) error {
	r, err := t.at(a.Runner, a.Version)
	if err != nil {
		return err
	}
	if r.Registration != fleet.RegNone && r.Registration != fleet.RegGone {
		return fleet.ErrConflict
	}
	next := r
	next.Wanted, next.Scope = r.Wanted.Next(fleet.DoDisarm), fleet.Scope{}
	_, err = t.saveRunner(r, next, a.Reason)
	return err
}

func (t *tx) delete(a fleet.Delete, out *fleet.Carried) error {
	r, err := t.at(a.Runner, a.Version)
	if err != nil {
		return err
	}
	next := r
	next.Registration = r.Registration.Next(fleet.RegDelete)
	if next.Registration != fleet.RegDeleting {
		return fleet.ErrConflict
	}
	if r.Registration != fleet.RegDeleting && r.Observed != fleet.ObservedGone {
		if err := t.sentence(&next, a.Reason, a.Failure); err != nil {
			return err
		}
	}
	if _, err := t.saveRunner(r, next, a.Reason); err != nil {
		return err
	}
	if r.Registration != fleet.RegDeleting && a.PassedOver != 0 {
		if err := t.passOver(a.PassedOver); err != nil {
			return err
		}
	}
	ref, err := t.registration(r)
	if err != nil {
		return err
	}
	out.Deletes = append(out.Deletes, fleet.Deletion{Runner: r.ID, Attempt: r.Attempt, Ref: ref, Since: r.Since})
	return nil
}

// passOver counts a runner that listened for a job in vain.
func (t *tx) passOver(id fleet.JobID) error {
	j, err := t.job(id)
	if err != nil || j.State != fleet.JobQueued {
		return err
	}
	j.PassedOver++
	j.PassedAt = t.now
	return t.saveJob(j)
}

// arm grants only while the job that asked for it is still queued.
func (t *tx) arm(a fleet.Arm) error {
	r, err := t.at(a.Runner, a.Version)
	if err != nil {
		return err
	}
	j, err := t.job(a.Job)
	if err != nil {
		return err
	}
	if j.State != fleet.JobQueued || r.HasConfig {
		return fleet.ErrConflict
	}
	next := r
	next.Wanted, next.Scope, next.ArmedAt = r.Wanted.Next(fleet.DoArm), a.Scope, t.now
	_, err = t.saveRunner(r, next, fmt.Sprintf("armed for %s: job %s of %s waits", a.Scope, j.Name, j.Repository()))
	return err
}

// makes refuses an image that the pool makes no such runner from: it went back from it, or on
// from it, since the plan was made, or it did not come to serve, as the plan has it.
func (t *tx) makes(a fleet.Place) error {
	if !fleet.RemoteImage(a.Image) {
		return nil
	}
	is, err := t.rollout(a.Pool)
	if err == nil && !fleet.SameImage(a.Image, is.Current) && !(a.Tries && fleet.SameImage(a.Image, is.Next)) {
		err = fleet.ErrConflict
	}
	return err
}

// place takes a slot only while there is one.
func (t *tx) place(a fleet.Place, out *fleet.Carried) error {
	h, err := t.host(a.Host)
	if err != nil {
		return err
	}
	there, err := t.runnersOn(a.Host)
	if err != nil {
		return err
	}
	taken := 0
	for _, r := range there {
		if r.TakesSlot() {
			taken++
		}
	}
	if taken >= h.Slots {
		return fleet.ErrConflict
	}
	if err := t.makes(a); err != nil {
		return err
	}
	r := fleet.Runner{ID: fleet.RunnerID("r-" + randomID(10)), Pool: a.Pool, Image: a.Image, Host: a.Host, Reason: a.Reason, Wanted: fleet.WantUp, HoldsSlot: true}
	t.hosts[a.Host] = true
	out.Placed = append(out.Placed, r.ID)
	return t.insertRunner(r)
}
