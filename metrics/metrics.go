// SPDX-License-Identifier: MIT

package metrics

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/minifleet/minifleet/fleet"
)

// Config says where what is shown comes from. Store and Waits have no default.
type Config struct {
	Store Store
	// Waits counts the queued jobs by the reason for which they wait.
	Waits func(context.Context) (map[fleet.WaitCode]int, error)
	// Rates are GitHub's last words on its limits. nil: none
	Rates func() []Rate
	// Apps are the GitHub Apps. nil: none
	Apps func() []App
	// CaughtUp counts the deliveries that did not come, by what was done. nil: none
	CaughtUp func() map[string]int
	// Runners compares each pool's runner with GitHub's releases. nil: nothing is known
	Runners      func(context.Context) (map[string]fleet.RunnerHealth, error)
	HostDeadline time.Duration // after which a silent host is unreachable; 0 means one minute
	Version      string
	Now          func() time.Time // nil means time.Now
}

// Store is what is read of the books at each scrape.
type Store interface {
	State(context.Context) (fleet.State, error)
	// OpenJobs counts the jobs that are not completed.
	OpenJobs(context.Context) (map[fleet.JobState]int, error)
}

// App is how one GitHub App fares.
type App struct {
	ID          int64
	Unreachable bool
	Queued      map[string]int // calls, by priority
}

// Rate is GitHub's last word on one limit of an installation; 0 is the App itself.
type Rate struct {
	App              int64
	Installation     int64
	Resource         string
	Limit, Remaining int
	Reset            time.Time
}

// Metrics counts, and answers scrapes. Its methods are safe for concurrent use.
type Metrics struct {
	registry   *prometheus.Registry
	deliveries *prometheus.CounterVec
	decisions  *prometheus.HistogramVec
	calls      *prometheus.CounterVec
	callTime   *prometheus.HistogramVec
	setCalls   *prometheus.CounterVec
	setTime    *prometheus.HistogramVec
	setPassed  *prometheus.CounterVec
}

// New returns metrics for Handler.
func New(c Config) *Metrics {
	if c.HostDeadline == 0 {
		c.HostDeadline = time.Minute
	}
	if c.Rates == nil {
		c.Rates = func() []Rate { return nil }
	}
	if c.Apps == nil {
		c.Apps = func() []App { return nil }
	}
	if c.CaughtUp == nil {
		c.CaughtUp = func() map[string]int { return nil }
	}
	if c.Runners == nil {
		c.Runners = func(context.Context) (map[string]fleet.RunnerHealth, error) { return nil, nil }
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	m := &Metrics{
		registry:   prometheus.NewRegistry(),
		deliveries: deliveries.counter(),
		decisions:  decisions.histogram(.0001, .0005, .001, .005, .01, .05, .1, .5, 1, 5),
		calls:      calls.counter(),
		callTime:   callSeconds.histogram(.01, .05, .1, .25, .5, 1, 2.5, 5, 10, 30),
		setCalls:   setCalls.counter(),
		setTime:    setSeconds.histogram(.01, .05, .1, .25, .5, 1, 2.5, 5, 10, 30),
		setPassed:  setPassed.counter(),
	}
	for _, s := range []fleet.DeliveryStatus{fleet.DeliveryProcessed, fleet.DeliveryIgnored, fleet.DeliveryFailed} {
		m.deliveries.WithLabelValues(string(s))
	}
	m.registry.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		m.deliveries, m.decisions, m.calls, m.callTime, m.setCalls, m.setTime, m.setPassed, books{c},
	)
	return m
}

// Handler answers a scrape. What cannot be read is missing from the answer, which is
// an error then.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second})
}

// Decided notes how long a decision took.
func (m *Metrics) Decided(took time.Duration) {
	m.decisions.WithLabelValues().Observe(took.Seconds())
}

// Delivered notes what became of a delivery.
func (m *Metrics) Delivered(status fleet.DeliveryStatus) {
	m.deliveries.WithLabelValues(string(status)).Inc()
}

// Called notes a call of GitHub's API: by which App and for which installation, 0 for the App itself,
// the class of its endpoint, and the status of the answer or a word for why there is none.
func (m *Metrics) Called(app, installation int64, class, status string, took time.Duration) {
	m.calls.WithLabelValues(strconv.FormatInt(app, 10), strconv.FormatInt(installation, 10), class, status).Inc()
	if took > 0 {
		m.callTime.WithLabelValues(class).Observe(took.Seconds())
	}
}

// SetCalled notes a call of the service behind the scale set of a pool: its kind, and the
// status of the answer or a word for why there is none.
func (m *Metrics) SetCalled(pool, kind, status string, took time.Duration) {
	m.setCalls.WithLabelValues(pool, kind, status).Inc()
	if kind != "poll" {
		m.setTime.WithLabelValues(kind).Observe(took.Seconds())
	}
}

// PassedOver notes a message of a pool's scale set that was not understood.
func (m *Metrics) PassedOver(pool string) { m.setPassed.WithLabelValues(pool).Inc() }
