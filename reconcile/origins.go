// SPDX-License-Identifier: MIT

package reconcile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/trust"
)

// OriginsConfig wires Origins. Store, GitHub and Learn have no default.
type OriginsConfig struct {
	Store interface {
		State(context.Context) (fleet.State, error)
		Changed() <-chan struct{} // closed at the next change
	}
	// GitHub tells of one attempt of a run, and returns false if there is none.
	GitHub interface {
		Run(context.Context, fleet.Scope, fleet.RunKey) (fleet.Run, bool, error)
	}
	// Learn stores what GitHub answered.
	Learn func(context.Context, fleet.Run) error
	Pools []fleet.Pool
	// Grace is how long a delivery that tells of a job's run may come after the one that told
	// of the job. GitHub orders nothing. 0 means 2 s.
	Grace time.Duration
	// Calls bounds how many are under way at once. 0 means 4.
	Calls int
	Log   *slog.Logger
}

// Origins finds out where the code of queued jobs comes from: it gives a delivery some time
// to say so, and asks GitHub then. Until it is known, a job has no verdict.
type Origins struct {
	c    OriginsConfig
	wake chan struct{}

	mu     sync.Mutex // guards the rest
	asked  map[fleet.RunKey]*question
	paused map[string]time.Time // by owner, in lower case: GitHub's rate limit
	calls  int
	fails  bool // and the log says so
}

// question is a run that GitHub is asked for.
type question struct {
	at     time.Time // when to ask
	under  bool      // way
	failed int       // in a row
	why    string
}

// NewOrigins returns Origins that Run starts.
func NewOrigins(c OriginsConfig) *Origins {
	c.Grace, c.Calls = cmp.Or(c.Grace, 2*time.Second), cmp.Or(c.Calls, 4)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Origins{c: c, wake: make(chan struct{}, 1), asked: map[fleet.RunKey]*question{}, paused: map[string]time.Time{}}
}

// Verdicts returns what the pools' policies say of the queued jobs. A job that every pool
// takes has none.
func (o *Origins) Verdicts(st fleet.State) map[fleet.JobID]fleet.Verdict {
	type alike struct {
		run        fleet.RunKey
		owner      string
		repo       string
		visibility trust.Visibility
	}
	out, known := map[fleet.JobID]fleet.Verdict{}, map[alike]fleet.Verdict{}
	for _, j := range st.Jobs {
		k := alike{j.Run(), j.Owner, j.Repo, j.Visibility}
		v, ok := known[k]
		if !ok {
			v = o.explained(fleet.JudgeJob(o.c.Pools, j, st.Runs[j.Run()]), j)
			known[k] = v
		}
		if len(v.Pools) > 0 {
			out[j.ID] = v
		}
	}
	return out
}

// explained adds to a verdict that is not there yet what is done about it.
func (o *Origins) explained(v fleet.Verdict, j fleet.Job) fleet.Verdict {
	if !v.WantsRun() {
		return v
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	doing := fmt.Sprintf("; GitHub is asked for run %d if no delivery tells of it within %s", j.RunID, o.c.Grace)
	if q := o.asked[j.Run()]; q != nil && q.why != "" {
		doing = fmt.Sprintf("; GitHub did not tell of run %d: %s; it is asked again after %s UTC",
			j.RunID, q.why, latest(q.at, o.paused[strings.ToLower(j.Owner)]).UTC().Format(time.TimeOnly))
	}
	for pool, said := range v.Pools {
		if said.Pending {
			said.Reason += doing
			v.Pools[pool] = said
		}
	}
	return v
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// Run asks until ctx ends, and returns when no call is under way any more.
func (o *Origins) Run(ctx context.Context) error {
	var calls sync.WaitGroup
	defer calls.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		changed := o.c.Store.Changed()
		next, err := o.step(ctx, &calls)
		if err != nil {
			next = time.Now().Add(time.Second) // the decisions' loop says so in the log
		}
		var due <-chan time.Time
		if !next.IsZero() {
			timer.Reset(max(0, time.Until(next)))
			due = timer.C
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-o.wake:
		case <-due:
		}
	}
}

// step begins the calls that are due, and says when the next one is.
func (o *Origins) step(ctx context.Context, calls *sync.WaitGroup) (next time.Time, err error) {
	st, err := o.c.Store.State(ctx)
	if err != nil {
		return next, err
	}
	wanted := map[fleet.RunKey]fleet.Job{}
	for _, j := range st.Jobs { // oldest first
		if _, seen := wanted[j.Run()]; !seen && fleet.JudgeJob(o.c.Pools, j, st.Runs[j.Run()]).WantsRun() {
			wanted[j.Run()] = j
		}
	}
	now := time.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	maps.DeleteFunc(o.asked, func(k fleet.RunKey, q *question) bool { _, ok := wanted[k]; return !ok && !q.under })
	for k, j := range wanted {
		q := o.asked[k]
		if q == nil {
			if q = (&question{at: j.HeardAt.Add(o.c.Grace)}); k.Attempt == 0 {
				q.at = j.HeardAt // no delivery tells of that
			}
			o.asked[k] = q
		}
		due := latest(q.at, o.paused[strings.ToLower(j.Owner)])
		switch {
		case q.under || o.calls >= o.c.Calls: // the end of a call makes another step
		case due.After(now):
			next = earlier(next, due)
		default:
			q.under = true
			o.calls++
			calls.Go(func() { o.ask(ctx, j, q) })
		}
	}
	return next, nil
}

// ask asks for the run of one job, once.
func (o *Origins) ask(ctx context.Context, j fleet.Job, q *question) {
	run, found, err := o.c.GitHub.Run(ctx, fleet.Scope{Owner: j.Owner, Repo: j.Repo}, j.Run())
	if err == nil && found {
		err = o.c.Learn(ctx, run)
	}
	now := time.Now()
	o.mu.Lock()
	defer func() {
		o.mu.Unlock()
		select {
		case o.wake <- struct{}{}:
		default:
		}
	}()
	o.calls--
	q.under = false
	if ctx.Err() != nil {
		return
	}
	q.failed++
	q.at = now.Add(pauseAfter(q.failed))
	var limited *fleet.RateLimited
	switch {
	case errors.As(err, &limited):
		owner := strings.ToLower(j.Owner)
		o.paused[owner] = latest(o.paused[owner], limited.Until)
		q.failed--
		q.why = err.Error()
	case err != nil:
		q.why = err.Error()
	case !found:
		q.why = "it has no such run"
	default: // it is asked again only if it did not say all
		q.why = "its answer lacks what the policy needs"
	}
	switch fails := err != nil; {
	case fails && !o.fails:
		o.c.Log.Warn("GitHub does not tell where a job's code comes from; it is asked again", slog.Int64("run", j.RunID),
			slog.String("repository", j.Repository()), slog.Any("error", err))
	case !fails && o.fails:
		o.c.Log.Info("GitHub tells again where jobs' code comes from")
	}
	o.fails = err != nil
}

// pauseAfter is how long a question rests after it failed so often in a row: a second,
// doubled up to a minute, and then up to half of it longer at random.
func pauseAfter(failed int) time.Duration {
	d := time.Second << min(failed-1, 6)
	d = min(d, time.Minute)
	return d + rand.N(d/2)
}
