// SPDX-License-Identifier: MIT

package githubsim

import (
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// GitHub's limits, per installation (the App's own calls count as one more).
const (
	hourlyLimit       = 5000
	anonymousLimit    = 60
	noLimit           = 1_000_000_000
	minutePoints      = 900 // a GET costs 1, anything else 5
	concurrentLimit   = 100
	registrationLimit = 1500 // per scope in registrationWindow
	registrationRate  = 5 * time.Minute
	registrationPool  = 10_000 // an hour, shown by /rate_limit only
)

// limits enforces GitHub's rate limits.
type limits struct {
	none   bool // nothing is refused, and there is always more
	silent bool // and no answer tells of it
	clock  clock

	mu            sync.Mutex // guards everything below
	buckets       map[string]*bucket
	registrations map[string]*window
}

// bucket is what one principal has used.
type bucket struct {
	limit  int
	hour   window
	minute window
	open   int
}

// window counts within a period that starts with the first use after the last period.
type window struct {
	used  int
	reset time.Time
}

func (w *window) roll(now time.Time, period time.Duration) {
	if !now.Before(w.reset) {
		w.used, w.reset = 0, now.Add(period)
	}
}

func newLimits(none bool) *limits {
	return &limits{none: none, buckets: map[string]*bucket{}, registrations: map[string]*window{}}
}

// bucketOf returns a bucket with its windows up to date. The caller holds mu.
func (l *limits) bucketOf(name string, now time.Time) *bucket {
	b := l.buckets[name]
	if b == nil {
		b = &bucket{limit: hourlyLimit}
		if name == "anonymous" {
			b.limit = anonymousLimit
		}
		if l.none {
			b.limit = noLimit
		}
		l.buckets[name] = b
	}
	b.hour.roll(now, time.Hour)
	b.minute.roll(now, time.Minute)
	return b
}

// enter charges a call. It returns the function that ends the call, and an
// answer if the call is refused.
func (l *limits) enter(name, method string) (leave func(), refused *answer) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.bucketOf(name, now)
	points := 5
	if method == http.MethodGet || method == http.MethodHead {
		points = 1
	}
	switch {
	case l.none:
	case b.hour.used >= b.limit:
		return func() {}, fail(http.StatusForbidden, fmt.Sprintf("API rate limit exceeded for %s.", name))
	case b.open >= concurrentLimit:
		return func() {}, secondary(http.StatusForbidden, time.Minute)
	case b.minute.used+points > minutePoints:
		return func() {}, secondary(http.StatusForbidden, b.minute.reset.Sub(now))
	}
	b.hour.used++
	b.minute.used += points
	b.open++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		b.open--
	}, nil
}

// refund makes a call free of the hourly limit, as a 304 is.
func (l *limits) refund(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b := l.buckets[name]; b != nil && b.hour.used > 0 {
		b.hour.used--
	}
}

// register charges one registration to a scope.
func (l *limits) register(scope string) *answer {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.registrations[scope]
	if w == nil {
		w = &window{}
		l.registrations[scope] = w
	}
	w.roll(now, registrationRate)
	if w.used >= registrationLimit && !l.none {
		return secondary(http.StatusTooManyRequests, w.reset.Sub(now))
	}
	w.used++
	return nil
}

// headers shows the state of a bucket on an answer.
func (l *limits) headers(name string, h http.Header) {
	if l.silent {
		return
	}
	v := l.view(name)
	h.Set("X-RateLimit-Resource", "core")
	for field, header := range map[string]string{"limit": "Limit", "remaining": "Remaining", "used": "Used", "reset": "Reset"} {
		h.Set("X-RateLimit-"+header, fmt.Sprint(v[field]))
	}
}

func (l *limits) view(name string) object {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.bucketOf(name, time.Now())
	return object{"limit": b.limit, "remaining": max(0, b.limit-b.hour.used), "used": b.hour.used, "reset": l.clock.of(b.hour.reset).Unix()}
}

// secondary is the answer to who breaks a secondary limit.
func secondary(status int, wait time.Duration) *answer {
	a := fail(status, "You have exceeded a secondary rate limit. Please wait a few minutes before you try again.")
	a.header = http.Header{"Retry-After": {strconv.Itoa(max(1, int((wait+time.Second-1)/time.Second)))}}
	a.body["documentation_url"] = docsURL + "/overview/rate-limits-for-the-rest-api#about-secondary-rate-limits"
	return a
}
