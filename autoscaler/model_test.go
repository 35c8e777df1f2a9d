// SPDX-License-Identifier: MIT

package autoscaler_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/autoscaler"
	"github.com/minifleet/minifleet/autoscaler/books"
	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/trust"
)

// step is one thing that happens to a world; a and b choose to what and how, among
// what there is by then. A step that finds nothing does nothing, so that any part of
// a trace is a trace.
type step struct {
	kind stepKind
	a, b uint32
}

type stepKind int

const (
	stepJob   stepKind = iota
	stepRound          // of one host: all that its agent has to do, once
	stepPost           // all answers and mail of GitHub's
	stepFetch
	stepLive
	stepReport
	stepBeginMint
	stepAnswerMint
	stepAnswerDelete
	stepAssign
	stepFinish
	stepDeliver
	stepLearn
	stepTick
	stepWake
	stepSilence
	stepTakeBack
	stepCancel
	stepPlan
	stepRestart
	stepVerdict
	stepFresh
	stepTag
	stepPull
	stepOperator
	stepKinds // those below break a law by themselves
	stepSlots
	stepTwice
	stepLimit
	stepUnpool
)

// often is how likely each kind is, in the order above.
var often = [stepKinds]int{10, 46, 14, 5, 12, 6, 3, 6, 8, 16, 6, 6, 2, 5, 5, 2, 3, 2, 5, 1, 1, 1, 4, 8, 2}

func trace(seed uint64, n int, breaking bool) []step {
	rng := rand.New(rand.NewPCG(seed, 9))
	total := 0
	for _, o := range often {
		total += o
	}
	out := make([]step, 0, n)
	for range n {
		x, kind := rng.IntN(total), stepKind(0)
		for x >= often[kind] {
			x -= often[kind]
			kind++
		}
		if breaking && rng.IntN(8) == 0 {
			kind = stepKinds + 1 + stepKind(rng.IntN(4))
		}
		out = append(out, step{kind, rng.Uint32(), rng.Uint32()})
	}
	return out
}

func pick[T any](list []T, a uint32) (v T, ok bool) {
	if len(list) == 0 {
		return v, false
	}
	return list[int(a)%len(list)], true
}

// at takes one step, without any decision.
func (w *world) at(s step) {
	host := w.hosts[int(s.a)%len(w.hosts)]
	vm, hasVM := pick(host.vms, s.a>>8)
	job, hasJob := pick(w.jobs, s.a)
	switch s.kind {
	case stepJob:
		if len(w.jobs) < 6 {
			w.newJob(s.a)
		}
	case stepRound:
		w.round(host)
	case stepPost:
		w.answer()
	case stepFetch:
		w.fetch(host)
	case stepLive:
		if hasVM {
			w.live(host, vm, s.b%24)
		}
	case stepReport:
		w.report(host)
	case stepBeginMint:
		for _, v := range host.vms {
			w.beginMint(host, v)
		}
	case stepAnswerMint:
		if m, ok := pick(w.mints, s.a); ok {
			w.answerMint(m, s.b%12)
		}
	case stepAnswerDelete:
		if d, ok := pick(w.deletes, s.a); ok {
			w.answerDelete(d, s.b%6)
		}
	case stepAssign:
		w.assign(s.a)
	case stepFinish:
		if hasJob {
			w.finish(job)
		}
	case stepDeliver:
		w.post(int(s.a), s.b)
	case stepLearn:
		if hasJob {
			w.learn(job)
		}
	case stepTick:
		w.note("time passes")
		w.tick([]time.Duration{time.Second, 5 * time.Second, 20 * time.Second, time.Minute, 70 * time.Second, 4 * time.Minute}[s.a%6])
	case stepWake:
		if w.wake.After(w.now) {
			w.note("time passes until %s", w.wake.Format("15:04:05.000"))
			w.tick(w.wake.Sub(w.now))
		}
	case stepSilence:
		w.silence(host, s.b)
	case stepTakeBack:
		if hasJob {
			w.takeBack(job)
		}
	case stepCancel:
		if hasJob {
			w.cancel(job, s.b%2 == 0)
		}
	case stepPlan: // its carrying out is late: after the next thing that happens
		if w.pending == nil {
			p := w.decide()
			w.pending = &p
		}
	case stepRestart:
		w.restart()
	case stepVerdict:
		if hasJob {
			said := trust.Verdict{Pending: s.b%3 == 0, Refused: s.b%3 == 1, Reason: "because"}
			if s.b%5 > 1 { // of one pool alone
				pool := w.pools[int(s.b>>8)%len(w.pools)].Name
				w.verdicts[job.ID] = fleet.Verdict{Pools: map[string]trust.Verdict{pool: said}}
				break
			}
			w.verdicts[job.ID] = fleet.Verdict{Pending: said.Pending, Refused: said.Refused, Reason: said.Reason}
		}
	case stepFresh:
		w.demand = !w.demand
		w.note("demand is known: %t", w.demand)
	case stepTag:
		w.moveTag(s.a, s.b)
	case stepPull:
		w.pull(host, s.b%12)
	case stepOperator:
		w.operate(s.a, s.b)
	default:
		w.breakLaw(s, host)
	}
}

// post delivers one piece of mail, perhaps to be delivered once more, or loses it.
func (w *world) post(at int, luck uint32) {
	if len(w.mail) == 0 {
		return
	}
	at %= len(w.mail)
	n := w.mail[at]
	if luck%8 != 1 {
		w.mail = slices.Delete(w.mail, at, at+1)
	}
	if luck%8 == 0 {
		w.note("lost: job %d, %s", n.Job.ID, n.Event)
		return
	}
	w.note("delivered: job %d, %s on %q", n.Job.ID, n.Event, n.Job.RunnerName)
	w.must(w.ledger.Learn(w.ctx, n))
}

func (w *world) silence(h *mini, luck uint32) {
	switch {
	case h.silent:
		w.back(h)
	case luck%3 == 0:
		w.cut(h)
	default:
		h.silent = true
		w.note("host %s is silent", h.name)
	}
}

// breakLaw brings about what no plan could.
func (w *world) breakLaw(s step, h *mini) {
	switch s.kind {
	case stepSlots:
		w.back(h)
		h.facts.Slots = max(1, h.facts.Slots-1)
		w.note("host %s has %d slots", h.name, h.facts.Slots)
		w.report(h)
	case stepTwice:
		r, ok := pick(w.books.All(), s.a)
		other, ok2 := pick(w.books.All(), s.b)
		if ok && ok2 && r.ID != other.ID && r.Job != 0 && !r.JobDone && other.Job == 0 && books.MayExist(other.Registration) && !w.tampered[r.ID] {
			to, _ := w.books.Find(other.ID)
			next := *to
			next.Job = r.Job
			w.books.Save(to, next)
			w.tampered[other.ID] = true
			w.note("%s and %s are both bound to job %d", r.ID, other.ID, r.Job)
		}
	case stepLimit:
		p := &w.pools[s.a%2]
		p.MaxRunners = 1
		p.Standby = min(p.Standby, 1)
		w.note("pool %s has a limit of 1", p.Name)
	case stepUnpool:
		if len(w.pools) > 2 {
			w.note("pool %s is configured no more", w.pools[2].Name)
			w.pools = w.pools[:2]
			w.must(w.ledger.ConfigureRollouts(w.ctx, w.pools))
		}
	}
}

func (w *world) snapshot() autoscaler.Snapshot {
	st, err := w.ledger.State(w.ctx)
	w.must(err)
	return autoscaler.Snapshot{
		Now: w.now, State: st, Pools: w.pools, Rules: w.rules, Verdicts: w.verdicts,
		Fresh: autoscaler.Fresh{Demand: w.demand, Hosts: w.now.Sub(w.began) > deadline},
	}
}

// decide makes a plan and holds it against every law of plans.
func (w *world) decide() fleet.Plan {
	s := w.snapshot()
	p := autoscaler.Decide(s)
	bad := slices.Concat(brokenLaws(s, p), untrueReasons(s, p), imageLaws(s, p))
	if !s.Fresh.Demand {
		bad = append(bad, unknownDemandLaws(s, p)...)
	}
	if len(bad) > 0 {
		w.log = append(w.log, strings.Split(strings.TrimSpace((&snap{s}).show(p)), "\n")...)
		w.fail("%s", strings.Join(bad, "; "))
	}
	w.wake = p.WakeAt
	return p
}

// unknownDemandLaws: nothing is scaled down, and what is demanded is served all the same.
func unknownDemandLaws(s autoscaler.Snapshot, p fleet.Plan) (out []string) {
	for _, d := range p.Disarms {
		out = append(out, fmt.Sprintf("%s is disarmed and demand is not known", d.Runner))
	}
	late := func(id fleet.RunnerID, reason string) {
		if slices.ContainsFunc(s.State.Runners, func(r fleet.Runner) bool { return r.ID == id && r.Retired == reason }) {
			return // decided when it was known, and still to be confirmed
		}
		if strings.HasPrefix(reason, "surplus") || strings.HasPrefix(reason, "makes room") || strings.HasPrefix(reason, "it listened") {
			out = append(out, fmt.Sprintf("%s is ended (%s) and demand is not known", id, reason))
		}
	}
	for _, r := range p.Retires {
		late(r.Runner, r.Reason)
	}
	for _, d := range p.Deletes {
		late(d.Runner, d.Reason)
	}
	s.Fresh.Demand = true
	known := autoscaler.Decide(s)
	forJobs := func(p fleet.Plan) string {
		var b strings.Builder
		for _, x := range p.Places {
			if strings.HasPrefix(x.Reason, "for job") {
				fmt.Fprintln(&b, "place", x.Pool, x.Host, x.Reason)
			}
		}
		fmt.Fprint(&b, p.Arms)
		return b.String()
	}
	if got, want := forJobs(p), forJobs(known); got != want {
		out = append(out, fmt.Sprintf("where demand is not known %s is done for jobs, and otherwise %s", got, want))
	}
	return out
}

// settle decides and carries out until nothing is left to do. A few rounds must do.
func (w *world) settle() {
	if w.pending != nil {
		p := *w.pending
		w.pending = nil
		w.carry(p)
	}
	for round := 0; ; round++ {
		p := w.decide()
		w.hold(&p)
		if p.Empty() {
			return
		}
		if round == 6 {
			w.fail("the plans do not come to an end: %q", brief(p))
		}
		w.carry(p)
	}
}

// hold leaves out deletions that are under way, as the loop does.
func (w *world) hold(p *fleet.Plan) {
	p.Deletes = slices.DeleteFunc(p.Deletes, func(a fleet.Delete) bool {
		return slices.ContainsFunc(w.deletes, func(d *deletion) bool { return d.Runner == a.Runner })
	})
}

// carry applies a plan: no law may be broken more than it was before.
func (w *world) carry(p fleet.Plan) {
	w.hold(&p)
	done, err := w.ledger.Carry(w.ctx, p)
	w.must(err)
	w.plans++
	for _, d := range done.Deletes {
		w.deletes = append(w.deletes, &deletion{Deletion: d})
	}
	w.events++
	if w.say {
		w.note("carried out: %q, %d void, placed %v", brief(p), done.Void, done.Placed)
		if done.Void > 0 {
			w.note("  void: some of %d arms, %d disarms, %d retires, %d deletes", len(p.Arms), len(p.Disarms), len(p.Retires), len(p.Deletes))
		}
	}
	for _, r := range p.Retires {
		w.note("  %s: %s", r.Runner, r.Reason)
	}
	for _, d := range p.Deletes {
		w.note("  %s: %s", d.Runner, d.Reason)
	}
	w.noWorse("the plan")
}

// noWorse holds the laws against how they were held when last looked at.
func (w *world) noWorse(what string) {
	after := w.breaches()
	for _, law := range slices.Sorted(maps.Keys(after)) {
		if what != "" && after[law] > w.broken[law] {
			w.fail("%s makes it worse: %s: %d, before %d", what, law, after[law], w.broken[law])
		}
	}
	w.broken = after
}

// breaches counts how far each law is from holding.
func (w *world) breaches() map[string]int {
	out := map[string]int{}
	for i, r := range w.books.All() {
		if r.Job != 0 && !r.JobDone && slices.ContainsFunc(w.books.All()[:i], func(o *fleet.Runner) bool { return o.Job == r.Job && !o.JobDone }) {
			out[fmt.Sprintf("job %d is bound to more than one runner", r.Job)]++
		}
	}
	for _, h := range w.books.Hosts {
		over := -h.Slots
		for _, r := range w.books.All() {
			if r.Host == h.ID && r.TakesSlot() {
				over++
			}
		}
		if over > 0 {
			out["runners beyond the slots of host "+h.Name] = over
		}
	}
	for _, h := range w.hosts {
		if over := h.slotsTaken() - h.facts.Slots; over > 0 {
			out["VMs beyond the slots of host "+h.name] = over
		}
		for _, m := range h.vms {
			r, err := w.books.Find(m.id)
			if m.state != fleet.ObservedGone && (err != nil || r.Observed == fleet.ObservedGone) {
				out["VM "+string(m.id)+" is in no book"] = 1
			}
		}
	}
	for _, g := range w.regs {
		r, err := w.books.Find(g.runner)
		known := err == nil && r.RunnerName == g.name && books.MayExist(r.Registration)
		if !known && !slices.ContainsFunc(w.mints, func(m *mint) bool { return m.Name == g.name }) {
			out["registration "+g.name+" is in no book"] = 1
		}
	}
	return out
}

// play runs a trace in a new world.
func play(ctx context.Context, seed uint64, steps []step, say bool) (failure string, w *world) {
	w = newWorld(ctx, seed)
	w.say = say
	return w.play(steps), w
}

// play runs a trace, and then lets everything come to its end. It returns which law
// was broken, "" if none was.
func (w *world) play(steps []step) (failure string) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case brokenLaw:
			failure = r.what
		default:
			panic(r)
		}
	}()
	w.hello()
	for _, s := range steps {
		events, versions := w.events, w.books.Versions()
		w.at(s)
		switch {
		case s.kind > stepKinds:
			w.noWorse("")
		case w.events == events && w.books.Versions() == versions:
			continue // nothing was there to happen to
		default:
			w.noWorse("the world")
		}
		w.settle()
		w.sleepsWell(s.b)
	}
	w.end()
	return ""
}

// sleepsWell: until the time at which the plan wants to look again, there is
// nothing to do if nothing happens.
func (w *world) sleepsWell(luck uint32) {
	if luck>>16%8 != 0 || !w.wake.After(w.now.Add(2)) {
		return
	}
	s := w.snapshot()
	s.Now = w.wake.Add(-1)
	p := autoscaler.Decide(s)
	w.hold(&p)
	if !p.Empty() {
		w.fail("the plan wanted to look again at %s, and there is something to do before: %q", w.wake, brief(p))
	}
}

// end lets the world do all that it owes: hosts come back, GitHub answers, mail
// arrives, what was lost is looked up. At the fixed point every law holds.
func (w *world) end() {
	w.note("the end begins")
	w.demand = true
	for id, v := range w.verdicts {
		v.Pending = false
		for pool, said := range v.Pools {
			said.Pending = false
			v.Pools[pool] = said
		}
		w.verdicts[id] = v
	}
	for _, h := range w.hosts {
		w.back(h)
	}
	quiet := 0
	for round := 0; quiet < 2; round++ {
		if round == 200 {
			w.fail("it never comes to rest")
		}
		before, versions := w.events, w.books.Versions()
		w.fair()
		w.settle()
		if w.events != before || w.books.Versions() != versions {
			quiet = 0
			w.tick(5 * time.Second)
			continue
		}
		if quiet++; quiet == 1 && w.wake.After(w.now) {
			w.tick(min(w.wake.Sub(w.now), 20*time.Second))
		}
		w.tick(20 * time.Minute)
	}
	w.judge()
}

// fair is a round in which everybody does what is theirs to do.
func (w *world) fair() {
	w.answer()
	w.resolve()
	for _, h := range w.hosts {
		w.pull(h, 11)
		w.round(h)
	}
	w.assign(0)
	for _, j := range w.jobs {
		w.takeBack(j)
		if m := w.guest(j.RunnerName); j.stranger || m != nil && m.state == fleet.ObservedBusy {
			w.finish(j)
		}
		w.learn(j)
	}
}

// answer lets all mail arrive, and GitHub give its answers.
func (w *world) answer() {
	for len(w.mail) > 0 {
		w.post(0, 7)
	}
	for _, m := range slices.Clone(w.mints) {
		w.answerMint(m, 11)
	}
	for _, d := range slices.Clone(w.deletes) {
		w.answerDelete(d, 5)
	}
}

// round lets an agent do all that it has to do, once.
func (w *world) round(h *mini) {
	w.fetch(h)
	for _, m := range h.vms {
		w.beginMint(h, m)
		w.live(h, m, 11)
	}
	w.report(h)
}

// judge holds the fixed point against the invariants.
func (w *world) judge() {
	if b := w.breaches(); len(b) > 0 {
		w.fail("at the end: %v", b)
	}
	p := w.decide()
	if !p.Empty() {
		w.fail("at the end there is something to do: %q", brief(p))
	}
	for _, j := range w.jobs {
		if j.State == fleet.JobCompleted {
			continue
		}
		at := slices.IndexFunc(p.Waits, func(x fleet.Wait) bool { return x.Job == j.ID })
		if at < 0 {
			w.fail("job %d is %s and nobody knows why", j.ID, j.State)
		}
		switch p.Waits[at].Code { // that they are true was seen before
		case fleet.WaitNoPool, fleet.WaitNoHost, fleet.WaitPolicy:
		default:
			w.fail("job %d waits for ever: %s", j.ID, p.Waits[at].Reason)
		}
	}
	standbys := map[string]int{}
	for _, r := range w.books.All() {
		switch {
		case r.Over() || w.tampered[r.ID]:
		case r.Phase() != fleet.PhaseStandby:
			w.fail("runner %s is left, %s, registration %q", r.ID, r.Phase(), r.Registration)
		default:
			standbys[r.Pool]++
		}
	}
	free := 0
	for _, h := range w.hosts {
		free += h.facts.Slots
		for _, m := range h.vms {
			if m.slot {
				free--
			}
			if m.state != fleet.ObservedGone && m.state != fleet.ObservedStandby && !w.tampered[m.id] {
				w.fail("VM %s is left, %s", m.id, m.state)
			}
		}
	}
	w.judgeImages(p)
	for _, g := range w.regs {
		if !w.tampered[g.runner] {
			w.fail("registration %s of %s is left", g.name, g.runner)
		}
	}
	for _, pool := range w.pools {
		if n := standbys[pool.Name]; n > pool.Standby || n < pool.Standby && free > 0 && pool.Backend == "" && len(w.tampered) == 0 {
			w.fail("pool %s keeps %d standbys, want %d; %d slots are free", pool.Name, n, pool.Standby, free)
		}
	}
}

// shorten drops steps as long as a law is broken all the same.
func shorten(ctx context.Context, seed uint64, steps []step) []step {
	for size := len(steps) / 2; size > 0; {
		smaller := false
		for at := 0; at+size <= len(steps); {
			less := slices.Concat(steps[:at], steps[at+size:])
			if failure, _ := play(ctx, seed, less, false); failure != "" {
				steps, smaller = less, true
			} else {
				at += size
			}
		}
		if !smaller || size > len(steps) {
			size /= 2
		}
	}
	return steps
}

func check(t *testing.T, seed uint64, steps []step) {
	t.Helper()
	if failure, _ := play(t.Context(), seed, steps, false); failure == "" {
		return
	}
	steps = shorten(t.Context(), seed, steps)
	failure, w := play(t.Context(), seed, steps, true)
	t.Errorf("%s\nThe shortest trace that was found:\n%s", failure, strings.Join(w.log, "\n"))
}

// every checks so many traces, each a test of its own by the name of its seed:
// go test -run 'TestEveryOrder//seed=123$'.
func every(t *testing.T, seeds uint64, of func(seed uint64) []step) {
	t.Helper()
	const some = 500
	for from := uint64(0); from < seeds; from += some {
		t.Run(fmt.Sprintf("%d-%d", from, from+some-1), func(t *testing.T) {
			t.Parallel()
			for seed := from; seed < min(from+some, seeds); seed++ {
				t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) { check(t, seed, of(seed)) })
			}
		})
	}
}

// A site from every state that its parts can bring it to in 60 steps: no plan and no
// step breaks a law, plans come to an end, and once the world answers all jobs have
// run or wait for a true reason, and nothing is left but the standbys.
func TestEveryOrder(t *testing.T) {
	t.Parallel()
	every(t, traces(t), func(seed uint64) []step { return trace(seed, 60, false) })
}

// The same where steps break laws: slots and limits are lowered below what runs, a
// job is bound twice, a pool goes. No action makes it worse.
func TestEveryOrderFromBrokenStates(t *testing.T) {
	t.Parallel()
	every(t, traces(t)/5, func(seed uint64) []step { return trace(seed, 60, true) })
}

// traces is how many there are: all of them where they are quick.
func traces(t *testing.T) uint64 {
	t.Helper()
	switch {
	case testing.Short():
		return 500
	case raced:
		return 1_000 // make test runs them all without the detector
	default:
		return 10_000
	}
}

// Standbys of one pool and jobs of another that take turns on one slot do not
// chase each other away.
func TestNoThrashBetweenPools(t *testing.T) {
	t.Parallel()
	w := newWorld(t.Context(), 1)
	w.say, w.hosts, w.books.Hosts = true, w.hosts[:1], w.books.Hosts[:1]
	w.hosts[0].facts.Slots = 1
	s := newSnap()
	s.pool("x", []string{"x"}, standby(1))
	s.pool("y", []string{"y"}, standby(1))
	s.pool("z", []string{"x", "y"}, most(1), standby(1))
	w.pools = s.Pools
	w.hello()
	for range 40 {
		w.settle()
		w.fair()
		w.tick(30 * time.Second)
	}
	if len(w.books.All()) != 1 || w.books.All()[0].Phase() != fleet.PhaseStandby {
		t.Errorf("%d runners were placed on one slot without a job in sight:\n%s", len(w.books.All()), strings.Join(w.log, "\n"))
	}
}
