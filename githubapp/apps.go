// SPDX-License-Identifier: MIT

package githubapp

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/secret"
)

// Apps are several GitHub Apps of one server, each with its own limits. A call goes to an
// App that is installed where it is about, the one with the most left of its limits; to
// the next where that may not make it now. What is not about a place is the first App's.
type Apps struct {
	*App // the first
	all  []*App

	mu       sync.Mutex
	underWay map[*App]int // calls, those that wait with them
}

// NewApps joins Apps of one server, at least one.
func NewApps(first *App, more ...*App) *Apps {
	return &Apps{App: first, all: append([]*App{first}, more...), underWay: map[*App]int{}}
}

// Close closes idle connections. Calls under way go on.
func (s *Apps) Close() {
	for _, a := range s.all {
		a.Close()
	}
}

// All returns every App.
func (s *Apps) All() []*App { return slices.Clone(s.all) }

// ID is the App's number.
func (a *App) ID() int64 { return a.id }

// anyOf makes a call as one App after the other until one may make it.
func (s *Apps) anyOf(scope fleet.Scope, call func(*App) error) error {
	if len(s.all) == 1 {
		return call(s.App)
	}
	var missing error
	var limited *RateLimited
	for tried := (map[*App]bool{}); len(tried) < len(s.all); {
		a := s.choose(scope, tried)
		err := call(a)
		s.over(a)
		var this *RateLimited
		switch {
		case err == nil:
			return nil
		case errors.Is(err, ErrUncertain):
			return err // whatever else it is: it may have taken effect
		case errors.As(err, &this):
			if limited == nil || this.Until.Before(limited.Until) {
				limited = this
			}
		case errors.Is(err, ErrNotInstalled):
			missing = cmp.Or(missing, err)
		default:
			return err
		}
	}
	if limited != nil {
		return limited
	}
	return missing
}

// choose takes the App with the most room of those that were not tried.
func (s *Apps) choose(scope fleet.Scope, tried map[*App]bool) (best *App) {
	s.mu.Lock()
	defer s.mu.Unlock()
	most := 0.0
	for _, a := range s.all {
		if tried[a] {
			continue
		}
		if room := a.room(scope, s.underWay[a]); best == nil || room > most {
			best, most = a, room
		}
	}
	tried[best] = true
	s.underWay[best]++
	return best
}

// over ends what choose began.
func (s *Apps) over(a *App) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.underWay[a]--
}

// room is what is left of an App's limits in a scope, with so many calls under way: 1 is
// all, 0 or less nothing.
func (a *App) room(scope fleet.Scope, underWay int) float64 {
	if a.Held(scope) != nil {
		return -1
	}
	now := a.now()
	a.mu.Lock()
	e, known := a.scopes[scope.Key()]
	gone := a.absent(scope)
	a.mu.Unlock()
	switch {
	case gone != nil || known && e.absent != nil:
		return -2
	case !known:
		return 1 - float64(writePoints*underWay)/minutePoints
	}
	a.gate.mu.Lock()
	defer a.gate.mu.Unlock()
	l := a.gate.lane(e.id)
	l.minute.roll(now)
	left := 1 - float64(l.minute.sum+writePoints*underWay)/minutePoints
	if r, ok := a.rates.get(e.id, l.resourceOf(ClassRegister)); ok && r.Limit > 0 && r.Reset.After(now) {
		left = min(left, float64(r.Remaining)/float64(r.Limit))
	}
	return left
}

// Register is that of an App.
func (s *Apps) Register(ctx context.Context, r RegisterRequest) (made Registered, err error) {
	err = s.anyOf(r.Scope, func(a *App) (err error) {
		made, err = a.Register(ctx, r)
		return err
	})
	return made, err
}

// FindRunner is that of an App.
func (s *Apps) FindRunner(ctx context.Context, scope fleet.Scope, name string) (r Runner, ok bool, err error) {
	err = s.anyOf(scope, func(a *App) (err error) {
		r, ok, err = a.FindRunner(ctx, scope, name)
		return err
	})
	return r, ok, err
}

// GetRunner is that of an App.
func (s *Apps) GetRunner(ctx context.Context, scope fleet.Scope, id int64) (r Runner, ok bool, err error) {
	err = s.anyOf(scope, func(a *App) (err error) {
		r, ok, err = a.GetRunner(ctx, scope, id)
		return err
	})
	return r, ok, err
}

// DeleteRunner is that of an App: any may delete what another registered.
func (s *Apps) DeleteRunner(ctx context.Context, scope fleet.Scope, id int64) error {
	return s.anyOf(scope, func(a *App) error { return a.DeleteRunner(ctx, scope, id) })
}

// ListRunners is that of an App. Entries come again where another had to go on.
func (s *Apps) ListRunners(ctx context.Context, scope fleet.Scope, yield func(Runner) bool) error {
	return s.anyOf(scope, func(a *App) error { return a.ListRunners(ctx, scope, yield) })
}

// ActiveJobs is that of an App.
func (s *Apps) ActiveJobs(ctx context.Context, owner, repo string) (list []fleet.JobNews, err error) {
	err = s.anyOf(fleet.Scope{Owner: owner, Repo: repo}, func(a *App) (err error) {
		list, err = a.ActiveJobs(ctx, owner, repo)
		return err
	})
	return list, err
}

// GetJob is that of an App.
func (s *Apps) GetJob(ctx context.Context, owner, repo string, id fleet.JobID) (news fleet.JobNews, ok bool, err error) {
	err = s.anyOf(fleet.Scope{Owner: owner, Repo: repo}, func(a *App) (err error) {
		news, ok, err = a.GetJob(ctx, owner, repo, id)
		return err
	})
	return news, ok, err
}

// Repositories is that of an App.
func (s *Apps) Repositories(ctx context.Context, scope fleet.Scope) (list []fleet.Scope, err error) {
	err = s.anyOf(scope, func(a *App) (err error) {
		list, err = a.Repositories(ctx, scope)
		return err
	})
	return list, err
}

// InstallationID is that of an App.
func (s *Apps) InstallationID(ctx context.Context, scope fleet.Scope) (id int64, err error) {
	err = s.anyOf(scope, func(a *App) (err error) {
		id, err = a.InstallationID(ctx, scope)
		return err
	})
	return id, err
}

// GetRun is that of an App.
func (s *Apps) GetRun(ctx context.Context, owner, repo string, k fleet.RunKey) (run fleet.Run, ok bool, err error) {
	err = s.anyOf(fleet.Scope{Owner: owner, Repo: repo}, func(a *App) (err error) {
		run, ok, err = a.GetRun(ctx, owner, repo, k)
		return err
	})
	return run, ok, err
}

// RunJobs is that of an App.
func (s *Apps) RunJobs(ctx context.Context, repo fleet.Scope, run int64) (list []fleet.JobNews, err error) {
	err = s.anyOf(repo, func(a *App) (err error) {
		list, err = a.RunJobs(ctx, repo, run)
		return err
	})
	return list, err
}

// RegistrationToken is that of an App.
func (s *Apps) RegistrationToken(ctx context.Context, scope fleet.Scope) (token secret.Text, err error) {
	err = s.anyOf(scope, func(a *App) (err error) {
		token, err = a.RegistrationToken(ctx, scope)
		return err
	})
	return token, err
}

// OfferedRunners is that of an App.
func (s *Apps) OfferedRunners(ctx context.Context, scope fleet.Scope) (versions []string, err error) {
	err = s.anyOf(scope, func(a *App) (err error) {
		versions, err = a.OfferedRunners(ctx, scope)
		return err
	})
	return versions, err
}

// RunnerReleases is that of an App.
func (s *Apps) RunnerReleases(ctx context.Context, scope fleet.Scope) (list []fleet.RunnerRelease, err error) {
	err = s.anyOf(scope, func(a *App) (err error) {
		list, err = a.RunnerReleases(ctx, scope)
		return err
	})
	return list, err
}

// Installations lists where any App is installed, and has each App take note of its own.
func (s *Apps) Installations(ctx context.Context) ([]fleet.Installation, error) {
	var out []fleet.Installation
	for _, a := range s.all {
		list, err := a.Installations(ctx)
		if err != nil {
			return nil, err
		}
		a.NoteInstallations(list)
		out = append(out, list...)
	}
	return out, nil
}

// NoteInstallation takes in what a webhook told. Of several Apps only one that knows the
// installation can say that it is its own; the others drop what they have of it, and the
// next list tells.
func (s *Apps) NoteInstallation(in fleet.Installation) {
	for _, a := range s.all {
		if len(s.all) == 1 || a.knows(in.ID) {
			a.NoteInstallation(in)
		} else {
			a.ForgetInstallation(in.ID)
		}
	}
}

func (a *App) knows(id int64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, have := range a.places.installed {
		if have == id {
			return true
		}
	}
	return false
}

// Trouble is what keeps every App from registering a runner.
func (s *Apps) Trouble(scope fleet.Scope) (first fleet.Trouble, ok bool) {
	for _, a := range s.all {
		t, ok := a.Trouble(scope)
		if !ok {
			return fleet.Trouble{}, false
		}
		if first.Code == "" || first.Barred && !t.Barred || !t.Until.IsZero() && t.Until.Before(first.Until) {
			first = t
		}
	}
	return first, true
}

// Held is why no App would send a registration now, or nil.
func (s *Apps) Held(scope fleet.Scope) (first *RateLimited) {
	for _, a := range s.all {
		this := a.Held(scope)
		if this == nil {
			return nil
		}
		if first == nil || this.Until.Before(first.Until) {
			first = this
		}
	}
	return first
}

// Outage reports whether GitHub cannot be reached by any App.
func (s *Apps) Outage() (since, next time.Time, out bool) {
	for _, a := range s.all {
		if since, next, out = a.Outage(); !out {
			return since, next, false
		}
	}
	return since, next, true
}

// Rates returns the last known state of every limit of every App.
func (s *Apps) Rates() (all []Rate) {
	for _, a := range s.all {
		all = append(all, a.Rates()...)
	}
	return all
}
