// SPDX-License-Identifier: MIT

package guest

import (
	"sync"
	"time"
)

// ending remembers that the runner's end was asked for, and until when it may
// be gentle. Several requests make one: the earliest deadline holds.
type ending struct {
	mu       sync.Mutex // guards the rest
	asked    bool
	deadline time.Time
	changed  chan struct{} // closed and replaced at every change
}

func (e *ending) ask(grace time.Duration) {
	at := time.Now().Add(min(grace, maxGrace))
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.asked && !at.Before(e.deadline) {
		return
	}
	e.asked, e.deadline = true, at
	close(e.changed)
	e.changed = make(chan struct{})
}

// get returns whether the end was asked for, its deadline, and a channel that
// is closed when either changes.
func (e *ending) get() (bool, time.Time, <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.asked, e.deadline, e.changed
}

// sleep waits for d and reports true, or false at once when the end is asked for.
func (e *ending) sleep(d time.Duration) bool {
	asked, _, changed := e.get()
	if asked {
		return false
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-changed:
		return false
	}
}
