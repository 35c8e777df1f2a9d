// SPDX-License-Identifier: MIT

package store

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// presence is when a host was heard of last and which report of it was the newest. A
// fleet at rest says nothing else, and writing that down for each host every few
// seconds would keep the disk busy for ever. The database learns it with the next change
// of the host, and of all hosts together every quarter of the deadline: a controller that
// is started again counts a host's silence from a moment that is at most that much too
// early. A report that is newer only in its number is the same report: forgetting the
// number forgets nothing.
type presence struct {
	instance string // that the number is of
	sequence int64
	seen     time.Time
	saved    time.Time // the same, as the database has it
}

// now returns a host with the newest that is known of its presence. The caller holds mu.
func (m *mirror) now(h *hostRow) fleet.Host {
	host := h.Host
	host.Cached = m.cached[host.ID]
	p, ok := m.present[host.ID]
	if !ok {
		return host
	}
	if p.seen.After(host.SeenAt) {
		host.SeenAt = p.seen
	}
	if p.instance == host.Instance && p.sequence > host.Sequence {
		host.Sequence = p.sequence
	}
	return host
}

// current is now for a host that was read from the database.
func (m *mirror) current(h fleet.Host) fleet.Host {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now(&hostRow{Host: h})
}

// note keeps what a committed change has learnt.
func (m *mirror) note(id fleet.HostID, instance string, sequence int64, seen time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.hosts.byKey[id] == nil {
		return // removed by the same commit
	}
	p := m.present[id]
	if p.instance != instance {
		p.instance, p.sequence = instance, 0
	}
	p.sequence = max(p.sequence, sequence)
	if sequence > 0 {
		p.saved = seen // a report is written down with its time
	}
	if seen.After(p.seen) {
		p.seen = seen
	}
	m.present[id] = p
}

// heard notes that an instance spoke, unless that ends a silence, which is a change of
// the database. due says that the presences should be saved, by whoever was told so.
func (m *mirror) heard(id fleet.HostID, instance string, now time.Time, live time.Duration) (silent, due bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	row := m.hosts.byKey[id]
	if row == nil {
		return false, false, fmt.Errorf("host %s: %w", id, fleet.ErrNoHost)
	}
	h := m.now(row)
	if instance == "" || h.Instance != instance {
		return false, false, fmt.Errorf("host %s: %w", h.Name, fleet.ErrSuperseded)
	}
	if now.Sub(h.SeenAt) >= live {
		return true, false, nil
	}
	p := m.present[id]
	if p.instance != instance {
		p = presence{instance: instance, sequence: h.Sequence}
	}
	p.seen = now
	m.present[id] = p
	if due = !m.saving && now.Sub(m.savedAt) >= live/4 && !now.Before(m.saveAfter); due {
		m.saving = true
	}
	return false, due, nil
}

// same takes a report that says nothing new of a host without runners: only that the
// host is there. The caller has made sure that no silence ends with it.
func (m *mirror) same(id fleet.HostID, rep fleet.HostReport, now time.Time) (same, moved bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	row := m.hosts.byKey[id]
	if row == nil || len(rep.Runners) > 0 || len(m.on[id]) > 0 || m.reporting[id] > 0 {
		return false, false
	}
	h := m.now(row)
	if rep.Instance != h.Instance || rep.Sequence <= h.Sequence || rep.Revision > h.Revision || !sameFacts(h, rep.Facts) {
		return false, false
	}
	p := m.present[id]
	p.instance, p.sequence = rep.Instance, rep.Sequence
	m.present[id] = p
	return true, m.keepCached(id, rep.Images, now)
}

// reportBegins notes that a report waits to be written: a later one is compared with it,
// and so has to wait its turn.
func (m *mirror) reportBegins(id fleet.HostID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reporting[id]++
}

func (m *mirror) reportEnds(id fleet.HostID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.reporting[id]--; m.reporting[id] == 0 {
		delete(m.reporting, id)
	}
}

func sameFacts(h fleet.Host, f fleet.HostFacts) bool {
	return h.Slots == f.Slots && slices.Equal(h.Backends, f.Backends) && slices.Equal(h.Images, f.Images) &&
		h.OS == f.OS && h.Arch == f.Arch && h.AgentVersion == f.AgentVersion && h.Degraded == f.Degraded
}

// unsaved returns what the database does not know yet.
func (m *mirror) unsaved() map[fleet.HostID]presence {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[fleet.HostID]presence{}
	for id, p := range m.present {
		if p.seen.After(p.saved) {
			out[id] = p
		}
	}
	return out
}

// saved notes what the database has learnt, or that it could not and when to try again.
func (m *mirror) saved(list map[fleet.HostID]presence, now time.Time, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.saving = false
	if err != nil {
		m.saveAfter = now.Add(5 * time.Second)
		return
	}
	m.savedAt = now
	for id, was := range list {
		if p, ok := m.present[id]; ok && was.seen.After(p.saved) {
			p.saved = was.seen
			m.present[id] = p
		}
	}
}

// Heard notes that the instance spoke, and refuses one that no longer does so for
// the host.
func (s *Store) Heard(ctx context.Context, id fleet.HostID, instance string, live time.Duration) error {
	silent, due, err := s.mirror.heard(id, instance, s.now(), live)
	switch {
	case err != nil:
		return err
	case silent:
		return s.change(ctx, func(t *tx) error {
			h, err := t.host(id)
			if err != nil {
				return err
			}
			return t.heard(h, instance, live)
		})
	case due:
		s.savePresences(ctx)
	}
	return nil
}

// savePresences tells the database when each host was heard of. What cannot be saved now
// is saved a while later. It is for all hosts, whether or not the one that came waits.
func (s *Store) savePresences(ctx context.Context) {
	list := s.mirror.unsaved()
	err := s.change(context.WithoutCancel(ctx), func(t *tx) error {
		for id, p := range list {
			if err := t.exec(`UPDATE hosts SET seen_at = $1 WHERE id = $2 AND seen_at < $1`, micros(p.seen), string(id)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil && s.ended() == nil {
		s.log.Warn("when the hosts were heard of is not saved", slog.Any("error", err))
	}
	s.mirror.saved(list, s.now(), err)
}
