// SPDX-License-Identifier: MIT

package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// Unsettled returns what GitHub may know better of one owner: the jobs that are not
// completed, and the runners that are not over or have moved after since, which is at
// most a quarter of an hour ago. Jobs of scale sets are not among them: GitHub's lists do
// not know them by their ids.
func (s *Store) Unsettled(_ context.Context, owner string, since time.Time) ([]fleet.Job, []fleet.Runner, error) {
	jobs, runners := s.mirror.unsettled(owner, since)
	return jobs, runners, nil
}

// Repositories returns the repositories of one owner of whose jobs a delivery told
// after since, each with the time of the newest.
func (s *Store) Repositories(ctx context.Context, owner string, since time.Time) (map[fleet.Scope]time.Time, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT MAX(owner), MAX(repo), MAX(told_at) FROM jobs
		WHERE told_at > $1 AND LOWER(owner) = $2 AND pool = '' GROUP BY repository_key`, micros(since), strings.ToLower(owner))
	if err != nil {
		return nil, fmt.Errorf("read repositories of %s: %w", owner, err)
	}
	defer rows.Close()
	out := map[fleet.Scope]time.Time{}
	for rows.Next() {
		var (
			repo fleet.Scope
			told int64
		)
		if err := rows.Scan(&repo.Owner, &repo.Repo, &told); err != nil {
			return nil, fmt.Errorf("read repositories of %s: %w", owner, err)
		}
		out[repo] = fromMicros(told)
	}
	return out, rows.Err()
}

// StandingNames returns, in lower case, every name that was asked of GitHub for a
// runner that is not over: registrations that have a VM, are about to have one, or
// whose deletion is under way.
func (s *Store) StandingNames(ctx context.Context) (map[string]bool, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT m.name FROM runners r JOIN mints m ON m.runner = r.id WHERE r.is_over = 0`)
	names, err := collect(rows, err, func(row scanner) (name string, err error) { return name, row.Scan(&name) })
	if err != nil {
		return nil, fmt.Errorf("read names of runners: %w", err)
	}
	out := make(map[string]bool, len(names))
	for _, n := range names {
		out[strings.ToLower(n)] = true
	}
	return out, nil
}

// RegistrationLost notes that GitHub has the registration of an attempt no more. Of a
// runner that has a job, or had its registration deleted, that is no news.
func (s *Store) RegistrationLost(ctx context.Context, id fleet.RunnerID, attempt int) error {
	return s.change(ctx, func(t *tx) error {
		r, err := t.runner(id)
		if err != nil {
			return err
		}
		if r.Attempt != attempt || r.Registration != fleet.RegMinted || r.Job != 0 {
			return nil
		}
		next := r
		next.Registration = r.Registration.Next(fleet.RegDeleted)
		_, err = t.saveRunner(r, next, "GitHub has its registration no more")
		return err
	})
}
