// SPDX-License-Identifier: MIT

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// CaughtUp returns the time, by GitHub's clock, up to which its list of an App's deliveries
// was dealt with; zero if it never was.
func (s *Store) CaughtUp(ctx context.Context, app int64) (time.Time, error) {
	var text string
	err := s.read.QueryRowContext(ctx, `SELECT value FROM meta WHERE name = $1`, caughtUp(app)).Scan(&text)
	if errors.Is(err, sql.ErrNoRows) {
		return time.Time{}, nil
	}
	at, parseErr := strconv.ParseInt(text, 10, 64)
	if err = errors.Join(err, parseErr); err != nil {
		return time.Time{}, fmt.Errorf("read how far deliveries were caught up with: %w", err)
	}
	return fromMicros(at), nil
}

// SetCaughtUp notes up to which time GitHub's list of an App's deliveries was dealt with.
func (s *Store) SetCaughtUp(ctx context.Context, app int64, at time.Time) error {
	return s.change(ctx, func(t *tx) error {
		return t.exec(`INSERT INTO meta (name, value) VALUES ($1, $2)
			ON CONFLICT (name) DO UPDATE SET value = excluded.value`, caughtUp(app), fmt.Sprint(micros(at)))
	})
}

func caughtUp(app int64) string { return fmt.Sprintf("deliveries_of_%d_at", app) }

// SettledDeliveries returns which of the deliveries, at most 500, are stored and have not
// failed: those that are not to be taken again.
func (s *Store) SettledDeliveries(ctx context.Context, guids []string) (map[string]bool, error) {
	if len(guids) == 0 {
		return nil, nil
	}
	args := make([]any, len(guids))
	marks := make([]string, len(guids))
	for i, guid := range guids {
		args[i], marks[i] = guid, "$"+strconv.Itoa(i+1)
	}
	rows, err := s.read.QueryContext(ctx, `SELECT guid FROM deliveries WHERE status <> 'failed' AND guid IN (`+strings.Join(marks, ",")+`)`, args...)
	list, err := collect(rows, err, func(row scanner) (guid string, err error) { return guid, row.Scan(&guid) })
	if err != nil {
		return nil, fmt.Errorf("look up deliveries: %w", err)
	}
	out := make(map[string]bool, len(list))
	for _, guid := range list {
		out[guid] = true
	}
	return out, nil
}

// Redeliveries returns how often GitHub was asked for a delivery again.
func (s *Store) Redeliveries(ctx context.Context, guid string) (times int, err error) {
	err = s.read.QueryRowContext(ctx, `SELECT times FROM redeliveries WHERE guid = $1`, guid).Scan(&times)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read the redeliveries of %s: %w", guid, err)
	}
	return times, nil
}

// CountRedelivery notes that GitHub was asked for a delivery again.
func (s *Store) CountRedelivery(ctx context.Context, guid string) error {
	return s.change(ctx, func(t *tx) error {
		return t.exec(`INSERT INTO redeliveries (guid, times, at) VALUES ($1, 1, $2)
			ON CONFLICT (guid) DO UPDATE SET times = redeliveries.times + 1, at = excluded.at`, guid, micros(t.now))
	})
}
