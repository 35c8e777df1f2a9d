// SPDX-License-Identifier: MIT

package githubapp

import (
	"fmt"
	"strings"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// places remembers where the App is installed and where it was.
type places struct {
	installed map[string]int64 // by login in lower case
	gone      map[string]gone
}

// gone is why there is no installation to act for.
type gone struct {
	id     int64
	reason string
}

// NoteInstallations takes in GitHub's list of where the App is installed.
func (a *App) NoteInstallations(list []fleet.Installation) {
	a.mu.Lock()
	defer a.mu.Unlock()
	before := a.places.installed
	a.places.installed = map[string]int64{}
	for _, in := range list {
		delete(before, strings.ToLower(in.Account))
		a.place(in)
	}
	for account, id := range before {
		a.remove(account, id)
	}
}

// NoteInstallation takes in what a webhook told of one installation. All that is cached
// of it is dropped: it was made, removed, suspended or changed.
func (a *App) NoteInstallation(in fleet.Installation) {
	a.ForgetInstallation(in.ID)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.place(in)
}

// place notes one installation. The caller holds mu.
func (a *App) place(in fleet.Installation) {
	account := strings.ToLower(in.Account)
	if account == "" {
		return
	}
	if a.places.installed == nil {
		a.places.installed = map[string]int64{}
	}
	have := a.places.installed[account]
	switch {
	case in.Deleted:
		if have == 0 || have == in.ID { // else it is old news: another was made since
			a.remove(account, in.ID)
		}
		return
	case in.Suspended:
		a.forget(in.ID)
		a.note(account, gone{in.ID, fmt.Sprintf("the GitHub App is suspended in %s: an owner of it can resume the App in the settings of installed GitHub Apps", printable(in.Account, 64))})
	default:
		if _, was := a.places.gone[account]; was {
			a.forget(in.ID) // what was found out meanwhile holds no more
		}
		delete(a.places.gone, account)
	}
	a.places.installed[account] = in.ID
}

func (a *App) remove(account string, id int64) {
	delete(a.places.installed, account)
	a.forget(id)
	a.note(account, gone{id, fmt.Sprintf("the GitHub App was removed from %s: install it again", printable(account, 64))})
}

func (a *App) note(account string, g gone) {
	if a.places.gone == nil {
		a.places.gone = map[string]gone{}
	}
	a.places.gone[account] = g
}

// absent returns why there is no installation in a scope's account, as GitHub told. The
// caller holds mu.
func (a *App) absent(scope fleet.Scope) error {
	if g, ok := a.places.gone[strings.ToLower(scope.Owner)]; ok {
		return fmt.Errorf("%w: %s", ErrNotInstalled, g.reason)
	}
	return nil
}

// Trouble says why no registration can be asked for in a scope, as far as that is known
// without asking.
func (a *App) Trouble(scope fleet.Scope) (fleet.Trouble, bool) {
	now := a.now()
	if since, next, out := a.Outage(); out {
		return fleet.Trouble{
			Code: fleet.WaitGitHub, Until: next,
			Reason: fmt.Sprintf("GitHub cannot be reached since %s UTC: the next try is at %s UTC", since.UTC().Format(time.TimeOnly), later(next, now).UTC().Format(time.TimeOnly)),
		}, true
	}
	a.mu.Lock()
	gone := a.absent(scope)
	entry, known := a.scopes[scope.Key()]
	a.mu.Unlock()
	if gone != nil {
		return fleet.Trouble{Code: fleet.WaitInstallation, Barred: true, Reason: gone.Error()}, true
	}
	if known && entry.absent == nil {
		if until := a.gate.shutUntil(entry.id, now); until.After(now) {
			return fleet.Trouble{
				Code: fleet.WaitRateLimit, Until: until,
				Reason: fmt.Sprintf("GitHub's rate limit for %s is used up: the next call is at %s UTC", scope.Owner, until.UTC().Format(time.TimeOnly)),
			}, true
		}
	}
	return fleet.Trouble{}, false
}

// Held returns why a registration in a scope would not be sent now, or nil.
func (a *App) Held(scope fleet.Scope) *RateLimited {
	now := a.now()
	a.gate.mu.Lock()
	b := a.gate.breaker
	a.gate.mu.Unlock()
	if b.open {
		return &RateLimited{Until: later(b.next, now.Add(soon)), Outage: b.began}
	}
	a.mu.Lock()
	entry, known := a.scopes[scope.Key()]
	a.mu.Unlock()
	if known && entry.absent == nil {
		if until := a.gate.shutUntil(entry.id, now); until.After(now) {
			return &RateLimited{Until: until}
		}
	}
	return nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// shutUntil returns until when an installation may register nothing, but for the pace
// within a minute; a time that is over means that it may.
func (g *gate) shutUntil(id int64, now time.Time) time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.lane(id)
	p := &pass{lane: id, class: ClassRegister, priority: PriorityMint, resource: l.resourceOf(ClassRegister)}
	until := later(l.shut, l.spent[p.resource])
	if g.paced {
		until = later(until, g.reserved(p, l, now))
	}
	return until
}
