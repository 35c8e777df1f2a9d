// SPDX-License-Identifier: MIT

package tendays

import (
	"context"
	"errors"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// gate is what the App's client of one life of the controller lets through, as that of
// githubapp does: nothing for an owner of which GitHub has said to wait, no list and no
// question when little is left of the hour, and but one harmless question at a time while
// GitHub cannot be reached. Where the client would let a call wait for a moment, here it is
// refused at once.
type gate struct {
	c       *controller
	shut    map[*owner]time.Duration // nothing before: GitHub's 429
	strikes map[*owner]int           // in a row that did not say how long
	minute  map[*owner]*points       // that GitHub has charged within it

	failures int           // in a row
	began    time.Duration // the first of them
	open     bool          // GitHub cannot be reached
	pause    time.Duration // before the next question
	next     time.Duration // when it is asked
}

const (
	breakAfter   = 3
	longestBreak = time.Minute
	defaultPause = time.Minute // where a 429 does not say how long
	longestPause = time.Hour
)

// kept is the part of the hour's calls, in percent, that is kept for what matters more.
var kept = [callKinds]int{
	callDelete: 5, callFind: 15, callJob: 15, callRunner: 15, callRuns: 40, callJobs: 40, callRunners: 40, callRepositories: 15,
}

// flow is the part of a minute's points, in percent, beyond which a call waits.
var flow = [callKinds]int{
	callMint: 100, callDelete: 85, callFind: 65, callJob: 65, callRunner: 65, callRuns: 35, callJobs: 35, callRunners: 35, callRepositories: 65,
}

// spend returns the points of an owner if a call fits in, and else when it would.
func (g *gate) spend(o *owner, k call) (*points, error) {
	p := g.minute[o]
	if p == nil {
		p = &points{}
		g.minute[o] = p
	}
	if until := p.room(g.c.w.t, costs(k), minutePoints*flow[k]/100); until > 0 {
		return nil, &fleet.RateLimited{Until: g.c.w.date(until)}
	}
	return p, nil
}

// refuses returns why a call is not sent, nil if it is.
func (g *gate) refuses(o *owner, k call) error {
	w := g.c.w
	switch {
	case g.open:
		return &fleet.RateLimited{Until: w.date(max(g.next, w.t+2*time.Second)), Outage: w.date(g.began)}
	case g.shut[o] > w.t:
		return &fleet.RateLimited{Until: w.date(g.shut[o])}
	case (callsPerHour-o.spent())*100 <= kept[k]*callsPerHour:
		return &fleet.RateLimited{Until: w.date(o.nextHour())}
	}
	return nil
}

// held is what the mint flow asks before it begins.
func (g *gate) held(scope fleet.Scope) error { return g.refuses(g.c.w.ownerOf(scope), callMint) }

// trouble is what a decision has to know.
func (g *gate) trouble(scope fleet.Scope) (fleet.Trouble, bool) {
	limited, held := errors.AsType[*fleet.RateLimited](g.held(scope))
	if !held {
		return fleet.Trouble{}, false
	}
	t := fleet.Trouble{Code: fleet.WaitRateLimit, Until: limited.Until, Reason: "GitHub's rate limit is used up"}
	if !limited.Outage.IsZero() {
		t.Code, t.Until, t.Reason = fleet.WaitGitHub, g.c.w.date(g.next), "GitHub cannot be reached"
	}
	return t, true
}

// took takes in how a call ended.
func (g *gate) took(o *owner, err error) {
	limited, refused := errors.AsType[*fleet.RateLimited](err)
	switch {
	case errors.Is(err, errServer):
		g.failed(o, false)
		return
	case !refused:
		delete(g.strikes, o)
	case limited.Until.IsZero():
		limited.Until = g.c.w.date(g.c.w.t + min(defaultPause<<min(g.strikes[o], 10), longestPause))
		g.strikes[o]++
	}
	if refused {
		g.shut[o] = max(g.shut[o], limited.Until.Sub(g.c.w.began))
	}
	g.failures = 0
	if g.open {
		g.open, g.pause = false, 0
		g.c.decideSoon()
	}
}

// failed takes in a call that GitHub did not answer.
func (g *gate) failed(o *owner, asked bool) {
	w := g.c.w
	if g.failures++; g.failures == 1 {
		g.began = w.t
	}
	if g.open && !asked || g.failures < breakAfter {
		return
	}
	if !g.open {
		g.open = true
		g.c.decideSoon()
	}
	g.pause = min(max(time.Second, 2*g.pause), longestBreak)
	w.calls++
	g.next = w.t + w.span(g.pause/2, g.pause, ofCall, w.calls, 4)
	w.after(g.next-w.t, func() { g.ask(o) })
}

// ask asks whether GitHub can be reached again.
func (g *gate) ask(o *owner) {
	w := g.c.w
	if !g.open || w.controller != g.c {
		return
	}
	w.calls++
	w.fig.Calls[callReached]++
	w.after(api{w, g.c}.latency(), func() {
		err := api{w, g.c}.served(o, callReached, false)
		switch {
		case !g.open || w.controller != g.c:
		case errors.Is(err, errServer):
			g.failed(o, true)
		default:
			g.took(o, err)
		}
	})
}

// ask makes one call, or several pages of one, up to the moment at which GitHub does what
// is asked. A list of which the client has the newest version is free.
func (a api) ask(ctx context.Context, o *owner, k call, pages int, v *version) error {
	for range pages {
		if err := a.page(ctx, o, k, v != nil && v.by == a.c && v.read == v.now); err != nil {
			return err
		}
	}
	if v != nil {
		v.read, v.by = v.now, a.c
	}
	return nil
}

func (a api) page(ctx context.Context, o *owner, k call, free bool) error {
	w := a.w
	if err := ctx.Err(); err != nil {
		return err
	}
	meter := fleet.MeterOf(ctx)
	if meter != nil {
		err := meter.Begin(ctx)
		w.play(time.Since(w.began)) // it may have waited
		if err != nil {
			return err
		}
	}
	err := a.c.gate.refuses(o, k)
	var spent *points
	if err == nil {
		spent, err = a.c.gate.spend(o, k)
	}
	if err != nil {
		if meter != nil {
			meter.End(false, fleet.Rate{}, false)
		}
		return err
	}
	w.calls++
	spent.open += costs(k)
	w.pass(a.latency()) // what is sent arrives whatever becomes of the sender
	spent.open -= costs(k)
	spent.charge(w.t, costs(k))
	w.fig.Calls[k]++
	err = a.served(o, k, free)
	if meter != nil {
		meter.End(free, fleet.Rate{Limit: callsPerHour, Remaining: callsPerHour - o.spent(), Reset: w.date(o.nextHour())}, err == nil)
	}
	if errors.Is(err, errServer) {
		w.pass(a.latency())
	}
	if lost := err == nil && k == callMint && w.open(Lost); !lost {
		a.c.gate.took(o, err)
	}
	return err
}

// served is what GitHub makes of a call, first of all.
func (a api) served(o *owner, k call, free bool) error {
	w := a.w
	if o.minute.room(w.t, costs(k), minutePoints) > 0 {
		if w.t-w.startedAt > time.Minute { // before, the client does not know what the one before it has spent
			w.fail("%s: more than %d points within a minute", o.name, minutePoints)
		}
		w.fig.Errors++
		return &fleet.RateLimited{}
	}
	o.minute.charge(w.t, costs(k))
	switch {
	case w.open(Outage), w.open(Errors) && int(w.chance(ofCall, w.calls, 0)%100) < w.percent:
		w.fig.Errors++
		return errServer
	case w.openAt(Refused, o.n):
		w.fig.Errors++
		return fleet.ErrRefused
	case w.open(Limited):
		w.fig.Errors++
		limited := &fleet.RateLimited{}
		if w.chance(ofCall, w.calls, 3)%2 == 0 {
			limited.Until = w.date(w.until[Limited])
		}
		return limited
	case free:
		w.fig.Unchanged++
		return nil
	}
	if o.use(); o.used > callsPerHour {
		w.fail("%s: more than %d calls within an hour", o.name, callsPerHour)
	}
	return nil
}

// use counts a call of this hour.
func (o *owner) use() {
	if hour := o.w.t / time.Hour; hour != o.hour {
		o.hour, o.used = hour, 0
	}
	o.used++
}

// spent is how many calls of this hour GitHub has counted.
func (o *owner) spent() int {
	if o.w.t/time.Hour != o.hour {
		return 0
	}
	return o.used
}

func (o *owner) nextHour() time.Duration { return (o.w.t/time.Hour + 1) * time.Hour }
