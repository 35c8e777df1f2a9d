// SPDX-License-Identifier: MIT

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// BeginMint consumes a runner's grant: it commits the attempt and its name before
// anybody asks GitHub. Where an earlier attempt may have left a registration, it
// commits the intent to delete that one instead and names it in Earlier: the
// caller deletes it, says so, and begins again.
func (s *Store) BeginMint(ctx context.Context, host fleet.HostID, id fleet.RunnerID, name string) (fleet.Mint, error) {
	var m fleet.Mint
	err := s.change(ctx, func(t *tx) error {
		r, err := t.runner(id)
		if err != nil {
			return err
		}
		m = fleet.Mint{Runner: r.ID, Pool: r.Pool, Scope: r.Scope}
		next := r
		switch {
		case r.Host != host:
			return fmt.Errorf("runner %s: %w", id, fleet.ErrWrongHost)
		case r.Registration == fleet.RegBusy:
			return fmt.Errorf("runner %s: %w", id, fleet.ErrRunnerBusy)
		case r.Wanted != fleet.WantArmed || r.ArmedAt.IsZero() || // adopted: nobody granted it anything
			r.Observed == fleet.ObservedGone:
			return fmt.Errorf("runner %s: %w", id, fleet.ErrNoGrant)
		case r.DeleteAfter.After(t.now) && r.Registration != fleet.RegNone && r.Registration != fleet.RegGone:
			return fmt.Errorf("runner %s: its earlier registration is not deleted yet: %w", id, fleet.ErrLater)
		case r.Registration == fleet.RegNone || r.Registration == fleet.RegGone:
			next.Registration = next.Registration.Next(fleet.RegMint)
			next.Attempt++
			next.RunnerName, next.GitHubID, next.DeleteAfter = name, 0, time.Time{}
			m.Attempt, m.Name = next.Attempt, name
			if err := t.exec(`INSERT INTO mints (name, runner, attempt, owner, scope, at) VALUES ($1,$2,$3,$4,$5,$6)`,
				name, string(id), next.Attempt, strings.ToLower(r.Scope.Owner), r.Scope.String(), micros(t.now)); err != nil {
				return fmt.Errorf("runner %s: %w", id, err)
			}
			t.after = append(t.after, func() { s.mirror.minted(strings.ToLower(r.Scope.Owner), t.now) })
		default:
			ref, err := t.registration(r)
			if err != nil {
				return err
			}
			m.Attempt, m.Earlier = r.Attempt, &ref
			next.Registration = next.Registration.Next(fleet.RegDelete)
		}
		_, err = t.saveRunner(r, next, "")
		return err
	})
	return m, err
}

// registration says how to find a runner's newest registration at GitHub.
func (t *tx) registration(r fleet.Runner) (fleet.RegistrationRef, error) {
	ref := fleet.RegistrationRef{Scope: r.Scope, Name: r.RunnerName, ID: r.GitHubID}
	var begun int64
	err := t.row(`SELECT at FROM mints WHERE name = $1`, r.RunnerName).Scan(&begun)
	if errors.Is(err, sql.ErrNoRows) {
		return ref, nil // adopted: not of this database
	}
	ref.Begun = fromMicros(begun)
	return ref, err
}

// Granted confirms that GitHub made the registration of an attempt.
func (s *Store) Granted(ctx context.Context, id fleet.RunnerID, attempt int, githubID int64) error {
	return s.register(ctx, id, attempt, fleet.RegGranted, "", func(t *tx, r *fleet.Runner) error {
		r.GitHubID = githubID
		return t.granted(*r)
	})
}

// MintRefused confirms that GitHub certainly made no registration for an attempt. One that
// lasts, which another try would meet too, counts against the pool in that scope, and the
// grant is taken back: the runner is a standby again, for whom else needs one.
func (s *Store) MintRefused(ctx context.Context, id fleet.RunnerID, attempt int, why string, lasts bool) error {
	return s.register(ctx, id, attempt, fleet.RegRefused, why, func(t *tx, r *fleet.Runner) error {
		if !lasts {
			return nil
		}
		at := fleet.PoolScope{Pool: r.Pool, Scope: r.Scope.Key()}
		if r.Registration == fleet.RegGone && !r.HasConfig {
			r.Wanted, r.Scope = r.Wanted.Next(fleet.DoDisarm), fleet.Scope{}
		}
		return t.refused(at, why)
	})
}

// refused counts a refusal of GitHub's against a pool in a scope.
func (t *tx) refused(at fleet.PoolScope, why string) error {
	t.touched.refused = true
	return t.exec(`INSERT INTO refusals (pool, scope, times, last_at, reason) VALUES ($1, $2, 1, $3, $4)
		ON CONFLICT (pool, scope) DO UPDATE SET times = refusals.times + 1, last_at = excluded.last_at, reason = excluded.reason`,
		at.Pool, at.Scope, micros(t.now), why)
}

// granted forgets the refusals of a pool in a scope.
func (t *tx) granted(r fleet.Runner) error {
	at := fleet.PoolScope{Pool: r.Pool, Scope: r.Scope.Key()}
	if !t.touched.refused && !t.s.mirror.refused(at) {
		return nil
	}
	t.touched.refused = true
	return t.exec(`DELETE FROM refusals WHERE pool = $1 AND scope = $2`, at.Pool, at.Scope)
}

// tryAgain ends the rests of pools that GitHub refused in an account's scopes: what it
// refused for may hold no more. How often it did still counts, so that one job tries before
// the others do.
func (t *tx) tryAgain(account string) error {
	t.touched.refused = true
	inside := strings.ToLower(account) + "/"
	return t.exec(`UPDATE refusals SET last_at = 0 WHERE scope = $1 OR substr(scope, 1, $2) = $3`, strings.ToLower(account), len(inside), inside)
}

// RegistrationDeleted confirms that GitHub has the registration no more.
func (s *Store) RegistrationDeleted(ctx context.Context, id fleet.RunnerID, attempt int) error {
	return s.register(ctx, id, attempt, fleet.RegDeleted, "registration deleted at GitHub", nil)
}

// DeleteVetoed notes that GitHub would not delete the registration because its
// runner works, and keeps it from being asked again before retry.
func (s *Store) DeleteVetoed(ctx context.Context, id fleet.RunnerID, attempt int, retry time.Time) error {
	return s.register(ctx, id, attempt, fleet.RegVetoed, "GitHub says it runs a job", func(_ *tx, r *fleet.Runner) error {
		r.DeleteAfter = retry
		if r.Observed.Ended() {
			return nil // GitHub has yet to find out what the agent has seen: nothing of it is taken back
		}
		r.Wanted = r.Wanted.Next(fleet.DoResume)
		r.Retired, r.RetiredAt, r.Failure = "", time.Time{}, "" // it stays
		return nil
	})
}

// DeleteFailed keeps a DELETE that had no answer from being repeated before retry.
func (s *Store) DeleteFailed(ctx context.Context, id fleet.RunnerID, attempt int, retry time.Time) error {
	return s.register(ctx, id, attempt, fleet.RegDelete, "", func(_ *tx, r *fleet.Runner) error {
		r.DeleteAfter = retry
		return nil
	})
}

// register moves the registration of one attempt; news of an earlier attempt is
// old and changes nothing.
func (s *Store) register(ctx context.Context, id fleet.RunnerID, attempt int, e fleet.RegEvent, detail string, edit func(*tx, *fleet.Runner) error) error {
	return s.change(ctx, func(t *tx) error {
		r, err := t.runner(id)
		if err != nil {
			return err
		}
		if r.Attempt != attempt {
			return nil
		}
		next := r
		next.Registration = r.Registration.Next(e)
		if edit != nil {
			if err := edit(t, &next); err != nil {
				return err
			}
		}
		_, err = t.saveRunner(r, next, detail)
		return err
	})
}
