// SPDX-License-Identifier: MIT

package autoscaler_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// model is a whole site in small: a store that carries plans, agents that obey,
// and a GitHub that gives any queued job to any listening runner that fits.
type model struct {
	*snap
	*testing.T
	rng   *rand.Rand
	next  int
	works map[fleet.RunnerID]fleet.JobID // GitHub's truth
	jobs  map[fleet.JobID]*fleet.Job     // all of them, queued and running
	done  map[fleet.JobID]bool
	log   []string
}

func (m *model) say(format string, args ...any) {
	m.log = append(m.log, fmt.Sprintf("%s "+format, append([]any{m.Now.Format("15:04:05")}, args...)...))
}

func (m *model) set(i int, r fleet.Runner) {
	if r.Phase() != m.State.Runners[i].Phase() {
		r.Since = m.Now
	}
	r.MovedAt = m.Now
	r.Version++
	m.State.Runners[i] = r
}

func (m *model) index(id fleet.RunnerID) int {
	return slices.IndexFunc(m.State.Runners, func(r fleet.Runner) bool { return r.ID == id })
}

// settle decides and carries until nothing is left to do. A few rounds must do.
func (m *model) settle() {
	m.Helper()
	for round := 0; ; round++ {
		m.State.Runners = slices.DeleteFunc(m.State.Runners, fleet.Runner.Over)
		m.State.Jobs = m.State.Jobs[:0]
		for id := range m.next + 1 {
			if j := m.jobs[fleet.JobID(id)]; j != nil && j.State == fleet.JobQueued {
				m.State.Jobs = append(m.State.Jobs, *j)
			}
		}
		p := m.decide()
		if broken := brokenLaws(m.Snapshot, p); len(broken) > 0 {
			m.fail("broken: %s\n%s", strings.Join(broken, "; "), m.show(p))
		}
		if p.Empty() {
			return
		}
		if round == 6 {
			m.fail("the plans do not come to an end:\n%s", m.show(p))
		}
		m.carry(p)
	}
}

func (m *model) fail(format string, args ...any) {
	m.Helper()
	tail := m.log[max(0, len(m.log)-40):]
	m.Fatalf(format+"\n"+strings.Join(tail, "\n"), args...)
}

func (m *model) carry(p fleet.Plan) {
	for _, a := range p.Retires {
		i := m.index(a.Runner)
		r := m.State.Runners[i]
		m.say("retire %s drain %t: %s", a.Runner, a.Drain, a.Reason)
		if a.Drain {
			r.Wanted = r.Wanted.Next(fleet.DoDrain)
		} else {
			r.Wanted = r.Wanted.Next(fleet.DoRetire)
		}
		m.set(i, r)
	}
	for _, a := range p.Disarms {
		i := m.index(a.Runner)
		r := m.State.Runners[i]
		m.say("disarm %s", a.Runner)
		r.Wanted, r.Scope = r.Wanted.Next(fleet.DoDisarm), fleet.Scope{}
		m.set(i, r)
	}
	for _, a := range p.Deletes {
		i := m.index(a.Runner)
		r := m.State.Runners[i]
		m.say("delete %s: %s", a.Runner, a.Reason)
		r.Registration = r.Registration.Next(fleet.RegDelete)
		m.set(i, r)
		r = m.State.Runners[i]
		if m.works[a.Runner] != 0 { // 422
			m.say("vetoed %s", a.Runner)
			r.Registration, r.Wanted, r.DeleteAfter = r.Registration.Next(fleet.RegVetoed), r.Wanted.Next(fleet.DoResume), m.Now.Add(time.Minute)
		} else {
			r.Registration = r.Registration.Next(fleet.RegDeleted)
		}
		m.set(i, r)
	}
	for _, a := range p.Arms {
		i := m.index(a.Runner)
		r := m.State.Runners[i]
		m.say("arm %s for %s", a.Runner, a.Scope)
		r.Wanted, r.Scope, r.ArmedAt = r.Wanted.Next(fleet.DoArm), a.Scope, m.Now
		m.set(i, r)
	}
	for _, a := range p.Places {
		m.next++
		id := fmt.Sprintf("n%d", m.next)
		m.say("place %s: %s on %s", id, a.Pool, a.Host)
		m.runner(id, a.Pool, strings.TrimPrefix(string(a.Host), "h-"), fleet.PhasePlaced)
		r := &m.State.Runners[len(m.State.Runners)-1]
		r.Since, r.MovedAt, r.CreatedAt, r.Version = m.Now, m.Now, m.Now, 1
	}
}

// agent lets the host of a runner do its next step.
func (m *model) agent(i int) {
	r := m.State.Runners[i]
	busy := r.Observed == fleet.ObservedBusy
	registered := r.Registration != fleet.RegNone && r.Registration != fleet.RegGone
	switch {
	case r.Observed == fleet.ObservedGone:
		return
	case r.Wanted == fleet.WantGone, r.Wanted == fleet.WantDrain && !busy,
		r.Observed == fleet.ObservedFinished, r.Observed == fleet.ObservedFailed:
		if busy && m.jobs[m.works[r.ID]] != nil && m.jobs[m.works[r.ID]].State == fleet.JobInProgress {
			m.fail("runner %s is killed with its job running", r.ID)
		}
		r.Observed, r.HoldsSlot = fleet.ObservedGone, false
	case r.Observed == fleet.ObservedNone:
		r.Observed = fleet.ObservedPreparing
	case r.Observed == fleet.ObservedPreparing:
		r.Observed = fleet.ObservedBooting
	case r.Observed == fleet.ObservedBooting:
		r.Observed = fleet.ObservedStandby
	case r.Observed == fleet.ObservedStandby && r.Wanted == fleet.WantArmed && !registered:
		r.Registration = r.Registration.Next(fleet.RegMint).Next(fleet.RegGranted)
		r.HasConfig, r.Observed = true, fleet.ObservedRegistering
	case r.Observed == fleet.ObservedRegistering && registered:
		r.Observed = fleet.ObservedIdle
	case r.Observed == fleet.ObservedIdle && m.works[r.ID] != 0:
		r.Observed = fleet.ObservedBusy
	case busy && m.done[m.works[r.ID]]:
		r.Observed, r.Result, r.Registration = fleet.ObservedFinished, "succeeded", r.Registration.Next(fleet.RegFinished)
	default:
		return
	}
	m.say("agent: %s is %q", r.ID, r.Observed)
	m.set(i, r)
}

// assign lets GitHub give a queued job to a listening runner that fits, any.
func (m *model) assign() {
	var pairs [][2]int
	for id := range m.next + 1 {
		j := m.jobs[fleet.JobID(id)]
		if j == nil || j.State != fleet.JobQueued {
			continue
		}
		for i, r := range m.State.Runners {
			listens := r.Observed == fleet.ObservedIdle && m.works[r.ID] == 0 && r.Registration != fleet.RegGone
			if listens && r.Scope.Covers(j.Owner, j.Repo) && m.fits(*j, r) {
				pairs = append(pairs, [2]int{id, i})
			}
		}
	}
	if len(pairs) == 0 {
		return
	}
	pair := pairs[m.rng.IntN(len(pairs))]
	r := m.State.Runners[pair[1]]
	m.works[r.ID] = fleet.JobID(pair[0])
	m.say("github: job %d goes to %s", pair[0], r.ID)
	if m.rng.IntN(2) == 0 {
		m.named(r.ID) // the delivery may come before the guest says a word, or after
	}
}

// named delivers in_progress for the job that a runner works on.
func (m *model) named(id fleet.RunnerID) {
	i, job := m.index(id), m.works[id]
	j := m.jobs[job]
	if i < 0 || j == nil || j.State != fleet.JobQueued {
		return
	}
	j.State = fleet.JobInProgress
	r := m.State.Runners[i]
	r.Job, r.Registration = job, r.Registration.Next(fleet.RegStarted)
	m.say("delivery: job %d in progress on %s", job, id)
	m.set(i, r)
}

// finish ends a job that runs.
func (m *model) finish() {
	for _, job := range m.sorted() {
		j := m.jobs[job]
		i := m.index(m.runnerOf(job))
		if i < 0 || j == nil || m.done[job] || m.State.Runners[i].Observed != fleet.ObservedBusy {
			continue
		}
		m.named(m.State.Runners[i].ID)
		j.State, m.done[job] = fleet.JobCompleted, true
		r := m.State.Runners[i]
		r.JobDone, r.Registration = true, r.Registration.Next(fleet.RegFinished)
		m.say("delivery: job %d completed on %s", job, r.ID)
		m.set(i, r)
		return
	}
}

func (m *model) sorted() []fleet.JobID {
	var out []fleet.JobID
	for _, job := range m.works {
		out = append(out, job)
	}
	slices.Sort(out)
	return out
}

func (m *model) runnerOf(job fleet.JobID) fleet.RunnerID {
	for id, j := range m.works {
		if j == job {
			return id
		}
	}
	return ""
}

func (m *model) tick(d time.Duration) {
	m.Now = m.Now.Add(d)
	for i := range m.State.Hosts {
		m.State.Hosts[i].SeenAt = m.Now
	}
}

func (m *model) newJob() {
	m.next++
	labels := []string{"a"}
	for _, l := range []string{"b", "c"} {
		if m.rng.IntN(3) == 0 {
			labels = append(labels, l)
		}
	}
	j := &fleet.Job{
		ID: fleet.JobID(m.next), Owner: "acme", Repo: fmt.Sprint("r", m.rng.IntN(3)), Name: fmt.Sprint("job", m.next),
		Labels: fleet.NewLabels(labels...), State: fleet.JobQueued, QueuedAt: m.Now,
	}
	m.jobs[j.ID] = j
	m.say("job %d of %s asks for %v", j.ID, j.Repo, j.Labels)
}

func newModel(t *testing.T, seed uint64) *model {
	m := &model{
		snap: newSnap(), T: t, rng: rand.New(rand.NewPCG(seed, 3)), next: 1,
		works: map[fleet.RunnerID]fleet.JobID{}, jobs: map[fleet.JobID]*fleet.Job{}, done: map[fleet.JobID]bool{},
	}
	m.pool("all", []string{"a", "b", "c"}, standby(m.rng.IntN(2)))
	m.pool("small", []string{"a"}, scopes("acme/r0", "acme/r1", "acme"), most(m.rng.IntN(3)), standby(m.rng.IntN(2)), func(p *fleet.Pool) { p.Standby = min(p.Standby, max(1, p.MaxRunners)) })
	m.pool("mid", []string{"a", "b"}, scopes("acme/r0", "acme/r1"), standby(m.rng.IntN(2)))
	for i := range 1 + m.rng.IntN(2) {
		m.host(fmt.Sprint(i), 1+m.rng.IntN(3))
	}
	return m
}

// A site under random load: plans come to an end, no law is ever broken, no job is
// killed, and once the load ends every job has run and everything is gone but the
// standbys.
func TestSiteUnderRandomLoad(t *testing.T) {
	t.Parallel()
	for seed := range seeds(t) / 20 {
		m := newModel(t, seed)
		m.say("seed %d", seed)
		for range 150 {
			switch m.rng.IntN(8) {
			case 0:
				m.newJob()
			case 1, 2, 3:
				if n := len(m.State.Runners); n > 0 {
					m.agent(m.rng.IntN(n))
				}
			case 4:
				m.assign()
			case 5:
				m.finish()
			case 6:
				m.tick(time.Duration(m.rng.IntN(20)) * time.Second)
			case 7: // cancelled while queued
				if m.rng.IntN(4) == 0 && len(m.State.Jobs) > 0 {
					j := m.jobs[m.State.Jobs[m.rng.IntN(len(m.State.Jobs))].ID]
					if m.runnerOf(j.ID) == "" {
						j.State, m.done[j.ID] = fleet.JobCompleted, true
						m.say("job %d is cancelled", j.ID)
					}
				}
			}
			m.settle()
		}
		m.drain()
		if t.Failed() {
			return
		}
	}
}

// drain lets everything come to its end.
func (m *model) drain() {
	m.Helper()
	for range 400 {
		for i := range m.State.Runners {
			m.agent(i)
		}
		m.assign()
		m.finish()
		m.tick(5 * time.Second)
		m.settle()
	}
	for id, j := range m.jobs {
		if !m.done[id] {
			m.fail("job %d (%s, %v) never ran: it is %s\n%s", id, j.Repo, j.Labels, j.State, m.show(m.decide()))
		}
	}
	want := 0
	slots := 0
	for _, p := range m.Pools {
		want += p.Standby
	}
	for _, h := range m.State.Hosts {
		slots += h.Slots
	}
	for _, r := range m.State.Runners {
		if r.Phase() != fleet.PhaseStandby {
			m.fail("runner %s is left, %s:\n%s", r.ID, r.Phase(), m.show(m.decide()))
		}
	}
	if n := len(m.State.Runners); n != min(want, slots) {
		m.fail("%d standbys are left, want %d:\n%s", n, min(want, slots), m.show(m.decide()))
	}
}

// Standbys of one pool and jobs of another that take turns on one slot do not
// chase each other away.
func TestNoThrashBetweenPools(t *testing.T) {
	t.Parallel()
	m := newModel(t, 1)
	m.Pools, m.State.Hosts = nil, nil
	m.pool("x", []string{"x"}, standby(1))
	m.pool("y", []string{"y"}, standby(1))
	m.pool("z", []string{"x", "y"}, most(1), standby(1))
	m.host("0", 1)
	for range 40 {
		m.settle()
		for i := range m.State.Runners {
			m.agent(i)
		}
		m.tick(30 * time.Second)
	}
	if n := strings.Count(strings.Join(m.log, "\n"), "place"); n != 1 {
		t.Errorf("%d runners were placed on one slot without a job in sight:\n%s", n, strings.Join(m.log, "\n"))
	}
	if len(m.State.Runners) != 1 || m.State.Runners[0].Phase() != fleet.PhaseStandby {
		t.Errorf("%+v", m.State.Runners)
	}
}
