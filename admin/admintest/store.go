// SPDX-License-Identifier: MIT

// Package admintest has an in-memory stand-in for all that package admin asks
// of the rest of the controller, so that tests of the API and of its callers run
// over real HTTP with known rows.
package admintest

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/secret"
)

// Store answers from its fields. They are set before the first request.
type Store struct {
	Jobs       []fleet.Job // in the order in which they are listed
	Runners    []fleet.Runner
	Hosts      []fleet.Host
	Deliveries []fleet.DeliverySummary
	Moments    map[fleet.RunnerID][]fleet.Moment
	Waits      map[fleet.JobID]fleet.Wait
	Rolling    map[string]fleet.Rollout
	Ages       map[string]fleet.RunnerHealth
	Token      secret.Text // that NewEnrolment returns
	Err        error       // if set, every call fails with it
	Panic      any         // if set, every call panics with it

	mu      sync.Mutex
	removed []fleet.HostID
	enrols  []Enrolment
	rolled  []string
}

// Enrolment is a call of NewEnrolment.
type Enrolment struct {
	HostName string
	TTL      time.Duration
	Uses     int
}

// Removed returns the hosts that were removed.
func (s *Store) Removed() []fleet.HostID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.removed)
}

// Enrolments returns the calls of NewEnrolment.
func (s *Store) Enrolments() []Enrolment {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.enrols)
}

func (s *Store) trouble() error {
	if s.Panic != nil {
		panic(s.Panic)
	}
	return s.Err
}

// Rolled returns the calls that change rollouts, each in a line.
func (s *Store) Rolled() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.rolled)
}

// Health returns Ages.
func (s *Store) Health(context.Context) (map[string]fleet.RunnerHealth, error) {
	return s.Ages, s.trouble()
}

// Sentence speaks of runners that are too old.
func (s *Store) Sentence(pool string, h fleet.RunnerHealth) string {
	if h.Age != fleet.RunnerTooOld {
		return ""
	}
	return "the runner of pool " + pool + " is too old"
}

// Rollouts returns Rolling.
func (s *Store) Rollouts(context.Context) (map[string]fleet.Rollout, error) {
	return s.Rolling, s.trouble()
}

// Take remembers the call.
func (s *Store) Take(_ context.Context, pool, digest string, now bool) (fleet.Rollout, error) {
	return s.roll(pool, fmt.Sprintf("take %s %q %t", pool, digest, now))
}

// Promote remembers the call.
func (s *Store) Promote(_ context.Context, pool string) (fleet.Rollout, error) {
	return s.roll(pool, "promote "+pool)
}

// Back remembers the call.
func (s *Store) Back(_ context.Context, pool, leave string) (fleet.Rollout, error) {
	return s.roll(pool, fmt.Sprintf("back %s %q", pool, leave))
}

func (s *Store) roll(pool, call string) (fleet.Rollout, error) {
	if err := s.trouble(); err != nil {
		return fleet.Rollout{}, err
	}
	r, ok := s.Rolling[pool]
	if !ok {
		return r, fmt.Errorf("pool %s: %w", pool, fleet.ErrNotFound)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rolled = append(s.rolled, call)
	return r, nil
}

// page cuts a page out of the rows that are kept; its cursor is their offset.
func page[T any](s *Store, rows []T, p fleet.Page, keep func(T) bool) ([]T, string, error) {
	if err := s.trouble(); err != nil {
		return nil, "", err
	}
	from := 0
	if p.Cursor != "" {
		var err error
		if from, err = strconv.Atoi(p.Cursor); err != nil || from < 0 {
			return nil, "", fmt.Errorf("list: %w", fleet.ErrCursor)
		}
	}
	var kept []T
	for _, r := range rows {
		if keep(r) {
			kept = append(kept, r)
		}
	}
	from = min(from, len(kept))
	to := min(from+p.Limit, len(kept))
	next := ""
	if to < len(kept) {
		next = strconv.Itoa(to)
	}
	return kept[from:to], next, nil
}

// find returns the first row that matches.
func find[T any](s *Store, rows []T, match func(T) bool) (row T, found bool, err error) {
	if err := s.trouble(); err != nil {
		return row, false, err
	}
	if i := slices.IndexFunc(rows, match); i >= 0 {
		return rows[i], true, nil
	}
	return row, false, nil
}

// ListJobs returns a page of the jobs that the query selects.
func (s *Store) ListJobs(_ context.Context, q fleet.JobQuery) ([]fleet.Job, string, error) {
	return page(s, s.Jobs, q.Page, func(j fleet.Job) bool {
		return (len(q.States) == 0 || slices.Contains(q.States, j.State)) &&
			(q.Repository == "" || strings.EqualFold(q.Repository, j.Repository())) && (q.RunID == 0 || q.RunID == j.RunID)
	})
}

// Job returns one job.
func (s *Store) Job(_ context.Context, id fleet.JobID) (fleet.Job, bool, error) {
	return find(s, s.Jobs, func(j fleet.Job) bool { return j.ID == id })
}

// ListRunners returns a page of the runners that the query selects.
func (s *Store) ListRunners(_ context.Context, q fleet.RunnerQuery) ([]fleet.Runner, string, error) {
	return page(s, s.Runners, q.Page, func(r fleet.Runner) bool {
		return (q.All || !r.Over()) && (q.Pool == "" || q.Pool == r.Pool) && (q.Host == "" || q.Host == r.Host) && (q.Job == 0 || q.Job == r.Job)
	})
}

// Runner returns one runner.
func (s *Store) Runner(_ context.Context, id fleet.RunnerID) (fleet.Runner, bool, error) {
	return find(s, s.Runners, func(r fleet.Runner) bool { return r.ID == id })
}

// RunnerCounts counts the runners that are not over.
func (s *Store) RunnerCounts(context.Context) (map[string]map[fleet.Phase]int, error) {
	counts := map[string]map[fleet.Phase]int{}
	for _, r := range s.Runners {
		if r.Over() {
			continue
		}
		if counts[r.Pool] == nil {
			counts[r.Pool] = map[fleet.Phase]int{}
		}
		counts[r.Pool][r.Phase()]++
	}
	return counts, s.trouble()
}

// Timeline returns the moments of a runner.
func (s *Store) Timeline(_ context.Context, id fleet.RunnerID) ([]fleet.Moment, error) {
	return s.Moments[id], s.trouble()
}

// ListHosts returns a page of the hosts.
func (s *Store) ListHosts(_ context.Context, q fleet.HostQuery) ([]fleet.Host, string, error) {
	return page(s, s.Hosts, q.Page, func(fleet.Host) bool { return true })
}

// SlotsTaken counts the slots that runners hold.
func (s *Store) SlotsTaken(context.Context) (map[fleet.HostID]int, error) {
	taken := map[fleet.HostID]int{}
	for _, r := range s.Runners {
		if r.HoldsSlot {
			taken[r.Host]++
		}
	}
	return taken, s.trouble()
}

// RemoveHost remembers the call for a host that is there, and leaves it listed.
func (s *Store) RemoveHost(_ context.Context, id fleet.HostID) error {
	if err := s.trouble(); err != nil {
		return err
	}
	if !slices.ContainsFunc(s.Hosts, func(h fleet.Host) bool { return h.ID == id }) {
		return fmt.Errorf("host %s: %w", id, fleet.ErrNotFound)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removed = append(s.removed, id)
	return nil
}

// ListDeliveries returns a page of the deliveries that the query selects.
func (s *Store) ListDeliveries(_ context.Context, q fleet.DeliveryQuery) ([]fleet.DeliverySummary, string, error) {
	return page(s, s.Deliveries, q.Page, func(d fleet.DeliverySummary) bool { return q.Status == "" || q.Status == d.Status })
}

// Explain returns the reason in Waits.
func (s *Store) Explain(_ context.Context, id fleet.JobID) (fleet.Wait, bool, error) {
	w, ok := s.Waits[id]
	return w, ok, s.trouble()
}

// NewEnrolment remembers the call and returns Token.
func (s *Store) NewEnrolment(_ context.Context, hostName string, ttl time.Duration, uses int) (secret.Text, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enrols = append(s.enrols, Enrolment{HostName: hostName, TTL: ttl, Uses: uses})
	return s.Token, s.trouble()
}
