// SPDX-License-Identifier: MIT

package agent

import (
	"context"
	"slices"
	"sync"
	"time"
)

// maxMacGuests is how many macOS guests macOS runs at once: its kernel refuses a third,
// and its licence forbids it. Linux guests do not count.
const maxMacGuests = 2

// slots are the places for VMs that run or are about to. They are the host's own last
// word: they hold while a controller and an agent disagree. Each has a number from 1 on,
// and a VM keeps the one that it took as long as it runs, through every restart of the
// agent: what a guest takes its machine for goes with the number.
type slots struct {
	mu      sync.Mutex // guards the rest
	total   int
	macs    int            // macOS guests that are let in at once
	retry   *time.Timer    // lets one more of them in again; nil if none is kept out
	taken   map[int]tenant // by number
	waiting []waiter       // first come, first served, among those for whom there is room
}

// tenant is what has a slot.
type tenant struct {
	mac  bool
	runs bool
}

// waiter waits for a slot; granted holds one number at most.
type waiter struct {
	mac     bool
	granted chan int
}

func newSlots(total int) slots {
	return slots{total: total, macs: maxMacGuests, taken: map[int]tenant{}}
}

// take waits for a slot, for a macOS guest or another one, and returns its number.
func (s *slots) take(ctx context.Context, mac bool) (int, error) {
	mine := waiter{mac: mac, granted: make(chan int, 1)}
	s.mu.Lock()
	s.waiting = append(s.waiting, mine)
	s.grant()
	s.mu.Unlock()
	select {
	case n := <-mine.granted:
		return n, nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case n := <-mine.granted: // at the same moment
		s.freeLocked(n)
	default:
		s.waiting = slices.DeleteFunc(s.waiting, func(w waiter) bool { return w.granted == mine.granted })
	}
	return 0, context.Cause(ctx)
}

// force takes a slot for a VM that already runs, even beyond the total: number n, unless
// that is 0, so unknown, or taken, which gives it one that no new VM gets.
func (s *slots) force(n int, mac bool) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, taken := s.taken[n]; n < 1 || taken {
		n = s.lowestFree(s.total + 1)
	}
	s.taken[n] = tenant{mac: mac, runs: true}
	return n
}

// free gives a slot back.
func (s *slots) free(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.freeLocked(n)
}

func (s *slots) freeLocked(n int) {
	delete(s.taken, n)
	s.grant()
}

// running notes that the VM of a slot runs, and reports whether as many macOS guests do
// as ever may. Then none is kept out any more.
func (s *slots) running(n int) (allMacs bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken[n] = tenant{mac: s.taken[n].mac, runs: true}
	if s.countMacs(true) < maxMacGuests {
		return false
	}
	s.allowMacs()
	return true
}

// restMacs lets one macOS guest fewer in than may run, until the time is over or so many
// run all the same. It ends none.
func (s *slots) restMacs(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.allowMacs()
	s.macs = maxMacGuests - 1
	s.retry = time.AfterFunc(d, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.allowMacs()
		s.grant()
	})
}

// stop ends what would happen later.
func (s *slots) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.allowMacs()
}

// allowMacs keeps no macOS guest out. The caller holds mu.
func (s *slots) allowMacs() {
	if s.retry != nil {
		s.retry.Stop()
	}
	s.macs, s.retry = maxMacGuests, nil
}

// grant gives free slots to those who wait. One that has to wait for another macOS guest
// to end holds up nobody else.
func (s *slots) grant() {
	s.waiting = slices.DeleteFunc(s.waiting, func(w waiter) bool {
		if len(s.taken) >= s.total || w.mac && s.countMacs(false) >= s.macs {
			return false
		}
		n := s.lowestFree(1)
		s.taken[n] = tenant{mac: w.mac}
		w.granted <- n
		return true
	})
}

// countMacs counts the macOS guests, or those that run.
func (s *slots) countMacs(running bool) int {
	count := 0
	for _, p := range s.taken {
		if p.mac && (p.runs || !running) {
			count++
		}
	}
	return count
}

func (s *slots) lowestFree(from int) int {
	for n := from; ; n++ {
		if _, taken := s.taken[n]; !taken {
			return n
		}
	}
}
