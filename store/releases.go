// SPDX-License-Identifier: MIT

package store

import (
	"context"
	"fmt"

	"github.com/minifleet/minifleet/fleet"
)

// LearnReleases takes note of released versions of the runner. One without a time counts
// from now, if it was not seen before; a time that GitHub tells replaces such a guess.
func (s *Store) LearnReleases(ctx context.Context, list []fleet.RunnerRelease) error {
	if len(list) == 0 {
		return nil
	}
	return s.change(ctx, func(t *tx) error {
		for _, r := range list {
			at, dated := r.At, !r.At.IsZero()
			if !dated {
				at = t.now
			}
			if err := t.exec(`INSERT INTO runner_releases (version, released_at, dated) VALUES ($1, $2, $3)
				ON CONFLICT (version) DO UPDATE SET released_at = excluded.released_at, dated = 1
				WHERE excluded.dated = 1 AND runner_releases.released_at <> excluded.released_at`,
				r.Version, micros(at), bit(dated)); err != nil {
				return fmt.Errorf("learn of runner %s: %w", r.Version, err)
			}
		}
		return nil
	})
}

// Releases returns the versions of the runner that are known to be released.
func (s *Store) Releases(ctx context.Context) ([]fleet.RunnerRelease, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT version, released_at FROM runner_releases ORDER BY released_at, version`)
	list, err := collect(rows, err, func(row scanner) (r fleet.RunnerRelease, err error) {
		var at int64
		err = row.Scan(&r.Version, &at)
		r.At = fromMicros(at)
		return r, err
	})
	if err != nil {
		return nil, fmt.Errorf("read releases: %w", err)
	}
	return list, nil
}

// PoolRunners returns what is known of each pool's runner: of the image that serves, or
// of the one of which a guest spoke last.
func (s *Store) PoolRunners(ctx context.Context) (map[string]fleet.PoolRunner, error) {
	rollouts := s.mirror.rolloutsNow()
	rows, err := s.read.QueryContext(ctx, `SELECT pool, image, version, seen_at, refused_at FROM pool_runners ORDER BY seen_at`)
	list, err := collect(rows, err, func(row scanner) (p fleet.PoolRunner, err error) {
		var seen, refused int64
		err = row.Scan(&p.Pool, &p.Image, &p.Version, &seen, &refused)
		p.SeenAt, p.RefusedAt = fromMicros(seen), fromMicros(refused)
		return p, err
	})
	if err != nil {
		return nil, fmt.Errorf("read the pools' runners: %w", err)
	}
	out := map[string]fleet.PoolRunner{}
	for _, p := range list { // the last that was seen wins, unless one serves
		if serving := rollouts[p.Pool].Current; serving == "" || out[p.Pool].Image != serving {
			out[p.Pool] = p
		}
	}
	return out, nil
}

// versions takes note of the runner that a guest names, and of GitHub's refusal of it.
// A runner that had a job is refused no more.
func (t *tx) versions(was, is fleet.Runner, refused bool) error {
	if is.Image == "" {
		return nil // its image is not known: it was adopted
	}
	had := is.Observed == fleet.ObservedBusy || is.Result != ""
	before := was.Observed == fleet.ObservedBusy || was.Result != ""
	switch {
	case refused:
		return t.exec(`INSERT INTO pool_runners (pool, image, version, seen_at, refused_at) VALUES ($1, $2, $3, $4, $4)
			ON CONFLICT (pool, image) DO UPDATE SET version = CASE WHEN excluded.version = '' THEN pool_runners.version ELSE excluded.version END,
				seen_at = excluded.seen_at, refused_at = excluded.refused_at`, is.Pool, is.Image, is.Runner, micros(t.now))
	case is.Runner != was.Runner:
		if err := t.exec(`INSERT INTO pool_runners (pool, image, version, seen_at, refused_at) VALUES ($1, $2, $3, $4, 0)
			ON CONFLICT (pool, image) DO UPDATE SET version = excluded.version, seen_at = excluded.seen_at,
				refused_at = CASE WHEN pool_runners.version IN (excluded.version, '') THEN pool_runners.refused_at ELSE 0 END`,
			is.Pool, is.Image, is.Runner, micros(t.now)); err != nil {
			return err
		}
		fallthrough
	case had && !before:
		if had {
			return t.exec(`UPDATE pool_runners SET refused_at = 0 WHERE pool = $1 AND image = $2 AND refused_at > 0`, is.Pool, is.Image)
		}
	}
	return nil
}
