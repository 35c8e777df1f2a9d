// SPDX-License-Identifier: MIT

package store

import (
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

const runnerColumns = `id, pool, host, reason, wanted, scope, armed_at, retired_at, retired,
	observed, holds_slot, has_config, failure, result, progress, took,
	registration, runner_name, github_id, attempt, delete_after, job, job_done,
	since, moved_at, created_at, version, image, job_repository, job_run, job_refused, runner_version`

type scanner interface{ Scan(...any) error }

func scanRunner(row scanner) (fleet.Runner, error) {
	var (
		r                                           fleet.Runner
		scope                                       string
		armed, retired, deleteAfter, since, moved   int64
		created                                     int64
		wanted, observed, registration, host, ident string
		took                                        string
	)
	err := row.Scan(&ident, &r.Pool, &host, &r.Reason, &wanted, &scope, &armed, &retired, &r.Retired,
		&observed, &r.HoldsSlot, &r.HasConfig, &r.Failure, &r.Result, &r.Progress, &took,
		&registration, &r.RunnerName, &r.GitHubID, &r.Attempt, &deleteAfter, &r.Job, &r.JobDone,
		&since, &moved, &created, &r.Version, &r.Image, &r.JobRepository, &r.JobRun, &r.JobRefused, &r.Runner)
	if err != nil {
		return r, err
	}
	r.ID, r.Host = fleet.RunnerID(ident), fleet.HostID(host)
	r.Wanted, r.Observed, r.Registration = fleet.Wanted(wanted), fleet.Observed(observed), fleet.Registration(registration)
	r.Scope, r.Took = storedScope(scope), storedTook(took)
	r.ArmedAt, r.RetiredAt, r.DeleteAfter = fromMicros(armed), fromMicros(retired), fromMicros(deleteAfter)
	r.Since, r.MovedAt, r.CreatedAt = fromMicros(since), fromMicros(moved), fromMicros(created)
	return r, nil
}

// storedScope reads a scope that was checked before it was stored.
func storedScope(s string) fleet.Scope {
	owner, repo, _ := strings.Cut(s, "/")
	return fleet.Scope{Owner: owner, Repo: repo}
}

// field is a column that can change after a runner was made.
type field struct {
	name string
	of   func(fleet.Runner) any // a comparable value, as the driver takes it
}

// runnerFields lists them. A change writes those that differ and no other, so
// that two writers of different parts never undo each other.
func runnerFields() []field {
	return []field{
		{"wanted", func(r fleet.Runner) any { return string(r.Wanted) }},
		{"scope", func(r fleet.Runner) any { return r.Scope.String() }},
		{"armed_at", func(r fleet.Runner) any { return micros(r.ArmedAt) }},
		{"retired_at", func(r fleet.Runner) any { return micros(r.RetiredAt) }},
		{"retired", func(r fleet.Runner) any { return r.Retired }},
		{"observed", func(r fleet.Runner) any { return string(r.Observed) }},
		{"holds_slot", func(r fleet.Runner) any { return bit(r.HoldsSlot) }},
		{"has_config", func(r fleet.Runner) any { return bit(r.HasConfig) }},
		{"failure", func(r fleet.Runner) any { return r.Failure }},
		{"result", func(r fleet.Runner) any { return r.Result }},
		{"progress", func(r fleet.Runner) any { return r.Progress }},
		{"runner_version", func(r fleet.Runner) any { return r.Runner }},
		{"took", func(r fleet.Runner) any { return tookText(r.Took) }},
		{"registration", func(r fleet.Runner) any { return string(r.Registration) }},
		{"runner_name", func(r fleet.Runner) any { return r.RunnerName }},
		{"github_id", func(r fleet.Runner) any { return r.GitHubID }},
		{"attempt", func(r fleet.Runner) any { return int64(r.Attempt) }},
		{"delete_after", func(r fleet.Runner) any { return micros(r.DeleteAfter) }},
		{"job", func(r fleet.Runner) any { return int64(r.Job) }},
		{"job_repository", func(r fleet.Runner) any { return r.JobRepository }},
		{"job_run", func(r fleet.Runner) any { return r.JobRun }},
		{"job_refused", func(r fleet.Runner) any { return r.JobRefused }},
		{"job_done", func(r fleet.Runner) any { return bit(r.JobDone) }},
	}
}

// insertRunner stores a new runner and the first moment of its timeline.
func (t *tx) insertRunner(r fleet.Runner) error {
	r.Since, r.MovedAt, r.CreatedAt, r.Version = t.now, t.now, t.now, 1
	t.touched.runner(r.ID, r.Host)
	err := t.exec(`INSERT INTO runners (`+runnerColumns+`, is_over)
		VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15,$16,$17,$18,$19,$20,$21,$22,$23,$24,$25,$26,$27,$28,$29,$30,$31,$32,$33)`,
		string(r.ID), r.Pool, string(r.Host), r.Reason, string(r.Wanted), r.Scope.String(), micros(r.ArmedAt), micros(r.RetiredAt), r.Retired,
		string(r.Observed), bit(r.HoldsSlot), bit(r.HasConfig), r.Failure, r.Result, r.Progress, tookText(r.Took),
		string(r.Registration), r.RunnerName, r.GitHubID, r.Attempt, micros(r.DeleteAfter), int64(r.Job), bit(r.JobDone),
		micros(r.Since), micros(r.MovedAt), micros(r.CreatedAt), r.Version, r.Image, r.JobRepository, r.JobRun, r.JobRefused, r.Runner, bit(r.Over()))
	if err != nil {
		return fmt.Errorf("insert runner %s: %w", r.ID, err)
	}
	t.changed = true
	return t.moment(r.ID, r.Phase(), r.Reason)
}

// saveRunner writes what differs between a runner as it was read and as it is to
// be, if nobody changed it meanwhile (fleet.ErrConflict). A new phase starts its clock
// and enters the timeline. It reports whether anything differed.
func (t *tx) saveRunner(was, is fleet.Runner, detail string) (bool, error) {
	var (
		set  []string
		args []any
	)
	put := func(column string, v any) {
		args = append(args, v)
		set = append(set, fmt.Sprintf("%s = $%d", column, len(args)))
	}
	for _, f := range runnerFields() {
		if before, after := f.of(was), f.of(is); before != after {
			put(f.name, after)
		}
	}
	if len(set) == 0 {
		return false, nil
	}
	t.touched.runner(is.ID, is.Host)
	moved := was.Phase() != is.Phase()
	if moved {
		put("since", micros(t.now))
	}
	put("moved_at", micros(t.now))
	put("is_over", bit(is.Over()))
	args = append(args, string(is.ID), was.Version)
	res, err := t.ExecContext(t.ctx, fmt.Sprintf("UPDATE runners SET %s, version = version + 1 WHERE id = $%d AND version = $%d",
		strings.Join(set, ", "), len(args)-1, len(args)), args...)
	if err != nil {
		return false, fmt.Errorf("save runner %s: %w", is.ID, err)
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return false, errors.Join(fmt.Errorf("save runner %s: %w", is.ID, fleet.ErrConflict), err)
	}
	t.changed = true
	if was.Wanted != is.Wanted || was.Scope != is.Scope || (is.Observed == fleet.ObservedGone && was.Observed != is.Observed) {
		t.hosts[is.Host] = true
	}
	if moved {
		return true, t.moment(is.ID, is.Phase(), detail)
	}
	return true, nil
}

// moment adds to a runner's timeline. A whole life has some 15 moments; a guest
// that goes back and forth fills no disk.
func (t *tx) moment(id fleet.RunnerID, p fleet.Phase, detail string) error {
	return t.exec(`INSERT INTO moments (runner, seq, at, phase, detail)
		SELECT $1, COALESCE(MAX(seq), 0) + 1, $2, $3, $4 FROM moments WHERE runner = $1 HAVING COALESCE(MAX(seq), 0) < 200`, string(id), micros(t.now), string(p), detail)
}

// runnersOn returns the runners of a host that are not over.
func (t *tx) runnersOn(host fleet.HostID) ([]fleet.Runner, error) {
	if !t.touched.on[host] {
		return t.s.mirror.runnersOn(host), nil
	}
	rows, err := t.QueryContext(t.ctx, `SELECT `+runnerColumns+` FROM runners WHERE is_over = 0 AND host = $1`, string(host))
	return collect(rows, err, scanRunner)
}

func (t *tx) runner(id fleet.RunnerID) (fleet.Runner, error) {
	if !t.touched.runners[id] {
		if r, ok := t.s.mirror.runner(id); ok {
			return r, nil
		}
	}
	r, err := scanRunner(t.row(`SELECT `+runnerColumns+` FROM runners WHERE id = $1`, string(id)))
	if errors.Is(err, sql.ErrNoRows) {
		return r, fmt.Errorf("runner %s: %w", id, fleet.ErrNotFound)
	}
	return r, err
}

// failed counts a failure against the host, and against the pool, or the image that the
// pool tries. What the image alone is to blame for does not count against the host.
func (t *tx) failed(r fleet.Runner, imageAlone bool) error {
	blamed, err := t.blamed(r)
	if err != nil {
		return err
	}
	if !blamed {
		t.touched.pools = true
		if err := t.exec(`INSERT INTO pool_health (pool, failures, failed_at, reason) VALUES ($1, 1, $2, $3)
			ON CONFLICT (pool) DO UPDATE SET failures = pool_health.failures + 1, failed_at = excluded.failed_at, reason = excluded.reason`,
			r.Pool, micros(t.now), r.Failure); err != nil {
			return err
		}
	}
	if imageAlone {
		return nil
	}
	t.touched.hosts[r.Host] = true
	return t.exec(`UPDATE hosts SET failures = failures + 1, failed_at = $1 WHERE id = $2`, micros(t.now), string(r.Host))
}

// worked forgets earlier failures: of the host when the guest of a VM answered, of
// the pool when a runner of it got as far as a job. A report may skip either step.
func (t *tx) worked(was, is fleet.Runner) error {
	answered := func(o fleet.Observed) bool {
		return slices.Contains([]fleet.Observed{
			fleet.ObservedStandby, fleet.ObservedRegistering, fleet.ObservedIdle, fleet.ObservedBusy, fleet.ObservedFinished,
		}, o)
	}
	if answered(is.Observed) && !answered(was.Observed) {
		h, err := t.host(is.Host)
		if err == nil && h.Failures > 0 {
			t.touched.hosts[is.Host] = true
			err = t.exec(`UPDATE hosts SET failures = 0 WHERE id = $1`, string(is.Host))
		}
		if err := errors.Join(err, t.tried(is)); err != nil {
			return err
		}
	}
	ran := func(r fleet.Runner) bool { return r.Observed == fleet.ObservedBusy || r.Result != "" }
	if ran(is) && !ran(was) && (t.touched.pools || t.s.mirror.failing(is.Pool)) {
		t.touched.pools = true
		return t.exec(`UPDATE pool_health SET failures = 0 WHERE pool = $1 AND failures > 0`, is.Pool)
	}
	return nil
}

func collect[T any](rows *sql.Rows, err error, scan func(scanner) (T, error)) ([]T, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, rows.Err()
}

// since is the cut-off of a period that ends now.
func (t *tx) since(d time.Duration) int64 { return micros(t.now.Add(-d)) }
