// SPDX-License-Identifier: MIT

package store

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// mirror is what decisions and agents read over and over: the rows that are alive, in
// memory. The writer alone changes it, right after each commit, out of what it has read
// within the transaction: it always shows the database as it was at one commit.
//
// Beside the rows it holds when each host was heard of last, which the database learns
// later: see presence.
type mirror struct {
	mu          sync.Mutex                    // guards the rest
	jobs        table[fleet.JobID, fleet.Job] // queued
	open        table[fleet.JobID, fleet.Job] // not completed
	runs        originRuns
	runners     table[fleet.RunnerID, fleet.Runner] // not over
	past        table[fleet.RunnerID, fleet.Runner] // over, moved within pastKept
	hosts       table[fleet.HostID, hostRow]
	credentials map[string]fleet.HostID // by hash
	on          map[fleet.HostID]map[fleet.RunnerID]bool
	pools       map[string]fleet.PoolHealth
	refusals    map[fleet.PoolScope]fleet.Refusals // never written to: a change puts another in its place
	rollouts    map[string]fleet.Rollout           // never written to: a change puts another in its place
	installed   *installed
	mints       map[string][]time.Time // of the last minute, by owner

	present   map[fleet.HostID]presence
	cached    map[fleet.HostID][]fleet.CachedImage // as reported last, see cached.go
	reporting map[fleet.HostID]int                 // reports that wait to be written
	saving    bool                                 // a change that saves presences is under way
	savedAt   time.Time                            // of all presences
	saveAfter time.Time                            // it went wrong: not again before
	fleet     []fleet.Host                         // for decisions; nil: out of date
	fleetTime time.Time
}

// hostRow is a host with what only the store needs of it.
type hostRow struct {
	fleet.Host
	credential string
}

func newMirror() *mirror {
	return &mirror{
		runs: newOriginRuns(),
		jobs: newTable(func(j *fleet.Job) fleet.JobID { return j.ID }, func(a, b *fleet.Job) int {
			return cmp.Or(a.QueuedAt.Compare(b.QueuedAt), cmp.Compare(a.ID, b.ID))
		}),
		open: newTable(func(j *fleet.Job) fleet.JobID { return j.ID }, func(a, b *fleet.Job) int { return cmp.Compare(a.ID, b.ID) }),
		past: newTable(func(r *fleet.Runner) fleet.RunnerID { return r.ID }, func(a, b *fleet.Runner) int {
			return cmp.Or(a.MovedAt.Compare(b.MovedAt), cmp.Compare(a.ID, b.ID))
		}),
		runners: newTable(func(r *fleet.Runner) fleet.RunnerID { return r.ID }, func(a, b *fleet.Runner) int {
			return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
		}),
		hosts: newTable(func(h *hostRow) fleet.HostID { return h.ID }, func(a, b *hostRow) int {
			return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
		}),
		credentials: map[string]fleet.HostID{}, on: map[fleet.HostID]map[fleet.RunnerID]bool{},
		mints: map[string][]time.Time{}, present: map[fleet.HostID]presence{}, cached: map[fleet.HostID][]fleet.CachedImage{}, reporting: map[fleet.HostID]int{},
	}
}

// apply takes in what was committed.
func (m *mirror) apply(n news) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, j := range n.jobs { // first those that come: they may be of a run that others leave
		if j.State == fleet.JobQueued {
			m.runs.job(j.Run(), 1)
		}
	}
	for _, j := range n.jobs {
		if was := m.jobs.byKey[j.ID]; was != nil {
			m.runs.job(was.Run(), -1)
		}
		if j.State == fleet.JobQueued {
			m.jobs.set(j)
		} else {
			m.jobs.remove(j.ID)
		}
		if j.State != fleet.JobUnknown && j.State != fleet.JobCompleted {
			m.open.set(j)
		} else {
			m.open.remove(j.ID)
		}
	}
	for _, r := range n.runs {
		m.runs.set(r)
	}
	for _, r := range n.runners {
		if was := m.runners.byKey[r.ID]; was != nil && was.Host != r.Host {
			delete(m.on[was.Host], r.ID)
		}
		if r.Over() {
			m.runners.remove(r.ID)
			if delete(m.on[r.Host], r.ID); len(m.on[r.Host]) == 0 {
				delete(m.on, r.Host)
			}
			m.applyPast(r)
			continue
		}
		m.past.remove(r.ID) // it is adopted again
		m.runners.set(r)
		if m.on[r.Host] == nil {
			m.on[r.Host] = map[fleet.RunnerID]bool{}
		}
		m.on[r.Host][r.ID] = true
	}
	for id, h := range n.hosts { // first who is gone: somebody else may have the name by now
		if h == nil {
			m.applyHost(id, nil)
		}
	}
	for id, h := range n.hosts {
		if h != nil {
			m.applyHost(id, h)
		}
	}
	for id, by := range n.raised {
		if h := m.hosts.byKey[id]; h != nil && n.hosts[id] == nil {
			next := *h
			next.Revision += by
			m.hosts.set(next)
		}
	}
	if n.pools != nil {
		m.pools = n.pools
	}
	if n.refused != nil {
		m.refusals = n.refused
	}
	if n.rollouts != nil {
		m.rollouts = n.rollouts
	}
	if n.installed != nil {
		m.installed = n.installed
	}
}

// pastKept is for how long runners are kept in memory that are over.
const pastKept = 15 * time.Minute

func (m *mirror) applyPast(r fleet.Runner) {
	m.past.set(r)
	newest := m.past.order[len(m.past.order)-1].MovedAt
	for newest.Sub(m.past.order[0].MovedAt) > pastKept {
		m.past.remove(m.past.order[0].ID)
	}
}

// unsettled returns what Unsettled says.
func (m *mirror) unsettled(owner string, since time.Time) (jobs []fleet.Job, runners []fleet.Runner) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, j := range m.open.order {
		if j.Pool == "" && strings.EqualFold(j.Owner, owner) {
			jobs = append(jobs, *j)
		}
	}
	for _, r := range m.runners.order {
		if strings.EqualFold(r.Scope.Owner, owner) {
			runners = append(runners, *r)
		}
	}
	for _, r := range slices.Backward(m.past.order) {
		if !r.MovedAt.After(since) {
			break
		}
		if strings.EqualFold(r.Scope.Owner, owner) {
			runners = append(runners, *r)
		}
	}
	return jobs, runners
}

func (m *mirror) applyHost(id fleet.HostID, h *hostRow) {
	was := m.hosts.byKey[id]
	if was != nil && m.credentials[was.credential] == id {
		delete(m.credentials, was.credential)
	}
	if h == nil {
		m.hosts.remove(id)
		delete(m.present, id)
		delete(m.cached, id)
		m.fleet = nil
		return
	}
	m.hosts.set(*h)
	m.credentials[h.credential] = id
	if was == nil || !alike(was.Host, h.Host) {
		m.fleet = nil
	}
}

// alike reports whether two states of a host are the same to a decision.
func alike(a, b fleet.Host) bool {
	return a.Name == b.Name && a.Slots == b.Slots && slices.Equal(a.Backends, b.Backends) && slices.Equal(a.Images, b.Images) &&
		a.OS == b.OS && a.Arch == b.Arch && a.AgentVersion == b.AgentVersion && a.Degraded == b.Degraded && a.Instance == b.Instance && a.Machine == b.Machine &&
		a.BackAt.Equal(b.BackAt) && a.Failures == b.Failures && a.FailedAt.Equal(b.FailedAt) &&
		slices.Equal(a.Prefetch, b.Prefetch)
}

// minted counts a registration that was begun.
func (m *mirror) minted(owner string, at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mints[owner] = append(m.mints[owner], at)
}

// listAge is how old the list of hosts for decisions may be in what it says of when
// each was heard of: little beside any deadline.
const listAge = time.Second

// state returns all that a decision is made from. Its lists are shared: nobody may
// write to them.
func (m *mirror) state(now time.Time) fleet.State {
	m.mu.Lock()
	defer m.mu.Unlock()
	st := fleet.State{Jobs: m.jobs.list(), Runs: m.runs.list(), Runners: m.runners.list(), Pools: map[string]fleet.PoolHealth{}, Mints: map[string]fleet.MintUse{}}
	// What was heard in the very instant of the list belongs into it.
	if age := now.Sub(m.fleetTime); m.fleet == nil || age <= 0 || age >= listAge {
		m.fleet, m.fleetTime = make([]fleet.Host, 0, len(m.hosts.order)), now
		for _, h := range m.hosts.order {
			m.fleet = append(m.fleet, m.now(h))
		}
	}
	st.Hosts, st.Rollouts, st.Refused = m.fleet, m.rollouts, m.refusals
	for pool, h := range m.pools {
		st.Pools[pool] = h
	}
	for owner, list := range m.mints {
		from := slices.IndexFunc(list, func(at time.Time) bool { return at.After(now.Add(-time.Minute)) })
		if from < 0 {
			delete(m.mints, owner)
			continue
		}
		m.mints[owner] = list[from:]
		st.Mints[owner] = fleet.MintUse{Begun: list[from:]}
	}
	return st
}

// desired returns what is wanted of a host, and false if there is no such host.
func (m *mirror) desired(id fleet.HostID) (revision int64, list []fleet.DesiredRunner, images []fleet.Prefetch, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.hosts.byKey[id]
	if h == nil {
		return 0, nil, nil, false
	}
	var there []*fleet.Runner
	for r := range m.on[id] {
		if r := m.runners.byKey[r]; r.Observed != fleet.ObservedGone {
			there = append(there, r)
		}
	}
	slices.SortFunc(there, m.runners.compare)
	for _, r := range there {
		list = append(list, fleet.DesiredRunner{ID: r.ID, Wanted: r.Wanted, Scope: r.Scope, Pool: r.Pool, Image: r.Image})
	}
	return h.Revision, list, h.Prefetch, true
}

// host returns a host, without what the database does not know of it.
func (m *mirror) host(id fleet.HostID) (fleet.Host, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if h := m.hosts.byKey[id]; h != nil {
		return h.Host, true
	}
	return fleet.Host{}, false
}

// rolloutsNow returns all rollouts, for reading only.
func (m *mirror) rolloutsNow() map[string]fleet.Rollout {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rollouts
}

// failing reports whether failures of the pool are counted.
func (m *mirror) failing(pool string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pools[pool].Failures > 0
}

// refused reports whether refusals are counted of a pool in a scope.
func (m *mirror) refused(at fleet.PoolScope) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.refusals[at].Times > 0
}

// runner returns a runner that is not over.
func (m *mirror) runner(id fleet.RunnerID) (fleet.Runner, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r := m.runners.byKey[id]; r != nil {
		return *r, true
	}
	return fleet.Runner{}, false
}

// runnersOn returns the runners of a host that are not over.
func (m *mirror) runnersOn(id fleet.HostID) []fleet.Runner {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := make([]fleet.Runner, 0, len(m.on[id]))
	for r := range m.on[id] {
		list = append(list, *m.runners.byKey[r])
	}
	return list
}

// knows reports whether the App is installed there, as far as is known.
func (m *mirror) knows(installation int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.installed.loaded || m.installed.known[installation]
}

// byCredential finds a host.
func (m *mirror) byCredential(hash string) (fleet.Host, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	id, ok := m.credentials[hash]
	if !ok {
		return fleet.Host{}, false
	}
	return m.now(m.hosts.byKey[id]), true
}
