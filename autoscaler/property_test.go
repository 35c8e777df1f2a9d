// SPDX-License-Identifier: MIT

package autoscaler_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/autoscaler"
	"github.com/minifleet/minifleet/fleet"
)

// random makes a small situation: few labels, pools that overlap, hosts that are
// all alike, runners in every phase.
func random(seed uint64) *snap {
	rng := rand.New(rand.NewPCG(seed, 1))
	pick := func(list ...string) string { return list[rng.IntN(len(list))] }
	s := newSnap()
	for i := range 1 + rng.IntN(4) {
		labels := []string{"a"}
		for _, l := range []string{"b", "c", "d"} {
			if rng.IntN(2) == 0 {
				labels = append(labels, l)
			}
		}
		owns := scopes("acme")
		switch rng.IntN(3) {
		case 0:
			owns = scopes("acme/r0", "acme/r1")
		case 1:
			owns = scopes("acme/r1", "acme")
		}
		s.pool(fmt.Sprintf("p%d", i), labels, owns, most(rng.IntN(2)*(1+rng.IntN(4))), func(p *fleet.Pool) {
			p.Standby = min(rng.IntN(2), max(p.MaxRunners, 1))
			p.Limits.Assignment = time.Hour // doubts have tests of their own
		})
	}
	for i := range 1 + rng.IntN(3) {
		s.host(fmt.Sprint(i), 1+rng.IntN(5))
	}
	phases := []fleet.Phase{
		fleet.PhasePlaced, fleet.PhasePreparing, fleet.PhaseBooting, fleet.PhaseStandby, fleet.PhaseArmed, fleet.PhaseRegistering,
		fleet.PhaseIdle, fleet.PhaseBusy, fleet.PhaseFinished, fleet.PhaseFailed, fleet.PhaseDestroying, fleet.PhaseGone,
	}
	for _, h := range s.State.Hosts {
		for range rng.IntN(h.Slots + 1) {
			p := s.Pools[rng.IntN(len(s.Pools))]
			id := fmt.Sprintf("r%d", len(s.State.Runners))
			s.runner(id, p.Name, h.Name, phases[rng.IntN(len(phases))], aged(time.Duration(rng.IntN(400))*time.Second), func(r *fleet.Runner) {
				if !r.Scope.IsZero() {
					r.Scope = p.Scopes[rng.IntN(len(p.Scopes))]
				}
				if r.Observed == fleet.ObservedBusy && rng.IntN(2) == 0 {
					r.Job, r.Registration, r.JobDone = 1000, fleet.RegBusy, rng.IntN(2) == 0
				}
				if rng.IntN(8) == 0 && r.Registration == fleet.RegMinted {
					r.Registration = []fleet.Registration{fleet.RegMinting, fleet.RegBusy, fleet.RegDeleting, fleet.RegGone}[rng.IntN(4)]
				}
				if rng.IntN(10) == 0 {
					r.Wanted = []fleet.Wanted{fleet.WantDrain, fleet.WantGone}[rng.IntN(2)]
				}
			})
		}
	}
	for i := range rng.IntN(9) {
		labels := []string{pick("a", "b", "c", "d")}
		if rng.IntN(2) == 0 {
			labels = append(labels, pick("a", "b", "c", "d"))
		}
		s.job(i+1, pick("r0", "r1", "r2"), labels...)
	}
	s.imagine(rand.New(rand.NewPCG(seed, 3)))
	return s
}

// supply says whether the runner can still take a job, in the oracle's own words.
func (s *snap) supply(r fleet.Runner, leaving map[fleet.RunnerID]bool) bool {
	if leaving[r.ID] || r.Job != 0 || r.Wanted == fleet.WantDrain || r.Wanted == fleet.WantGone {
		return false
	}
	switch r.Phase() {
	case fleet.PhaseBusy:
		return now.Sub(r.Since) < 2*time.Minute
	case fleet.PhasePlaced, fleet.PhasePreparing, fleet.PhaseBooting, fleet.PhaseStandby, fleet.PhaseArmed, fleet.PhaseRegistering, fleet.PhaseIdle:
		return true
	}
	return false
}

func (s *snap) poolOf(name string) fleet.Pool {
	for _, p := range s.Pools {
		if p.Name == name {
			return p
		}
	}
	panic(name)
}

// fits says whether GitHub could give the job to the runner, once it listens.
func (s *snap) fits(j fleet.Job, r fleet.Runner) bool {
	p := s.poolOf(r.Pool)
	if !p.Serves(j) {
		return false
	}
	return r.Scope.IsZero() || r.Scope.Covers(j.Owner, j.Repo)
}

// flow is a plain augmenting-path search over a network of jobs, runners, pools
// and slots: slow, and nothing like the code it checks.
type flow struct {
	left map[string]map[string]int // residual capacity
}

func (f *flow) edge(from, to string, n int) {
	for _, e := range [][2]string{{from, to}, {to, from}} {
		if f.left[e[0]] == nil {
			f.left[e[0]] = map[string]int{}
		}
	}
	f.left[from][to] += n
}

func (f *flow) augment(at, sink string, seen map[string]bool) bool {
	if at == sink {
		return true
	}
	seen[at] = true
	for next, n := range f.left[at] {
		if n > 0 && !seen[next] && f.augment(next, sink, seen) {
			f.left[at][next]--
			f.left[next][at]++
			return true
		}
	}
	return false
}

// covered returns the jobs that can be covered, preferring the oldest: each is in
// if it can be beside those before it.
func (s *snap) covered(leaving map[fleet.RunnerID]bool, withRoom bool) []fleet.JobID {
	f := &flow{left: map[string]map[string]int{}}
	f.edge("slots", "end", s.freeSlots())
	for _, p := range s.Pools {
		room := 1 << 20
		if p.MaxRunners > 0 {
			room = p.MaxRunners
			for _, r := range s.State.Runners {
				if r.Pool == p.Name && r.TakesSlot() {
					room--
				}
			}
		}
		if withRoom && !(fleet.RemoteImage(p.Image) && s.State.Rollouts[p.Name].Current == "") {
			f.edge("pool "+p.Name, "slots", max(0, room))
		}
	}
	for _, r := range s.State.Runners {
		if s.supply(r, leaving) {
			f.edge("runner "+string(r.ID), "end", 1)
		}
	}
	var out []fleet.JobID
	for _, j := range s.State.Jobs {
		at := fmt.Sprint("job ", j.ID)
		for _, r := range s.State.Runners {
			if s.supply(r, leaving) && s.fits(j, r) {
				f.edge(at, "runner "+string(r.ID), 1)
			}
		}
		for _, p := range s.Pools {
			if p.Serves(j) {
				f.edge(at, "pool "+p.Name, 1)
			}
		}
		if f.augment(at, "end", map[string]bool{}) {
			out = append(out, j.ID)
		}
	}
	return out
}

func (s *snap) freeSlots() (n int) {
	for _, h := range s.State.Hosts {
		free := h.Slots
		for _, r := range s.State.Runners {
			if r.Host == h.ID && r.TakesSlot() {
				free--
			}
		}
		n += max(0, free)
	}
	return n
}

// verdictOf says of each job, from the reason that the plan gives, whether a runner
// there is covers it, or one that is being placed.
func verdictOf(p fleet.Plan) (byRunner, byRoom []fleet.JobID) {
	for _, w := range p.Waits {
		switch w.Code {
		case fleet.WaitUnnamed, fleet.WaitAssignment, fleet.WaitRegistering, fleet.WaitStandby, fleet.WaitBooting, fleet.WaitMintBudget:
			if w.Runner != "" {
				byRunner = append(byRunner, w.Job)
			}
			byRoom = append(byRoom, w.Job)
		}
	}
	slices.Sort(byRunner)
	slices.Sort(byRoom)
	return byRunner, byRoom
}

// gone are the runners that the plan ends before it looks at demand: they do not
// count for it. Those that it ends because nobody needs them did count.
func leavingEarly(p fleet.Plan) map[fleet.RunnerID]bool {
	out := map[fleet.RunnerID]bool{}
	late := func(reason string) bool {
		return strings.HasPrefix(reason, "surplus") || strings.HasPrefix(reason, "makes room") || strings.HasPrefix(reason, "replaced")
	}
	for _, a := range p.Retires {
		out[a.Runner] = out[a.Runner] || !late(a.Reason)
	}
	for _, a := range p.Deletes {
		out[a.Runner] = out[a.Runner] || !late(a.Reason)
	}
	return out
}

func seeds(t *testing.T) uint64 {
	if testing.Short() {
		return 500
	}
	t.Helper()
	return 6000
}

// As many jobs are covered as any arrangement could, by runners there are and by
// runners there is room for, the oldest first.
func TestDemandIsMatched(t *testing.T) {
	t.Parallel()
	for seed := range seeds(t) {
		s := random(seed)
		p := s.decide()
		leaving := leavingEarly(p)
		byRunner, all := verdictOf(p)
		// Which jobs the runners there are go to may change once others find room.
		if best := s.covered(leaving, false); len(best) != len(byRunner) {
			t.Fatalf("seed %d: runners there are cover %v, as many as %v could be\n%s", seed, byRunner, best, s.show(p))
		}
		if diff := cmp.Diff(s.covered(leaving, true), all); diff != "" {
			t.Fatalf("seed %d: covered with the room there is (-best +got):\n%s\n%s", seed, diff, s.show(p))
		}
	}
}

func (s *snap) show(p fleet.Plan) string {
	var b strings.Builder
	for _, x := range s.Pools {
		fmt.Fprintf(&b, "pool %s %v %v max %d standby %d\n", x.Name, x.Labels, x.Scopes, x.MaxRunners, x.Standby)
		if r, ok := s.State.Rollouts[x.Name]; ok {
			fmt.Fprintf(&b, "  image %s next %s previous %s held %s failures %d canary %+v\n",
				fleet.ImageShort(r.Current), fleet.ImageShort(r.Next), fleet.ImageShort(r.Previous), fleet.ImageShort(r.Held), r.Failures, x.Canary)
		}
	}
	for _, h := range s.State.Hosts {
		fmt.Fprintf(&b, "host %s slots %d images %.19q prefetch %.60v\n", h.ID, h.Slots, h.Images, h.Prefetch)
	}
	for _, r := range s.State.Runners {
		fmt.Fprintf(&b, "runner %s pool %s host %s %s image %s wanted %q reg %q scope %q job %d done %t age %s\n", r.ID, r.Pool, r.Host, r.Phase(), fleet.ImageShort(r.Image), r.Wanted, r.Registration, r.Scope, r.Job, r.JobDone, now.Sub(r.Since))
	}
	for _, j := range s.State.Jobs {
		fmt.Fprintf(&b, "job %d %s %v\n", j.ID, j.Repository(), j.Labels)
	}
	for _, w := range p.Waits {
		fmt.Fprintf(&b, "wait %d %s %s %s\n", w.Job, w.Code, w.Runner, w.Reason)
	}
	fmt.Fprintln(&b, brief(p))
	return b.String()
}

func TestPlanLaws(t *testing.T) {
	t.Parallel()
	for seed := range seeds(t) {
		s := random(seed)
		p := s.decide()
		for _, broken := range append(brokenLaws(s.Snapshot, p), imageLaws(s.Snapshot, p)...) {
			t.Errorf("seed %d: %s", seed, broken)
		}
		if again := s.decide(); !cmp.Equal(p, again) {
			t.Errorf("seed %d: the same snapshot gives another plan:\n%s", seed, cmp.Diff(p, again))
		}
		if t.Failed() {
			t.Fatal(s.show(p))
		}
	}
}

// brokenLaws says which of the rules that hold for every plan does not.
func brokenLaws(s autoscaler.Snapshot, p fleet.Plan) (out []string) {
	bad := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	byID := map[fleet.RunnerID]fleet.Runner{}
	taken, live := map[fleet.HostID]int{}, map[string]int{}
	for _, r := range s.State.Runners {
		byID[r.ID] = r
		if r.TakesSlot() {
			taken[r.Host]++
		}
		if counts(s, r) {
			live[r.Pool]++
		}
	}
	for _, a := range p.Places {
		taken[a.Host]++
		live[a.Pool]++
		for _, h := range s.State.Hosts {
			if h.ID == a.Host && taken[h.ID] > h.Slots {
				bad("%d runners on the %d slots of %s", taken[h.ID], h.Slots, h.ID)
			}
		}
		for _, x := range s.Pools {
			if x.Name == a.Pool && x.MaxRunners > 0 && live[x.Name] > x.MaxRunners {
				bad("pool %s has %d runners, its limit is %d", x.Name, live[x.Name], x.MaxRunners)
			}
		}
	}
	armed, jobs := map[fleet.RunnerID]bool{}, map[fleet.JobID]bool{}
	for _, a := range p.Arms {
		r := byID[a.Runner]
		if r.Phase() != fleet.PhaseStandby || armed[a.Runner] || jobs[a.Job] || r.Version != a.Version {
			bad("arm %+v of a runner that is %s", a, r.Phase())
		}
		armed[a.Runner], jobs[a.Job] = true, true
		i := slices.IndexFunc(s.State.Jobs, func(j fleet.Job) bool { return j.ID == a.Job })
		k := slices.IndexFunc(s.Pools, func(x fleet.Pool) bool { return x.Name == r.Pool })
		if i < 0 || k < 0 || !a.Scope.Covers(s.State.Jobs[i].Owner, s.State.Jobs[i].Repo) || !s.Pools[k].Serves(s.State.Jobs[i]) {
			bad("armed for a job that it cannot serve: %+v", a)
		}
	}
	acted := map[fleet.RunnerID]bool{}
	once := func(id fleet.RunnerID, version int64) {
		if acted[id] || armed[id] || byID[id].Version != version {
			bad("two actions on runner %s, or one on an old version", id)
		}
		acted[id] = true
	}
	for _, a := range p.Retires {
		r := byID[a.Runner]
		once(a.Runner, a.Version)
		ended := r.JobDone || r.Observed == fleet.ObservedFailed || r.Observed == fleet.ObservedFinished || r.Observed == fleet.ObservedDestroying
		deaf := r.Wanted == fleet.WantDrain && r.Job == 0 && s.Now.Sub(r.Since) >= 5*time.Minute
		if !a.Drain && !ended && !deaf {
			bad("retired without asking its guest: %s, %s", a.Runner, r.Phase())
		}
		if r.Phase() == fleet.PhaseBusy && !r.JobDone {
			bad("a busy runner is told to go: %s", a.Runner)
		}
		unconfirmed := r.Registration == fleet.RegDeleting && !r.RetiredAt.IsZero() && s.Now.Sub(r.RetiredAt) >= 5*time.Minute
		if a.Drain && r.Registration != fleet.RegNone && r.Registration != fleet.RegGone && !unconfirmed {
			bad("drained before GitHub let go of it: %s", a.Runner)
		}
	}
	for _, a := range p.Deletes {
		r := byID[a.Runner]
		once(a.Runner, a.Version)
		if r.Registration == fleet.RegNone || r.Registration == fleet.RegGone {
			bad("nothing to delete: %s", a.Runner)
		}
		if r.Observed == fleet.ObservedBusy && r.Registration != fleet.RegDeleting {
			bad("a working runner's registration is to be deleted: %s", a.Runner)
		}
		if r.DeleteAfter.After(s.Now) {
			bad("deleted before its time: %s", a.Runner)
		}
	}
	for _, a := range p.Disarms {
		once(a.Runner, a.Version)
		if r := byID[a.Runner]; r.Phase() != fleet.PhaseArmed {
			bad("disarm of a runner that is %s", r.Phase())
		}
	}
	said := map[fleet.JobID]int{}
	for _, w := range p.Waits {
		said[w.Job]++
		if w.Reason == "" || w.Code == "" {
			bad("no reason: %+v", w)
		}
		if _, ok := byID[w.Runner]; w.Runner != "" && !ok {
			bad("a runner that is not there: %+v", w)
		}
	}
	for _, j := range s.State.Jobs {
		if said[j.ID] != 1 {
			bad("job %d has %d reasons", j.ID, said[j.ID])
		}
	}
	if len(said) != len(s.State.Jobs) {
		bad("%d reasons for %d jobs", len(said), len(s.State.Jobs))
	}
	if !p.WakeAt.IsZero() && !p.WakeAt.After(s.Now) {
		bad("wake at %s, which is not after %s", p.WakeAt, s.Now)
	}
	return out
}

// In which order the snapshot lists hosts, pools and runners does not matter for
// who is covered, and hosts' order for nothing that is placed or armed.
func TestOrderOfTheSnapshotDoesNotMatter(t *testing.T) {
	t.Parallel()
	for seed := range seeds(t) / 4 {
		s := random(seed)
		p := s.decide()
		_, want := verdictOf(p)
		rng := rand.New(rand.NewPCG(seed, 2))
		for range 3 {
			o := random(seed)
			rng.Shuffle(len(o.State.Hosts), func(i, j int) { o.State.Hosts[i], o.State.Hosts[j] = o.State.Hosts[j], o.State.Hosts[i] })
			q := o.decide()
			if diff := cmp.Diff([]any{p.Places, p.Arms}, []any{q.Places, q.Arms}); diff != "" {
				t.Fatalf("seed %d, hosts in another order:\n%s\n%s", seed, diff, s.show(p))
			}
			rng.Shuffle(len(o.Pools), func(i, j int) { o.Pools[i], o.Pools[j] = o.Pools[j], o.Pools[i] })
			rng.Shuffle(len(o.State.Runners), func(i, j int) {
				o.State.Runners[i], o.State.Runners[j] = o.State.Runners[j], o.State.Runners[i]
			})
			if _, got := verdictOf(o.decide()); !slices.Equal(want, got) {
				t.Fatalf("seed %d, all in another order: covered %v, before %v\n%s", seed, got, want, s.show(p))
			}
		}
	}
}
