// SPDX-License-Identifier: MIT

package store

import (
	"sync"

	"github.com/minifleet/minifleet/fleet"
)

// watchers tells those who wait that something was committed. A channel is closed
// at the next change after it was asked for, so: ask, read, then wait.
type watchers struct {
	mu    sync.Mutex // guards both
	all   chan struct{}
	hosts map[fleet.HostID]chan struct{}
}

// Changed returns a channel that is closed at the next change of anything that a
// decision reads.
func (s *Store) Changed() <-chan struct{} {
	w := &s.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.all == nil {
		w.all = make(chan struct{})
	}
	return w.all
}

// HostChanged returns a channel that is closed when the host's revision rises.
func (s *Store) HostChanged(id fleet.HostID) <-chan struct{} {
	w := &s.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.hosts == nil {
		w.hosts = map[fleet.HostID]chan struct{}{}
	}
	if w.hosts[id] == nil {
		w.hosts[id] = make(chan struct{})
	}
	return w.hosts[id]
}

func (w *watchers) tell(hosts map[fleet.HostID]bool, all bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id := range hosts {
		if ch := w.hosts[id]; ch != nil {
			close(ch)
			delete(w.hosts, id)
		}
	}
	if all && w.all != nil {
		close(w.all)
		w.all = nil
	}
}
