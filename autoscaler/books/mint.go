// SPDX-License-Identifier: MIT

package books

import (
	"context"
	"strings"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

func (b *Books) registration(r fleet.Runner) fleet.RegistrationRef {
	return fleet.RegistrationRef{Scope: r.Scope, Name: r.RunnerName, ID: r.GitHubID, Begun: b.names[r.RunnerName].at}
}

// BeginMint consumes a runner's grant, or names the registration that has to go first.
func (b *Books) BeginMint(_ context.Context, host fleet.HostID, id fleet.RunnerID, name string) (fleet.Mint, error) {
	r, err := b.Find(id)
	if err != nil {
		return fleet.Mint{}, err
	}
	m := fleet.Mint{Runner: id, Pool: r.Pool, Scope: r.Scope}
	next := *r
	switch {
	case r.Host != host:
		return m, fleet.ErrWrongHost
	case r.Registration == fleet.RegBusy:
		return m, fleet.ErrRunnerBusy
	case r.Wanted != fleet.WantArmed || r.ArmedAt.IsZero() || r.Observed == fleet.ObservedGone:
		return m, fleet.ErrNoGrant
	case r.DeleteAfter.After(b.now()) && MayExist(r.Registration):
		return m, fleet.ErrLater
	case !MayExist(r.Registration):
		next.Registration = r.Registration.Next(fleet.RegMint)
		next.Attempt++
		next.RunnerName, next.GitHubID, next.DeleteAfter = name, 0, time.Time{}
		m.Attempt, m.Name = next.Attempt, name
		owner := strings.ToLower(r.Scope.Owner)
		b.names[name] = mint{runner: id, at: b.now()}
		b.rows[id].names = append(b.rows[id].names, name)
		b.mints[owner] = append(b.mints[owner], b.now())
	default:
		ref := b.registration(*r)
		m.Attempt, m.Earlier = r.Attempt, &ref
		next.Registration = r.Registration.Next(fleet.RegDelete)
	}
	b.Save(r, next)
	return m, nil
}

func (b *Books) register(id fleet.RunnerID, attempt int, e fleet.RegEvent, edit func(*fleet.Runner)) error {
	r, err := b.Find(id)
	if err != nil || r.Attempt != attempt {
		return err
	}
	next := *r
	next.Registration = r.Registration.Next(e)
	if edit != nil {
		edit(&next)
	}
	b.Save(r, next)
	return nil
}

// Granted confirms that GitHub made the registration of an attempt.
func (b *Books) Granted(_ context.Context, id fleet.RunnerID, attempt int, githubID int64) error {
	return b.register(id, attempt, fleet.RegGranted, func(r *fleet.Runner) {
		r.GitHubID = githubID
		delete(b.refused, fleet.PoolScope{Pool: r.Pool, Scope: r.Scope.Key()})
	})
}

// MintRefused confirms that GitHub made none, and whether it will make none for a while.
func (b *Books) MintRefused(_ context.Context, id fleet.RunnerID, attempt int, why string, lasts bool) error {
	return b.register(id, attempt, fleet.RegRefused, func(r *fleet.Runner) {
		if !lasts {
			return
		}
		at := fleet.PoolScope{Pool: r.Pool, Scope: r.Scope.Key()}
		b.refused[at] = fleet.Refusals{Times: b.refused[at].Times + 1, LastAt: b.now(), Reason: why}
		if r.Registration == fleet.RegGone && !r.HasConfig {
			r.Wanted, r.Scope = r.Wanted.Next(fleet.DoDisarm), fleet.Scope{}
		}
	})
}

// RegistrationDeleted confirms that GitHub has the registration no more.
func (b *Books) RegistrationDeleted(_ context.Context, id fleet.RunnerID, attempt int) error {
	return b.register(id, attempt, fleet.RegDeleted, nil)
}

// RegistrationLost notes that GitHub has the registration of an attempt no more.
func (b *Books) RegistrationLost(_ context.Context, id fleet.RunnerID, attempt int) error {
	r, err := b.Find(id)
	if err != nil || r.Registration != fleet.RegMinted || r.Job != 0 {
		return err
	}
	return b.register(id, attempt, fleet.RegDeleted, nil)
}

// DeleteVetoed notes that GitHub would not delete the registration.
func (b *Books) DeleteVetoed(_ context.Context, id fleet.RunnerID, attempt int, retry time.Time) error {
	return b.register(id, attempt, fleet.RegVetoed, func(r *fleet.Runner) {
		r.DeleteAfter = retry
		if r.Observed.Ended() {
			return
		}
		r.Wanted = r.Wanted.Next(fleet.DoResume)
		r.Retired, r.RetiredAt, r.Failure = "", time.Time{}, ""
	})
}

// DeleteFailed keeps a DELETE that had no answer from being repeated before retry.
func (b *Books) DeleteFailed(_ context.Context, id fleet.RunnerID, attempt int, retry time.Time) error {
	return b.register(id, attempt, fleet.RegDelete, func(r *fleet.Runner) { r.DeleteAfter = retry })
}
