// SPDX-License-Identifier: MIT

package tendays

import (
	"slices"
	"strings"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// What chance is asked about.
const (
	ofAssign uint64 = iota + 1
	ofOffer
	ofDelivery
	ofCall
	ofBoot
	ofReaper
	ofMint
	ofEnd
	ofContact
	ofHook
)

// owner is an account at GitHub, with one installation of the App.
type owner struct {
	w      *world
	n      int // of ownerNames
	name   string
	queued []*job // the oldest first, those that no runner was offered
	regs   []*registration

	assigning bool
	hour      time.Duration // of which used counts
	used      int
	minute    points
	listed    version
	minted    []time.Duration
}

type repository struct {
	*owner
	fleet.Scope
	active []*run
	heard  time.Duration // when a delivery told of it first
	listed version       // its runs that are queued or in progress
	waits  version       // those that are pending or waiting
}

type run struct {
	id     int64
	jobs   []*job
	open   int // jobs that are not completed
	listed version
}

// version tells whether a list has changed since it was read.
type version struct {
	now, read int
	by        *controller // that read it
}

// job is one at GitHub.
type job struct {
	n          int // in the script
	id         fleet.JobID
	attempt    int
	repo       *repository
	run        *run
	labels     fleet.Labels
	state      fleet.JobState
	conclusion string
	reg        *registration // that it was offered to, or that runs it
	runner     string        // as GitHub names it
	runnerID   int64
	acquired   bool
	created    time.Duration
	started    time.Duration
	took       time.Duration
	served     bool          // by a pool
	forked     bool          // and so refused by all policies
	untold     bool          // its delivery was dropped, or the controller was down
	told       bool          // the books have it, as a patrol saw
	was        fleet.JobNews // before its last change
	movedAt    time.Duration
	stuck      time.Duration // how long nothing excuses that it waits
}

// registration is a runner at GitHub.
type registration struct {
	*owner
	id     int64
	name   string
	scope  fleet.Scope
	labels fleet.Labels
	made   time.Duration
	vm     *vm           // whose guest has its config
	stuck  time.Duration // how long nothing excuses that it is left
	online bool
	job    *job
	gone   bool
}

func (w *world) addRepository(name string) {
	who, repo, _ := strings.Cut(name, "/")
	w.repos = append(w.repos, &repository{owner: w.ownerOf(fleet.Scope{Owner: who}), Scope: fleet.Scope{Owner: who, Repo: repo}})
}

func (w *world) ownerOf(s fleet.Scope) *owner {
	return w.owners[slices.IndexFunc(w.owners, func(o *owner) bool { return strings.EqualFold(o.name, s.Owner) })]
}

func (w *world) arrive(e Event) {
	w.queue(&job{
		n: e.Job, id: fleet.JobID(1000 + 10*e.Job), attempt: 1, repo: w.repos[e.A], labels: fleet.NewLabels(labelSets[e.B]...), took: e.For,
	}, int64(e.C))
}

// queue makes a job demand.
func (w *world) queue(j *job, id int64) {
	j.created = w.t
	for _, p := range w.pools {
		j.served = j.served || p.Serves(fleet.Job{Owner: j.repo.Owner, Repo: j.repo.Repo, Labels: j.labels})
	}
	_, j.forked = w.fates[fate{j.n, forked}]
	j.served = j.served && !j.forked
	w.jobs[j.n], w.byID[j.id] = j, j
	w.fig.Jobs++
	at := slices.IndexFunc(j.repo.active, func(r *run) bool { return r.id == id })
	if at < 0 {
		at = len(j.repo.active)
		j.repo.active = append(j.repo.active, &run{id: id})
	}
	j.run = j.repo.active[at]
	j.run.jobs = append(j.run.jobs, j)
	j.run.open++
	if gate, ok := w.fates[fate{j.n, gated}]; ok && j.attempt == 1 {
		j.state = fleet.JobWaiting
		j.repo.waits.now++
		w.tell(j, gated)
		w.after(gate.For, func() { w.demand(j) })
		return
	}
	w.demand(j)
}

// demand makes a job wait for a runner.
func (w *world) demand(j *job) {
	if j.state == fleet.JobCompleted {
		return // cancelled while it waited for its approval
	}
	w.moves(j, fleet.JobQueued)
	j.repo.queued = append(j.repo.queued, j)
	w.tell(j, 0)
	j.repo.assignSoon()
	w.after(24*time.Hour, func() {
		if j.state == fleet.JobQueued && !j.acquired {
			if j.served && !w.unknown(j) {
				w.fail("job %d was queued for a day", j.n)
			}
			w.complete(j, "cancelled")
		}
	})
}

// moves changes a job's state at GitHub.
func (w *world) moves(j *job, to fleet.JobState) {
	if j.state != "" {
		j.was, j.movedAt = w.news(j), w.t
		j.was.Event, _ = fleet.Seen(j.state)
	}
	if j.state == fleet.JobWaiting {
		j.repo.waits.now++
	}
	j.state = to
	j.repo.listed.now++
	j.run.listed.now++
}

// complete ends a job at GitHub.
func (w *world) complete(j *job, conclusion string) {
	w.moves(j, fleet.JobCompleted)
	j.conclusion = conclusion
	j.repo.queued = slices.DeleteFunc(j.repo.queued, func(o *job) bool { return o == j })
	if j.run.open--; j.run.open == 0 {
		j.repo.active = slices.DeleteFunc(j.repo.active, func(r *run) bool { return r == j.run })
	}
	w.note("completed", j.n, len(conclusion))
	w.tell(j, 2)
}

func (w *world) cancel(j *job) {
	if j == nil || j.state == fleet.JobCompleted {
		return
	}
	if !j.acquired {
		if j.reg != nil {
			j.reg.job, j.reg = nil, nil
		}
		w.complete(j, "cancelled")
		return
	}
	w.after(5*time.Second, func() { w.finish(j, "cancelled") })
}

// rerun makes a new job of one that is over. GitHub tells once more of the old one.
func (w *world) rerun(j *job) {
	if j == nil || j.state != fleet.JobCompleted {
		return
	}
	w.deliver(j, w.news(j), fate{})
	again := &job{n: j.n, id: j.id + 1, attempt: j.attempt + 1, repo: j.repo, labels: j.labels, took: j.took/2 + 10*time.Second}
	w.queue(again, j.run.id)
}

// foreign gives a job to a runner of somebody else's.
func (w *world) foreign(j *job) {
	if j == nil || j.state != fleet.JobQueued || j.reg != nil || !j.served {
		return
	}
	j.repo.queued = slices.DeleteFunc(j.repo.queued, func(o *job) bool { return o == j })
	w.moves(j, fleet.JobInProgress)
	j.acquired, j.runner, j.runnerID = true, "somebody-else", 1
	w.tell(j, 1)
	w.after(j.took, func() { w.finish(j, "success") })
}

// finish ends a job that runs.
func (w *world) finish(j *job, conclusion string) {
	if j.state != fleet.JobInProgress {
		return
	}
	r := j.reg
	if r != nil && (r.vm == nil || r.vm.job != j) {
		return // nobody runs it any more: its lease ends some time
	}
	w.complete(j, conclusion)
	if r != nil {
		v := r.vm
		w.remove(r)
		v.done(conclusion)
	}
}

// abandon is what becomes of a job whose VM is lost: some ten minutes later it has failed.
func (w *world) abandon(j *job) {
	w.after(10*time.Minute, func() {
		if j.state == fleet.JobInProgress {
			w.fig.Lost++
			r := j.reg
			w.complete(j, "failure")
			r.job = nil
		}
	})
}
