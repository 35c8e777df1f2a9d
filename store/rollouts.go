// SPDX-License-Identifier: MIT

package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

const rolloutColumns = `pool, reference, tagged, current_image, next_image, previous_image, held_image, note,
	started_at, tried_at, promoted_at, failures, failed_at, failure, error, error_at, version`

const rolloutsQuery = `SELECT ` + rolloutColumns + ` FROM rollouts`

func scanRollout(row scanner) (fleet.Rollout, error) {
	var (
		r                                         fleet.Rollout
		started, tried, promoted, failed, errorAt int64
	)
	err := row.Scan(&r.Pool, &r.Reference, &r.Tagged, &r.Current, &r.Next, &r.Previous, &r.Held, &r.Note,
		&started, &tried, &promoted, &r.Failures, &failed, &r.Failure, &r.Error, &errorAt, &r.Version)
	r.StartedAt, r.TriedAt, r.PromotedAt = fromMicros(started), fromMicros(tried), fromMicros(promoted)
	r.FailedAt, r.ErrorAt = fromMicros(failed), fromMicros(errorAt)
	return r, err
}

func scanRollouts(rows *sql.Rows, err error) (map[string]fleet.Rollout, error) {
	all, err := collect(rows, err, scanRollout)
	if err != nil {
		return nil, fmt.Errorf("read rollouts: %w", err)
	}
	out := make(map[string]fleet.Rollout, len(all))
	for _, r := range all {
		out[r.Pool] = r
	}
	return out, nil
}

// Rollouts returns the rollout of every pool whose image is a reference.
func (s *Store) Rollouts(context.Context) (map[string]fleet.Rollout, error) {
	if err := s.ended(); err != nil {
		return nil, err
	}
	return maps.Clone(s.mirror.rolloutsNow()), nil
}

// ConfigureRollouts makes the rollouts those of the pools: one for each whose image is a
// reference, and none for any other.
func (s *Store) ConfigureRollouts(ctx context.Context, pools []fleet.Pool) error {
	err := s.change(ctx, func(t *tx) error {
		gone, err := t.rollouts()
		if err != nil {
			return err
		}
		gone = maps.Clone(gone)
		for _, p := range pools {
			if !fleet.RemoteImage(p.Image) {
				continue
			}
			was, ok := gone[p.Name]
			delete(gone, p.Name)
			is := was.Configured(p.Image, t.now)
			if !ok {
				is = fleet.NewRollout(p.Name, p.Image, t.now)
			}
			if err := t.saveRollout(was, is); err != nil {
				return err
			}
		}
		for pool := range gone {
			t.changed, t.touched.rollouts = true, true
			if err := t.exec(`DELETE FROM rollouts WHERE pool = $1`, pool); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("configure rollouts: %w", err)
	}
	return nil
}

// ImageResolved notes which digest a reference's tag names, for every pool that has it.
func (s *Store) ImageResolved(ctx context.Context, reference, digest string) error {
	return s.referenced(ctx, reference, func(r fleet.Rollout, now time.Time) fleet.Rollout { return r.Resolved(digest, now) })
}

// ImageUnresolved notes why a reference's tag could not be read.
func (s *Store) ImageUnresolved(ctx context.Context, reference, why string) error {
	return s.referenced(ctx, reference, func(r fleet.Rollout, now time.Time) fleet.Rollout { return r.Unresolved(why, now) })
}

// referenced changes the rollouts of a reference. Where nothing differs nothing is
// written: tags are read every minute, and seldom move.
func (s *Store) referenced(ctx context.Context, reference string, next func(fleet.Rollout, time.Time) fleet.Rollout) error {
	if err := s.ended(); err != nil {
		return err
	}
	if now := s.now(); !anyDiffers(s.mirror.rolloutsNow(), reference, func(r fleet.Rollout) fleet.Rollout { return next(r, now) }) {
		return nil
	}
	err := s.change(ctx, func(t *tx) error {
		all, err := t.rollouts()
		if err != nil {
			return err
		}
		for _, was := range all {
			if was.Reference != reference {
				continue
			}
			if err := t.saveRollout(was, next(was, t.now)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("rollouts of %s: %w", reference, err)
	}
	return nil
}

func anyDiffers(all map[string]fleet.Rollout, reference string, next func(fleet.Rollout) fleet.Rollout) bool {
	for _, r := range all {
		if r.Reference == reference && next(r) != r {
			return true
		}
	}
	return false
}

// ChangeRollout changes the rollout of one pool as an operator asks, and returns it as it
// is then. One that is not there is fleet.ErrNotFound; an error of next changes nothing.
func (s *Store) ChangeRollout(ctx context.Context, pool string, next func(fleet.Rollout, time.Time) (fleet.Rollout, error)) (fleet.Rollout, error) {
	var is fleet.Rollout
	err := s.change(ctx, func(t *tx) error {
		was, err := t.rollout(pool)
		if err != nil {
			return err
		}
		if is, err = next(was, t.now); err != nil {
			return err
		}
		if err := t.saveRollout(was, is); err != nil {
			return err
		}
		is, err = t.rollout(pool)
		return err
	})
	return is, err
}

// step carries out a decision on a rollout, if it is still the version that was decided on.
func (t *tx) step(a fleet.RolloutStep) error {
	was, err := t.rollout(a.Pool)
	if err == nil && was.Version != a.Version {
		err = fleet.ErrConflict
	}
	if err != nil {
		return err
	}
	is, err := was.Acted(a.Act, a.Reason, t.now)
	if err != nil {
		return fmt.Errorf("%w: %w", fleet.ErrConflict, err)
	}
	return t.saveRollout(was, is)
}

// tried notes that the guest of a runner answered, which its image may have waited for.
func (t *tx) tried(r fleet.Runner) error {
	was, ok, err := t.rolloutOf(r)
	if err != nil || !ok {
		return err
	}
	return t.saveRollout(was, was.Tried(r.Image, t.now))
}

// blamed counts a failure against the image that is being tried, and reports whether it
// was that one's.
func (t *tx) blamed(r fleet.Runner) (bool, error) {
	was, ok, err := t.rolloutOf(r)
	if err != nil || !ok {
		return false, err
	}
	is, counts := was.Failed(r.Image, r.Failure, t.now)
	return counts, t.saveRollout(was, is)
}

func (t *tx) rolloutOf(r fleet.Runner) (fleet.Rollout, bool, error) {
	if r.Image == "" {
		return fleet.Rollout{}, false, nil
	}
	all, err := t.rollouts()
	was, ok := all[r.Pool]
	return was, ok, err
}

// rollouts returns all of them, for reading only.
func (t *tx) rollouts() (map[string]fleet.Rollout, error) {
	if !t.touched.rollouts {
		return t.s.mirror.rolloutsNow(), nil
	}
	rows, err := t.QueryContext(t.ctx, rolloutsQuery)
	return scanRollouts(rows, err)
}

func (t *tx) rollout(pool string) (fleet.Rollout, error) {
	all, err := t.rollouts()
	if err != nil {
		return fleet.Rollout{}, err
	}
	r, ok := all[pool]
	if !ok {
		return r, fmt.Errorf("rollout of pool %s: %w", pool, fleet.ErrNotFound)
	}
	return r, nil
}

// saveRollout writes a rollout if anything of it differs.
func (t *tx) saveRollout(was, is fleet.Rollout) error {
	if is == was {
		return nil
	}
	t.changed, t.touched.rollouts = true, true
	err := t.exec(`INSERT INTO rollouts (`+rolloutColumns+`) VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15,$16,$17)
		ON CONFLICT (pool) DO UPDATE SET reference = excluded.reference, tagged = excluded.tagged,
			current_image = excluded.current_image, next_image = excluded.next_image,
			previous_image = excluded.previous_image, held_image = excluded.held_image, note = excluded.note,
			started_at = excluded.started_at, tried_at = excluded.tried_at, promoted_at = excluded.promoted_at,
			failures = excluded.failures, failed_at = excluded.failed_at, failure = excluded.failure,
			error = excluded.error, error_at = excluded.error_at, version = excluded.version`,
		is.Pool, is.Reference, is.Tagged, is.Current, is.Next, is.Previous, is.Held, is.Note,
		micros(is.StartedAt), micros(is.TriedAt), micros(is.PromotedAt), is.Failures, micros(is.FailedAt), is.Failure,
		is.Error, micros(is.ErrorAt), was.Version+1)
	if err != nil {
		return fmt.Errorf("save rollout of pool %s: %w", is.Pool, err)
	}
	return nil
}

// prefetchRow is one of a host's images to have, as it is stored.
type prefetchRow struct {
	Image string `json:"image"`
	Rate  int64  `json:"rate,omitempty"` // bytes per second
	Hold  bool   `json:"hold,omitempty"`
	Turn  int64  `json:"turn,omitempty"` // microseconds
}

func prefetchText(list []fleet.Prefetch) string {
	rows := make([]prefetchRow, len(list))
	for i, p := range list {
		rows[i] = prefetchRow{p.Image, p.BytesPerSecond, p.Hold, micros(p.Turn)}
	}
	b, _ := json.Marshal(rows) // texts and numbers cannot fail
	return string(b)
}

func storedPrefetch(text string) ([]fleet.Prefetch, error) {
	var rows []prefetchRow
	if err := json.Unmarshal([]byte(text), &rows); err != nil || len(rows) == 0 {
		return nil, err
	}
	list := make([]fleet.Prefetch, len(rows))
	for i, r := range rows {
		list[i] = fleet.Prefetch{Image: r.Image, BytesPerSecond: r.Rate, Hold: r.Hold, Turn: fromMicros(r.Turn)}
	}
	return list, nil
}

// fetch changes what a host is to have in its cache.
func (t *tx) fetch(a fleet.Fetch) error {
	if _, err := t.host(a.Host); err != nil {
		return err
	}
	t.changed, t.hosts[a.Host], t.touched.hosts[a.Host] = true, true, true
	return t.exec(`UPDATE hosts SET prefetch = $1 WHERE id = $2`, prefetchText(a.Images), string(a.Host))
}
