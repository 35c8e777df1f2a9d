// SPDX-License-Identifier: MIT

package githubapp

import "time"

// obstacle says what keeps a request from going, and until when; the zero time is until
// another is over. Points tells that it is the minute's.
func (g *gate) obstacle(p *pass, now time.Time) (at time.Time, wait, points bool) {
	if g.breaker.open && !p.probe {
		return g.breaker.next, true, false
	}
	l := g.lane(p.lane)
	p.resource = l.resourceOf(p.class)
	for _, until := range []time.Time{l.shut, l.spent[p.resource]} {
		if until.After(now) {
			return until, true, false
		}
	}
	if g.paced {
		if until := g.reserved(p, l, now); until.After(now) {
			return until, true, false
		}
		if until := l.minute.room(p.points, int(shares[p.priority].minute*minutePoints), now); !until.IsZero() {
			return until, true, true
		}
		if p.class == ClassRegister {
			if until := g.registrations.room(p.path, now); !until.IsZero() {
				return until, true, false
			}
		}
	}
	return time.Time{}, g.open >= maxConcurrent, false
}

// reserved returns when the hourly limit begins anew, if what is left of it is kept for
// higher priorities.
func (g *gate) reserved(p *pass, l *lane, now time.Time) time.Time {
	r, ok := g.app.rates.get(p.lane, p.resource)
	if !ok || r.Limit <= 0 || !r.Reset.After(now) {
		return time.Time{}
	}
	if left := r.Remaining - l.calls[p.resource]; float64(left) > shares[p.priority].hour*float64(r.Limit) {
		return time.Time{}
	}
	return r.Reset
}

// charged notes what an answer said of limits: which resource it was charged to, and
// that nothing is to be sent for a while if it says so. It returns until when.
func (g *gate) charged(p *pass, resource string, limit *limitAnswer, now time.Time) (until time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.lane(p.lane)
	if resource != "" && len(resource) <= 64 {
		l.resource[p.class] = resource
		g.paced = g.paced || g.app.limits == LimitsAuto
	}
	switch {
	case limit == nil:
		l.strikes = 0
		return until
	case limit.primary:
		l.spent[l.resourceOf(p.class)] = limit.until
		return limit.until
	case limit.until.IsZero(): // GitHub wants a minute at least, and longer each time
		until = now.Add(min(defaultPause<<min(l.strikes, 10), longestPause))
		l.strikes++
	default:
		until = limit.until
	}
	if until.After(l.shut) {
		l.shut = until
	}
	return until
}
