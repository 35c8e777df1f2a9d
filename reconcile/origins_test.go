// SPDX-License-Identifier: MIT

package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/reconcile"
	"github.com/minifleet/minifleet/trust"
)

// origins is GitHub and the books as far as runs are concerned.
type origins struct {
	*world
	state fleet.State
	runs  map[fleet.RunKey]fleet.Run // at GitHub
	slow  time.Duration
	most  int // calls under way at once
}

func newOrigins(t *testing.T) *origins {
	return &origins{world: newWorld(t), runs: map[fleet.RunKey]fleet.Run{}, state: fleet.State{Runs: map[fleet.RunKey]*fleet.Run{}}}
}

// job is queued and heard of now.
func (o *origins) job(id fleet.JobID, run int64, change ...func(*fleet.Job)) {
	j := fleet.Job{
		ID: id, RunID: run, RunAttempt: 1, Owner: "octo", Repo: "demo", Labels: labs, State: fleet.JobQueued, Visibility: trust.Private,
		HeardAt: time.Now(), QueuedAt: time.Now(),
	}
	for _, f := range change {
		f(&j)
	}
	o.set(func() { o.state.Jobs = append(o.state.Jobs, j) })
	o.tell()
}

// tell says that something has changed.
func (o *origins) tell() {
	o.set(func() {
		close(o.changed)
		o.changed = make(chan struct{})
	})
}

func (o *origins) State(context.Context) (fleet.State, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.state, nil
}

func (o *origins) Run(ctx context.Context, repo fleet.Scope, k fleet.RunKey) (fleet.Run, bool, error) {
	o.mu.Lock()
	o.calls = append(o.calls, fmt.Sprintf("%s run %d.%d of %s", time.Since(o.began).Round(100*time.Millisecond), k.ID, k.Attempt, repo))
	o.underWay++
	o.most = max(o.most, o.underWay)
	slow := o.slow
	o.mu.Unlock()
	select {
	case <-time.After(slow):
	case <-ctx.Done():
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.underWay--
	r, ok := o.runs[k]
	return r, ok, o.fails
}

func (o *origins) learnRun(_ context.Context, r fleet.Run) error {
	o.set(func() {
		runs := map[fleet.RunKey]*fleet.Run{r.Key(): &r}
		for k, had := range o.state.Runs {
			if k != r.Key() {
				runs[k] = had
			}
		}
		o.state.Runs = runs
	})
	o.tell()
	return nil
}

// start lets Origins work until the test ends.
func (o *origins) start(policy trust.Policy) *reconcile.Origins {
	out := reconcile.NewOrigins(reconcile.OriginsConfig{
		Store: o, GitHub: o, Learn: o.learnRun, Pools: []fleet.Pool{{Name: "mac", Labels: labs, Scopes: []fleet.Scope{{Owner: "octo"}, {Owner: "acme"}}, Trust: policy}},
	})
	ctx, cancel := context.WithCancel(o.t.Context())
	done := make(chan error)
	go func() { done <- out.Run(ctx) }()
	o.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			o.t.Error(err)
		}
	})
	return out
}

// says returns the verdict on a job by the only pool.
func (o *origins) says(of *reconcile.Origins, id fleet.JobID) trust.Verdict {
	synctest.Wait()
	st, _ := o.State(o.t.Context())
	return of.Verdicts(st)[id].In("mac")
}

func (o *origins) asked() string {
	synctest.Wait()
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Join(o.calls, "\n")
}

func runOf(id int64, head string) fleet.Run {
	return fleet.Run{ID: id, Attempt: 1, Repository: "octo/demo", Event: "pull_request", HeadRepository: head, Fork: head != "octo/demo", Actor: "eve", TriggeringActor: "eve", Status: "queued"}
}

func TestOriginIsAskedForOnceNoDeliveryTold(t *testing.T) {
	for name, c := range map[string]struct {
		head string
		want string
	}{"its own code": {"octo/demo", ""}, "a fork's": {"eve/demo", "eve/demo"}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := newOrigins(t)
				of := o.start(trust.Policy{})
				o.runs[fleet.RunKey{ID: 7, Attempt: 1}] = runOf(7, c.head)
				o.job(1, 7)
				o.job(2, 7) // one call for both
				time.Sleep(1900 * time.Millisecond)
				if v := o.says(of, 1); !v.Pending || !strings.Contains(v.Reason, "GitHub is asked for run 7 if no delivery tells of it within 2s") || o.asked() != "" {
					t.Errorf("%+v, asked %s", v, o.asked())
				}
				time.Sleep(100 * time.Millisecond)
				for _, id := range []fleet.JobID{1, 2} {
					if v := o.says(of, id); v.Pending || v.Refused != (c.want != "") || !strings.Contains(v.Reason, c.want) {
						t.Errorf("job %d: %+v", id, v)
					}
				}
				time.Sleep(time.Hour)
				if got := o.asked(); got != "2s run 7.1 of octo/demo" {
					t.Errorf("asked:\n%s", got)
				}
			})
		})
	}
}

func TestOriginThatADeliveryTellsIsNotAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOrigins(t)
		of := o.start(trust.Policy{})
		o.job(1, 7)
		o.job(2, 8, func(j *fleet.Job) { j.Visibility = trust.Public })       // refused without
		o.job(3, 9, func(j *fleet.Job) { j.Owner, j.Repo = "else", "where" }) // no pool's concern
		time.Sleep(1500 * time.Millisecond)
		o.learnRun(t.Context(), runOf(7, "octo/demo"))
		time.Sleep(time.Hour)
		if v := o.says(of, 1); !v.Allowed() || o.asked() != "" {
			t.Errorf("%+v, asked %s", v, o.asked())
		}
		if v := o.says(of, 2); !v.Refused {
			t.Errorf("%+v", v)
		}
	})
}

func TestOriginIsNotNeededByAPolicyThatTakesAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOrigins(t)
		of := o.start(trust.Policy{Public: true, Forks: true})
		o.job(1, 7, func(j *fleet.Job) { j.Visibility = "" })
		time.Sleep(time.Hour)
		if v := o.says(of, 1); !v.Allowed() || o.asked() != "" {
			t.Errorf("%+v, asked %s", v, o.asked())
		}
	})
}

// While GitHub does not answer, nothing is allowed, and it is asked less and less often.
func TestOriginsOutlastAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOrigins(t)
		of := o.start(trust.Policy{})
		o.fails = errors.New("GitHub answered 502")
		o.runs[fleet.RunKey{ID: 7, Attempt: 1}] = runOf(7, "octo/demo")
		o.job(1, 7)
		time.Sleep(2 * time.Hour)
		if v := o.says(of, 1); !v.Pending || !strings.Contains(v.Reason, "502; it is asked again after ") {
			t.Errorf("%+v", v)
		}
		if n := strings.Count(o.asked(), "\n") + 1; n < 80 || n > 130 {
			t.Errorf("asked %d times in two hours", n)
		}
		o.set(func() { o.fails = nil })
		time.Sleep(90 * time.Second)
		if v := o.says(of, 1); !v.Allowed() {
			t.Errorf("%+v", v)
		}
	})
}

// A rate limit rests one owner's questions, and no other's.
func TestOriginsHeedTheRateLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOrigins(t)
		of := o.start(trust.Policy{})
		o.fails = &fleet.RateLimited{Until: time.Now().Add(10 * time.Minute)}
		o.job(1, 7)
		time.Sleep(5 * time.Second)
		o.set(func() { o.fails = nil })
		o.runs[fleet.RunKey{ID: 7, Attempt: 1}] = runOf(7, "octo/demo")
		o.job(2, 8)
		o.job(3, 9, func(j *fleet.Job) { j.Owner = "acme" })
		time.Sleep(5 * time.Minute)
		if v := o.says(of, 1); !v.Pending || !strings.Contains(v.Reason, "rate limit") {
			t.Errorf("%+v", v)
		}
		if got := o.asked(); strings.Contains(got, "run 8") || strings.Count(got, "run 7") != 1 || !strings.Contains(got, "run 9.1 of acme/demo") {
			t.Errorf("asked:\n%s", got)
		}
		time.Sleep(6 * time.Minute)
		if v := o.says(of, 1); !v.Allowed() {
			t.Errorf("%+v", v)
		}
	})
}

// What GitHub does not know, or tells only in part, allows nothing.
func TestOriginsBelieveNothingMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOrigins(t)
		of := o.start(trust.Policy{})
		o.runs[fleet.RunKey{ID: 8, Attempt: 1}] = runOf(8, "octo/demo")
		o.job(1, 7)
		o.job(2, 8, func(j *fleet.Job) { j.Visibility = "" })
		o.job(3, 8, func(j *fleet.Job) { j.RunAttempt = 2 }) // a re-run is another question
		time.Sleep(10 * time.Minute)
		for id, says := range map[fleet.JobID]string{1: "no such run", 2: "lacks what the policy needs", 3: "no such run"} {
			if v := o.says(of, id); !v.Pending || !strings.Contains(v.Reason, says) {
				t.Errorf("job %d: %+v", id, v)
			}
		}
		o.set(func() { o.state.Jobs = nil })
		o.tell()
		synctest.Wait()
		before := len(o.asked())
		time.Sleep(time.Hour)
		if len(o.asked()) != before {
			t.Error("asked for jobs that wait no more")
		}
	})
}

func TestOriginsAskForFewAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOrigins(t)
		of := o.start(trust.Policy{})
		o.slow = time.Second
		for i := range int64(20) {
			o.runs[fleet.RunKey{ID: i, Attempt: 1}] = runOf(i, "octo/demo")
			o.job(fleet.JobID(i), i)
		}
		time.Sleep(8 * time.Second)
		for i := range fleet.JobID(20) {
			if v := o.says(of, i); !v.Allowed() {
				t.Errorf("job %d: %+v", i, v)
			}
		}
		if n := strings.Count(o.asked(), "\n") + 1; n != 20 || o.most != 4 {
			t.Errorf("%d calls, %d at once", n, o.most)
		}
	})
}
