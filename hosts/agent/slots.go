// SPDX-License-Identifier: MIT

package agent

import (
	"context"
	"slices"
	"sync"
)

// slots counts the VMs that run or are about to. It is the host's own last word: it
// holds while a controller and an agent disagree.
type slots struct {
	mu      sync.Mutex // guards the rest
	total   int
	taken   int
	waiting []chan struct{} // first come, first served; closed when the slot is theirs
}

// take waits for a slot.
func (s *slots) take(ctx context.Context) error {
	s.mu.Lock()
	if s.taken < s.total && len(s.waiting) == 0 {
		s.taken++
		s.mu.Unlock()
		return nil
	}
	mine := make(chan struct{})
	s.waiting = append(s.waiting, mine)
	s.mu.Unlock()
	select {
	case <-mine:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.waiting, mine); i >= 0 {
		s.waiting = slices.Delete(s.waiting, i, i+1)
	} else {
		s.freeLocked() // it became ours at the same moment
	}
	return context.Cause(ctx)
}

// force takes a slot for a VM that already runs, even beyond the total.
func (s *slots) force() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken++
}

// free gives a slot back.
func (s *slots) free() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.freeLocked()
}

func (s *slots) freeLocked() {
	s.taken--
	for s.taken < s.total && len(s.waiting) > 0 {
		close(s.waiting[0])
		s.waiting = s.waiting[1:]
		s.taken++
	}
}
