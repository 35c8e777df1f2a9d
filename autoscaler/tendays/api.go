// SPDX-License-Identifier: MIT

package tendays

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/secret"
)

// What GitHub allows.
const (
	callsPerHour        = 5000
	minutePoints        = 900
	registrationsAtMost = 1500 // within registrationPeriod
	registrationPeriod  = 5 * time.Minute
	perPage             = 100
)

// call is the kind of a call of GitHub's API.
type call int

const (
	callMint call = iota
	callDelete
	callFind
	callRuns
	callJobs
	callJob
	callRunners
	callRunner
	callRepositories
	callReached // a question that is asked while GitHub cannot be reached
	callKinds
)

var callNames = [callKinds]string{
	"generate-jitconfig", "delete runner", "find runner by name", "list runs", "list jobs of a run", "get job", "list runners", "get runner", "list repositories", "is GitHub back",
}

// api is GitHub as the App's client shows it to the controller.
type api struct {
	w *world
	c *controller
}

var errServer = errors.New("GitHub answers 503")

// latency is how long a call is under way in one direction.
func (a api) latency() time.Duration {
	w := a.w
	x := w.chance(ofCall, w.calls, 2)
	switch {
	case w.open(Outage) && x%4 == 0, x%200 == 0:
		return time.Duration(1+x>>8%10) * time.Second
	default:
		return time.Duration(30+x>>8%170) * time.Millisecond
	}
}

// answer lets an answer come back to a controller that still lives.
func (a api) answer(ctx context.Context) error {
	a.w.pass(a.latency())
	return ctx.Err()
}

// wrote lets the controller die of a write at GitHub if it is to.
func (a api) wrote() error {
	if !a.w.dying {
		return nil
	}
	a.w.dying = false
	a.w.crash()
	return context.Canceled
}

// Register makes a registration. Its config is its id.
func (a api) Register(ctx context.Context, pool fleet.Pool, scope fleet.Scope, name string) (fleet.Registered, error) {
	w, o := a.w, a.w.ownerOf(scope)
	err := a.ask(ctx, o, callMint, 1, nil)
	if limited := (*fleet.RateLimited)(nil); errors.As(err, &limited) || errors.Is(err, fleet.ErrRefused) {
		return fleet.Registered{}, err
	}
	for len(o.minted) > 0 && o.minted[0] <= w.t-registrationPeriod {
		o.minted = o.minted[1:]
	}
	if o.minted = append(o.minted, w.t); len(o.minted) > registrationsAtMost {
		w.fail("%s: more than %d registrations within %s", o.name, registrationsAtMost, registrationPeriod)
	}
	if err != nil && w.chance(ofCall, w.calls, 1)%10 < 7 {
		w.pass(a.latency())
		return fleet.Registered{}, fmt.Errorf("%w: %w", fleet.ErrUncertain, err)
	}
	w.lastReg++
	r := &registration{owner: o, id: 100 + w.lastReg, name: name, scope: scope, labels: fleet.NewLabels(pool.LabelNames...), made: w.t}
	w.regs[r.id] = r
	o.regs = append(o.regs, r)
	w.note("registered", int(r.id), 0)
	if err != nil || w.open(Lost) {
		w.pass(a.latency())
		if err == nil {
			a.c.gate.failed(o, false)
		}
		return fleet.Registered{}, fleet.ErrUncertain
	}
	if err := errors.Join(a.wrote(), a.answer(ctx)); err != nil {
		return fleet.Registered{}, err
	}
	return fleet.Registered{ID: r.id, Config: secret.New(strconv.FormatInt(r.id, 10))}, nil
}

// Unregister deletes a registration as the client does, by its name where its id is not
// known.
func (a api) Unregister(ctx context.Context, ref fleet.RegistrationRef) error {
	w, o, sent := a.w, a.w.ownerOf(ref.Scope), a.w.t
	id := ref.ID
	if id == 0 {
		if err := a.ask(ctx, o, callFind, 1, nil); err != nil {
			return err
		}
		for _, r := range o.regs {
			if strings.EqualFold(r.name, ref.Name) && r.shows() {
				id = r.id
			}
		}
		switch {
		case id == 0 && w.now().Sub(ref.Begun) < 75*time.Second:
			return fleet.ErrLater
		case id == 0:
			return nil
		}
	}
	if err := a.ask(ctx, o, callDelete, 1, nil); err != nil {
		return err
	}
	r := w.regs[id]
	if r != nil {
		if j := r.job; j != nil && j.acquired {
			// Within two seconds of a job's start nobody outside can know of it.
			lags := w.open(BusyLag) && r.vm != nil && sent-j.started > 2*time.Second && w.t-j.started < time.Minute
			if !lags {
				return a.orDie(ctx, fleet.ErrRunnerBusy)
			}
			w.fail("job %d, which runs since %s, was deleted with its registration", j.n, clock(j.started))
		}
		w.note("deleted", int(r.id), 0)
		w.remove(r)
		if r.vm != nil {
			r.vm.unregistered()
		}
	}
	return a.orDie(ctx, nil)
}

func (a api) orDie(ctx context.Context, answer error) error {
	if err := errors.Join(a.wrote(), a.answer(ctx)); err != nil {
		return err
	}
	return answer
}

// shows reports whether GitHub's list, which lags, has a registration.
func (r *registration) shows() bool { return r.w.t-r.made > 5*time.Second }

// Covered lists the repositories of an installation.
func (a api) Covered(ctx context.Context, scope fleet.Scope) (out []fleet.Scope, _ error) {
	o := a.w.ownerOf(scope)
	if err := a.ask(ctx, o, callRepositories, 1, nil); err != nil {
		return nil, err
	}
	a.w.covers = true
	for _, r := range a.w.repos {
		if r.owner == o {
			out = append(out, r.Scope)
		}
	}
	return out, nil
}

func pages(n int) int { return max(1, (n+perPage-1)/perPage) }

func (w *world) repository(s fleet.Scope) *repository {
	for _, r := range w.repos {
		if r.Key() == s.Key() {
			return r
		}
	}
	return nil
}

// ActiveJobs lists the jobs of the runs that are not over.
func (a api) ActiveJobs(ctx context.Context, scope fleet.Scope) ([]fleet.JobNews, error) {
	repo := a.w.repository(scope)
	for _, v := range []*version{&repo.waits, &repo.listed} { // two lists each
		if err := a.ask(ctx, repo.owner, callRuns, 2*pages(len(repo.active)), v); err != nil {
			return nil, err
		}
	}
	var out []fleet.JobNews
	for _, run := range slices.Clone(repo.active) {
		asked := a.w.now()
		if err := a.ask(ctx, repo.owner, callJobs, pages(len(run.jobs)), &run.listed); err != nil {
			return nil, err
		}
		for _, j := range run.jobs {
			if a.w.jobs[j.n] == j && !a.lacks(uint64(j.id)) { // of the latest attempt
				out = append(out, a.seen(j, asked))
			}
		}
		if err := a.answer(ctx); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// lacks reports whether a list leaves out an entry, as one that moves between pages.
func (a api) lacks(id uint64) bool {
	return a.w.open(Partial) && a.w.chance(ofCall, a.w.calls, id)%20 == 0
}

func (a api) seen(j *job, asked time.Time) fleet.JobNews {
	n := a.w.news(j)
	n.Event, _ = fleet.Seen(j.state)
	if a.w.open(Stale) && a.w.t-j.movedAt < 10*time.Second && j.was.Job.ID != 0 {
		n = j.was
	}
	n.Asked = asked
	return n
}

// Job reads one job.
func (a api) Job(ctx context.Context, scope fleet.Scope, id fleet.JobID) (fleet.JobNews, bool, error) {
	asked := a.w.now()
	if err := a.ask(ctx, a.w.ownerOf(scope), callJob, 1, nil); err != nil {
		return fleet.JobNews{}, false, err
	}
	j := a.w.byID[id]
	if j == nil {
		return fleet.JobNews{}, false, a.answer(ctx)
	}
	return a.seen(j, asked), true, a.answer(ctx)
}

// Registrations lists those of a scope.
func (a api) Registrations(ctx context.Context, scope fleet.Scope) (out []fleet.Listed, _ error) {
	o := a.w.ownerOf(scope)
	if err := a.ask(ctx, o, callRunners, pages(len(o.regs)), &o.listed); err != nil {
		return nil, err
	}
	for _, r := range o.regs {
		if r.scope.Key() == scope.Key() && r.shows() && !a.lacks(uint64(r.id)) {
			out = append(out, r.shown())
		}
	}
	return out, a.answer(ctx)
}

func (r *registration) shown() fleet.Listed {
	return fleet.Listed{ID: r.id, Name: r.name, Online: r.online, Busy: r.job != nil && r.job.acquired}
}

// Registration reads one.
func (a api) Registration(ctx context.Context, scope fleet.Scope, id int64) (fleet.Listed, bool, error) {
	if err := a.ask(ctx, a.w.ownerOf(scope), callRunner, 1, nil); err != nil {
		return fleet.Listed{}, false, err
	}
	if r := a.w.regs[id]; r != nil {
		return r.shown(), true, a.answer(ctx)
	}
	return fleet.Listed{}, false, a.answer(ctx)
}
