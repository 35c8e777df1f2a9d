// SPDX-License-Identifier: MIT

package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// State reads, at one moment, all that a decision is made from.
func (s *Store) State(ctx context.Context) (fleet.State, error) {
	var st fleet.State
	rtx, err := s.read.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return st, fmt.Errorf("read state: %w", err)
	}
	defer rtx.Rollback() //nolint:errcheck // a read has nothing to lose
	rows, err := rtx.QueryContext(ctx, `SELECT `+jobColumns+` FROM jobs WHERE state = 'queued' ORDER BY queued_at, id`)
	if st.Jobs, err = collect(rows, err, scanJob); err != nil {
		return st, fmt.Errorf("read queued jobs: %w", err)
	}
	rows, err = rtx.QueryContext(ctx, `SELECT `+runnerColumns+` FROM runners WHERE is_over = 0 ORDER BY created_at, id`)
	if st.Runners, err = collect(rows, err, scanRunner); err != nil {
		return st, fmt.Errorf("read runners: %w", err)
	}
	rows, err = rtx.QueryContext(ctx, `SELECT `+hostColumns+` FROM hosts ORDER BY name`)
	if st.Hosts, err = collect(rows, err, scanHost); err != nil {
		return st, fmt.Errorf("read hosts: %w", err)
	}
	st.Pools, st.Mints = map[string]fleet.PoolHealth{}, map[string]fleet.MintUse{}
	if err := eachRow(ctx, rtx, `SELECT pool, failures, failed_at, reason FROM pool_health WHERE failures > 0`, func(row scanner) error {
		var (
			pool string
			h    fleet.PoolHealth
			at   int64
		)
		err := row.Scan(&pool, &h.Failures, &at, &h.Reason)
		h.FailedAt = fromMicros(at)
		st.Pools[pool] = h
		return err
	}); err != nil {
		return st, fmt.Errorf("read pool health: %w", err)
	}
	cut := micros(s.now().Add(-time.Minute))
	if err := eachRow(ctx, rtx, `SELECT owner, COUNT(*), MIN(at) FROM mints WHERE at > $1 GROUP BY owner`, func(row scanner) error {
		var (
			owner  string
			n      int
			oldest int64
		)
		err := row.Scan(&owner, &n, &oldest)
		st.Mints[owner] = fleet.MintUse{LastMinute: n, Oldest: fromMicros(oldest)}
		return err
	}, cut); err != nil {
		return st, fmt.Errorf("read mints: %w", err)
	}
	return st, nil
}

func eachRow(ctx context.Context, rtx *sql.Tx, query string, f func(scanner) error, args ...any) error {
	rows, err := rtx.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := f(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}
