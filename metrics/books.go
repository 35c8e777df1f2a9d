// SPDX-License-Identifier: MIT

package metrics

import (
	"context"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/minifleet/minifleet/fleet"
)

// books collects what is true at the moment of a scrape.
type books struct{ Config }

// Describe implements prometheus.Collector.
func (b books) Describe(out chan<- *prometheus.Desc) {
	for _, m := range List() {
		if m.Kind == "gauge" {
			out <- m.desc()
		}
	}
	out <- caughtUp.desc()
}

// scrapeTime bounds the reading of the books.
const scrapeTime = 5 * time.Second

// Collect implements prometheus.Collector.
func (b books) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTime)
	defer cancel()
	s := sheet{out}
	s.set(build, 1, b.Version)
	b.github(s)
	for outcome, n := range b.CaughtUp() {
		out <- prometheus.MustNewConstMetric(caughtUp.desc(), prometheus.CounterValue, float64(n), outcome)
	}
	state, err := b.Store.State(ctx)
	if err != nil {
		out <- prometheus.NewInvalidMetric(jobs.desc(), err)
		return
	}
	b.demand(ctx, s, state)
	b.supply(s, state)
	b.releases(ctx, s)
}

// sheet takes what is collected.
type sheet struct{ out chan<- prometheus.Metric }

func (s sheet) set(m Metric, value float64, labels ...string) {
	s.out <- prometheus.MustNewConstMetric(m.desc(), prometheus.GaugeValue, value, labels...)
}

func (b books) demand(ctx context.Context, s sheet, state fleet.State) {
	open, err := b.Store.OpenJobs(ctx)
	if err != nil {
		s.out <- prometheus.NewInvalidMetric(jobs.desc(), err)
	} else {
		for _, j := range []fleet.JobState{fleet.JobWaiting, fleet.JobQueued, fleet.JobInProgress} {
			s.set(jobs, float64(open[j]), string(j))
		}
	}
	oldest := 0.0
	if len(state.Jobs) > 0 {
		oldest = max(0, b.Now().Sub(state.Jobs[0].QueuedAt).Seconds())
	}
	s.set(jobOldest, oldest)
	for owner, use := range state.Mints {
		s.set(mints, float64(len(use.Begun)), owner)
	}
	waits, err := b.Waits(ctx)
	if err != nil {
		s.out <- prometheus.NewInvalidMetric(jobWaits.desc(), err)
	}
	for code, n := range waits {
		s.set(jobWaits, float64(n), string(code))
	}
}

func (b books) supply(s sheet, state fleet.State) {
	type kind struct {
		pool  string
		phase fleet.Phase
	}
	count, taken := map[kind]int{}, 0
	for _, r := range state.Runners {
		count[kind{r.Pool, r.Phase()}]++
		if r.TakesSlot() {
			taken++
		}
	}
	for k, n := range count {
		s.set(runners, float64(n), k.pool, string(k.phase))
	}
	for pool, h := range state.Pools {
		s.set(poolFailures, float64(h.Failures), pool)
	}
	online, degraded, unreachable, slots := 0, 0, 0, 0
	for _, h := range state.Hosts {
		switch {
		case b.Now().Sub(h.SeenAt) >= b.HostDeadline:
			unreachable++
			continue
		case h.Degraded != "":
			degraded++
		default:
			online++
		}
		slots += h.Slots
	}
	s.set(hosts, float64(online), "online")
	s.set(hosts, float64(degraded), "degraded")
	s.set(hosts, float64(unreachable), "unreachable")
	s.set(hostSlots, float64(slots))
	s.set(hostSlotsUsed, float64(taken))
}

func (b books) releases(ctx context.Context, s sheet) {
	all, err := b.Runners(ctx)
	if err != nil {
		s.out <- prometheus.NewInvalidMetric(runnerBehind.desc(), err)
		return
	}
	for pool, h := range all {
		refused := 0.0
		if h.Refused {
			refused = 1
		}
		s.set(runnerRefused, refused, pool)
		if h.Version != "" {
			s.set(runnerBehind, h.Behind(b.Now()).Seconds(), pool, h.Version)
		}
	}
}

func (b books) github(s sheet) {
	for _, a := range b.Apps() {
		id, out := strconv.FormatInt(a.ID, 10), 0.0
		if a.Unreachable {
			out = 1
		}
		s.set(unreachable, out, id)
		for priority, n := range a.Queued {
			s.set(queued, float64(n), id, priority)
		}
	}
	for _, r := range b.Rates() {
		app, at := strconv.FormatInt(r.App, 10), strconv.FormatInt(r.Installation, 10)
		s.set(rateLimit, float64(r.Limit), app, at, r.Resource)
		s.set(rateRemaining, float64(r.Remaining), app, at, r.Resource)
		s.set(rateReset, float64(r.Reset.Unix()), app, at, r.Resource)
	}
}
