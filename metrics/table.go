// SPDX-License-Identifier: MIT

package metrics

import "github.com/prometheus/client_golang/prometheus"

// Metric describes one metric for the documentation.
type Metric struct {
	Name   string
	Kind   string // gauge, counter or histogram
	Labels []string
	Help   string
}

func gauge(name, help string, labels ...string) Metric { return Metric{name, "gauge", labels, help} }

func counter(name, help string, labels ...string) Metric {
	return Metric{name, "counter", labels, help}
}

func histogram(name, help string, labels ...string) Metric {
	return Metric{name, "histogram", labels, help}
}

// The metrics. Names and labels are the design's words.
var (
	build         = gauge("minifleet_build_info", "1, of the version that runs", "version")
	jobs          = gauge("minifleet_jobs", "jobs that are not completed", "state")
	jobOldest     = gauge("minifleet_job_oldest_queued_seconds", "for how long the job at the head of the queue has been queued; 0 without any")
	jobWaits      = gauge("minifleet_job_waits", "queued jobs by why they wait", "reason")
	runners       = gauge("minifleet_runners", "runners that are not gone", "pool", "phase")
	poolFailures  = gauge("minifleet_pool_failures", "runners of a pool that failed in a row", "pool")
	hosts         = gauge("minifleet_hosts", "enrolled hosts", "state")
	hostSlots     = gauge("minifleet_host_slots", "slots of all hosts that are online")
	hostSlotsUsed = gauge("minifleet_host_slots_taken", "slots that runners take, on all hosts")
	mints         = gauge("minifleet_mints_last_minute", "registrations begun within the last minute", "owner")
	deliveries    = counter("minifleet_deliveries_total", "deliveries taken, duplicates apart", "status")
	caughtUp      = counter("minifleet_deliveries_caught_up_total", "deliveries that did not come: taken from GitHub's copies, asked for again, vanished there, or given up", "outcome")
	runnerBehind  = gauge("minifleet_pool_runner_behind_seconds", "for how long there has been a newer runner than that of the pool's guests; 0 if there is none", "pool", "version")
	runnerRefused = gauge("minifleet_pool_runner_refused", "1 where GitHub refuses the pool's runner as too old", "pool")
	decisions     = histogram("minifleet_decision_seconds", "time that a decision took")
	calls         = counter("minifleet_github_calls_total", "calls of GitHub's API", "app", "installation", "class", "status")
	callSeconds   = histogram("minifleet_github_call_seconds", "time until GitHub's answer was read", "class")
	setCalls      = counter("minifleet_scale_set_calls_total", "calls of the service behind runner scale sets", "pool", "kind", "status")
	setSeconds    = histogram("minifleet_scale_set_call_seconds", "time until its answer was read; polls apart, which it holds", "kind")
	setPassed     = counter("minifleet_scale_set_messages_passed_over_total", "messages of scale sets that were not understood", "pool")
	unreachable   = gauge("minifleet_github_unreachable", "1 while GitHub cannot be reached and calls wait", "app")
	queued        = gauge("minifleet_github_calls_queued", "calls that wait for GitHub's limits", "app", "priority")
	rateLimit     = gauge("minifleet_github_rate_limit", "GitHub's limit of calls in a period, as its last answer said", "app", "installation", "resource")
	rateRemaining = gauge("minifleet_github_rate_remaining", "what is left of it", "app", "installation", "resource")
	rateReset     = gauge("minifleet_github_rate_reset_timestamp_seconds", "when the period ends", "app", "installation", "resource")
)

// List returns all metrics of Minifleet, in the order of the documentation. Those of Go
// and of the process come on top of them.
func List() []Metric {
	return []Metric{
		build, jobs, jobOldest, jobWaits, runners, poolFailures, hosts, hostSlots, hostSlotsUsed, mints, deliveries, caughtUp,
		runnerBehind, runnerRefused, decisions,
		calls, callSeconds, unreachable, queued, rateLimit, rateRemaining, rateReset, setCalls, setSeconds, setPassed,
	}
}

func (m Metric) desc() *prometheus.Desc { return prometheus.NewDesc(m.Name, m.Help, m.Labels, nil) }

func (m Metric) counter() *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: m.Name, Help: m.Help}, m.Labels)
}

func (m Metric) histogram(buckets ...float64) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: m.Name, Help: m.Help, Buckets: buckets}, m.Labels)
}
