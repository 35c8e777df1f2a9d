// SPDX-License-Identifier: MIT

package githubsim

import (
	"container/heap"
	"context"
	"sync"
	"time"
)

// timers runs functions at their time, one after another, in a goroutine that
// its owner starts and waits for.
type timers struct {
	mu   sync.Mutex // guards due
	due  timerHeap
	wake chan struct{}
}

type timer struct {
	at time.Time
	fn func()
}

func newTimers() *timers { return &timers{wake: make(chan struct{}, 1)} }

// after runs fn once d has passed, unless run has ended by then.
func (t *timers) after(d time.Duration, fn func()) {
	t.mu.Lock()
	heap.Push(&t.due, timer{at: time.Now().Add(d), fn: fn})
	t.mu.Unlock()
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

func (t *timers) run(ctx context.Context) {
	clock := time.NewTimer(time.Hour)
	defer clock.Stop()
	for {
		fn, wait := t.next()
		if fn != nil {
			fn()
			continue
		}
		clock.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-t.wake:
		case <-clock.C:
		}
	}
}

// next returns the function that is due now, or how long nothing is.
func (t *timers) next() (func(), time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.due) == 0 {
		return nil, time.Hour
	}
	if wait := time.Until(t.due[0].at); wait > 0 {
		return nil, wait
	}
	return heap.Pop(&t.due).(timer).fn, 0
}

type timerHeap []timer

func (h timerHeap) Len() int           { return len(h) }
func (h timerHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h timerHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *timerHeap) Push(x any)        { *h = append(*h, x.(timer)) }
func (h *timerHeap) Pop() any {
	old := *h
	last := old[len(old)-1]
	*h = old[:len(old)-1]
	return last
}
