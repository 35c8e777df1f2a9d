// SPDX-License-Identifier: MIT

package autoscaler_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// ledger is what the model of the world writes into: the store, in memory or real.
type ledger interface {
	State(context.Context) (fleet.State, error)
	Carry(context.Context, fleet.Plan) (fleet.Carried, error)
	Hello(ctx context.Context, id fleet.HostID, instance, machine string, facts fleet.HostFacts, live time.Duration) error
	Heard(ctx context.Context, id fleet.HostID, instance string, live time.Duration) error
	Report(ctx context.Context, id fleet.HostID, rep fleet.HostReport, live time.Duration) error
	Learn(context.Context, fleet.JobNews) error
	BeginMint(ctx context.Context, host fleet.HostID, id fleet.RunnerID, name string) (fleet.Mint, error)
	Granted(ctx context.Context, id fleet.RunnerID, attempt int, githubID int64) error
	MintRefused(ctx context.Context, id fleet.RunnerID, attempt int, why string, lasts bool) error
	RegistrationDeleted(ctx context.Context, id fleet.RunnerID, attempt int) error
	DeleteVetoed(ctx context.Context, id fleet.RunnerID, attempt int, retry time.Time) error
	DeleteFailed(ctx context.Context, id fleet.RunnerID, attempt int, retry time.Time) error
	ConfigureRollouts(context.Context, []fleet.Pool) error
	ImageResolved(ctx context.Context, reference, digest string) error
	ImageUnresolved(ctx context.Context, reference, why string) error
	ChangeRollout(ctx context.Context, pool string, next func(fleet.Rollout, time.Time) (fleet.Rollout, error)) (fleet.Rollout, error)
}

// books are what the store does, without a database: the same transitions, the same
// checks of versions, the same void actions. TestBooksAreTheStore holds them against
// the store itself.
type books struct {
	now     func() time.Time
	made    int
	jobs    []fleet.Job // every state, in order of id
	runners []fleet.Runner
	hosts   []fleet.Host
	pools   map[string]fleet.PoolHealth
	refused map[fleet.PoolScope]fleet.Refusals
	mints   []mintRow

	rollouts map[string]fleet.Rollout
}

type mintRow struct {
	name, owner string
	runner      fleet.RunnerID
	at          time.Time
}

func newBooks(now func() time.Time) *books {
	return &books{now: now, pools: map[string]fleet.PoolHealth{}, refused: map[fleet.PoolScope]fleet.Refusals{}, rollouts: map[string]fleet.Rollout{}}
}

func (b *books) enrol(name string) fleet.HostID {
	id := fleet.HostID("h-" + name)
	b.hosts = append(b.hosts, fleet.Host{ID: id, Name: name, Backends: []string{}, Images: []string{}})
	return id
}

func (b *books) State(context.Context) (fleet.State, error) {
	st := fleet.State{Pools: map[string]fleet.PoolHealth{}, Mints: map[string]fleet.MintUse{}, Hosts: slices.Clone(b.hosts), Rollouts: maps.Clone(b.rollouts), Refused: maps.Clone(b.refused)}
	for _, j := range b.jobs {
		if j.State == fleet.JobQueued {
			st.Jobs = append(st.Jobs, j)
		}
	}
	slices.SortStableFunc(st.Jobs, func(x, y fleet.Job) int { return x.QueuedAt.Compare(y.QueuedAt) })
	for _, r := range b.runners {
		if !r.Over() {
			st.Runners = append(st.Runners, r)
		}
	}
	for name, h := range b.pools {
		if h.Failures > 0 {
			st.Pools[name] = h
		}
	}
	cut := b.now().Add(-time.Minute)
	for _, m := range b.mints {
		if m.at.After(cut) {
			use := st.Mints[m.owner]
			if use.LastMinute++; use.LastMinute == 1 {
				use.Oldest = m.at
			}
			st.Mints[m.owner] = use
		}
	}
	return st, nil
}

func (b *books) runner(id fleet.RunnerID) (*fleet.Runner, error) {
	for i := range b.runners {
		if b.runners[i].ID == id {
			return &b.runners[i], nil
		}
	}
	return nil, fleet.ErrNotFound
}

func (b *books) host(id fleet.HostID) *fleet.Host {
	i := slices.IndexFunc(b.hosts, func(h fleet.Host) bool { return h.ID == id })
	return &b.hosts[i]
}

// save writes a runner: a new phase starts its clock, any change moves the version.
func (b *books) save(r *fleet.Runner, next fleet.Runner) {
	if next == *r {
		return
	}
	if next.Phase() != r.Phase() {
		next.Since = b.now()
	}
	next.MovedAt = b.now()
	next.Version++
	*r = next
}

func (b *books) failed(r fleet.Runner) {
	blamed := false
	if was, ok := b.rollouts[r.Pool]; ok && r.Image != "" {
		var is fleet.Rollout
		is, blamed = was.Failed(r.Image, r.Failure, b.now())
		b.saveRollout(was, is)
	}
	if !blamed {
		h := b.pools[r.Pool]
		b.pools[r.Pool] = fleet.PoolHealth{Failures: h.Failures + 1, FailedAt: b.now(), Reason: r.Failure}
	}
	host := b.host(r.Host)
	host.Failures, host.FailedAt = host.Failures+1, b.now()
}

// Carry applies a plan: what frees comes before what takes, and an action whose
// ground has changed is void.
func (b *books) Carry(_ context.Context, p fleet.Plan) (out fleet.Carried, _ error) {
	act := func(id fleet.RunnerID, version int64, do func(*fleet.Runner) error) {
		r, err := b.runner(id)
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
		was, ok := b.rollouts[a.Pool]
		is, err := was.Acted(a.Act, a.Reason, b.now())
		if !ok || was.Version != a.Version || err != nil {
			out.Void++
			continue
		}
		b.saveRollout(was, is)
		out.Done++
	}
	for _, a := range p.Fetches {
		b.host(a.Host).Prefetch = a.Images
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
		for _, r := range b.runners {
			if r.Host == a.Host && r.TakesSlot() {
				taken++
			}
		}
		if taken >= b.host(a.Host).Slots {
			out.Void++
			continue
		}
		b.made++
		r := fleet.Runner{
			ID: fleet.RunnerID(fmt.Sprintf("r-%03d", b.made)), Pool: a.Pool, Image: a.Image, Host: a.Host, Reason: a.Reason, Wanted: fleet.WantUp, HoldsSlot: true,
			Since: b.now(), MovedAt: b.now(), CreatedAt: b.now(), Version: 1,
		}
		b.runners = append(b.runners, r)
		out.Placed = append(out.Placed, r.ID)
		out.Done++
	}
	return out, nil
}

func (b *books) saveRollout(was, is fleet.Rollout) {
	if is != was {
		is.Version = was.Version + 1
		b.rollouts[is.Pool] = is
	}
}

func (b *books) ConfigureRollouts(_ context.Context, pools []fleet.Pool) error {
	gone := maps.Clone(b.rollouts)
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
		delete(b.rollouts, pool)
	}
	return nil
}

func (b *books) ImageResolved(_ context.Context, reference, digest string) error {
	for _, r := range maps.Clone(b.rollouts) {
		if r.Reference == reference {
			b.saveRollout(r, r.Resolved(digest, b.now()))
		}
	}
	return nil
}

func (b *books) ImageUnresolved(_ context.Context, reference, why string) error {
	for _, r := range maps.Clone(b.rollouts) {
		if r.Reference == reference {
			b.saveRollout(r, r.Unresolved(why, b.now()))
		}
	}
	return nil
}

func (b *books) ChangeRollout(_ context.Context, pool string, next func(fleet.Rollout, time.Time) (fleet.Rollout, error)) (fleet.Rollout, error) {
	was, ok := b.rollouts[pool]
	if !ok {
		return was, fleet.ErrNotFound
	}
	is, err := next(was, b.now())
	if err != nil {
		return is, err
	}
	b.saveRollout(was, is)
	return b.rollouts[pool], nil
}

func (b *books) sentence(r *fleet.Runner, reason string, failure bool) {
	if r.Retired == "" {
		r.Retired, r.RetiredAt = reason, b.now()
	}
	if failure && r.Failure == "" {
		r.Failure = reason
		b.failed(*r)
	}
}

func (b *books) retire(r *fleet.Runner, a fleet.Retire) error {
	next := *r
	if a.Drain {
		next.Wanted = r.Wanted.Next(fleet.DoDrain)
	} else {
		next.Wanted = r.Wanted.Next(fleet.DoRetire)
	}
	b.sentence(&next, a.Reason, a.Failure)
	b.save(r, next)
	return nil
}

func (b *books) disarm(r *fleet.Runner) error {
	if mayExist(r.Registration) {
		return fleet.ErrConflict
	}
	next := *r
	next.Wanted, next.Scope = r.Wanted.Next(fleet.DoDisarm), fleet.Scope{}
	b.save(r, next)
	return nil
}

func (b *books) delete(r *fleet.Runner, a fleet.Delete, out *fleet.Carried) error {
	next := *r
	next.Registration = r.Registration.Next(fleet.RegDelete)
	if next.Registration != fleet.RegDeleting {
		return fleet.ErrConflict
	}
	if r.Registration != fleet.RegDeleting && r.Observed != fleet.ObservedGone {
		b.sentence(&next, a.Reason, a.Failure)
	}
	if i := b.job(a.PassedOver); r.Registration != fleet.RegDeleting && i >= 0 && b.jobs[i].State == fleet.JobQueued {
		b.jobs[i].PassedOver++
		b.jobs[i].PassedAt = b.now()
	}
	out.Deletes = append(out.Deletes, fleet.Deletion{Runner: r.ID, Attempt: r.Attempt, Ref: b.registration(*r), Since: r.Since})
	b.save(r, next)
	return nil
}

func (b *books) arm(r *fleet.Runner, a fleet.Arm) error {
	i := b.job(a.Job)
	if i < 0 || b.jobs[i].State != fleet.JobQueued || r.HasConfig {
		return fleet.ErrConflict
	}
	next := *r
	next.Wanted, next.Scope, next.ArmedAt = r.Wanted.Next(fleet.DoArm), a.Scope, b.now()
	b.save(r, next)
	return nil
}

func mayExist(s fleet.Registration) bool { return s != fleet.RegNone && s != fleet.RegGone }

func (b *books) registration(r fleet.Runner) fleet.RegistrationRef {
	ref := fleet.RegistrationRef{Scope: r.Scope, Name: r.RunnerName, ID: r.GitHubID}
	for _, m := range b.mints {
		if m.name == r.RunnerName {
			ref.Begun = m.at
		}
	}
	return ref
}

func (b *books) BeginMint(_ context.Context, host fleet.HostID, id fleet.RunnerID, name string) (fleet.Mint, error) {
	r, err := b.runner(id)
	if err != nil {
		return fleet.Mint{}, err
	}
	m := fleet.Mint{Runner: id, Pool: r.Pool, Scope: r.Scope}
	next := *r
	switch {
	case r.Host != host:
		return m, fleet.ErrWrongHost
	case r.Registration == fleet.RegBusy:
		return m, fleet.ErrRunnerBusy
	case r.Wanted != fleet.WantArmed || r.ArmedAt.IsZero() || r.Observed == fleet.ObservedGone:
		return m, fleet.ErrNoGrant
	case r.DeleteAfter.After(b.now()) && mayExist(r.Registration):
		return m, fleet.ErrLater
	case !mayExist(r.Registration):
		next.Registration = r.Registration.Next(fleet.RegMint)
		next.Attempt++
		next.RunnerName, next.GitHubID, next.DeleteAfter = name, 0, time.Time{}
		m.Attempt, m.Name = next.Attempt, name
		b.mints = append(b.mints, mintRow{name: name, owner: strings.ToLower(r.Scope.Owner), runner: id, at: b.now()})
	default:
		ref := b.registration(*r)
		m.Attempt, m.Earlier = r.Attempt, &ref
		next.Registration = r.Registration.Next(fleet.RegDelete)
	}
	b.save(r, next)
	return m, nil
}

func (b *books) register(id fleet.RunnerID, attempt int, e fleet.RegEvent, edit func(*fleet.Runner)) error {
	r, err := b.runner(id)
	if err != nil || r.Attempt != attempt {
		return err
	}
	next := *r
	next.Registration = r.Registration.Next(e)
	if edit != nil {
		edit(&next)
	}
	b.save(r, next)
	return nil
}

func (b *books) Granted(_ context.Context, id fleet.RunnerID, attempt int, githubID int64) error {
	return b.register(id, attempt, fleet.RegGranted, func(r *fleet.Runner) {
		r.GitHubID = githubID
		delete(b.refused, fleet.PoolScope{Pool: r.Pool, Scope: r.Scope.Key()})
	})
}

func (b *books) MintRefused(_ context.Context, id fleet.RunnerID, attempt int, why string, lasts bool) error {
	return b.register(id, attempt, fleet.RegRefused, func(r *fleet.Runner) {
		if !lasts {
			return
		}
		at := fleet.PoolScope{Pool: r.Pool, Scope: r.Scope.Key()}
		b.refused[at] = fleet.Refusals{Times: b.refused[at].Times + 1, LastAt: b.now(), Reason: why}
		if r.Registration == fleet.RegGone && !r.HasConfig {
			r.Wanted, r.Scope = r.Wanted.Next(fleet.DoDisarm), fleet.Scope{}
		}
	})
}

func (b *books) RegistrationDeleted(_ context.Context, id fleet.RunnerID, attempt int) error {
	return b.register(id, attempt, fleet.RegDeleted, nil)
}

func (b *books) DeleteVetoed(_ context.Context, id fleet.RunnerID, attempt int, retry time.Time) error {
	return b.register(id, attempt, fleet.RegVetoed, func(r *fleet.Runner) {
		r.DeleteAfter = retry
		if r.Observed.Ended() {
			return
		}
		r.Wanted = r.Wanted.Next(fleet.DoResume)
		r.Retired, r.RetiredAt, r.Failure = "", time.Time{}, ""
	})
}

func (b *books) DeleteFailed(_ context.Context, id fleet.RunnerID, attempt int, retry time.Time) error {
	return b.register(id, attempt, fleet.RegDelete, func(r *fleet.Runner) { r.DeleteAfter = retry })
}

func (b *books) Hello(_ context.Context, id fleet.HostID, instance, machine string, facts fleet.HostFacts, live time.Duration) error {
	h := b.host(id)
	h.Slots, h.Backends, h.Images = facts.Slots, facts.Backends, facts.Images
	b.seen(h, live)
	if h.Instance != instance {
		h.Instance, h.Sequence = instance, 0
	}
	h.Machine = machine
	return nil
}

func (b *books) seen(h *fleet.Host, live time.Duration) {
	if b.now().Sub(h.SeenAt) >= live {
		h.BackAt = b.now()
	}
	h.SeenAt = b.now()
}

func (b *books) Heard(_ context.Context, id fleet.HostID, instance string, live time.Duration) error {
	h := b.host(id)
	if h.Instance != instance {
		return fleet.ErrSuperseded
	}
	b.seen(h, live)
	return nil
}

func (b *books) Report(ctx context.Context, id fleet.HostID, rep fleet.HostReport, live time.Duration) error {
	if err := b.Heard(ctx, id, rep.Instance, live); err != nil {
		return err
	}
	h := b.host(id)
	if rep.Sequence <= h.Sequence {
		return nil
	}
	h.Sequence = rep.Sequence
	h.Slots, h.Backends, h.Images = rep.Facts.Slots, rep.Facts.Backends, rep.Facts.Images
	b.cache(h, rep.Images)
	for i := range b.runners {
		r := &b.runners[i]
		if r.Host != id || r.Over() {
			continue
		}
		at := slices.IndexFunc(rep.Runners, func(s fleet.RunnerReport) bool { return s.ID == r.ID })
		if at < 0 {
			b.missing(r)
			continue
		}
		b.observe(r, rep.Runners[at])
	}
	return nil
}

func (b *books) cache(h *fleet.Host, said []fleet.CachedImage) {
	was := h.Cached
	h.Cached = nil
	for _, c := range said {
		c.MovedAt = b.now()
		for _, w := range was {
			if w.Digest == c.Digest && w.State == c.State && w.DoneBytes == c.DoneBytes {
				c.MovedAt = w.MovedAt
			}
		}
		h.Cached = append(h.Cached, c)
	}
}

func (b *books) observe(r *fleet.Runner, said fleet.RunnerReport) {
	was, next := *r, *r
	next.Observed = r.Observed.Next(said.Observed)
	next.HoldsSlot = said.HoldsSlot && next.Observed != fleet.ObservedGone
	next.HasConfig = r.HasConfig || said.HasConfig
	next.Failure, next.Result = cmp.Or(next.Failure, said.Failure), cmp.Or(next.Result, said.Result)
	ended := next.Observed == fleet.ObservedFinished || next.Observed == fleet.ObservedDestroying || next.Observed == fleet.ObservedGone
	if said.Result != "" && ended && (r.Registration == fleet.RegBusy || r.Job != 0) {
		next.Registration = next.Registration.Next(fleet.RegFinished)
	}
	b.save(r, next)
	answered := func(o fleet.Observed) bool {
		return o == fleet.ObservedStandby || o == fleet.ObservedRegistering || o == fleet.ObservedIdle || o == fleet.ObservedBusy || o == fleet.ObservedFinished
	}
	if answered(next.Observed) && !answered(was.Observed) {
		b.host(r.Host).Failures = 0
		if was, ok := b.rollouts[r.Pool]; ok && r.Image != "" {
			b.saveRollout(was, was.Tried(r.Image, b.now()))
		}
	}
	ran := func(r fleet.Runner) bool { return r.Observed == fleet.ObservedBusy || r.Result != "" }
	if health := b.pools[r.Pool]; ran(next) && !ran(was) && health.Failures > 0 {
		health.Failures = 0
		b.pools[r.Pool] = health
	}
	if next.Failure != "" && was.Failure == "" && !blameless(was) {
		b.failed(next)
	}
}

func blameless(r fleet.Runner) bool {
	return r.Observed == fleet.ObservedBusy || r.Job != 0 || r.Unvouched() ||
		r.Registration == fleet.RegDeleting || r.Registration == fleet.RegGone && r.Attempt > 0 ||
		r.Wanted == fleet.WantDrain || r.Wanted == fleet.WantGone
}

func (b *books) missing(r *fleet.Runner) {
	if r.Observed == fleet.ObservedNone || r.Observed == fleet.ObservedGone {
		return
	}
	was, next := *r, *r
	next.Observed, next.HoldsSlot = fleet.ObservedGone, false
	if r.Observed != fleet.ObservedDestroying && r.Wanted != fleet.WantGone && next.Failure == "" {
		next.Failure = "the agent lost it"
	}
	if next.Failure != was.Failure && !blameless(was) {
		b.failed(next)
	}
	b.save(r, next)
}

func (b *books) job(id fleet.JobID) int {
	return slices.IndexFunc(b.jobs, func(j fleet.Job) bool { return j.ID == id })
}

func (b *books) Learn(_ context.Context, n fleet.JobNews) error {
	i := b.job(n.Job.ID)
	if i < 0 {
		i, _ = slices.BinarySearchFunc(b.jobs, n.Job.ID, func(j fleet.Job, id fleet.JobID) int { return cmp.Compare(j.ID, id) })
		b.jobs = slices.Insert(b.jobs, i, fleet.Job{})
	}
	was := b.jobs[i]
	is := was.Learn(n, b.now())
	is.RunnerID = 0 // only in news
	b.jobs[i] = is
	if was.RunnerName != "" && was.RunnerName != is.RunnerName {
		for k := range b.runners {
			if r := &b.runners[k]; r.Job == is.ID && !r.JobDone {
				next := *r
				next.Job = 0
				b.save(r, next)
			}
		}
	}
	return b.bind(is, n.Job.RunnerID)
}

func (b *books) bind(j fleet.Job, githubID int64) error {
	if j.RunnerName == "" || j.State != fleet.JobInProgress && j.State != fleet.JobCompleted {
		return nil
	}
	at := slices.IndexFunc(b.mints, func(m mintRow) bool { return m.name == j.RunnerName })
	if at < 0 {
		return nil
	}
	r, err := b.runner(b.mints[at].runner)
	switch {
	case errors.Is(err, fleet.ErrNotFound):
		return nil
	case !r.Scope.Covers(j.Owner, j.Repo), r.GitHubID != 0 && githubID != 0 && r.GitHubID != githubID, r.Job != 0 && r.Job != j.ID:
		return nil
	}
	next := *r
	next.Job, next.Registration = j.ID, r.Registration.Next(fleet.RegStarted)
	next.JobDone = r.JobDone || j.State == fleet.JobCompleted
	b.save(r, next)
	return nil
}
