// SPDX-License-Identifier: MIT

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// touched names the rows that changes of a transaction may have changed. All others are
// as the mirror has them.
type touched struct {
	jobs    map[fleet.JobID]bool
	runs    map[fleet.RunKey]bool
	runners map[fleet.RunnerID]bool
	on      map[fleet.HostID]bool // hosts whose runners are touched, or came or went
	hosts   map[fleet.HostID]bool
	pools   bool
	refused bool

	rollouts      bool
	installations bool

	reported map[fleet.HostID]bool // hosts whose newest report is not in memory yet
}

func newTouched() touched {
	return touched{
		jobs: map[fleet.JobID]bool{}, runs: map[fleet.RunKey]bool{}, runners: map[fleet.RunnerID]bool{}, on: map[fleet.HostID]bool{},
		hosts: map[fleet.HostID]bool{}, reported: map[fleet.HostID]bool{},
	}
}

func (t *touched) runner(id fleet.RunnerID, host fleet.HostID) {
	t.runners[id], t.on[host] = true, true
}

// news is how those rows are now. A host that is nil is gone.
type news struct {
	jobs    []fleet.Job
	runs    []fleet.Run
	runners []fleet.Runner
	hosts   map[fleet.HostID]*hostRow
	raised  map[fleet.HostID]int64             // by how much the revision rose of those that are not read anew
	pools   map[string]fleet.PoolHealth        // nil: untouched
	refused map[fleet.PoolScope]fleet.Refusals // nil: untouched

	rollouts  map[string]fleet.Rollout // nil: untouched
	installed *installed               // nil: untouched
}

// installed is where the App is installed.
type installed struct {
	loaded bool // whether GitHub's own list was ever read
	known  map[int64]bool
}

// readInstalled reads it with the given function.
func readInstalled(query func(string) (*sql.Rows, error)) (*installed, error) {
	in := &installed{known: map[int64]bool{}}
	rows, err := query(`SELECT id FROM installations WHERE deleted = 0`)
	ids, err := collect(rows, err, func(row scanner) (id int64, err error) { return id, row.Scan(&id) })
	if err != nil {
		return nil, fmt.Errorf("read installations: %w", err)
	}
	for _, id := range ids {
		in.known[id] = true
	}
	rows, err = query(`SELECT COUNT(*) FROM meta WHERE name = 'installations_at'`)
	_, err = collect(rows, err, func(row scanner) (n int, err error) {
		err = row.Scan(&n)
		in.loaded = n > 0
		return n, err
	})
	return in, err
}

const hostRowColumns = hostColumns + `, credential_hash`

// withTail scans a row whose last columns are beyond those of its type.
type withTail struct {
	scanner
	tail []any
}

func (s withTail) Scan(into ...any) error { return s.scanner.Scan(append(into, s.tail...)...) }

func scanHostRow(row scanner) (h hostRow, err error) {
	h.Host, err = scanHost(withTail{row, []any{&h.credential}})
	return h, err
}

// look reads the touched rows.
func (b *batch) look() (news, error) {
	n := news{hosts: map[fleet.HostID]*hostRow{}, raised: b.raised}
	for id := range b.touched.jobs {
		j, err := scanJob(b.QueryRowContext(b.ctx, `SELECT `+jobColumns+` FROM jobs WHERE id = $1`, int64(id)))
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return n, fmt.Errorf("job %d: %w", id, err)
		}
		j.ID = id
		n.jobs = append(n.jobs, j)
	}
	var err error
	if n.runs, err = b.lookAtRuns(n.jobs); err != nil {
		return n, err
	}
	for id := range b.touched.runners {
		r, err := scanRunner(b.QueryRowContext(b.ctx, `SELECT `+runnerColumns+` FROM runners WHERE id = $1`, string(id)))
		if errors.Is(err, sql.ErrNoRows) {
			continue // its insertion was taken back
		}
		if err != nil {
			return n, fmt.Errorf("runner %s: %w", id, err)
		}
		n.runners = append(n.runners, r)
	}
	for id := range b.touched.hosts {
		h, err := scanHostRow(b.QueryRowContext(b.ctx, `SELECT `+hostRowColumns+` FROM hosts WHERE id = $1`, string(id)))
		switch {
		case errors.Is(err, sql.ErrNoRows):
			n.hosts[id] = nil
		case err != nil:
			return n, fmt.Errorf("host %s: %w", id, err)
		default:
			n.hosts[id] = &h
		}
	}
	if b.touched.installations {
		if n.installed, err = readInstalled(func(q string) (*sql.Rows, error) { return b.QueryContext(b.ctx, q) }); err != nil {
			return n, err
		}
	}
	if b.touched.rollouts {
		rows, err := b.QueryContext(b.ctx, rolloutsQuery)
		if n.rollouts, err = scanRollouts(rows, err); err != nil {
			return n, err
		}
	}
	if b.touched.refused {
		rows, err := b.QueryContext(b.ctx, refusalsQuery)
		if n.refused, err = scanRefusals(rows, err); err != nil {
			return n, err
		}
	}
	if !b.touched.pools {
		return n, nil
	}
	rows, err := b.QueryContext(b.ctx, poolHealthQuery)
	n.pools, err = scanPoolHealth(rows, err)
	return n, err
}

const poolHealthQuery = `SELECT pool, failures, failed_at, reason FROM pool_health WHERE failures > 0`

func scanPoolHealth(rows *sql.Rows, err error) (map[string]fleet.PoolHealth, error) {
	out := map[string]fleet.PoolHealth{}
	_, err = collect(rows, err, func(row scanner) (pool string, err error) {
		var (
			h  fleet.PoolHealth
			at int64
		)
		err = row.Scan(&pool, &h.Failures, &at, &h.Reason)
		h.FailedAt = fromMicros(at)
		out[pool] = h
		return pool, err
	})
	if err != nil {
		return nil, fmt.Errorf("read pool health: %w", err)
	}
	return out, nil
}

const refusalsQuery = `SELECT pool, scope, times, last_at, reason FROM refusals`

func scanRefusals(rows *sql.Rows, err error) (map[fleet.PoolScope]fleet.Refusals, error) {
	out := map[fleet.PoolScope]fleet.Refusals{}
	_, err = collect(rows, err, func(row scanner) (at fleet.PoolScope, err error) {
		var (
			r    fleet.Refusals
			last int64
		)
		err = row.Scan(&at.Pool, &at.Scope, &r.Times, &last, &r.Reason)
		r.LastAt = fromMicros(last)
		out[at] = r
		return at, err
	})
	if err != nil {
		return nil, fmt.Errorf("read refusals: %w", err)
	}
	return out, nil
}

// load fills the mirror from the database, at its opening.
func (m *mirror) load(ctx context.Context, db *sql.DB, now time.Time) error {
	rows, err := db.QueryContext(ctx, `SELECT `+jobColumns+` FROM jobs WHERE state IN ('waiting', 'queued', 'in_progress')`)
	jobs, err := collect(rows, err, scanJob)
	if err != nil {
		return fmt.Errorf("read open jobs: %w", err)
	}
	rows, err = db.QueryContext(ctx, wantedRuns)
	runs, err := collect(rows, err, scanRun)
	if err != nil {
		return fmt.Errorf("read the runs of queued jobs: %w", err)
	}
	rows, err = db.QueryContext(ctx, `SELECT `+runnerColumns+` FROM runners WHERE is_over = 0 OR moved_at > $1`, micros(now.Add(-pastKept)))
	runners, err := collect(rows, err, scanRunner)
	if err != nil {
		return fmt.Errorf("read runners: %w", err)
	}
	rows, err = db.QueryContext(ctx, `SELECT `+hostRowColumns+` FROM hosts`)
	hosts, err := collect(rows, err, scanHostRow)
	if err != nil {
		return fmt.Errorf("read hosts: %w", err)
	}
	rows, err = db.QueryContext(ctx, poolHealthQuery)
	pools, err := scanPoolHealth(rows, err)
	if err != nil {
		return err
	}
	rows, err = db.QueryContext(ctx, rolloutsQuery)
	rollouts, err := scanRollouts(rows, err)
	if err != nil {
		return err
	}
	rows, err = db.QueryContext(ctx, refusalsQuery)
	refused, err := scanRefusals(rows, err)
	if err != nil {
		return err
	}
	in, err := readInstalled(func(q string) (*sql.Rows, error) { return db.QueryContext(ctx, q) })
	if err != nil {
		return err
	}
	type mint struct {
		owner string
		at    time.Time
	}
	rows, err = db.QueryContext(ctx, `SELECT owner, at FROM mints WHERE at > $1 ORDER BY at`, micros(now.Add(-time.Minute)))
	mints, err := collect(rows, err, func(row scanner) (x mint, err error) {
		var at int64
		err = row.Scan(&x.owner, &at)
		x.at = fromMicros(at)
		return x, err
	})
	if err != nil {
		return fmt.Errorf("read mints: %w", err)
	}
	n := news{jobs: jobs, runs: runs, runners: runners, hosts: map[fleet.HostID]*hostRow{}, pools: pools, refused: refused, rollouts: rollouts, installed: in}
	for i := range hosts {
		n.hosts[hosts[i].ID] = &hosts[i]
	}
	m.apply(n)
	for _, x := range mints {
		m.minted(x.owner, x.at)
	}
	return nil
}
