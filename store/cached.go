// SPDX-License-Identifier: MIT

package store

import (
	"slices"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// What is in a host's cache, and how far it is, is in memory alone: every report says
// all of it, and while an image of 60 GB comes each says something new. A controller
// that starts again knows it with the next report. That an image is whole is one of the
// host's facts, which are stored.

// keepCached takes what a report says of the images, and reports whether one came, went
// or has another state. Bytes that were brought are no reason to decide anything. The
// caller holds mu.
func (m *mirror) keepCached(id fleet.HostID, said []fleet.CachedImage, now time.Time) (moved bool) {
	was := m.cached[id]
	moved = len(was) != len(said)
	list := slices.Clone(said)
	for i := range list {
		is := &list[i]
		is.MovedAt = now
		at := slices.IndexFunc(was, func(w fleet.CachedImage) bool { return w.Digest == is.Digest })
		switch {
		case at < 0 || was[at].State != is.State:
			moved = true
		case was[at].DoneBytes == is.DoneBytes:
			is.MovedAt = was[at].MovedAt
		}
	}
	m.cached[id] = list
	if len(list) == 0 {
		delete(m.cached, id)
	}
	if moved {
		m.fleet = nil // decisions are to see it at once
	}
	return moved
}

// cached takes what a report says of the images once the report is durable.
func (t *tx) cached(id fleet.HostID, said []fleet.CachedImage) {
	now, m := t.now, t.s.mirror
	// A decision is woken by the commit only where that changes something; it is cheaper
	// to see beforehand whether the images do.
	m.mu.Lock()
	was := m.cached[id]
	m.mu.Unlock()
	state := func(a, b fleet.CachedImage) bool { return a.Digest == b.Digest && a.State == b.State }
	t.changed = t.changed || !slices.EqualFunc(was, said, state)
	t.after = append(t.after, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.hosts.byKey[id] != nil {
			m.keepCached(id, said, now)
		}
	})
}
