// SPDX-License-Identifier: MIT

// Package books is what the store does, without a database: the same transitions, the
// same checks of versions, the same void actions, in memory and on one goroutine. Models
// of a site keep their books in it; nothing but tests imports it. A test of autoscaler
// holds it against the store itself.
package books

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// Books are the state of a site. Their methods are the store's.
type Books struct {
	Hosts    []fleet.Host // as they enrolled
	Rollouts map[string]fleet.Rollout
	// Changed, if set, is called after each change: with a host of which something else
	// is wanted than before, or with "".
	Changed func(fleet.HostID)
	// Reuse lets the slices of a State be those of the one before, and those of Unsettled.
	Reuse bool

	now     func() time.Time
	made    int
	jobs    map[fleet.JobID]*fleet.Job
	open    map[string][]*fleet.Job // not completed, by lower-case owner, in order of id
	queue   []*fleet.Job            // queued, the oldest first
	heard   map[string]map[fleet.Scope]time.Time
	rows    map[fleet.RunnerID]*row
	all     []*row // as they were made
	live    []*row // of these, those that are not over
	pools   map[string]fleet.PoolHealth
	refused map[fleet.PoolScope]fleet.Refusals
	names   map[string]mint
	mints   map[string][]time.Time // by owner, of the last minute and before

	// The newest, where Reuse is set.
	state         fleet.State
	unsettledJobs []fleet.Job
	unsettled     []fleet.Runner
}

// row is a runner with what only the store has of it.
type row struct {
	fleet.Runner
	made  int
	names []string // of all its registrations
	live  bool
}

type mint struct {
	runner fleet.RunnerID
	at     time.Time
}

// New returns empty books that are dated by the clock.
func New(now func() time.Time) *Books {
	return &Books{
		now: now, Rollouts: map[string]fleet.Rollout{},
		jobs: map[fleet.JobID]*fleet.Job{}, open: map[string][]*fleet.Job{}, heard: map[string]map[fleet.Scope]time.Time{},
		rows: map[fleet.RunnerID]*row{}, pools: map[string]fleet.PoolHealth{}, refused: map[fleet.PoolScope]fleet.Refusals{}, names: map[string]mint{}, mints: map[string][]time.Time{},
	}
}

// Enrol adds a host.
func (b *Books) Enrol(name string) fleet.HostID {
	id := fleet.HostID("h-" + name)
	b.Hosts = append(b.Hosts, fleet.Host{ID: id, Name: name, Backends: []string{}, Images: []string{}})
	return id
}

func (b *Books) changed(host fleet.HostID) {
	if b.Changed != nil {
		b.Changed(host)
	}
}

// State returns what a decision is made from.
func (b *Books) State(context.Context) (fleet.State, error) {
	st := fleet.State{Pools: map[string]fleet.PoolHealth{}, Mints: map[string]fleet.MintUse{}}
	if b.Reuse {
		st = b.state
		st.Jobs, st.Runners, st.Hosts = st.Jobs[:0], st.Runners[:0], st.Hosts[:0]
		clear(st.Pools)
		clear(st.Mints)
		if st.Pools == nil {
			st.Pools, st.Mints = map[string]fleet.PoolHealth{}, map[string]fleet.MintUse{}
		}
	}
	st.Hosts = append(st.Hosts, b.Hosts...)
	if st.Rollouts = nil; len(b.Rollouts) > 0 || !b.Reuse {
		st.Rollouts = maps.Clone(b.Rollouts)
	}
	st.Refused = maps.Clone(b.refused)
	for _, j := range b.queue {
		st.Jobs = append(st.Jobs, *j)
	}
	for _, r := range b.live {
		st.Runners = append(st.Runners, r.Runner)
	}
	for name, h := range b.pools {
		if h.Failures > 0 {
			st.Pools[name] = h
		}
	}
	cut := b.now().Add(-time.Minute)
	for owner, at := range b.mints {
		old := 0
		for old < len(at) && !at[old].After(cut) {
			old++
		}
		if at = at[old:]; len(at) > 0 {
			st.Mints[owner] = fleet.MintUse{Begun: at[:len(at):len(at)]}
		}
		b.mints[owner] = at
	}
	b.state = st
	return st, nil
}

// All returns every runner there ever was, as they were made, but for those forgotten.
func (b *Books) All() []*fleet.Runner { return runners(b.all) }

// Live returns those that are not over.
func (b *Books) Live() []*fleet.Runner { return runners(b.live) }

func runners(rows []*row) []*fleet.Runner {
	out := make([]*fleet.Runner, len(rows))
	for i, r := range rows {
		out[i] = &r.Runner
	}
	return out
}

// On calls yield for each runner of a host that is not over.
func (b *Books) On(host fleet.HostID, yield func(*fleet.Runner)) {
	for _, r := range b.live {
		if r.Host == host {
			yield(&r.Runner)
		}
	}
}

// Find returns a runner, or fleet.ErrNotFound.
func (b *Books) Find(id fleet.RunnerID) (*fleet.Runner, error) {
	if r := b.rows[id]; r != nil {
		return &r.Runner, nil
	}
	return nil, fleet.ErrNotFound
}

// Host returns a host that has enrolled.
func (b *Books) Host(id fleet.HostID) *fleet.Host {
	i := slices.IndexFunc(b.Hosts, func(h fleet.Host) bool { return h.ID == id })
	return &b.Hosts[i]
}

// Versions is a number that moves with any change of a runner.
func (b *Books) Versions() (n int64) {
	for _, r := range b.all {
		n += r.Version
	}
	return n
}

// Forget drops runners that have been over since before then.
func (b *Books) Forget(before time.Time) {
	b.all = slices.DeleteFunc(b.all, func(r *row) bool {
		if r.live || r.MovedAt.After(before) {
			return false
		}
		delete(b.rows, r.ID)
		for _, name := range r.names {
			delete(b.names, name)
		}
		return true
	})
}

// Save writes a runner: a new phase starts its clock, any change moves the version.
func (b *Books) Save(r *fleet.Runner, next fleet.Runner) {
	if next == *r {
		return
	}
	was := *r
	if next.Phase() != was.Phase() {
		next.Since = b.now()
	}
	next.MovedAt = b.now()
	next.Version++
	*r = next
	b.place(b.rows[r.ID])
	if was.Wanted != next.Wanted || was.Scope != next.Scope || next.Observed == fleet.ObservedGone && was.Observed != next.Observed {
		b.changed(next.Host)
		return
	}
	b.changed("")
}

// place puts a runner where it belongs among those that are not over.
func (b *Books) place(r *row) {
	live := !r.Over()
	if live == r.live {
		return
	}
	r.live = live
	at, _ := slices.BinarySearchFunc(b.live, r.made, func(o *row, made int) int { return cmp.Compare(o.made, made) })
	if live {
		b.live = slices.Insert(b.live, at, r)
		return
	}
	b.live = slices.Delete(b.live, at, at+1)
}

func (b *Books) failed(r fleet.Runner) {
	blamed := false
	if was, ok := b.Rollouts[r.Pool]; ok && r.Image != "" {
		var is fleet.Rollout
		is, blamed = was.Failed(r.Image, r.Failure, b.now())
		b.saveRollout(was, is)
	}
	if !blamed {
		h := b.pools[r.Pool]
		b.pools[r.Pool] = fleet.PoolHealth{Failures: h.Failures + 1, FailedAt: b.now(), Reason: r.Failure}
	}
	host := b.Host(r.Host)
	host.Failures, host.FailedAt = host.Failures+1, b.now()
}

// MayExist reports whether GitHub may have a registration.
func MayExist(s fleet.Registration) bool { return s != fleet.RegNone && s != fleet.RegGone }

// Repositories returns the repositories of an owner of which a delivery told after since.
func (b *Books) Repositories(_ context.Context, owner string, since time.Time) (map[fleet.Scope]time.Time, error) {
	out := maps.Clone(b.heard[strings.ToLower(owner)])
	maps.DeleteFunc(out, func(_ fleet.Scope, at time.Time) bool { return !at.After(since) })
	return out, nil
}

// Unsettled returns the jobs of an owner that are not completed, and the runners that
// are not over or have moved after since.
func (b *Books) Unsettled(_ context.Context, owner string, since time.Time) (jobs []fleet.Job, list []fleet.Runner, _ error) {
	if b.Reuse {
		jobs, list = b.unsettledJobs[:0], b.unsettled[:0]
	}
	for _, j := range b.open[strings.ToLower(owner)] {
		jobs = append(jobs, *j)
	}
	for _, r := range b.all {
		if (r.live || r.MovedAt.After(since)) && strings.EqualFold(r.Scope.Owner, owner) {
			list = append(list, r.Runner)
		}
	}
	b.unsettledJobs, b.unsettled = jobs, list
	return jobs, list, nil
}

// StandingNames returns, in lower case, every name that was asked of GitHub for a runner
// that is not over.
func (b *Books) StandingNames(context.Context) (map[string]bool, error) {
	out := map[string]bool{}
	for _, r := range b.live {
		for _, name := range r.names {
			out[strings.ToLower(name)] = true
		}
	}
	return out, nil
}
