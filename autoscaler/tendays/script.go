// SPDX-License-Identifier: MIT

package tendays

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Kind is what an Event does.
type Kind int

// The kinds of events. Those that are windows change what happens from At on, For so long.
const (
	Arrive   Kind = iota // job Job is queued: of repository A, with labels B, in run C; it takes For
	Cancel               // job Job is cancelled, whatever it does
	Rerun                // job Job is run again, if it is completed
	Foreign              // job Job goes to a runner that is not ours, if it is queued
	Gate                 // job Job waits for an approval, which comes For later
	Fork                 // job Job is of a fork, which no pool's policy takes
	Drop                 // of job Job the A-th delivery (queued, in progress, completed) never comes
	Twice                // ... comes twice, the second time For later
	Late                 // ... comes For later
	Restart              // the controller is down; A = 1: it dies within its next write at GitHub
	Outage               // window: GitHub answers nothing; A = 1: and sends nothing
	Errors               // window: A percent of GitHub's answers are 5xx
	Limited              // window: GitHub answers 429
	Lost                 // window: GitHub registers, and the answer is lost
	Silent               // window: host A has no link to the controller
	PowerCut             // window: host A has no power
	BadBoot              // window: VMs of host A do not boot
	SlowBoot             // window: VMs of host A boot in minutes
	Hang                 // window: listeners of host A never come online
	Fewer                // window: host A has one slot less
	Crash                // a VM of host A ends by itself
	Refused              // window: the App may do nothing for owner A
	Reaper               // window: GitHub removes idle registrations after 2 to 6 minutes
	Unaware              // window: listeners do not notice that their registration is gone
	BusyLag              // window: for a minute GitHub does not know that a runner is busy
	Deaf                 // window: listeners do not take the job that they are offered
	NoResult             // window: of a job's end the guest tells nothing
	Stale                // window: GitHub's answers about jobs are up to 10 seconds old
	Partial              // window: GitHub's lists lack one entry or another
	kinds
)

var kindNames = [kinds]string{
	"arrives", "is cancelled", "is run again", "goes to a foreign runner", "waits for an approval", "is of a fork", "delivery dropped", "delivery doubled", "delivery late",
	"restart", "outage", "5xx", "429", "answers lost", "host silent", "host without power", "VMs do not boot", "VMs boot slowly",
	"listeners hang", "fewer slots", "VM crashes", "App refused", "idle registrations removed", "listeners unaware", "busy lags", "listeners deaf", "results lost",
	"stale answers", "partial lists",
}

// Event is a job that arrives, or a fault. What it does does not depend on the course of
// the run, so that any part of a script is a script.
type Event struct {
	At   time.Duration // from the start
	Kind Kind
	Job  int
	A, B int
	C    int
	For  time.Duration
}

func (e Event) String() string {
	at := fmt.Sprintf("%s %s", clock(e.At), kindNames[e.Kind])
	switch e.Kind {
	case Arrive:
		return fmt.Sprintf("%s job %d of %s, %s, run %d, %s", clock(e.At), e.Job, repositories[e.A], strings.Join(labelSets[e.B], "+"), e.C, e.For)
	case Drop, Twice, Late:
		return fmt.Sprintf("job %d: %s delivery: %s %s", e.Job, [...]string{"queued", "in_progress", "completed"}[e.A], kindNames[e.Kind], e.For)
	case Cancel, Rerun, Foreign, Gate, Fork:
		return fmt.Sprintf("%s job %d %s", clock(e.At), e.Job, kindNames[e.Kind])
	default:
		return fmt.Sprintf("%s, %d, for %s", at, e.A, e.For)
	}
}

// clock writes a time from the start as day and time of day.
func clock(at time.Duration) string {
	day := at / (24 * time.Hour)
	return fmt.Sprintf("%d+%s", day, time.Time{}.Add(at-day*24*time.Hour).Format("15:04:05.000"))
}

// Script is all that a run is made from.
type Script struct {
	Seed   uint64 // of what is left to chance: latencies, who gets a job
	Hosts  int    // with two slots each
	End    time.Duration
	Events []Event
}

// Size is how large a script is to be.
type Size struct {
	Jobs, Days int
	Quiet      bool // no faults
}

// What jobs ask for; the last set is served by no pool.
var labelSets = [][]string{
	{"self-hosted", "macos"}, {"macos"}, {"macos", "xl"}, {"self-hosted", "macos", "xcode-15"}, {"linux"},
}

var repositories = []string{
	"acme/app", "acme/lib", "acme/site", "acme/tools", "acme/docs", "acme/ios", "globex/core", "globex/web", "initech/tps",
}

var ownerNames = []string{"acme", "globex", "initech"}

// Generate writes a script: jobs in matrices, most of them on working hours, and faults.
func Generate(seed uint64, size Size) Script {
	g := &generator{
		rng: rand.New(rand.NewPCG(seed, 10)), span: time.Duration(size.Days) * 24 * time.Hour,
		s: Script{Seed: seed, Hosts: max(6, size.Jobs/size.Days*10/1250)},
	}
	for day := range size.Days {
		g.bad = append(g.bad, time.Duration(day)*24*time.Hour+g.between(8*time.Hour, 17*time.Hour))
	}
	g.dense = !size.Quiet && seed%4 == 3
	g.s.End = g.span + 6*time.Hour // the last jobs and faults are over by then
	for g.jobs < size.Jobs {
		g.run(min(g.matrix(), size.Jobs-g.jobs), size.Quiet)
	}
	if !size.Quiet {
		g.faults(size.Days)
		g.swarm()
	}
	slices.SortStableFunc(g.s.Events, func(a, b Event) int { return cmp.Compare(a.At, b.At) })
	return g.s
}

// swarm leaves out some kinds of faults from every other script: where all of them
// happen, each hides what another does.
func (g *generator) swarm() {
	if g.s.Seed%2 == 0 {
		return
	}
	var left [kinds]bool
	for k := Arrive + 1; k < kinds; k++ {
		left[k] = g.chance(60)
	}
	g.s.Events = slices.DeleteFunc(g.s.Events, func(e Event) bool { return left[e.Kind] })
}

type generator struct {
	rng  *rand.Rand
	span time.Duration
	s    Script
	jobs int
	runs int

	bad   []time.Duration // of each day, when its bad hour begins
	dense bool            // all happens within the bad hours
}

func (g *generator) add(e Event) { g.s.Events = append(g.s.Events, e) }

func (g *generator) chance(percent float64) bool { return g.rng.Float64()*100 < percent }

func (g *generator) between(from, to time.Duration) time.Duration {
	return from + time.Duration(g.rng.Int64N(int64(to-from)))
}

// matrix is how many jobs a run has.
func (g *generator) matrix() int {
	switch x := g.rng.IntN(100); {
	case x < 60:
		return 1 + g.rng.IntN(3)
	case x < 92:
		return 4 + g.rng.IntN(5)
	default:
		return 10 + g.rng.IntN(21)
	}
}

// moment is when a run begins: four times in five on working hours.
func (g *generator) moment() time.Duration {
	at := g.between(0, g.span)
	if g.dense {
		return g.bad[at/(24*time.Hour)] + g.between(0, time.Hour)
	}
	if g.chance(80) {
		day := at / (24 * time.Hour)
		at = day*24*time.Hour + g.between(8*time.Hour, 18*time.Hour)
	}
	return at
}

func (g *generator) run(size int, quiet bool) {
	g.runs++
	at, repo, labels := g.moment(), g.rng.IntN(len(repositories)), g.rng.IntN(len(labelSets)-1)
	if g.rng.IntN(3) > 0 {
		repo = g.rng.IntN(3) // few repositories have most of the jobs
	}
	if !quiet && g.chance(0.5) {
		labels = len(labelSets) - 1
	}
	for range size {
		g.jobs++
		took := time.Duration(min(g.rng.ExpFloat64()*5, 60)*float64(time.Minute)) + 20*time.Second
		at += g.between(0, 2*time.Second)
		g.add(Event{At: at, Kind: Arrive, Job: g.jobs, A: repo, B: labels, C: g.runs, For: took})
		if !quiet {
			g.misfortunes(at)
		}
	}
}

// misfortunes are what can happen to one job.
func (g *generator) misfortunes(at time.Duration) {
	for told := range 3 {
		e := Event{Job: g.jobs, A: told, At: at}
		switch x := g.rng.IntN(100); {
		case x < 5:
			e.Kind = Drop
		case x < 10:
			e.Kind, e.For = Twice, g.between(time.Second, 10*time.Minute)
		case x < 20:
			e.Kind, e.For = Late, g.between(time.Second, 3*time.Minute)
			if g.chance(5) {
				e.For = g.between(3*time.Minute, 3*time.Hour)
			}
		default:
			continue
		}
		g.add(e)
	}
	if g.chance(2) {
		g.add(Event{At: at, Kind: Gate, Job: g.jobs, For: g.between(time.Second, 2*time.Hour)})
	}
	if g.chance(2) {
		g.add(Event{At: at, Kind: Fork, Job: g.jobs})
	}
	switch x := g.rng.IntN(100); { // most of them before a runner has it
	case x < 4:
		g.add(Event{At: at + g.between(0, time.Minute), Kind: Cancel, Job: g.jobs})
	case x < 6:
		g.add(Event{At: at + g.between(0, 10*time.Minute), Kind: Cancel, Job: g.jobs})
	case x < 10:
		g.add(Event{At: at + g.between(time.Second, time.Minute), Kind: Foreign, Job: g.jobs})
	}
	if g.chance(3) {
		g.add(Event{At: at + g.between(5*time.Minute, 4*time.Hour), Kind: Rerun, Job: g.jobs})
	}
}

// faults are what happens each day to GitHub, the hosts and the controller. Most of it
// happens in one bad hour: faults that come together are worse than each of them.
func (g *generator) faults(days int) {
	for day := range days {
		midnight := time.Duration(day) * 24 * time.Hour
		some := func(n int, k Kind, a int, from, to time.Duration) {
			for range g.rng.IntN(n + 1) {
				e := Event{At: midnight + g.between(0, 24*time.Hour), Kind: k, A: a, For: g.between(from, to)}
				if g.dense || g.chance(60) {
					e.At = g.bad[day] + g.between(0, time.Hour)
				}
				switch {
				case k >= Silent && k <= Crash:
					e.A = g.rng.IntN(g.s.Hosts)
				case k == Refused:
					e.A = g.rng.IntN(len(ownerNames))
				}
				g.add(e)
			}
		}
		g.add(Event{At: midnight + g.between(0, 24*time.Hour), Kind: Outage, A: g.rng.IntN(2), For: 2 * time.Hour})
		some(5, Errors, 10+g.rng.IntN(80), time.Minute, 20*time.Minute)
		some(3, Limited, 0, 10*time.Second, 15*time.Minute)
		some(3, Lost, 0, time.Minute, 10*time.Minute)
		some(6, Restart, 0, time.Second, 2*time.Minute)
		some(3, Restart, 1, time.Second, time.Minute)
		some(1, Restart, 0, 5*time.Minute, time.Hour)
		some(8, Silent, 0, 5*time.Second, 3*time.Minute)
		some(2, Silent, 0, 3*time.Minute, 2*time.Hour)
		some(3, PowerCut, 0, time.Minute, 2*time.Hour)
		some(2, BadBoot, 0, time.Minute, time.Hour)
		some(2, SlowBoot, 0, time.Minute, time.Hour)
		some(2, Hang, 0, time.Minute, time.Hour)
		some(1, Fewer, 0, time.Minute, 3*time.Hour)
		some(4, Crash, 0, time.Second, time.Minute)
		some(1, Refused, 0, time.Minute, time.Hour)
		some(3, Stale, 0, 10*time.Minute, 2*time.Hour)
		some(3, Partial, 0, 10*time.Minute, 2*time.Hour)
		some(3, Reaper, 0, 10*time.Minute, 2*time.Hour)
		some(3, Unaware, 0, 10*time.Minute, 2*time.Hour)
		some(3, BusyLag, 0, 10*time.Minute, 4*time.Hour)
		some(3, Deaf, 0, time.Minute, 20*time.Minute)
		some(3, NoResult, 0, 10*time.Minute, 2*time.Hour)
	}
}
