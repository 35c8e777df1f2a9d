// SPDX-License-Identifier: MIT

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"github.com/minifleet/minifleet/fleet"
)

const scaleSetColumns = `pool, scope, name, set_id, session, last_message, assigned, running, heard_at`

func scanScaleSet(row scanner) (s fleet.ScaleSet, err error) {
	var (
		scope string
		heard int64
	)
	if err := row.Scan(&s.Pool, &scope, &s.Name, &s.ID, &s.Session, &s.LastMessage, &s.Assigned, &s.Running, &heard); err != nil {
		return s, err
	}
	s.HeardAt = fromMicros(heard)
	s.Scope, err = fleet.ParseScope(scope)
	return s, err
}

// ScaleSets returns all scale sets in the books, by pool.
func (s *Store) ScaleSets(ctx context.Context) ([]fleet.ScaleSet, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT `+scaleSetColumns+` FROM scale_sets ORDER BY pool`)
	list, err := collect(rows, err, scanScaleSet)
	if err != nil {
		return nil, fmt.Errorf("read scale sets: %w", err)
	}
	return list, nil
}

// SetJobs returns the jobs of a pool's scale set that are not over, oldest first.
func (s *Store) SetJobs(ctx context.Context, pool string) ([]fleet.Job, error) {
	rows, err := s.read.QueryContext(ctx, openSetJobs, pool)
	jobs, err := collect(rows, err, scanJob)
	if err != nil {
		return nil, fmt.Errorf("read jobs of the scale set of pool %s: %w", pool, err)
	}
	return jobs, nil
}

const openSetJobs = `SELECT ` + jobColumns + ` FROM jobs WHERE state IN ('waiting', 'queued', 'in_progress') AND pool = $1 ORDER BY id`

func (t *tx) scaleSet(pool string) (fleet.ScaleSet, error) {
	s, err := scanScaleSet(t.row(`SELECT `+scaleSetColumns+` FROM scale_sets WHERE pool = $1`, pool))
	if errors.Is(err, sql.ErrNoRows) {
		return s, fmt.Errorf("scale set of pool %s: %w", pool, fleet.ErrNotFound)
	}
	return s, err
}

// UseScaleSet notes which scale set a pool has. Of another one that it had, no message
// comes any more: its jobs that wait are closed, and its session and messages forgotten.
func (s *Store) UseScaleSet(ctx context.Context, pool string, scope fleet.Scope, name string, id int64) (fleet.ScaleSet, error) {
	var out fleet.ScaleSet
	err := s.change(ctx, func(t *tx) error {
		was, err := t.scaleSet(pool)
		switch {
		case errors.Is(err, fleet.ErrNotFound):
		case err != nil:
			return err
		case was.ID == id && was.Scope.Key() == scope.Key():
			out = was
			return nil
		default:
			if err := t.closeSetJobs(pool, fleet.JobWaiting, fleet.JobQueued); err != nil {
				return err
			}
		}
		out = fleet.ScaleSet{Pool: pool, Scope: scope, Name: name, ID: id}
		return t.exec(`INSERT INTO scale_sets (`+scaleSetColumns+`) VALUES ($1,$2,$3,$4,'',0,0,0,0)
			ON CONFLICT (pool) DO UPDATE SET scope = excluded.scope, name = excluded.name, set_id = excluded.set_id,
				session = '', last_message = 0, assigned = 0, running = 0, heard_at = 0`,
			pool, scope.String(), name, id)
	})
	return out, err
}

// KeepSession notes the message session that is open for a pool's scale set, "" for none.
func (s *Store) KeepSession(ctx context.Context, pool, session string) error {
	return s.change(ctx, func(t *tx) error {
		return t.exec(`UPDATE scale_sets SET session = $2 WHERE pool = $1`, pool, session)
	})
}

// DropScaleSet forgets the scale set of a pool that has none any more. Nobody will tell of
// its jobs: all are closed, and their runners left to what their guests say.
func (s *Store) DropScaleSet(ctx context.Context, pool string) error {
	return s.change(ctx, func(t *tx) error {
		if err := t.closeSetJobs(pool, fleet.JobWaiting, fleet.JobQueued, fleet.JobInProgress); err != nil {
			return err
		}
		return t.exec(`DELETE FROM scale_sets WHERE pool = $1`, pool)
	})
}

func (t *tx) setJobs(pool string) ([]fleet.Job, error) {
	rows, err := t.QueryContext(t.ctx, openSetJobs, pool)
	return collect(rows, err, scanJob)
}

func (t *tx) closeSetJobs(pool string, states ...fleet.JobState) error {
	jobs, err := t.setJobs(pool)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		if slices.Contains(states, j.State) {
			if err := t.closeSetJob(j); err != nil {
				return err
			}
		}
	}
	return nil
}

// closeSetJob ends a job in the books without anything being concluded for a runner.
func (t *tx) closeSetJob(j fleet.Job) error {
	t.changed = true
	return t.saveJob(j.Learn(fleet.JobNews{Event: fleet.ToldCompleted, Job: fleet.Job{ID: j.ID}}, t.now))
}

// takeMessage stores what a message of a scale set's queue says, and the message's id with
// it. The one that was stored last changes nothing when it comes again, and older ones move
// no job back.
func (t *tx) takeMessage(m fleet.SetMessage) (out fleet.Ingested, err error) {
	set, err := t.scaleSet(m.Pool)
	if err != nil {
		return out, err
	}
	if set.ID != m.Set {
		return out, fmt.Errorf("scale set of pool %s is %d, not %d: %w", m.Pool, set.ID, m.Set, fleet.ErrConflict)
	}
	if m.ID != 0 && m.ID == set.LastMessage {
		out.Duplicate = true
		return out, nil
	}
	for _, news := range m.Jobs {
		news.Job.Pool = m.Pool
		if news.Job.ID, err = t.setJobID(m.Pool, news.Job.SetKey); err != nil {
			return out, fmt.Errorf("job %s of the scale set of pool %s: %w", news.Job.SetKey, m.Pool, err)
		}
		moved, err := t.learn(news)
		if err != nil {
			return out, err
		}
		out.Changed = out.Changed || moved
	}
	moved, err := t.countNameless(set, m)
	if err != nil {
		return out, fmt.Errorf("scale set of pool %s: %w", m.Pool, err)
	}
	out.Changed = out.Changed || moved
	last := m.ID
	if last == 0 {
		last = set.LastMessage
	}
	return out, t.exec(`UPDATE scale_sets SET last_message = $2, assigned = $3, running = $4, heard_at = $5 WHERE pool = $1`,
		m.Pool, last, m.Assigned, m.Running, micros(t.now))
}

// countNameless lets the books have as many jobs as GitHub counts, as far as they lack
// some: jobs without a name are entered when nothing else is under way, and closed one by
// one as messages name jobs or the count falls.
func (t *tx) countNameless(set fleet.ScaleSet, m fleet.SetMessage) (changed bool, err error) {
	jobs, err := t.setJobs(m.Pool)
	if err != nil {
		return false, err
	}
	excess := len(jobs) - m.Assigned
	for _, j := range slices.Backward(jobs) {
		if excess > 0 && j.Nameless() {
			if err := t.closeSetJob(j); err != nil {
				return false, err
			}
			excess--
			changed = true
		}
	}
	if !m.Complete {
		return changed, nil
	}
	for ; excess < 0; excess++ {
		id, err := t.newSetJobID()
		if err != nil {
			return false, err
		}
		if _, err := t.learn(fleet.JobNews{Event: fleet.ToldQueued, Job: fleet.Job{
			ID: id, Pool: m.Pool, SetKey: fmt.Sprintf("%s%d", fleet.NamelessJob, id), Owner: set.Scope.Owner, Repo: set.Scope.Repo,
			Name: "a job that GitHub counts and has not named", CreatedAt: t.now,
		}}); err != nil {
			return false, err
		}
		changed = true
	}
	return changed, nil
}

// setJobID returns the books' id of a job that a scale set's messages name so, a new one
// for a new job.
func (t *tx) setJobID(pool, key string) (id fleet.JobID, err error) {
	err = t.row(`SELECT id FROM jobs WHERE set_key = $1 AND pool = $2`, key, pool).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		return t.newSetJobID()
	}
	return id, err
}

// newSetJobID counts in the table of facts, so that the id of a pruned job is not used again.
func (t *tx) newSetJobID() (id fleet.JobID, err error) {
	if err := t.exec(`INSERT INTO meta (name, value) VALUES ('scale_set_jobs', '1')
		ON CONFLICT (name) DO UPDATE SET value = CAST(CAST(meta.value AS BIGINT) + 1 AS TEXT)`); err != nil {
		return 0, err
	}
	var n string
	if err := t.row(`SELECT value FROM meta WHERE name = 'scale_set_jobs'`).Scan(&n); err != nil {
		return 0, err
	}
	var count int64
	if _, err := fmt.Sscan(n, &count); err != nil {
		return 0, err
	}
	return fleet.SetJobIDs + fleet.JobID(count), nil
}
