// SPDX-License-Identifier: MIT

package store

import (
	"database/sql"
	"errors"
	"fmt"
	"maps"

	"github.com/minifleet/minifleet/fleet"
)

const runColumns = `id, attempt, repository, visibility, event, head_repository, fork, actor, triggering_actor, status, conclusion`

// wantedRuns are those that a decision reads: of queued jobs.
const wantedRuns = `SELECT ` + runColumns + ` FROM runs WHERE EXISTS
	(SELECT 1 FROM jobs WHERE jobs.state = 'queued' AND jobs.run_id = runs.id AND jobs.run_attempt = runs.attempt)`

func scanRun(row scanner) (r fleet.Run, err error) {
	err = row.Scan(&r.ID, &r.Attempt, &r.Repository, &r.Visibility, &r.Event, &r.HeadRepository, &r.Fork, &r.Actor, &r.TriggeringActor, &r.Status, &r.Conclusion)
	return r, err
}

// originRun returns an attempt of a run, and false if nothing was ever heard of it.
func (b *batch) originRun(k fleet.RunKey) (fleet.Run, bool, error) {
	r, err := scanRun(b.QueryRowContext(b.ctx, `SELECT `+runColumns+` FROM runs WHERE id = $1 AND attempt = $2`, k.ID, k.Attempt))
	if errors.Is(err, sql.ErrNoRows) {
		return fleet.Run{}, false, nil
	}
	if err != nil {
		return fleet.Run{}, false, fmt.Errorf("run %d, attempt %d: %w", k.ID, k.Attempt, err)
	}
	return r, true, nil
}

// learnRun takes in what a delivery, or GitHub's own answer, tells of a run.
func (t *tx) learnRun(news fleet.Run) (changed bool, err error) {
	was, known, err := t.originRun(news.Key())
	if err != nil {
		return false, err
	}
	is := news
	if known {
		is = was.Learn(news)
	}
	if known && is == was {
		return false, nil
	}
	t.changed, t.touched.runs[is.Key()] = true, true
	err = t.exec(`INSERT INTO runs (`+runColumns+`, heard_at) VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12)
		ON CONFLICT (id, attempt) DO UPDATE SET repository = excluded.repository, visibility = excluded.visibility, event = excluded.event,
			head_repository = excluded.head_repository, fork = excluded.fork, actor = excluded.actor, triggering_actor = excluded.triggering_actor,
			status = excluded.status, conclusion = excluded.conclusion`,
		is.ID, is.Attempt, is.Repository, string(is.Visibility), is.Event, is.HeadRepository, bit(is.Fork), is.Actor, is.TriggeringActor, is.Status, is.Conclusion,
		micros(t.now))
	if err != nil {
		return false, fmt.Errorf("run %d, attempt %d: %w", is.ID, is.Attempt, err)
	}
	return true, nil
}

// lookAtRuns reads the runs that changed, and those of jobs that are queued now and of
// which the mirror does not have them.
func (b *batch) lookAtRuns(jobs []fleet.Job) ([]fleet.Run, error) {
	keys := maps.Clone(b.touched.runs)
	for _, j := range jobs {
		if j.State == fleet.JobQueued && !b.s.mirror.hasRun(j.Run()) {
			keys[j.Run()] = true
		}
	}
	var out []fleet.Run
	for k := range keys {
		r, known, err := b.originRun(k)
		if err != nil {
			return nil, err
		}
		if known {
			out = append(out, r)
		}
	}
	return out, nil
}

// originRuns are the runs of queued jobs, as far as they are known.
type originRuns struct {
	byKey  map[fleet.RunKey]*fleet.Run // immutable values
	jobs   map[fleet.RunKey]int        // how many queued jobs are of each, whether it is known or not
	listed map[fleet.RunKey]*fleet.Run // given out, and never written to; nil: out of date
}

func newOriginRuns() originRuns {
	return originRuns{byKey: map[fleet.RunKey]*fleet.Run{}, jobs: map[fleet.RunKey]int{}}
}

// job notes that a job came to be queued, or is so no more.
func (o *originRuns) job(k fleet.RunKey, by int) {
	if o.jobs[k] += by; o.jobs[k] > 0 {
		return
	}
	delete(o.jobs, k)
	if o.byKey[k] != nil {
		delete(o.byKey, k)
		o.listed = nil
	}
}

// set takes in a run, if any queued job is of it.
func (o *originRuns) set(r fleet.Run) {
	if o.jobs[r.Key()] > 0 {
		o.byKey[r.Key()], o.listed = &r, nil
	}
}

func (o *originRuns) list() map[fleet.RunKey]*fleet.Run {
	if o.listed == nil && len(o.byKey) > 0 {
		o.listed = maps.Clone(o.byKey)
	}
	return o.listed
}

// hasRun reports whether decisions know a run already.
func (m *mirror) hasRun(k fleet.RunKey) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.runs.byKey[k] != nil
}
