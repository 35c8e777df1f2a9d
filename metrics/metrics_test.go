// SPDX-License-Identifier: MIT

package metrics_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/metrics"
)

var now = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)

// books are what a scrape reads.
type books struct {
	state fleet.State
	err   error
}

func (b books) State(context.Context) (fleet.State, error) { return b.state, b.err }

func (b books) OpenJobs(context.Context) (map[fleet.JobState]int, error) {
	return map[fleet.JobState]int{fleet.JobQueued: 2, fleet.JobInProgress: 1}, nil
}

func fill() fleet.State {
	return fleet.State{
		Jobs: []fleet.Job{{ID: 1, QueuedAt: now.Add(-30 * time.Second)}, {ID: 2, QueuedAt: now}},
		Runners: []fleet.Runner{
			{ID: "r-1", Pool: "mac", Host: "h-1", Wanted: fleet.WantUp, Observed: fleet.ObservedStandby, Registration: fleet.RegNone},
			{ID: "r-2", Pool: "mac", Host: "h-1", Wanted: fleet.WantArmed, Observed: fleet.ObservedBusy, Registration: fleet.RegBusy},
		},
		Hosts: []fleet.Host{
			{ID: "h-1", Slots: 2, SeenAt: now},
			{ID: "h-2", Slots: 4, SeenAt: now, Degraded: "hot"},
			{ID: "h-3", Slots: 8, SeenAt: now.Add(-time.Hour)},
		},
		Pools: map[string]fleet.PoolHealth{"mac": {Failures: 3}},
		Mints: map[string]fleet.MintUse{"acme": {Begun: make([]time.Time, 7)}},
	}
}

func newMetrics(b books) *metrics.Metrics {
	return metrics.New(metrics.Config{
		Store: b, Now: func() time.Time { return now }, Version: "v1",
		CaughtUp: func() map[string]int { return map[string]int{"taken": 5} },
		Runners: func(context.Context) (map[string]fleet.RunnerHealth, error) {
			return map[string]fleet.RunnerHealth{"mac": {Version: "2.330.0", BehindSince: now.Add(-time.Hour), Refused: true}}, nil
		},
		Waits: func(context.Context) (map[fleet.WaitCode]int, error) {
			return map[fleet.WaitCode]int{fleet.WaitNoSlot: 2}, nil
		},
		Apps: func() []metrics.App {
			return []metrics.App{{ID: 4, Unreachable: true, Queued: map[string]int{"mint": 3}}}
		},
		Rates: func() []metrics.Rate {
			return []metrics.Rate{{App: 4, Installation: 9, Resource: "core", Limit: 5000, Remaining: 4321, Reset: now}}
		},
	})
}

func scrape(t *testing.T, m *metrics.Metrics) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	return w.Code, w.Body.String()
}

func TestScrape(t *testing.T) {
	m := newMetrics(books{state: fill()})
	m.SetCalled("mac", "poll", "200", 50*time.Second)
	m.SetCalled("mac", "register", "none", 2*time.Second)
	m.PassedOver("mac")
	m.Decided(2 * time.Millisecond)
	m.Delivered(fleet.DeliveryIgnored)
	m.Called(4, 9, "register", "201", 150*time.Millisecond)
	m.Called(4, 0, "installation", "none", 0)
	status, text := scrape(t, m)
	if status != http.StatusOK {
		t.Fatalf("status %d: %s", status, text)
	}
	for _, line := range []string{
		`minifleet_build_info{version="v1"} 1`,
		`minifleet_jobs{state="queued"} 2`, `minifleet_jobs{state="in_progress"} 1`, `minifleet_jobs{state="waiting"} 0`,
		`minifleet_job_oldest_queued_seconds 30`, `minifleet_job_waits{reason="no_slot"} 2`,
		`minifleet_runners{phase="standby",pool="mac"} 1`, `minifleet_runners{phase="busy",pool="mac"} 1`,
		`minifleet_pool_failures{pool="mac"} 3`,
		`minifleet_hosts{state="online"} 1`, `minifleet_hosts{state="degraded"} 1`, `minifleet_hosts{state="unreachable"} 1`,
		`minifleet_host_slots 6`, `minifleet_host_slots_taken 2`, `minifleet_mints_last_minute{owner="acme"} 7`,
		`minifleet_deliveries_total{status="ignored"} 1`, `minifleet_deliveries_total{status="failed"} 0`,
		`minifleet_deliveries_caught_up_total{outcome="taken"} 5`,
		`minifleet_pool_runner_behind_seconds{pool="mac",version="2.330.0"} 3600`, `minifleet_pool_runner_refused{pool="mac"} 1`,
		`minifleet_decision_seconds_count 1`,
		`minifleet_github_calls_total{app="4",class="register",installation="9",status="201"} 1`,
		`minifleet_github_calls_total{app="4",class="installation",installation="0",status="none"} 1`,
		`minifleet_github_call_seconds_count{class="register"} 1`,
		`minifleet_github_unreachable{app="4"} 1`, `minifleet_github_calls_queued{app="4",priority="mint"} 3`,
		`minifleet_github_rate_remaining{app="4",installation="9",resource="core"} 4321`,
		`minifleet_scale_set_calls_total{kind="poll",pool="mac",status="200"} 1`, `minifleet_scale_set_call_seconds_count{kind="register"} 1`,
		`minifleet_scale_set_messages_passed_over_total{pool="mac"} 1`,
	} {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("the answer lacks %s", line)
		}
	}
	if strings.Contains(text, `minifleet_scale_set_call_seconds_count{kind="poll"}`) {
		t.Error("polls, which GitHub holds, are timed")
	}
	if t.Failed() {
		t.Log(text)
	}
	for _, known := range metrics.List() {
		if !strings.Contains(text, "# TYPE "+known.Name+" "+known.Kind+"\n") {
			t.Errorf("%s, a %s, is in the list and not in the answer", known.Name, known.Kind)
		}
	}
	for line := range strings.Lines(text) {
		name, ok := strings.CutPrefix(line, "# TYPE minifleet_")
		name, _, _ = strings.Cut(name, " ")
		if ok && !slices.ContainsFunc(metrics.List(), func(m metrics.Metric) bool { return m.Name == "minifleet_"+name }) {
			t.Errorf("minifleet_%s is in the answer and not in the list", name)
		}
	}
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "minifleet_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

// Books that cannot be read are no empty fleet.
func TestBooksNotRead(t *testing.T) {
	status, text := scrape(t, newMetrics(books{err: errors.New("locked")}))
	if status != http.StatusInternalServerError || strings.Contains(text, "minifleet_runners{") {
		t.Errorf("status %d: %s", status, fmt.Sprintf("%.300s", text))
	}
}
