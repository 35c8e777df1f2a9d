// SPDX-License-Identifier: MIT

package store

import (
	"context"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/minifleet/minifleet/fleet"
)

// query builds a listing: conditions joined by AND, then a page of it.
type query struct {
	where []string
	args  []any
}

func (q *query) and(condition string, args ...any) {
	for _, a := range args {
		q.args = append(q.args, a)
		condition = strings.Replace(condition, "?", fmt.Sprintf("$%d", len(q.args)), 1)
	}
	q.where = append(q.where, condition)
}

func (q *query) sql(head, tail string) string {
	if len(q.where) > 0 {
		head += " WHERE " + strings.Join(q.where, " AND ")
	}
	return head + " " + tail
}

// A cursor is the sort key of the last row: a number and a text.
func cursor(n int64, text string) string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%d %s", n, text))
}

func parseCursor(s string) (n int64, text string, err error) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return 0, "", fleet.ErrCursor
	}
	head, text, ok := strings.Cut(string(b), " ")
	if _, err := fmt.Sscanf(head, "%d", &n); !ok || err != nil {
		return 0, "", fleet.ErrCursor
	}
	return n, text, nil
}

// after adds the condition of a page that goes down by (column, id).
func (q *query) after(p fleet.Page, column, id string) error {
	if p.Cursor == "" {
		return nil
	}
	n, text, err := parseCursor(p.Cursor)
	if err != nil {
		return err
	}
	q.and("("+column+" < ? OR ("+column+" = ? AND "+id+" < ?))", n, n, text)
	return nil
}

func limit(p fleet.Page) int {
	if p.Limit <= 0 {
		return 100
	}
	return min(p.Limit, 1000)
}

// page cuts the one row that was read too many and names the next page.
func page[T any](rows []T, n int, key func(T) string) ([]T, string) {
	if len(rows) <= n {
		return rows, ""
	}
	return rows[:n], key(rows[n-1])
}

// ListJobs lists jobs, newest first.
func (s *Store) ListJobs(ctx context.Context, in fleet.JobQuery) ([]fleet.Job, string, error) {
	var q query
	if len(in.States) > 0 {
		marks := make([]string, len(in.States))
		args := make([]any, len(in.States))
		for i, st := range in.States {
			marks[i], args[i] = "?", string(st)
		}
		q.and("state IN ("+strings.Join(marks, ",")+")", args...)
	}
	if in.Repository != "" {
		q.and("repository_key = ?", strings.ToLower(in.Repository))
	}
	if in.RunID != 0 {
		q.and("run_id = ?", in.RunID)
	}
	if in.Cursor != "" {
		n, _, err := parseCursor(in.Cursor)
		if err != nil {
			return nil, "", err
		}
		q.and("id < ?", n)
	}
	n := limit(in.Page)
	rows, err := s.read.QueryContext(ctx, q.sql(`SELECT `+jobColumns+` FROM jobs`, fmt.Sprintf("ORDER BY id DESC LIMIT %d", n+1)), q.args...)
	jobs, err := collect(rows, err, scanJob)
	if err != nil {
		return nil, "", fmt.Errorf("list jobs: %w", err)
	}
	jobs, next := page(jobs, n, func(j fleet.Job) string { return cursor(int64(j.ID), "") })
	return jobs, next, nil
}

// Job returns one job, and false if it was never heard of.
func (s *Store) Job(ctx context.Context, id fleet.JobID) (fleet.Job, bool, error) {
	j, err := scanJob(s.read.QueryRowContext(ctx, `SELECT `+jobColumns+` FROM jobs WHERE id = $1`, int64(id)))
	return found(j, err, "job", id)
}

func found[T any](v T, err error, what string, id any) (T, bool, error) {
	if errors.Is(err, sql.ErrNoRows) {
		return v, false, nil
	}
	if err != nil {
		return v, false, fmt.Errorf("%s %v: %w", what, id, err)
	}
	return v, true, nil
}

// ListRunners lists runners, newest first.
func (s *Store) ListRunners(ctx context.Context, in fleet.RunnerQuery) ([]fleet.Runner, string, error) {
	var q query
	if in.Pool != "" {
		q.and("pool = ?", in.Pool)
	}
	if in.Host != "" {
		q.and("host = ?", string(in.Host))
	}
	if in.Job != 0 {
		q.and("job = ?", int64(in.Job))
	}
	if !in.All {
		q.and("is_over = 0")
	}
	if err := q.after(in.Page, "created_at", "id"); err != nil {
		return nil, "", err
	}
	n := limit(in.Page)
	rows, err := s.read.QueryContext(ctx, q.sql(`SELECT `+runnerColumns+` FROM runners`, fmt.Sprintf("ORDER BY created_at DESC, id DESC LIMIT %d", n+1)), q.args...)
	runners, err := collect(rows, err, scanRunner)
	if err != nil {
		return nil, "", fmt.Errorf("list runners: %w", err)
	}
	runners, next := page(runners, n, func(r fleet.Runner) string { return cursor(micros(r.CreatedAt), string(r.ID)) })
	return runners, next, nil
}

// Runner returns one runner, of the past or not.
func (s *Store) Runner(ctx context.Context, id fleet.RunnerID) (fleet.Runner, bool, error) {
	r, err := scanRunner(s.read.QueryRowContext(ctx, `SELECT `+runnerColumns+` FROM runners WHERE id = $1`, string(id)))
	return found(r, err, "runner", id)
}

// Timeline returns the moments of a runner's life, first to last.
func (s *Store) Timeline(ctx context.Context, id fleet.RunnerID) ([]fleet.Moment, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT at, phase, detail FROM moments WHERE runner = $1 ORDER BY seq`, string(id))
	out, err := collect(rows, err, func(row scanner) (fleet.Moment, error) {
		var (
			m  fleet.Moment
			at int64
			p  string
		)
		err := row.Scan(&at, &p, &m.Detail)
		m.At, m.Phase = fromMicros(at), fleet.Phase(p)
		return m, err
	})
	if err != nil {
		return nil, fmt.Errorf("timeline of runner %s: %w", id, err)
	}
	return out, nil
}

// ListHosts lists hosts by name.
func (s *Store) ListHosts(ctx context.Context, in fleet.HostQuery) ([]fleet.Host, string, error) {
	var q query
	if in.Cursor != "" {
		_, name, err := parseCursor(in.Cursor)
		if err != nil {
			return nil, "", err
		}
		q.and("name > ?", name)
	}
	n := limit(in.Page)
	rows, err := s.read.QueryContext(ctx, q.sql(`SELECT `+hostColumns+` FROM hosts`, fmt.Sprintf("ORDER BY name LIMIT %d", n+1)), q.args...)
	hosts, err := collect(rows, err, scanHost)
	if err != nil {
		return nil, "", fmt.Errorf("list hosts: %w", err)
	}
	for i := range hosts {
		hosts[i] = s.mirror.current(hosts[i])
	}
	hosts, next := page(hosts, n, func(h fleet.Host) string { return cursor(0, h.Name) })
	return hosts, next, nil
}

// ListDeliveries lists deliveries without their payloads, newest first.
func (s *Store) ListDeliveries(ctx context.Context, in fleet.DeliveryQuery) ([]fleet.DeliverySummary, string, error) {
	var q query
	if in.Status != "" {
		q.and("status = ?", string(in.Status))
	}
	if err := q.after(in.Page, "received_at", "guid"); err != nil {
		return nil, "", err
	}
	n := limit(in.Page)
	rows, err := s.read.QueryContext(ctx, q.sql(`SELECT guid, event, action, repository, installation_id, received_at, status, reason, times FROM deliveries`,
		fmt.Sprintf("ORDER BY received_at DESC, guid DESC LIMIT %d", n+1)), q.args...)
	out, err := collect(rows, err, func(row scanner) (fleet.DeliverySummary, error) {
		var (
			d      fleet.DeliverySummary
			at     int64
			status string
		)
		err := row.Scan(&d.GUID, &d.Event, &d.Action, &d.Repository, &d.InstallationID, &at, &status, &d.Reason, &d.Times)
		d.ReceivedAt, d.Status = fromMicros(at), fleet.DeliveryStatus(status)
		return d, err
	})
	if err != nil {
		return nil, "", fmt.Errorf("list deliveries: %w", err)
	}
	out, next := page(out, n, func(d fleet.DeliverySummary) string { return cursor(micros(d.ReceivedAt), d.GUID) })
	return out, next, nil
}

// RunnerCounts counts the runners that are not over, by pool and phase.
func (s *Store) RunnerCounts(ctx context.Context) (map[string]map[fleet.Phase]int, error) {
	live, err := s.live(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string]map[fleet.Phase]int{}
	for _, r := range live {
		if out[r.Pool] == nil {
			out[r.Pool] = map[fleet.Phase]int{}
		}
		out[r.Pool][r.Phase()]++
	}
	return out, nil
}

// OpenJobs counts the jobs that are not completed, by state.
func (s *Store) OpenJobs(ctx context.Context) (map[fleet.JobState]int, error) {
	type count struct {
		state string
		n     int
	}
	rows, err := s.read.QueryContext(ctx, `SELECT state, COUNT(*) FROM jobs WHERE state IN ('waiting', 'queued', 'in_progress') GROUP BY state`)
	list, err := collect(rows, err, func(row scanner) (c count, err error) {
		err = row.Scan(&c.state, &c.n)
		return c, err
	})
	if err != nil {
		return nil, fmt.Errorf("count jobs: %w", err)
	}
	out := map[fleet.JobState]int{}
	for _, c := range list {
		out[fleet.JobState(c.state)] = c.n
	}
	return out, nil
}

// SlotsTaken counts the slots in use on each host.
func (s *Store) SlotsTaken(ctx context.Context) (map[fleet.HostID]int, error) {
	live, err := s.live(ctx)
	if err != nil {
		return nil, err
	}
	out := map[fleet.HostID]int{}
	for _, r := range live {
		if r.TakesSlot() {
			out[r.Host]++
		}
	}
	return out, nil
}

func (s *Store) live(ctx context.Context) ([]fleet.Runner, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT `+runnerColumns+` FROM runners WHERE is_over = 0`)
	live, err := collect(rows, err, scanRunner)
	if err != nil {
		return nil, fmt.Errorf("count runners: %w", err)
	}
	return live, nil
}
