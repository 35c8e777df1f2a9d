// SPDX-License-Identifier: MIT

package reconcile_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/reconcile"
)

// in runs a test in virtual time.
func in(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f(t, w)
		if t.Failed() {
			t.Logf("calls:\n  %s\nlog:\n%s", strings.Join(w.made(), "\n  "), w.log.String())
		}
	})
}

func TestWhatWasNotToldIsFound(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.at(1, fleet.SeenQueued) // never told of
		w.at(2, fleet.SeenInProgress)
		w.told(2, fleet.ToldQueued)
		w.at(3, fleet.SeenCompleted) // in no list any more
		w.told(3, fleet.ToldInProgress)
		w.at(4, fleet.SeenCompleted) // neither, and nothing to anybody
		w.told(5, fleet.ToldWaiting) // GitHub has it not
		time.Sleep(time.Second)
		w.run(10*time.Second, func(r *reconcile.Reconciler) {
			if !r.Fresh() || w.woken() != 1 {
				t.Errorf("fresh %t, woken %d times", r.Fresh(), w.woken())
			}
		})
		for id, want := range map[fleet.JobID]fleet.JobState{1: "queued", 2: "in_progress", 3: "completed", 4: "", 5: "waiting"} {
			if got := w.state(id); got != want {
				t.Errorf("job %d is %q, want %q", id, got, want)
			}
		}
	})
}

func TestLooksAgain(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		other := fleet.Scope{Owner: "octo", Repo: "other"} // no pool's
		w.heard[other] = time.Now()
		w.told(5, fleet.ToldWaiting)
		w.at(5, fleet.SeenWaiting)
		w.listed[5] = false // its run waits as a whole
		time.Sleep(time.Second)
		w.run(21 * time.Minute)
		if n := w.count("list octo/demo"); n != 5 {
			t.Errorf("%d looks in 21 minutes, want 5", n)
		}
		if n := w.count("list octo/other"); n != 0 {
			t.Errorf("%d looks at a repository that no pool serves", n)
		}
		if n := w.count("job 5"); n != 1 {
			t.Errorf("a job behind a gate was asked for %d times", n)
		}
	})
}

// One 404 proves nothing, neither of a job nor of anything else.
// News of an installation is a new start.
func TestAnew(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run(2*time.Minute, func(r *reconcile.Reconciler) {
			r.Anew()
			synctest.Wait()
			if !slices.Contains(w.calls, "2m0s list octo/demo") {
				t.Errorf("looked at %q", w.calls)
			}
		})
	})
}

func TestAJobThatGitHubHasNot(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.told(1, fleet.ToldInProgress)
		w.told(2, fleet.ToldQueued)
		time.Sleep(time.Second)
		w.run(2 * time.Minute)
		if w.state(1) != fleet.JobInProgress || w.state(2) != fleet.JobQueued {
			t.Errorf("closed after one look: %s, %s", w.state(1), w.state(2))
		}
		w.run(time.Minute) // another life, which has seen nothing yet
		if w.state(1) != fleet.JobInProgress {
			t.Error("closed after one look of a new life")
		}
		w.at(2, fleet.SeenQueued) // it was there all the time
		w.run(4 * time.Minute)
		if w.state(1) != fleet.JobCompleted || w.state(2) != fleet.JobQueued {
			t.Errorf("after four minutes: %s, %s", w.state(1), w.state(2))
		}
	})
}

// A job for which GitHub always fails keeps nobody from asking for the others.
func TestOneJobThatAlwaysFails(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.broken = map[fleet.JobID]error{1: errors.New("a teapot")}
		w.told(1, fleet.ToldQueued)
		w.told(2, fleet.ToldInProgress) // GitHub has it no more
		w.told(3, fleet.ToldInProgress)
		w.at(3, fleet.SeenCompleted)
		time.Sleep(time.Second)
		w.run(10 * time.Minute)
		if w.state(1) != fleet.JobQueued || w.state(2) != fleet.JobCompleted || w.state(3) != fleet.JobCompleted {
			t.Errorf("after ten minutes: %s, %s, %s", w.state(1), w.state(2), w.state(3))
		}
	})
}

func TestGitHubIsDown(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.fails = errors.New("bad gateway")
		w.told(1, fleet.ToldInProgress)
		w.run(16*time.Minute, func(r *reconcile.Reconciler) {
			if !r.Fresh() || w.woken() == 0 {
				t.Errorf("after three periods: fresh %t, woken %d times", r.Fresh(), w.woken())
			}
		})
		if n := w.count("list"); n < 14 || n > 17 {
			t.Errorf("%d tries in 16 minutes, want one a minute", n)
		}
		if w.state(1) != fleet.JobInProgress {
			t.Errorf("job is %s: nothing is known of it", w.state(1))
		}
		if n := strings.Count(w.log.String(), "bad gateway"); n != 2 { // jobs and registrations
			t.Errorf("said %d times", n)
		}
		w.run(time.Minute, func(r *reconcile.Reconciler) {
			if r.Fresh() {
				t.Error("fresh after a start without an answer")
			}
			w.set(func() { w.fails = nil })
			time.Sleep(2 * time.Minute)
			synctest.Wait()
			if !r.Fresh() {
				t.Error("not fresh although GitHub answers")
			}
		})
		if !strings.Contains(w.log.String(), "GitHub answers again") {
			t.Error("that it works again is not said")
		}
	})
}

func TestWhatGitHubRefusesHoldsNobodyUp(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.fails = fleet.ErrRefused
		w.run(6*time.Minute, func(r *reconcile.Reconciler) {
			if !r.Fresh() {
				t.Error("not fresh")
			}
		})
		if n := w.count("list"); n != 2 {
			t.Errorf("asked %d times in 6 minutes", n)
		}
	})
}

func TestRateLimit(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.fails = &fleet.RateLimited{Until: time.Now().Add(10 * time.Minute)}
		w.told(1, fleet.ToldQueued)
		w.run(9*time.Minute, func(r *reconcile.Reconciler) {
			if len(w.made()) != 1 || r.Fresh() {
				t.Errorf("calls %v, fresh %t", w.made(), r.Fresh())
			}
			w.set(func() { w.fails = nil })
			time.Sleep(2 * time.Minute)
			synctest.Wait()
			if !r.Fresh() {
				t.Error("not fresh after the limit's end")
			}
		})
	})
}

// A runner's end, or its silence, puts a job in doubt: it is asked for long before the
// next look.
func TestDoubtAsksAtOnce(t *testing.T) {
	runner := func(edit func(*fleet.Runner)) fleet.Runner {
		r := fleet.Runner{
			ID: "r-1", Pool: "mac", Host: "h", Wanted: fleet.WantArmed, Scope: demo, HasConfig: true, Observed: fleet.ObservedIdle,
			Registration: fleet.RegMinted, GitHubID: 7, RunnerName: "site-1", Attempt: 1,
		}
		edit(&r)
		return r
	}
	for name, c := range map[string]struct {
		told   fleet.JobEvent
		runner fleet.Runner
		within time.Duration
	}{
		"its runner has ended": {fleet.ToldInProgress, runner(func(r *fleet.Runner) {
			r.Job, r.Observed, r.Registration = 1, fleet.ObservedGone, fleet.RegGone
		}), 15 * time.Second},
		"a runner had a job and no name": {fleet.ToldQueued, runner(func(r *fleet.Runner) {
			r.Observed, r.Registration, r.Result = fleet.ObservedGone, fleet.RegGone, "succeeded"
		}), 15 * time.Second},
		"a runner is busy with no name": {fleet.ToldQueued, runner(func(r *fleet.Runner) { r.Observed = fleet.ObservedBusy }), 65 * time.Second},
		"a runner listens":              {fleet.ToldQueued, runner(func(*fleet.Runner) {}), 95 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, w *world) {
				w.told(1, c.told)
				w.at(1, fleet.SeenInProgress)
				w.regs = []fleet.Listed{{ID: 7, Name: "site-1", Online: true}}
				if c.told == fleet.ToldQueued {
					w.at(1, fleet.SeenQueued)
				}
				w.run(11*time.Minute, func(*reconcile.Reconciler) { // the last look was a minute ago
					w.at(1, fleet.SeenCompleted)
					w.set(func() {
						c.runner.Since, c.runner.MovedAt = time.Now(), time.Now()
						w.runners = []fleet.Runner{c.runner}
						w.calls, w.began = nil, time.Now()
						close(w.changed)
						w.changed = make(chan struct{})
					})
					time.Sleep(c.within - 10*time.Second)
					synctest.Wait()
					if w.state(1) == fleet.JobCompleted {
						t.Error("asked for before there was any doubt")
					}
					time.Sleep(10 * time.Second)
					synctest.Wait()
					if w.state(1) != fleet.JobCompleted || w.count("job 1") != 1 || w.count("list") != 0 {
						t.Errorf("job is %s, calls %v", w.state(1), w.made())
					}
				})
			})
		})
	}
}

// However much is in doubt, GitHub is not flooded.
func TestDoubtIsCheap(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		for id := range fleet.JobID(100) {
			w.told(id+1, fleet.ToldQueued)
			w.at(id+1, fleet.SeenQueued)
		}
		w.runners = []fleet.Runner{{
			ID: "r-1", Pool: "mac", Host: "h", Wanted: fleet.WantArmed, Scope: demo, HasConfig: true, Observed: fleet.ObservedIdle,
			Registration: fleet.RegMinted, GitHubID: 7, Since: time.Now(), MovedAt: time.Now(),
		}}
		w.regs = []fleet.Listed{{ID: 7, Name: "site-1", Online: true}}
		w.run(4*time.Minute + 30*time.Second)
		if w.count("job") != 0 || w.count("list") != 2 { // at the start, and after half of the assignment limit
			t.Errorf("calls %v", w.made())
		}
	})
}

func TestSweep(t *testing.T) {
	orphan := fleet.Listed{ID: 7, Name: "site-mac-x"}
	for name, c := range map[string]struct {
		reg     fleet.Listed
		edit    func(*world)
		later   func(*world) // after the first sweep
		deleted bool
	}{
		"nobody's":                      {reg: orphan, deleted: true},
		"of another site":               {reg: fleet.Listed{ID: 7, Name: "other-mac-x"}},
		"of a runner":                   {reg: fleet.Listed{ID: 7, Name: "Site-Mac-X"}, edit: func(w *world) { w.standing["site-mac-x"] = true }},
		"online":                        {reg: fleet.Listed{ID: 7, Name: "site-mac-x", Online: true}},
		"busy":                          {reg: fleet.Listed{ID: 7, Name: "site-mac-x", Busy: true}},
		"reported by an agent later":    {reg: orphan, later: func(w *world) { w.standing["site-mac-x"] = true }},
		"online later":                  {reg: orphan, later: func(w *world) { w.regs[0].Online = true }},
		"GitHub refuses":                {reg: fleet.Listed{ID: 7, Name: "site-mac-veto"}},
		"listings that fail ever after": {reg: orphan, later: func(w *world) { w.fails = errors.New("bad gateway") }},
		"not listed ever after":         {reg: orphan, later: func(w *world) { w.hidden[7] = true }},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, w *world) {
				w.regs = []fleet.Listed{c.reg}
				if c.edit != nil {
					c.edit(w)
				}
				w.run(3*time.Minute, func(*reconcile.Reconciler) {
					if w.count("registrations") != 1 || w.count("delete") != 0 || w.made()[0] == "0s registrations octo/demo" {
						t.Errorf("after the first sweep: %v", w.made())
					}
					if c.later != nil {
						w.set(func() { c.later(w) })
					}
					time.Sleep(4 * time.Minute)
					synctest.Wait()
					var gone bool
					if w.set(func() { gone = len(w.regs) == 0 }); gone != c.deleted {
						t.Errorf("deleted %t: %v", gone, w.made())
					}
				})
			})
		})
	}
}

// What is read between two looks decides.
func TestSweepLooksOnceMore(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.regs = []fleet.Listed{{ID: 7, Name: "site-mac-x"}}
		w.onCall = func(what string) {
			if what == "registration 7" { // it is about to be deleted, and an agent reports it
				w.set(func() { w.standing["site-mac-x"] = true })
			}
		}
		w.run(10 * time.Minute)
		if w.count("registration 7") == 0 || w.count("delete") != 0 {
			t.Errorf("calls %v", w.made())
		}
	})
}

func TestGhost(t *testing.T) {
	idle := fleet.Runner{
		ID: "r-1", Pool: "mac", Host: "h", Wanted: fleet.WantArmed, Scope: demo, HasConfig: true, Observed: fleet.ObservedIdle,
		Registration: fleet.RegMinted, GitHubID: 7, RunnerName: "site-1", Attempt: 1,
	}
	for name, c := range map[string]struct {
		edit  func(*fleet.Runner)
		there func(*world)
		lost  bool
	}{
		"GitHub has it no more":       {lost: true},
		"the list lacks it":           {there: func(w *world) { w.regs, w.hidden[7] = []fleet.Listed{{ID: 7, Name: "site-1"}}, true }},
		"it is there":                 {there: func(w *world) { w.regs = []fleet.Listed{{ID: 7, Name: "site-1"}} }},
		"it is busy":                  {edit: func(r *fleet.Runner) { r.Observed = fleet.ObservedBusy }},
		"it has a job":                {edit: func(r *fleet.Runner) { r.Job = 9 }},
		"it registers":                {edit: func(r *fleet.Runner) { r.Observed = fleet.ObservedRegistering }},
		"its deletion is under way":   {edit: func(r *fleet.Runner) { r.Registration = fleet.RegDeleting }},
		"it is of another scope":      {edit: func(r *fleet.Runner) { r.Scope.Repo = "other" }},
		"its id was never known":      {edit: func(r *fleet.Runner) { r.GitHubID = 0 }},
		"no listing is ever complete": {there: func(w *world) { w.fails = errors.New("bad gateway") }},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, w *world) {
				r := idle
				r.Since, r.MovedAt = time.Now(), time.Now()
				if c.edit != nil {
					c.edit(&r)
				}
				if c.there != nil {
					c.there(w)
				}
				w.runners = []fleet.Runner{r}
				w.run(3*time.Minute, func(*reconcile.Reconciler) {
					lost := func() (ids []fleet.RunnerID) {
						w.set(func() { ids = slices.Clone(w.lost) })
						return ids
					}
					if len(lost()) > 0 {
						t.Error("lost after one look")
					}
					time.Sleep(3 * time.Minute)
					synctest.Wait()
					if slices.Contains(lost(), "r-1") != c.lost {
						t.Errorf("lost %v, calls %v", lost(), w.made())
					}
				})
			})
		})
	}
}
