// SPDX-License-Identifier: MIT

package autoscaler_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/minifleet/minifleet/autoscaler"
	"github.com/minifleet/minifleet/autoscaler/books"
	"github.com/minifleet/minifleet/fleet"
)

const deadline = time.Minute // for hosts

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

// world is a whole site in small: the books, agents with their VMs, and GitHub. The
// three know of each other only by what is reported, delivered and answered, in any
// order, late, twice or never.
type world struct {
	ctx      context.Context
	now      time.Time
	began    time.Time // the controller
	books    *books.Books
	ledger   ledger
	pools    []fleet.Pool
	rules    autoscaler.Rules
	verdicts map[fleet.JobID]fleet.Verdict
	demand   bool // whether demand is known
	pending  *fleet.Plan
	plans    int
	wake     time.Time
	hosts    []*mini
	mints    []*mint
	deletes  []*deletion

	jobs []*ghJob
	regs []*ghReg
	mail []fleet.JobNews
	made int // ids of GitHub

	broken map[string]int // how far each law was from holding when last looked at
	events int            // how often anything happened
	log    []string
	say    bool // keep the log
	// tampered is set where a step broke a law that no plan may be blamed for.
	tampered map[fleet.RunnerID]bool
}

// mini is a host as it is.
type mini struct {
	id       fleet.HostID
	name     string
	facts    fleet.HostFacts
	silent   bool
	instance int
	sequence int64
	vms      []*machine
	cache    []fleet.CachedImage // that it fetches, or failed to
}

// machine is a VM as it is.
type machine struct {
	id      fleet.RunnerID
	pool    string
	image   string
	want    fleet.Wanted // as fetched last
	state   fleet.Observed
	slot    bool
	name    string // of the registration whose config its guest has
	scope   fleet.Scope
	failure string
	result  string
}

// ghJob is a job at GitHub.
type ghJob struct {
	fleet.Job // State and RunnerName are GitHub's truth
	stranger  bool
}

// ghReg is a registration at GitHub.
type ghReg struct {
	id     int64
	name   string
	runner fleet.RunnerID
	pool   string
	scope  fleet.Scope
	job    *ghJob // the one it was ever given
}

// mint is a registration under way.
type mint struct {
	fleet.Mint
	begun   time.Time
	host    *mini
	outcome string // "" until GitHub has answered
	id      int64
}

// deletion is one under way.
type deletion struct {
	fleet.Deletion
	outcome string // "" until GitHub has answered
}

// brokenLaw is what a run ends with when a law does not hold.
type brokenLaw struct{ what string }

func (w *world) fail(format string, args ...any) {
	panic(brokenLaw{fmt.Sprintf(format, args...)})
}

func (w *world) note(format string, args ...any) {
	w.events++
	if w.say {
		w.log = append(w.log, w.now.Format("15:04:05 ")+fmt.Sprintf(format, args...))
	}
}

func (w *world) must(err error) {
	if err != nil {
		w.fail("the store refuses: %v", err)
	}
}

// newWorld makes a site of two or three pools that overlap, the narrowest of which
// has room for one or two runners, and hosts with few slots.
func newWorld(ctx context.Context, seed uint64) *world {
	rng := rand.New(rand.NewPCG(seed, 7))
	w := &world{
		ctx: ctx, now: now, began: now, demand: rng.IntN(4) > 0, verdicts: map[fleet.JobID]fleet.Verdict{}, tampered: map[fleet.RunnerID]bool{},
		rules: autoscaler.Rules{HostDeadline: deadline, MintsPerMinute: rng.IntN(3) * 2},
	}
	w.books = books.New(func() time.Time { return w.now })
	w.ledger = w.books
	pool := func(name string, most, standby int, scopes []string, labels ...string) {
		p := fleet.Pool{Name: name, Labels: fleet.NewLabels(labels...), LabelNames: labels, Image: "i", MaxRunners: most, Standby: standby}
		for _, s := range scopes {
			owner, repo, _ := strings.Cut(s, "/")
			p.Scopes = append(p.Scopes, fleet.Scope{Owner: owner, Repo: repo})
		}
		w.pools = append(w.pools, p)
	}
	pool("small", 1+rng.IntN(2), rng.IntN(2), []string{"acme"}, "a")
	pool("wide", rng.IntN(4), rng.IntN(2), [][]string{{"acme"}, {"acme/r0", "acme/r1"}, {"acme/r0", "acme"}}[rng.IntN(3)], "a", "b")
	if rng.IntN(3) == 0 {
		pool("vz", 0, 0, []string{"acme"}, "a", "c")
		w.pools[2].Backend = "vz"
	}
	w.pools[1].Standby = min(w.pools[1].Standby, max(w.pools[1].MaxRunners, 1))
	for i := range 1 + rng.IntN(2) {
		name := fmt.Sprint(i)
		m := &mini{id: w.books.Enrol(name), name: name, facts: fleet.HostFacts{Slots: 1 + rng.IntN(2), Backends: []string{"process"}, Images: []string{"i"}}}
		w.hosts = append(w.hosts, m)
	}
	w.imagine(rng)
	return w
}

// hello lets the agents begin.
func (w *world) hello() {
	for _, h := range w.hosts {
		w.greet(h)
	}
	w.must(w.ledger.ConfigureRollouts(w.ctx, w.pools))
}

func (w *world) greet(h *mini) {
	h.instance, h.sequence = h.instance+1, 0
	w.must(w.ledger.Hello(w.ctx, h.id, h.agent(), "machine", h.facts, deadline))
}

func (h *mini) agent() string { return fmt.Sprint("agent-", h.instance) }

// tick lets time pass; agents that are not silent are heard of.
func (w *world) tick(d time.Duration) {
	for d > 0 {
		step := min(d, 25*time.Second)
		w.now, d = w.now.Add(step), d-step
		for _, h := range w.hosts {
			if !h.silent {
				w.must(w.ledger.Heard(w.ctx, h.id, h.agent(), deadline))
			}
		}
	}
	for _, m := range w.mints {
		if m.outcome == "" && w.now.Sub(m.begun) > time.Minute {
			m.outcome = "no answer" // the client's own deadline
		}
	}
}

// fetch gives an agent what is wanted of it.
func (w *world) fetch(h *mini) {
	if h.silent {
		return
	}
	wanted := map[fleet.RunnerID]bool{}
	for _, r := range w.books.All() {
		if r.Host != h.id || r.Observed == fleet.ObservedGone {
			continue
		}
		wanted[r.ID] = true
		at := slices.IndexFunc(h.vms, func(m *machine) bool { return m.id == r.ID })
		switch {
		case at >= 0:
			if h.vms[at].want != r.Wanted {
				h.vms[at].want = r.Wanted
				w.note("agent %s: %s is wanted %s", h.name, r.ID, r.Wanted)
			}
		case r.Wanted == fleet.WantGone || r.Wanted == fleet.WantDrain:
			h.vms = append(h.vms, &machine{id: r.ID, pool: r.Pool, image: r.Image, want: r.Wanted, state: fleet.ObservedGone})
			w.note("agent %s: %s never was", h.name, r.ID)
		default:
			h.vms = append(h.vms, &machine{id: r.ID, pool: r.Pool, image: r.Image, want: r.Wanted})
			w.note("agent %s: %s begins", h.name, r.ID)
		}
	}
	h.vms = slices.DeleteFunc(h.vms, func(m *machine) bool { return m.state == fleet.ObservedGone && !wanted[m.id] })
}

// report tells the books all that a host runs.
func (w *world) report(h *mini) {
	if h.silent {
		return
	}
	h.sequence++
	rep := fleet.HostReport{Instance: h.agent(), Sequence: h.sequence, Facts: h.facts, Images: h.cache}
	for _, m := range h.vms {
		if m.state != fleet.ObservedNone {
			said := fleet.RunnerReport{
				ID: m.id, Observed: m.state, HoldsSlot: m.slot, HasConfig: m.name != "", Failure: m.failure, Result: m.result,
				Pool: m.pool, Scope: m.scope, RunnerName: m.name,
			}
			if reg := w.reg(m.name); m.state == fleet.ObservedBusy && reg != nil && reg.job != nil {
				said.JobRepository, said.JobRun = reg.job.Repository(), reg.job.RunID
			}
			rep.Runners = append(rep.Runners, said)
		}
	}
	before := w.books.Versions()
	w.must(w.ledger.Report(w.ctx, h.id, rep, deadline))
	if w.books.Versions() != before {
		w.note("agent %s reports", h.name)
	}
}

func (h *mini) slotsTaken() (n int) {
	for _, m := range h.vms {
		if m.slot {
			n++
		}
	}
	return n
}

// running returns the job that the VM's guest works on, and whether it is over.
func (w *world) running(m *machine) (j *ghJob, over bool) {
	if m.name == "" {
		return nil, false
	}
	for _, j := range w.jobs {
		if j.RunnerName == m.name {
			return j, j.State == fleet.JobCompleted
		}
	}
	return nil, false
}

func (w *world) reg(name string) *ghReg {
	for _, r := range w.regs {
		if r.name == name {
			return r
		}
	}
	return nil
}

func (w *world) unregister(name string) {
	w.regs = slices.DeleteFunc(w.regs, func(r *ghReg) bool { return r.name == name })
}

// live makes the next step of a VM; luck below 1 lets it fail, if anything can.
func (w *world) live(h *mini, m *machine, luck uint32) {
	was := *m
	j, over := w.running(m)
	works := j != nil && !over
	switch {
	case m.state == fleet.ObservedGone:
		return
	case m.state == fleet.ObservedFinished, m.state == fleet.ObservedFailed, m.state == fleet.ObservedDestroying:
		if m.slot {
			m.slot = false
		} else {
			m.state = fleet.ObservedGone
		}
	case m.want == fleet.WantGone, m.want == fleet.WantDrain && !works:
		if works {
			w.fail("runner %s is ended while it runs job %d", m.id, j.ID)
		}
		m.state = fleet.ObservedDestroying
		if !m.slot {
			m.state = fleet.ObservedGone
		}
	case luck == 0 && m.state != fleet.ObservedNone:
		m.state, m.failure = fleet.ObservedFailed, "the VM ended by itself"
	default:
		w.advance(h, m, j, over, luck)
	}
	if *m != was {
		w.note("vm %s: %s, slot %t", m.id, m.state, m.slot)
	}
}

func (w *world) advance(h *mini, m *machine, j *ghJob, over bool, luck uint32) {
	switch m.state {
	case fleet.ObservedNone:
		if h.slotsTaken() < h.facts.Slots {
			m.slot, m.state = true, fleet.ObservedPreparing
		}
	case fleet.ObservedPreparing:
		m.state = fleet.ObservedBooting
		h.has(m.image)
	case fleet.ObservedBooting:
		if broken(m.image) {
			m.state, m.failure = fleet.ObservedFailed, "it does not boot"
			return
		}
		m.state = fleet.ObservedStandby
	case fleet.ObservedRegistering, fleet.ObservedIdle, fleet.ObservedBusy:
		switch {
		case over:
			m.state, m.result = fleet.ObservedFinished, "succeeded"
			if luck == 1 {
				m.result = "" // its channel was lost
			}
		case j != nil:
			m.state = fleet.ObservedBusy
		case w.reg(m.name) == nil:
			m.state, m.failure = fleet.ObservedFailed, "the runner ended without a job"
		case m.state == fleet.ObservedRegistering:
			m.state = fleet.ObservedIdle
		case luck == 2:
			m.state = fleet.ObservedRegistering // the listener restarts itself
		}
	}
}

// beginMint lets the agent of a clean, armed VM ask for a registration.
func (w *world) beginMint(h *mini, m *machine) {
	if h.silent || m.state != fleet.ObservedStandby || m.want != fleet.WantArmed || slices.ContainsFunc(w.mints, func(x *mint) bool { return x.Runner == m.id }) {
		return
	}
	for range 2 {
		w.made++
		got, err := w.ledger.BeginMint(w.ctx, h.id, m.id, fmt.Sprintf("n-%d", w.made))
		if err != nil {
			return
		}
		if got.Earlier == nil {
			w.mints = append(w.mints, &mint{Mint: got, begun: w.now, host: h})
			w.note("mint %s for %s begins", got.Name, m.id)
			return
		}
		switch w.deleteAt(*got.Earlier) {
		case "deleted":
			w.note("the earlier registration %s is deleted", got.Earlier.Name)
			w.must(w.ledger.RegistrationDeleted(w.ctx, m.id, got.Attempt))
		case "busy":
			w.note("the earlier registration %s is busy", got.Earlier.Name)
			w.must(w.ledger.DeleteVetoed(w.ctx, m.id, got.Attempt, w.now.Add(time.Minute)))
			return
		default:
			return
		}
	}
}

// deleteAt is GitHub's answer to the deletion of a registration, which is looked for
// by its name where its id is not known.
func (w *world) deleteAt(ref fleet.RegistrationRef) string {
	r := w.reg(ref.Name)
	switch {
	case r == nil && ref.ID == 0 && w.now.Sub(ref.Begun) < 75*time.Second:
		return "later"
	case r == nil:
		return "deleted"
	case r.job != nil && r.job.State == fleet.JobInProgress && r.job.RunnerName == r.name:
		return "busy"
	}
	w.unregister(r.name)
	return "deleted"
}

// answerMint lets GitHub answer, or the answer be recorded.
func (w *world) answerMint(m *mint, luck uint32) {
	if m.outcome == "" {
		m.outcome = "ok"
		switch luck {
		case 0:
			m.outcome = "refused"
		case 1, 2:
			m.outcome = "no answer"
		}
		if m.outcome == "ok" || luck == 2 {
			w.made++
			m.id = int64(w.made)
			w.regs = append(w.regs, &ghReg{id: m.id, name: m.Name, runner: m.Runner, pool: m.Pool, scope: m.Scope})
		}
		w.note("github: mint %s: %s", m.Name, m.outcome)
		return
	}
	w.mints = slices.DeleteFunc(w.mints, func(x *mint) bool { return x == m })
	switch m.outcome {
	case "refused":
		w.note("recorded: %s is refused", m.Name)
		w.must(w.ledger.MintRefused(w.ctx, m.Runner, m.Attempt, "no", luck%2 == 0))
	case "ok":
		w.must(w.ledger.Granted(w.ctx, m.Runner, m.Attempt, m.id))
		at := slices.IndexFunc(m.host.vms, func(v *machine) bool { return v.id == m.Runner })
		if luck == 3 || m.host.silent || at < 0 || m.host.vms[at].state != fleet.ObservedStandby ||
			m.host.vms[at].want == fleet.WantGone || m.host.vms[at].want == fleet.WantDrain {
			w.note("mint %s: the config is dropped", m.Name)
			return
		}
		v := m.host.vms[at]
		if v.name != "" {
			w.fail("VM %s is given a second config", v.id)
		}
		v.name, v.scope, v.state = m.Name, m.Scope, fleet.ObservedRegistering
		w.note("vm %s is given the config of %s", v.id, m.Name)
	}
}

// answerDelete lets GitHub answer a deletion, or the answer be recorded.
func (w *world) answerDelete(d *deletion, luck uint32) {
	if d.outcome == "" {
		switch luck {
		case 0:
			d.outcome = "no answer"
		case 1:
			w.deleteAt(d.Ref)
			d.outcome = "no answer"
		default:
			d.outcome = w.deleteAt(d.Ref)
		}
		w.note("github: delete %s of %s: %s", d.Ref.Name, d.Runner, d.outcome)
		return
	}
	w.deletes = slices.DeleteFunc(w.deletes, func(x *deletion) bool { return x == d })
	if r, err := w.books.Find(d.Runner); err == nil {
		w.note("recorded: delete %s of %s: %s; it is wanted %s and its registration %q", d.Ref.Name, d.Runner, d.outcome, r.Wanted, r.Registration)
	}
	switch d.outcome {
	case "deleted":
		w.must(w.ledger.RegistrationDeleted(w.ctx, d.Runner, d.Attempt))
	case "busy":
		w.must(w.ledger.DeleteVetoed(w.ctx, d.Runner, d.Attempt, w.now.Add(time.Minute)))
	default:
		w.must(w.ledger.DeleteFailed(w.ctx, d.Runner, d.Attempt, w.now.Add(10*time.Second)))
	}
}

// newJob queues a job at GitHub.
func (w *world) newJob(kind uint32) {
	w.made++
	labels := [][]string{{"a"}, {"a"}, {"b"}, {"a", "b"}, {"c"}, {"z"}}[kind%6]
	j := &ghJob{Job: fleet.Job{
		ID: fleet.JobID(w.made), RunID: 1, RunAttempt: 1, InstallationID: 1, Owner: "acme", Repo: fmt.Sprint("r", kind/6%3), Name: fmt.Sprint("job", w.made),
		Labels: fleet.NewLabels(labels...), State: fleet.JobQueued, CreatedAt: now,
	}}
	w.jobs = append(w.jobs, j)
	w.note("github: job %d of %s asks for %v", j.ID, j.Repo, labels)
	w.deliver(j)
}

// deliver puts the news of a job under way.
func (w *world) deliver(j *ghJob) {
	e, _ := fleet.Told(j.State)
	w.mail = append(w.mail, w.news(j, e))
}

func (w *world) news(j *ghJob, e fleet.JobEvent) fleet.JobNews {
	n := fleet.JobNews{Event: e, Job: j.Job}
	n.Job.State = ""
	if r := w.reg(j.RunnerName); r != nil {
		n.Job.RunnerID = r.id
	}
	return n
}

// learn is GitHub's own answer on a job.
func (w *world) learn(j *ghJob) {
	if known, ok := w.books.Job(j.ID); ok && known.State == j.State && known.RunnerName == j.RunnerName {
		return
	}
	e, _ := fleet.Seen(j.State)
	w.note("looked up: job %d is %s on %q", j.ID, j.State, j.RunnerName)
	w.must(w.ledger.Learn(w.ctx, w.news(j, e)))
}

// assign gives a queued job to any listener that it fits, if there is one.
func (w *world) assign(pick uint32) {
	type pair struct {
		j *ghJob
		r *ghReg
		m *machine
	}
	var pairs []pair
	for _, h := range w.hosts {
		for _, m := range h.vms {
			r := w.reg(m.name)
			if m.state != fleet.ObservedIdle || r == nil || r.job != nil {
				continue
			}
			for _, j := range w.jobs {
				if j.State == fleet.JobQueued && r.scope.Covers(j.Owner, j.Repo) && j.Labels.Within(w.labels(r.pool)) {
					pairs = append(pairs, pair{j, r, m})
				}
			}
		}
	}
	if len(pairs) == 0 {
		return
	}
	p := pairs[int(pick)%len(pairs)]
	p.j.State, p.j.RunnerName, p.r.job = fleet.JobInProgress, p.r.name, p.j
	w.note("github: job %d goes to %s of %s", p.j.ID, p.r.name, p.m.id)
	w.deliver(p.j)
}

func (w *world) labels(pool string) fleet.Labels {
	for _, p := range w.pools {
		if p.Name == pool {
			return p.Labels
		}
	}
	return nil
}

// guest returns the VM whose guest has the registration, if it still can work.
func (w *world) guest(name string) *machine {
	for _, h := range w.hosts {
		for _, m := range h.vms {
			if m.name == name && (m.state == fleet.ObservedRegistering || m.state == fleet.ObservedIdle || m.state == fleet.ObservedBusy) {
				return m
			}
		}
	}
	return nil
}

// finish ends a job that runs: with its listener, GitHub drops the registration; of a
// VM that died it only gives up the job.
func (w *world) finish(j *ghJob) {
	if j.State != fleet.JobInProgress {
		return
	}
	alive := j.stranger || w.guest(j.RunnerName) != nil
	w.note("github: job %d is completed on %s, alive %t", j.ID, j.RunnerName, alive)
	j.State, j.Conclusion = fleet.JobCompleted, "success"
	w.deliver(j) // it names the registration by its id
	if alive {
		w.unregister(j.RunnerName)
	}
}

// takeBack queues a job again whose runner was never heard of.
func (w *world) takeBack(j *ghJob) {
	if j.State != fleet.JobInProgress || j.stranger || w.guest(j.RunnerName) != nil {
		return
	}
	w.note("github: job %d is taken back from %s", j.ID, j.RunnerName)
	j.State, j.RunnerName = fleet.JobQueued, ""
}

// cancel ends a job that is queued; a stranger may take it instead.
func (w *world) cancel(j *ghJob, stranger bool) {
	if j.State != fleet.JobQueued {
		return
	}
	j.State, j.stranger = fleet.JobCompleted, stranger
	if stranger {
		j.State, j.RunnerName = fleet.JobInProgress, "not ours"
	}
	w.note("github: job %d is %s, stranger %t", j.ID, j.State, stranger)
	w.deliver(j)
}

// cut takes the power from a host: its VMs are over, and what they ran is lost.
func (w *world) cut(h *mini) {
	w.note("host %s loses its power", h.name)
	h.vms = slices.DeleteFunc(h.vms, func(m *machine) bool { return m.state == fleet.ObservedNone })
	for _, m := range h.vms {
		m.slot = false
		if m.state != fleet.ObservedGone {
			m.state, m.failure = fleet.ObservedDestroying, "the VM ended while no agent ran"
		}
	}
	h.silent = true
}

// back lets a silent host be heard of again.
func (w *world) back(h *mini) {
	if h.silent {
		h.silent = false
		w.note("host %s is back", h.name)
		w.greet(h)
	}
}

// restart loses all that the controller knew beside its books.
func (w *world) restart() {
	w.note("the controller restarts")
	w.pending, w.mints, w.deletes, w.began = nil, nil, nil, w.now
}
