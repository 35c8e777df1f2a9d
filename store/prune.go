// SPDX-License-Identifier: MIT

package store

import (
	"context"
	"fmt"
	"time"

	"github.com/minifleet/minifleet/crashpoint"
)

// Retention says for how long the past is kept; 0 means for ever.
type Retention struct {
	Payloads time.Duration // of deliveries
	History  time.Duration // deliveries, completed jobs, runs and runners of the past with their timelines
}

// Prune deletes what is older than its retention. It works in small steps, so
// that nothing else waits long for the database.
func (s *Store) Prune(ctx context.Context, keep Retention) error {
	steps := []struct {
		what, query string
		age         time.Duration
	}{
		{"payloads", `UPDATE deliveries SET payload = NULL WHERE guid IN (SELECT guid FROM deliveries WHERE received_at < $1 AND payload IS NOT NULL LIMIT 500)`, keep.Payloads},
		{"deliveries", `DELETE FROM deliveries WHERE guid IN (SELECT guid FROM deliveries WHERE received_at < $1 LIMIT 500)`, keep.History},
		{"redeliveries", `DELETE FROM redeliveries WHERE guid IN (SELECT guid FROM redeliveries WHERE at < $1 LIMIT 500)`, keep.History},
		{"jobs", `DELETE FROM jobs WHERE id IN (SELECT id FROM jobs WHERE state = 'completed' AND completed_at < $1 LIMIT 500)`, keep.History},
		{"runs", `DELETE FROM runs WHERE heard_at < $1 AND id IN (SELECT id FROM runs WHERE heard_at < $1 LIMIT 500)`, keep.History},
		{"mints", `DELETE FROM mints WHERE name IN (SELECT name FROM mints WHERE at < $1 AND runner NOT IN (SELECT id FROM runners WHERE is_over = 0) LIMIT 500)`, keep.History},
		{"runners", `DELETE FROM runners WHERE id IN (SELECT id FROM runners WHERE is_over = 1 AND moved_at < $1 LIMIT 500)`, keep.History},
		{"timelines", `DELETE FROM moments WHERE at < $1 AND runner IN
			(SELECT DISTINCT m.runner FROM moments m LEFT JOIN runners r ON r.id = m.runner WHERE r.id IS NULL LIMIT 500)`, keep.History},
	}
	for _, step := range steps {
		if step.age <= 0 {
			continue
		}
		for {
			var n int64
			err := s.change(ctx, func(t *tx) error {
				res, err := t.ExecContext(t.ctx, step.query, t.since(step.age))
				if err != nil {
					return err
				}
				n, err = res.RowsAffected()
				return err
			})
			if err != nil {
				return fmt.Errorf("prune %s: %w", step.what, err)
			}
			if n < 500 {
				break
			}
		}
		crashpoint.Reached(crashpoint.PruneStepped)
	}
	return nil
}
