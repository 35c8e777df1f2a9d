// SPDX-License-Identifier: MIT

package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

var (
	daySeed  = flag.Uint64("seed", 1, "of the virtual day's jobs and faults")
	dayHours = flag.Float64("hours", 24, "length of the virtual day, without the quiet time that follows")
	dayJobs  = flag.Float64("jobs", 20, "of the virtual day that are asked for in an hour, beside those of matrices")
	dayLog   = flag.String("daylog", "", "file for the programs' log of the virtual day")
)

// A whole site on a virtual clock: the real controller, agents' loops and client of GitHub,
// over the network in memory; a simulated GitHub and simulated VMs. The seed fixes what is
// asked of it and what goes wrong. At the end nothing is lost, leaked or stuck, and
// nothing was killed.
func TestVirtualDay(t *testing.T) {
	t.Parallel()
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // its garbage is many small things
	length := time.Duration(*dayHours * float64(time.Hour))
	began := time.Now()
	synctest.Test(t, func(t *testing.T) {
		plan := dayPlan{seed: *daySeed, length: length, hosts: 5, slots: 4, standby: 1, flaws: 0.06, jobs: *dayJobs, timing: githubsim.Timing{
			ListLag: 20 * time.Second, BusyLag: 5 * time.Second, DeliveryDelay: 8 * time.Second,
		}}
		plan.ahead = between(plan.random("clock"), -10*time.Minute, 10*time.Minute)
		d := newDay(t, plan)
		defer d.close()
		d.live()
		d.last()
		d.rest()
		d.hold()
	})
	t.Logf("took %s", time.Since(began).Round(10*time.Millisecond))
}

// dayPlan says what a virtual day begins with.
type dayPlan struct {
	seed         uint64
	length       time.Duration
	hosts, slots int
	standby      int
	flaws        float64       // share of VMs that something is wrong with
	jobs         float64       // that are asked for in an hour, beside those of matrices
	kind         bool          // GitHub does nothing but what it is asked to
	ahead        time.Duration // of GitHub's clock before the site's
	timing       githubsim.Timing
}

// day is a virtual day.
type day struct {
	dayPlan
	t        *testing.T
	start    time.Time
	dir      string // of everything
	home     string // of the controller
	log      *slog.Logger
	tail     *tailWriter
	sim      *githubsim.Sim
	github   *http.Server
	hooks    *http.Transport
	wires    *wires
	minis    []*dayHost
	installs map[string]int64
	operator *http.Client
	life     *dayLife
	lives    int
	busy     sync.WaitGroup // what makes work and trouble
	ills     *deck[flaw]    // of VMs

	mu      sync.Mutex // guards the rest
	counts  map[string]int
	wrong   []string
	quiet   bool
	lost    map[int64]string
	ranBy   map[int64]string // job by VM
	jobOf   map[string]int64
	foreign map[string]bool // names of registrations that are none of ours
	waits   map[int64]string
	next    []flaw        // of the next VMs, before chance has a say
	fixed   time.Duration // every job takes this long; 0: chance says
}

// random returns a source of chance that nobody shares.
func (d dayPlan) random(what string) *rand.Rand {
	h := uint64(14695981039346656037)
	for _, c := range []byte(what) {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return rand.New(rand.NewPCG(d.seed, h))
}

func (d *day) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

// broken notes what must never be.
func (d *day) broken(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wrong = append(d.wrong, d.clock()+" "+fmt.Sprintf(format, args...))
}

func (d *day) clock() string { return time.Since(d.start).Round(time.Millisecond).String() }

func (d *day) count(what string, n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.counts[what] += n
}

// lose notes that a job dies of something that is nobody's fault here.
func (d *day) lose(job int64, why string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lost[job] = why
}

func (d *day) mayEnd(job int64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.lost[job] != ""
}

// ran notes that a VM has taken a job.
func (d *day) ran(v *dayVM, job int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if other := d.jobOf[v.id]; other != 0 {
		d.wrong = append(d.wrong, fmt.Sprintf("%s invariant 4: VM %s runs job %d after job %d", d.clock(), v.id, job, other))
	}
	d.jobOf[v.id], d.ranBy[job] = job, v.id
}

// flawOf says what goes wrong with a new VM.
func (d *day) flawOf(r *rand.Rand) flaw {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.next) > 0 {
		f := d.next[0]
		d.next = d.next[1:]
		return f
	}
	if d.quiet || r.Float64() >= d.flaws {
		return flawless
	}
	f := d.ills.deal()
	d.counts["VMs with "+f.String()]++
	return f
}

// script says how long a job takes and how it ends.
func (d *day) script(job int64) (time.Duration, string) {
	if d.fixed > 0 {
		return d.fixed, "succeeded"
	}
	r := rand.New(rand.NewPCG(d.seed, uint64(job)))
	result := "succeeded"
	if r.Float64() < 0.08 {
		result = "failed"
	}
	switch p := r.Float64(); {
	case p < 0.2:
		return between(r, 3*time.Second, 20*time.Second), result
	case p < 0.85:
		return between(r, 30*time.Second, 6*time.Minute), result
	case p < 0.99 || d.length < 8*time.Hour: // else it is a short day's longest part
		return between(r, 6*time.Minute, 25*time.Minute), result
	default:
		return between(r, time.Hour, 150*time.Minute), result
	}
}

// live lets the day pass.
func (d *day) live() {
	ctx, cancel := context.WithTimeout(d.t.Context(), d.length)
	defer cancel()
	d.work(ctx)
	d.trouble(ctx)
	d.busy.Wait()
}

// last asks for jobs of which nothing is ever told, and after which nothing comes that
// could make up for it by chance.
func (d *day) last() {
	d.must(d.sim.Inject(githubsim.Fault{Kind: githubsim.DeliveryLost, Path: "workflow_job.queued", Count: -1}))
	for _, repo := range []string{"octo/ios", "acme/lib", "kim/app"} {
		_, err := d.sim.QueueRun(githubsim.Workflow{Repo: repo, Jobs: []githubsim.JobSpec{{Name: "last", Labels: []string{"self-hosted", "macOS"}}}})
		d.must(err)
	}
	d.count("jobs asked for", 3)
}

// rest ends all trouble, and gives the site time to come to rest.
func (d *day) rest() {
	d.mu.Lock()
	d.quiet = true
	d.mu.Unlock()
	d.sim.ClearFaults()
	d.end() // a graceful restart, with no VM to keep ready
	d.standby = 0
	d.begin()
	const patience = 4 * time.Hour
	var open []string
	for began := time.Now(); time.Since(began) < patience; time.Sleep(3 * time.Minute) {
		now := d.open()
		if len(now) == 0 {
			d.t.Logf("at rest within %s; what came last: %q", time.Since(began), open)
			return
		}
		open = now
	}
	for _, what := range open {
		d.broken("after %s of peace: %s", patience, what)
	}
}

// hold prints what there was, and fails with what must not have been.
func (d *day) hold() {
	d.killed()
	d.mu.Lock()
	defer d.mu.Unlock()
	for kind, n := range d.sim.FaultsTaken() {
		d.counts["faults "+string(kind)] = n
	}
	d.whole()
	d.t.Logf("seed %d, %s, GitHub's clock is ahead by %s:", d.seed, d.length, d.ahead.Round(time.Second))
	for _, what := range slices.Sorted(maps.Keys(d.counts)) {
		d.t.Logf("%7d %s", d.counts[what], what)
	}
	d.slowest()
	if len(d.wrong) == 0 {
		return
	}
	d.t.Logf("the log ends with\n%s", d.tail)
	for _, w := range d.wrong[:min(len(d.wrong), 40)] {
		d.t.Error(w)
	}
	d.t.Errorf("%d things are wrong; again with: go test -run VirtualDay ./cmd/minifleet -seed %d -hours %v", len(d.wrong), d.seed, d.length.Hours())
}

// slowest prints the longest waits of jobs that ran in the end.
func (d *day) slowest() {
	jobs := slices.DeleteFunc(d.sim.Jobs(), func(j githubsim.Job) bool { return j.StartedAt.IsZero() || j.QueuedAt.IsZero() })
	slices.SortFunc(jobs, func(a, b githubsim.Job) int {
		return cmp.Compare(b.StartedAt.Sub(b.QueuedAt), a.StartedAt.Sub(a.QueuedAt))
	})
	if len(jobs) == 0 {
		return
	}
	d.t.Logf("%d jobs ran; half of them waited less than %s", len(jobs), jobs[len(jobs)/2].StartedAt.Sub(jobs[len(jobs)/2].QueuedAt).Round(time.Second))
	for _, j := range jobs[:min(len(jobs), 3)] {
		d.t.Logf("job %d of %s, queued at %s, waited %s: %s", j.ID, j.Repo, j.QueuedAt.Sub(d.start).Round(time.Second),
			j.StartedAt.Sub(j.QueuedAt).Round(time.Second), cmp.Or(d.waits[j.ID], "no look found it waiting"))
	}
}

// counted counts what is logged beyond information.
type counted struct {
	slog.Handler
	day *day
}

func (c *counted) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn {
		c.day.count(fmt.Sprintf("log %s %s", r.Level, r.Message), 1)
	}
	return c.Handler.Handle(ctx, r)
}

func (c *counted) WithAttrs(a []slog.Attr) slog.Handler {
	return &counted{c.Handler.WithAttrs(a), c.day}
}

// tailWriter keeps the last lines.
type tailWriter struct {
	mu    sync.Mutex // guards lines
	lines []string
}

func (w *tailWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.lines) == 400 {
		w.lines = w.lines[200:]
	}
	w.lines = append(w.lines, string(p))
	return len(p), nil
}

func (w *tailWriter) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.lines[max(0, len(w.lines)-100):], "")
}
