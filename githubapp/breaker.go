// SPDX-License-Identifier: MIT

package githubapp

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"
)

const (
	breakAfter  = 3 // failures in a row, without any answer between them
	firstPause  = time.Second
	breakerMost = time.Minute
)

// breaker knows whether GitHub can be reached. Server errors, broken connections and
// answers that do not come, several in a row, open it: then calls wait, and one harmless
// question is asked after pauses that grow. The first answer closes it.
type breaker struct {
	failures int           // in a row
	began    time.Time     // the first of them
	open     bool          // calls are held back
	pause    time.Duration // before the next question
	next     time.Time     // when it is asked
	lane     int64         // of the call that failed last
	path     string
}

// failed notes a call that GitHub did not answer. It reports whether that opened it.
func (b *breaker) failed(p *pass, now time.Time) (opened bool) {
	if b.failures++; b.failures == 1 {
		b.began = now
	}
	if b.open && !p.probe || !b.open && b.failures < breakAfter {
		return false
	}
	if opened = !b.open; opened {
		b.lane, b.path = p.lane, p.path
	}
	b.open = true
	b.pause = min(max(firstPause, 2*b.pause), breakerMost)
	// Between half of the pause and all of it, so that sites do not come back together.
	b.next = now.Add(b.pause/2 + rand.N(b.pause/2))
	return opened
}

// answered notes that GitHub is there. It reports whether that closed it.
func (b *breaker) answered() (closed bool) {
	closed = b.open
	*b = breaker{}
	return closed
}

// Outage reports whether GitHub cannot be reached, since when, and when the next try is.
func (a *App) Outage() (since, next time.Time, out bool) {
	a.gate.mu.Lock()
	defer a.gate.mu.Unlock()
	b := a.gate.breaker
	return b.began, b.next, b.open
}

// ask has it asked when it is time whether GitHub can be reached. The caller holds mu.
func (g *gate) ask(now time.Time) {
	if g.prober != nil {
		g.prober.Stop()
		g.prober = nil
	}
	if !g.breaker.open || g.closed || g.probing {
		return
	}
	lane, path := g.breaker.lane, g.breaker.path
	g.prober = time.AfterFunc(g.breaker.next.Sub(now), func() {
		g.mu.Lock()
		// A clock that was stopped may have rung already, and another was set instead.
		if g.closed || g.probing || !g.breaker.open {
			g.mu.Unlock()
			return
		}
		ctx, cancel := context.WithCancel(context.Background())
		g.closing, g.probing = cancel, true
		g.asking.Add(1)
		g.mu.Unlock()
		defer g.asking.Done()
		defer cancel()
		g.app.probe(ctx, lane, path)
		g.mu.Lock()
		defer g.mu.Unlock()
		g.probing = false
		now := g.app.now()
		if g.breaker.open && !g.breaker.next.After(now) { // it got no further than here
			g.breaker.next = now.Add(g.breaker.pause)
		}
		g.ask(now)
	})
}

type probeKey struct{}

// probe asks GitHub something harmless, near to what failed, to find out whether it can be
// reached again: a registration that gets no answer would be in doubt for long.
func (a *App) probe(ctx context.Context, lane int64, path string) {
	ctx = context.WithValue(withTimeout(ctx, a.callTimeout), probeKey{}, true)
	client, what := a.self, "app"
	if place, _, ok := strings.Cut(path, "/actions/"); ok && lane != 0 {
		in, err := a.installation(lane)
		if err != nil {
			return
		}
		base := strings.TrimPrefix(place, a.self.BaseURL.Path)
		client, what = in.client, strings.TrimPrefix(base, "/")+"/actions/runners?per_page=1"
	}
	req, err := client.NewRequest(http.MethodGet, what, nil)
	if err != nil {
		return
	}
	_, err = client.Do(ctx, req, nil)
	a.log.DebugContext(ctx, "asked whether GitHub can be reached", slog.Any("error", explain(ctx, err, a.now())))
}
