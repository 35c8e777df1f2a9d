// SPDX-License-Identifier: MIT

// Package tendays runs a whole site for days of simulated time, on one goroutine and
// bit-exact from a seed: the real decision and its loop, the real steps of reconcile and
// of the mint flow, over books that are the store's, with a model of GitHub and of the
// hosts. What happens to them is a script, written before the run. When a law breaks the
// script is shrunk to its shortest part that breaks one.
//
// A run reads time.Now and sleeps until the next event, so it wants the clock of a
// testing/synctest bubble. Nothing but tests imports this package.
package tendays

import (
	"fmt"
	"time"

	"github.com/minifleet/minifleet/autoscaler/books"
	"github.com/minifleet/minifleet/fleet"
)

// Options of a run.
type Options struct {
	Say bool // keep the history
	// Sabotage, if set, changes every plan before it is carried out: so are rules broken
	// on purpose.
	Sabotage func(*fleet.Plan)
}

// Result is what came of a run.
type Result struct {
	Failure string        // which law was broken, "" if none was
	At      time.Duration // when it was, or the end
	Digest  uint64        // of the history
	History []string
	Figures Figures
}

// world is a site, and GitHub.
type world struct {
	Script
	Options
	began  time.Time
	t      time.Duration // since then
	events heap
	digest uint64
	log    []string
	fig    Figures

	books      *books.Books
	pools      []fleet.Pool
	controller *controller // nil while it is down
	dying      bool        // at its next write at GitHub
	downFor    time.Duration
	startedAt  time.Duration // the controller

	hosts  []*host
	byHost map[fleet.HostID]*host
	ended  []ended // a moment ago

	owners  []*owner
	repos   []*repository
	jobs    map[int]*job // by their number in the script
	byID    map[fleet.JobID]*job
	fates   map[fate]Event
	regs    map[int64]*registration
	lastReg int64
	until   [kinds]time.Duration     // to when a window is open, where it is of the whole site
	percent int                      // of Errors
	quiet   bool                     // of Outage: nothing is sent
	at      map[placed]time.Duration // the same, for hosts
	calling int                      // GitHub, at this moment
	covers  bool                     // reconcile asks which repositories there are
	calls   uint64                   // made, for chance
}

type fate struct{ job, told int }

type placed struct {
	kind Kind
	host int
}

type brokenLaw string

// Run plays a script.
func Run(s Script, o Options) (out Result) {
	w := newWorld(s, o)
	defer func() {
		out.Digest, out.History, out.Figures, out.At = w.digest, w.log, w.fig, w.t
		switch r := recover().(type) {
		case nil:
		case brokenLaw:
			out.Failure = string(r)
			w.log = append(w.log, clock(w.t)+" BROKEN: "+out.Failure)
			out.History = w.log
		default:
			panic(r)
		}
	}()
	w.begin()
	w.play(w.End)
	w.judge()
	return out
}

// play lets everything happen until then.
func (w *world) play(until time.Duration) {
	for len(w.events.list) > 0 && w.events.list[0].at <= until {
		e := w.events.pop()
		w.advance(e.at)
		e.do()
	}
	w.advance(until)
}

func (w *world) advance(to time.Duration) {
	if to > w.t {
		time.Sleep(to - w.t)
		w.t = to
	}
}

// pass lets so much time pass within a call of GitHub's: everything else goes on, other
// calls too, as far as they have not been stacked up too high.
func (w *world) pass(d time.Duration) {
	if w.calling >= mostCalls {
		return
	}
	w.calling++
	w.play(min(w.t+d, w.End))
	w.calling--
}

// mostCalls bounds how many calls are under way at once: one ends only when those are
// over that began after it.
const mostCalls = 4

func newWorld(s Script, o Options) *world {
	w := &world{
		Script: s, Options: o, began: time.Now(), digest: 14695981039346656037,
		jobs: map[int]*job{}, byID: map[fleet.JobID]*job{}, fates: map[fate]Event{},
		regs: map[int64]*registration{}, at: map[placed]time.Duration{}, byHost: map[fleet.HostID]*host{},
	}
	w.books = books.New(w.now)
	w.books.Reuse = true
	w.books.Changed = w.changed
	for i, name := range ownerNames {
		w.owners = append(w.owners, &owner{w: w, n: i, name: name})
	}
	for _, name := range repositories {
		w.addRepository(name)
	}
	w.pools = site(2 * s.Hosts)
	for i := range s.Hosts {
		name := fmt.Sprintf("mini-%02d", i)
		h := &host{w: w, n: i, id: w.books.Enrol(name), name: name, linked: true, powered: true}
		w.hosts = append(w.hosts, h)
		w.byHost[h.id] = h
	}
	return w
}

// site is pools that overlap, of two scopes of organizations and some of repositories.
func site(slots int) []fleet.Pool {
	acme, core, web, tps := fleet.Scope{Owner: "Acme"}, fleet.Scope{Owner: "globex", Repo: "core"}, fleet.Scope{Owner: "globex", Repo: "web"}, fleet.Scope{Owner: "initech", Repo: "tps"}
	pool := func(name string, most, standby int, scopes []fleet.Scope, labels ...string) fleet.Pool {
		return fleet.Pool{Name: name, Labels: fleet.NewLabels(labels...), LabelNames: labels, Scopes: scopes, Image: "macos", MaxRunners: most, Standby: standby}
	}
	return []fleet.Pool{
		pool("mac", 0, 2, []fleet.Scope{acme, core, web, tps}, "self-hosted", "macos"),
		pool("xl", 0, 0, []fleet.Scope{acme, core, web, tps}, "self-hosted", "macos", "xl"),
		pool("xcode", slots/2, 1, []fleet.Scope{acme, {Owner: "globex"}, tps}, "self-hosted", "macos", "xcode-15"),
	}
}

func (w *world) now() time.Time { return w.date(w.t) }

// date is a moment of the run on the clock.
func (w *world) date(t time.Duration) time.Time { return w.began.Add(t) }

// begin puts the script's events in order of time.
func (w *world) begin() {
	for _, e := range w.Events {
		switch e.Kind {
		case Drop, Twice, Late, Gate, Fork:
			w.fates[fateOf(e)] = e
		default:
			w.after(e.At, func() { w.happen(e) })
		}
	}
	w.start()
	for _, h := range w.hosts {
		h.boot()
	}
	w.every(patrolEvery, w.patrol)
	w.every(5*time.Minute, func() { w.books.Forget(w.now().Add(-15 * time.Minute)) })
}

func (w *world) every(d time.Duration, do func()) {
	w.after(d, func() { do(); w.every(d, do) })
}

// fateOf is what an event of a delivery, an approval or a fork is found by.
func fateOf(e Event) fate {
	switch e.Kind {
	case Gate:
		return fate{e.Job, gated}
	case Fork:
		return fate{e.Job, forked}
	default:
		return fate{e.Job, e.A}
	}
}

// The fates of a job that waits for an approval first, and of one that comes from a fork.
const (
	gated  = 3
	forked = 4
)

// happen is one event of the script.
func (w *world) happen(e Event) {
	w.note(kindNames[e.Kind], e.Job, e.A)
	until := w.t + e.For
	switch e.Kind {
	case Arrive:
		w.arrive(e)
	case Cancel:
		w.cancel(w.jobs[e.Job])
	case Rerun:
		w.rerun(w.jobs[e.Job])
	case Foreign:
		w.foreign(w.jobs[e.Job])
	case Restart:
		if w.downFor = e.For; e.A == 1 {
			w.dying = true
			return
		}
		w.crash()
	case Silent:
		w.hosts[e.A].cut(until)
	case PowerCut:
		w.hosts[e.A].lose(until)
	case Crash:
		w.hosts[e.A].crash(e)
	case Fewer:
		w.at[placed{Fewer, e.A}] = max(until, w.at[placed{Fewer, e.A}])
		w.hosts[e.A].recount()
		w.after(e.For, w.hosts[e.A].recount)
	case BadBoot, SlowBoot, Hang, Refused:
		w.at[placed{e.Kind, e.A}] = max(until, w.at[placed{e.Kind, e.A}])
	default:
		w.until[e.Kind] = max(until, w.until[e.Kind])
		switch e.Kind {
		case Errors:
			w.percent = e.A
		case Outage:
			w.quiet = e.A == 1
		}
	}
}

func (w *world) open(k Kind) bool { return w.t < w.until[k] }

func (w *world) openAt(k Kind, host int) bool { return w.t < w.at[placed{k, host}] }

// chance is a number that depends on nothing but the seed and what it is for.
func (w *world) chance(what, id, more uint64) uint64 {
	x := w.Seed*0x9E3779B97F4A7C15 + what*0xBF58476D1CE4E5B9 + id*0x94D049BB133111EB + more*0xD6E8FEB86659FD93
	x ^= x >> 30
	x *= 0xBF58476D1CE4E5B9
	x ^= x >> 27
	x *= 0x94D049BB133111EB
	return x ^ x>>31
}

// span is a time between two, by chance.
func (w *world) span(from, to time.Duration, what, id, more uint64) time.Duration {
	return from + time.Duration(w.chance(what, id, more)%uint64(to-from))
}

// note puts something into the history.
func (w *world) note(what string, a, b int) {
	d := w.digest
	mix := func(x uint64) { d = (d ^ x) * 1099511628211 }
	mix(uint64(w.t))
	for i := range len(what) {
		mix(uint64(what[i]))
	}
	mix(uint64(a))
	mix(uint64(b))
	w.digest = d
	if w.Say {
		w.log = append(w.log, fmt.Sprintf("%s %s %d %d", clock(w.t), what, a, b))
	}
}

// say adds a sentence to a history that is kept.
func (w *world) say(format string, args ...any) {
	if w.Say {
		w.log = append(w.log, clock(w.t)+" "+fmt.Sprintf(format, args...))
	}
}

func (w *world) fail(format string, args ...any) { panic(brokenLaw(fmt.Sprintf(format, args...))) }

// after lets something happen so much later.
func (w *world) after(d time.Duration, do func()) { w.events.push(w.t+d, do) }
