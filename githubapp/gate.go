// SPDX-License-Identifier: MIT

package githubapp

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// gate lets requests through, by priority: not more at once than GitHub takes of one
// App, not more a minute and an hour than it allows an installation, and one at a time
// while GitHub cannot be reached. What cannot go soon enough is refused before it is
// sent, with the time at which it could.
type gate struct {
	app           *App
	paced         bool // GitHub's limits are known to hold
	registrations *Registrations

	mu      sync.Mutex
	open    int // requests under way
	lanes   map[int64]*lane
	breaker breaker
	queue   []*pass // that wait: by priority, then in the order in which they came
	timer   *time.Timer
	prober  *time.Timer
	closing context.CancelFunc // ends a question under way
	asking  sync.WaitGroup
	probing bool // a question is under way
	closed  bool
}

// pass is one request on its way through the gate.
type pass struct {
	lane     int64
	class    Class
	path     string
	priority Priority
	points   int
	deadline time.Time // for waiting
	resource string    // that it is expected to be charged to
	probe    bool      // it asks whether GitHub can be reached again

	settled chan struct{} // closed when it may go, or may not
	refused *RateLimited
	at      time.Time // when it can go, as far as that is known
}

func (g *gate) lane(id int64) *lane {
	l := g.lanes[id]
	if l == nil {
		l = newLane()
		g.lanes[id] = l
	}
	return l
}

// enter waits until the request may go. Whoever enters leaves.
func (g *gate) enter(ctx context.Context, p *pass) error {
	now := g.app.now()
	patience := shares[p.priority].patience
	if p.class == ClassToken {
		patience = time.Second // whoever needs the token waits for it with a lock held
	}
	p.deadline = now.Add(patience)
	if d, ok := ctx.Deadline(); ok && d.Before(p.deadline) {
		p.deadline = d
	}
	p.settled = make(chan struct{})
	g.mu.Lock()
	at, _ := slices.BinarySearchFunc(g.queue, p.priority, func(have *pass, want Priority) int {
		if have.priority <= want {
			return -1
		}
		return 1
	})
	g.queue = slices.Insert(g.queue, at, p)
	g.pump(now)
	g.mu.Unlock()
	timer := time.NewTimer(p.deadline.Sub(now))
	defer timer.Stop()
	var over error
	select {
	case <-p.settled:
	case <-ctx.Done():
		over = context.Cause(ctx)
	case <-timer.C:
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if i := slices.Index(g.queue, p); i >= 0 {
		g.queue = slices.Delete(g.queue, i, i+1)
		g.pump(g.app.now()) // it may have held others back
		if over == nil {
			g.refuse(p, g.app.now())
			over = p.refused
		}
		return over
	}
	if p.refused != nil {
		return p.refused
	}
	return nil
}

// pump settles what can be settled. The caller holds mu.
func (g *gate) pump(now time.Time) {
	var next time.Time
	full := map[int64]time.Time{} // lanes in which one of a higher priority waits for points
	kept := g.queue[:0]
	for _, p := range g.queue {
		at, wait := full[p.lane]
		if !wait {
			var points bool
			if at, wait, points = g.obstacle(p, now); points {
				full[p.lane] = at
			}
		}
		switch {
		case !wait:
			g.begin(p)
			close(p.settled)
			continue
		case at.After(p.deadline):
			p.at = at
			g.refuse(p, now)
			close(p.settled)
			continue
		}
		p.at = at
		if at.After(now) && (next.IsZero() || at.Before(next)) {
			next = at
		}
		kept = append(kept, p)
	}
	clear(g.queue[len(kept):])
	g.queue = kept
	if g.timer != nil {
		g.timer.Stop()
	}
	if !next.IsZero() {
		g.timer = time.AfterFunc(next.Sub(now), func() {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.pump(g.app.now())
		})
	}
}

// soon is when a request that could not go may be tried again where nothing says when.
const soon = 2 * time.Second

func (g *gate) refuse(p *pass, now time.Time) {
	p.refused = &RateLimited{Until: p.at}
	if !p.at.After(now) {
		p.refused.Until = now.Add(soon)
	}
	if g.breaker.open {
		p.refused.Outage = g.breaker.began
	}
}

func (g *gate) begin(p *pass) {
	l := g.lane(p.lane)
	g.open++
	l.calls[p.resource]++
	l.minute.begin(p.points)
	if p.class == ClassRegister {
		g.registrations.begin(p.path)
	}
}

// outcome is how a request ended.
type outcome int

const (
	outcomeAnswered outcome = iota // GitHub is there, whatever it said
	outcomeFailed                  // a server's error, or no answer
	outcomeDropped                 // its caller gave up
)

// leave ends what enter began.
func (g *gate) leave(p *pass, o outcome) {
	now := g.app.now()
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.lane(p.lane)
	g.open--
	l.calls[p.resource]--
	l.minute.end(p.points, now)
	if p.class == ClassRegister {
		g.registrations.end(p.path, now)
	}
	switch {
	case o == outcomeAnswered && p.class != ClassToken: // which another part of GitHub gives
		since := g.breaker.began
		if g.breaker.answered() {
			g.app.log.Info("GitHub is reached again", slog.Duration("after", now.Sub(since)))
			g.app.changed()
		}
	case o == outcomeFailed:
		if g.breaker.failed(p, now) {
			g.app.log.Warn("GitHub cannot be reached: calls wait until it answers",
				slog.Int("failures", g.breaker.failures), slog.Time("next", g.breaker.next))
			g.app.changed()
		}
	}
	g.ask(now)
	g.pump(now)
}

// Queued counts the requests that wait, by priority: mint, end, ask, poll.
func (a *App) Queued() map[string]int {
	out := map[string]int{}
	for _, name := range priorityNames {
		out[name] = 0
	}
	a.gate.mu.Lock()
	defer a.gate.mu.Unlock()
	for _, p := range a.gate.queue {
		out[priorityNames[p.priority]]++
	}
	return out
}

// close stops the clocks. Who waits still ends by its own.
func (g *gate) close() {
	g.mu.Lock()
	g.closed = true
	for _, t := range []*time.Timer{g.timer, g.prober} {
		if t != nil {
			t.Stop()
		}
	}
	if g.closing != nil {
		g.closing()
	}
	g.mu.Unlock()
	g.asking.Wait()
}
