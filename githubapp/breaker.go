// SPDX-License-Identifier: MIT

package githubapp

import (
	"math/rand/v2"
	"time"
)

const (
	breakAfter  = 5 // failures in a row, without any answer between them
	firstPause  = time.Second
	breakerMost = time.Minute
)

// breaker knows whether GitHub can be reached. Server errors, broken connections and
// answers that do not come, several in a row, open it: then one call at a time is let
// through, after pauses that grow. The first answer closes it.
type breaker struct {
	failures int           // in a row
	began    time.Time     // the first of them
	open     bool          // calls are held back
	probing  bool          // one is under way
	pause    time.Duration // before the next one
	next     time.Time     // not before
	ended    time.Time     // when it was closed last
}

// failed notes a call that GitHub did not answer. It reports whether that opened it.
func (b *breaker) failed(probe bool, now time.Time) (opened bool) {
	if b.failures++; b.failures == 1 {
		b.began = now
	}
	switch {
	case b.open && !probe:
		return false // it began before
	case !b.open && b.failures < breakAfter:
		return false
	}
	opened = !b.open
	b.open, b.probing = true, false
	b.pause = min(max(firstPause, 2*b.pause), breakerMost)
	// Between half of the pause and all of it, so that sites do not come back together.
	b.next = now.Add(b.pause/2 + rand.N(b.pause/2))
	return opened
}

// answered notes that GitHub is there. It reports whether that closed it.
func (b *breaker) answered(now time.Time) (closed bool) {
	if closed = b.open; closed {
		b.ended = now
	}
	*b = breaker{ended: b.ended}
	return closed
}

// dropped notes that the caller of a probe gave up: it says nothing of GitHub.
func (b *breaker) dropped(probe bool) {
	if probe {
		b.probing = false
	}
}
