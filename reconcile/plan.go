// SPDX-License-Identifier: MIT

package reconcile

import (
	"context"
	"slices"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

const (
	// A repository that was heard of within remembered is looked at, and often so
	// within hot: a workflow that is in use runs again.
	remembered = 7 * 24 * time.Hour
	hot        = time.Hour
	// A cold one is looked at this many times more seldom.
	coldFactor = 12
)

// plan gathers what there is to look at: the registrations of each scope, and the
// repositories that pools name, that have jobs in the books, or that were heard of
// lately. What is new in it was told of just now and can wait; at the start nothing
// can. Of the other repositories of an organization nothing was ever heard, or not for
// long: they come after these, spread over a while.
func (w *watcher) plan(ctx context.Context, now time.Time, open []fleet.Job) error {
	heard, err := w.c.Store.Repositories(ctx, w.owner, now.Add(-remembered))
	if err != nil {
		return err
	}
	first := w.chores[registrationsOf(w.scopes[0])] == nil
	w.planned = now
	wanted := map[string]bool{}
	add := func(what string, every time.Duration, jobs bool, look func(context.Context) (time.Time, error)) {
		wanted[what] = true
		c := w.chores[what]
		if c == nil {
			c = &chore{what: what, jobs: jobs, look: look, next: now}
			if !first && jobs {
				c.next = now.Add(every)
			}
			w.chores[what] = c
		}
		c.every = every
		c.next = earlier(c.next, now.Add(every))
	}
	repository := func(repo fleet.Scope, every time.Duration, jobs bool) {
		var absent suspects
		if what := jobsOf(repo); !wanted[what] && w.serves(repo) {
			add(what, every, jobs, func(ctx context.Context) (time.Time, error) { return w.look(ctx, repo, &absent) })
		}
	}
	for _, s := range w.scopes {
		var odd suspects
		add(registrationsOf(s), w.c.Every, false, func(ctx context.Context) (time.Time, error) { return w.sweep(ctx, s, &odd) })
		if s.Repo != "" {
			repository(s, w.c.Every, true)
		} else {
			add("repositories of "+s.Key(), coldFactor*w.c.Every, false, func(ctx context.Context) (time.Time, error) { return time.Time{}, w.cover(ctx, s) })
		}
	}
	for _, j := range open {
		repository(fleet.Scope{Owner: j.Owner, Repo: j.Repo}, w.c.Every, true)
	}
	for repo, at := range heard {
		every := w.c.Every
		if now.Sub(at) > hot {
			every *= coldFactor
		}
		repository(repo, every, true)
	}
	for i, repo := range w.covered {
		known := w.chores[jobsOf(repo)] != nil
		repository(repo, coldFactor*w.c.Every, false)
		if c := w.chores[jobsOf(repo)]; !known && c != nil {
			c.next = now.Add(patience * w.c.Every * time.Duration(i) / time.Duration(len(w.covered)))
		}
	}
	for what := range w.chores {
		if !wanted[what] {
			delete(w.chores, what)
		}
	}
	w.refresh()
	return nil
}

func jobsOf(repo fleet.Scope) string           { return "jobs of " + repo.Key() }
func registrationsOf(scope fleet.Scope) string { return "registrations of " + scope.Key() }

// cover reads which repositories the installation covers, for the next plan, which is made
// at once.
func (w *watcher) cover(ctx context.Context, scope fleet.Scope) error {
	all, err := w.c.GitHub.Covered(ctx, scope)
	if err != nil {
		return err
	}
	w.covered = slices.DeleteFunc(all, func(repo fleet.Scope) bool { return !w.serves(repo) })
	w.planned = time.Time{}
	return nil
}

func (w *watcher) serves(repo fleet.Scope) bool {
	for _, p := range w.c.Pools {
		if _, ok := p.ScopeFor(repo.Owner, repo.Repo); ok && p.ScaleSet == "" { // the queue of a scale set tells of its jobs
			return true
		}
	}
	return false
}

// suspects are what looked wrong at the last look, each with the time since when it
// did at every look.
type suspects struct{ since map[string]time.Time }

// see takes all that looks wrong now and returns what has done so for long enough,
// and when the next of the others will have. What could not be looked at stays as
// suspect as it was.
func (s *suspects) see(now time.Time, long time.Duration, keys, unseen []string) (sure map[string]bool, again time.Time) {
	next := make(map[string]time.Time, len(keys))
	sure = map[string]bool{}
	for _, k := range unseen {
		if since, known := s.since[k]; known {
			next[k] = since
		}
	}
	for _, k := range keys {
		since, known := s.since[k]
		if !known {
			since = now
		}
		next[k] = since
		if due := since.Add(long); known && !due.After(now) {
			sure[k] = true
		} else {
			again = earlier(again, due)
		}
	}
	s.since = next
	return sure, again
}
