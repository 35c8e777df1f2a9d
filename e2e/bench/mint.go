// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// measureMints is the way of many jobs at once through GitHub's registrations, each of
// which takes GitHub 150 ms: on a server without limits, and at GitHub.
func measureMints(ctx context.Context, b *bencher) error {
	for _, limited := range []bool{false, true} {
		if err := b.mints(ctx, limited); err != nil {
			return err
		}
	}
	return nil
}

func (b *bencher) mints(ctx context.Context, limited bool) error {
	o := siteOf{name: "mint200", github: []string{"--latency", "150ms"}}
	if limited {
		o.name, o.limits = "mint200-limits", "limits: auto"
	}
	s, err := newSite(ctx, b, o)
	if err != nil {
		return err
	}
	defer s.close()
	n := b.of(200)
	if err := s.simulate(ctx, n/2, 2, vms("3s")...); err != nil {
		return err
	}
	if err := s.settled(ctx); err != nil {
		return err
	}
	requests, err := s.requests(1, n, "queued")
	if err != nil {
		return err
	}
	if _, err := s.burst(requests, 64); err != nil {
		return s.failed(err)
	}
	ready, err := s.receipts.times(ctx, "booted", 0, n, patience)
	if err != nil {
		return s.failed(err)
	}
	first := slices.MinFunc(ready, time.Time.Compare)
	if limited {
		return s.paced(ctx, n, first)
	}
	at, err := s.receipts.times(ctx, "config", 0, n, patience)
	if err != nil {
		return s.failed(err)
	}
	took := slices.MaxFunc(at, time.Time.Compare).Sub(first)
	b.limit(fmt.Sprintf("%d jobs at once, no limits: first VM ready to last JIT config", n), "<= 3 s", short(took), took <= 3*time.Second)
	b.note("  the last VM was ready after", short(slices.MaxFunc(ready, time.Time.Compare).Sub(first)))
	return nil
}

// paced looks at what GitHub's limits leave of the same.
func (s *site) paced(ctx context.Context, n int, first time.Time) error {
	if _, err := s.receipts.times(ctx, "config", 0, min(n, 180), patience); err != nil {
		return s.failed(err)
	}
	var expected []string
	for job := 1; job <= n; job++ {
		var why struct {
			Reason string `json:"reason"`
		}
		if err := s.ask(ctx, http.MethodGet, fmt.Sprintf("jobs/%d/explain", job), nil, &why); err != nil {
			return s.failed(err)
		}
		if _, turn, ok := strings.Cut(why.Reason, "expected at "); ok {
			expected = append(expected, turn)
		}
	}
	at, err := s.receipts.times(ctx, "config", 0, n, patience)
	if err != nil {
		return s.failed(err)
	}
	slices.SortFunc(at, time.Time.Compare)
	within := 0
	for _, t := range at {
		if t.Sub(first) < time.Minute {
			within++
		}
	}
	state, err := s.sim.State(ctx)
	if err != nil {
		return err
	}
	refused := 0
	for _, r := range state.Requests {
		if r.Status == http.StatusForbidden || r.Status == http.StatusTooManyRequests {
			refused++
		}
	}
	s.limit("  with GitHub's limits: JIT configs in the first minute", ">= 180", fmt.Sprint(within), within >= min(n, 180))
	s.limit("  refused by GitHub with 403 or 429", "0", fmt.Sprint(refused), refused == 0)
	s.note("  jobs to which explain told the time of their turn", fmt.Sprintf("%d, the last %s", len(expected), strings.Join(expected[max(0, len(expected)-1):], "")))
	s.note("  the last JIT config after the first VM was ready", fmt.Sprintf("%s, at %s", short(at[n-1].Sub(first)), at[n-1].UTC().Format(time.TimeOnly)))
	return nil
}
