// SPDX-License-Identifier: MIT

package books

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// Carry applies a plan: what frees comes before what takes, and an action whose
// ground has changed is void.
func (b *Books) Carry(_ context.Context, p fleet.Plan) (out fleet.Carried, _ error) {
	act := func(id fleet.RunnerID, version int64, do func(*fleet.Runner) error) {
		r, err := b.Find(id)
		if err == nil && r.Version != version {
			err = fleet.ErrConflict
		}
		if err == nil {
			err = do(r)
		}
		if err != nil {
			out.Void++
			return
		}
		out.Done++
	}
	for _, a := range p.Rollouts {
		was, ok := b.Rollouts[a.Pool]
		is, err := was.Acted(a.Act, a.Reason, b.now())
		if !ok || was.Version != a.Version || err != nil {
			out.Void++
			continue
		}
		b.saveRollout(was, is)
		out.Done++
	}
	for _, a := range p.Fetches {
		b.Host(a.Host).Prefetch = a.Images
		out.Done++
	}
	for _, a := range p.Retires {
		act(a.Runner, a.Version, func(r *fleet.Runner) error { return b.retire(r, a) })
	}
	for _, a := range p.Disarms {
		act(a.Runner, a.Version, func(r *fleet.Runner) error { return b.disarm(r) })
	}
	for _, a := range p.Deletes {
		act(a.Runner, a.Version, func(r *fleet.Runner) error { return b.delete(r, a, &out) })
	}
	for _, a := range p.Arms {
		act(a.Runner, a.Version, func(r *fleet.Runner) error { return b.arm(r, a) })
	}
	for _, a := range p.Places {
		taken := 0
		b.On(a.Host, func(r *fleet.Runner) {
			if r.TakesSlot() {
				taken++
			}
		})
		if taken >= b.Host(a.Host).Slots {
			out.Void++
			continue
		}
		b.made++
		r := &row{made: b.made, Runner: fleet.Runner{
			ID: fleet.RunnerID(fmt.Sprintf("r-%03d", b.made)), Pool: a.Pool, Image: a.Image, Host: a.Host, Reason: a.Reason, Wanted: fleet.WantUp, HoldsSlot: true,
			Since: b.now(), MovedAt: b.now(), CreatedAt: b.now(), Version: 1,
		}}
		b.rows[r.ID] = r
		b.all = append(b.all, r)
		b.place(r)
		out.Placed = append(out.Placed, r.ID)
		out.Done++
		b.changed(a.Host)
	}
	return out, nil
}

func (b *Books) saveRollout(was, is fleet.Rollout) {
	if is != was {
		is.Version = was.Version + 1
		b.Rollouts[is.Pool] = is
	}
}

// ConfigureRollouts takes in the pools of the configuration.
func (b *Books) ConfigureRollouts(_ context.Context, pools []fleet.Pool) error {
	gone := maps.Clone(b.Rollouts)
	for _, p := range pools {
		if !fleet.RemoteImage(p.Image) {
			continue
		}
		was, ok := gone[p.Name]
		delete(gone, p.Name)
		if !ok {
			b.saveRollout(was, fleet.NewRollout(p.Name, p.Image, b.now()))
			continue
		}
		b.saveRollout(was, was.Configured(p.Image, b.now()))
	}
	for pool := range gone {
		delete(b.Rollouts, pool)
	}
	return nil
}

// ImageResolved notes what a reference stands for.
func (b *Books) ImageResolved(_ context.Context, reference, digest string) error {
	for _, r := range maps.Clone(b.Rollouts) {
		if r.Reference == reference {
			b.saveRollout(r, r.Resolved(digest, b.now()))
		}
	}
	return nil
}

// ImageUnresolved notes that a reference could not be read.
func (b *Books) ImageUnresolved(_ context.Context, reference, why string) error {
	for _, r := range maps.Clone(b.Rollouts) {
		if r.Reference == reference {
			b.saveRollout(r, r.Unresolved(why, b.now()))
		}
	}
	return nil
}

// ChangeRollout lets an operator decide on a rollout.
func (b *Books) ChangeRollout(_ context.Context, pool string, next func(fleet.Rollout, time.Time) (fleet.Rollout, error)) (fleet.Rollout, error) {
	was, ok := b.Rollouts[pool]
	if !ok {
		return was, fleet.ErrNotFound
	}
	is, err := next(was, b.now())
	if err != nil {
		return is, err
	}
	b.saveRollout(was, is)
	return b.Rollouts[pool], nil
}

func (b *Books) sentence(r *fleet.Runner, reason string, failure bool) {
	if r.Retired == "" {
		r.Retired, r.RetiredAt = reason, b.now()
	}
	if failure && r.Failure == "" {
		r.Failure = reason
		b.failed(*r)
	}
}

func (b *Books) retire(r *fleet.Runner, a fleet.Retire) error {
	next := *r
	if a.Drain {
		next.Wanted = r.Wanted.Next(fleet.DoDrain)
	} else {
		next.Wanted = r.Wanted.Next(fleet.DoRetire)
	}
	b.sentence(&next, a.Reason, a.Failure)
	b.Save(r, next)
	return nil
}

func (b *Books) disarm(r *fleet.Runner) error {
	if MayExist(r.Registration) {
		return fleet.ErrConflict
	}
	next := *r
	next.Wanted, next.Scope = r.Wanted.Next(fleet.DoDisarm), fleet.Scope{}
	b.Save(r, next)
	return nil
}

func (b *Books) delete(r *fleet.Runner, a fleet.Delete, out *fleet.Carried) error {
	next := *r
	next.Registration = r.Registration.Next(fleet.RegDelete)
	if next.Registration != fleet.RegDeleting {
		return fleet.ErrConflict
	}
	if r.Registration != fleet.RegDeleting && r.Observed != fleet.ObservedGone {
		b.sentence(&next, a.Reason, a.Failure)
	}
	if j := b.jobs[a.PassedOver]; r.Registration != fleet.RegDeleting && j != nil && j.State == fleet.JobQueued {
		j.PassedOver++
		j.PassedAt = b.now()
	}
	out.Deletes = append(out.Deletes, fleet.Deletion{Runner: r.ID, Attempt: r.Attempt, Ref: b.registration(*r), Since: r.Since})
	b.Save(r, next)
	return nil
}

func (b *Books) arm(r *fleet.Runner, a fleet.Arm) error {
	j := b.jobs[a.Job]
	if j == nil || j.State != fleet.JobQueued || r.HasConfig {
		return fleet.ErrConflict
	}
	next := *r
	next.Wanted, next.Scope, next.ArmedAt = r.Wanted.Next(fleet.DoArm), a.Scope, b.now()
	b.Save(r, next)
	return nil
}

// Hello takes in what an agent says when it begins.
func (b *Books) Hello(_ context.Context, id fleet.HostID, instance, machine string, facts fleet.HostFacts, live time.Duration) error {
	h := b.Host(id)
	h.Slots, h.Backends, h.Images = facts.Slots, facts.Backends, facts.Images
	b.seen(h, live)
	if h.Instance != instance {
		h.Instance, h.Sequence = instance, 0
	}
	h.Machine = machine
	b.changed("")
	return nil
}

func (b *Books) seen(h *fleet.Host, live time.Duration) {
	if b.now().Sub(h.SeenAt) >= live {
		h.BackAt = b.now()
		b.changed("")
	}
	h.SeenAt = b.now()
}

// Heard notes that an agent was heard of.
func (b *Books) Heard(_ context.Context, id fleet.HostID, instance string, live time.Duration) error {
	h := b.Host(id)
	if h.Instance != instance {
		return fleet.ErrSuperseded
	}
	b.seen(h, live)
	return nil
}

// Report takes an agent's full observed state. VMs that the books do not know are not
// taken into them.
func (b *Books) Report(ctx context.Context, id fleet.HostID, rep fleet.HostReport, live time.Duration) error {
	if err := b.Heard(ctx, id, rep.Instance, live); err != nil {
		return err
	}
	h := b.Host(id)
	if rep.Sequence <= h.Sequence {
		return nil
	}
	h.Sequence = rep.Sequence
	h.Slots, h.Backends, h.Images = rep.Facts.Slots, rep.Facts.Backends, rep.Facts.Images
	b.cache(h, rep.Images)
	for _, r := range slices.Clone(b.live) {
		if r.Host != id {
			continue
		}
		at := slices.IndexFunc(rep.Runners, func(s fleet.RunnerReport) bool { return s.ID == r.ID })
		if at < 0 {
			b.missing(&r.Runner)
			continue
		}
		b.observe(&r.Runner, rep.Runners[at])
	}
	return nil
}
