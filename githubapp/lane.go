// SPDX-License-Identifier: MIT

package githubapp

import (
	"strings"
	"sync"
	"time"
)

// GitHub's secondary limits (docs.github.com, "Rate limits for the REST API"), and that
// of registrations ("Self-hosted runners: usage limits").
const (
	minutePoints        = 900
	readPoints          = 1
	writePoints         = 5
	registrationsAtMost = 1500 // of one organization or repository
	registrationPeriod  = 5 * time.Minute
)

// window counts what is used within a period. What is used counts until a period after
// its answer came: wherever GitHub's own period begins, it never sees more.
type window struct {
	span time.Duration
	open int // by calls under way
	past []use
	sum  int // of past
}

type use struct {
	points int
	until  time.Time
}

func (w *window) roll(now time.Time) {
	n := 0
	for n < len(w.past) && !w.past[n].until.After(now) {
		w.sum -= w.past[n].points
		n++
	}
	w.past = w.past[n:]
}

// room returns the zero time if so many points fit below the limit, or when they will at
// the earliest.
func (w *window) room(points, limit int, now time.Time) time.Time {
	w.roll(now)
	over := w.open + w.sum + points - limit
	if over <= 0 {
		return time.Time{}
	}
	for _, u := range w.past {
		if over -= u.points; over <= 0 {
			return u.until
		}
	}
	return now.Add(w.span) // once calls under way are over
}

func (w *window) begin(points int) { w.open += points }

func (w *window) end(points int, now time.Time) {
	w.open -= points
	w.sum += points
	w.past = append(w.past, use{points, now.Add(w.span)})
}

// lane is what one installation may do, or, as number 0, the App itself.
type lane struct {
	minute   window
	calls    map[string]int       // under way, by resource
	shut     time.Time            // nothing before: a secondary limit
	spent    map[string]time.Time // by resource: its primary limit is used up until then
	strikes  int                  // answers about a limit in a row that did not say how long
	resource map[Class]string     // that GitHub charged last for calls of a class
}

func newLane() *lane {
	return &lane{
		minute: window{span: time.Minute}, calls: map[string]int{},
		spent: map[string]time.Time{}, resource: map[Class]string{},
	}
}

func (l *lane) resourceOf(c Class) string {
	if r := l.resource[c]; r != "" {
		return r
	}
	return "core"
}

// Registrations counts those of each scope, for all Apps that make them together.
type Registrations struct {
	mu     sync.Mutex
	scopes map[string]*window
}

// of returns the window of the scope that a path is about. The caller holds mu.
func (r *Registrations) of(path string) *window {
	scope, _, _ := strings.Cut(strings.ToLower(path), "/actions/")
	w := r.scopes[scope]
	if w == nil {
		if r.scopes == nil {
			r.scopes = map[string]*window{}
		}
		w = &window{span: registrationPeriod}
		r.scopes[scope] = w
	}
	return w
}

func (r *Registrations) room(path string, now time.Time) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.of(path).room(1, registrationsAtMost, now)
}

func (r *Registrations) begin(path string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.of(path).begin(1)
}

func (r *Registrations) end(path string, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.of(path).end(1, now)
}
