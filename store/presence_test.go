// SPDX-License-Identifier: MIT

package store_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/store"
)

// stored returns what the database itself has of a host's presence.
func (w *world) stored(h fleet.HostID) (seen time.Time, sequence int64) {
	w.Helper()
	var at int64
	w.must(w.s.Pools()["read"].QueryRowContext(w.ctx(), `SELECT seen_at, sequence FROM hosts WHERE id = $1`, string(h)).Scan(&at, &sequence))
	return time.UnixMicro(at).UTC(), sequence
}

// A fleet at rest writes nothing but, now and then, when it was heard of.
func TestPresence(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "minifleet.db")
	open := func(t *testing.T, now func() time.Time) *store.Store { return openAt(t, path, now) }
	w := newWorld(t, open)
	h, other := w.host("h", 2), w.host("other", 2)
	w.report(h)
	w.must(w.s.Heard(w.ctx(), h, "agent-1", live)) // everything is saved by now
	before, sequence := w.stored(h)
	for range 3 {
		at := w.Add(live / 20)
		w.must(w.s.Heard(w.ctx(), h, "agent-1", live))
		w.report(h)
		if got, n := w.stored(h); !got.Equal(before) || n != sequence {
			t.Errorf("written: %s, sequence %d", got, n)
		}
		if got := w.hostNow(h); !got.SeenAt.Equal(at) || got.Sequence != w.sequence[h] {
			t.Errorf("not known: %s, sequence %d", got.SeenAt, got.Sequence)
		}
	}
	if st := w.state(); !st.Hosts[0].SeenAt.Equal(w.Now()) {
		t.Errorf("a decision learns of %s", st.Hosts[0].SeenAt)
	}
	w.Add(live / 4)
	w.must(w.s.Heard(w.ctx(), other, "agent-1", live))
	if got, _ := w.stored(h); !got.Equal(w.hostNow(h).SeenAt) {
		t.Errorf("not saved in time: %s", got)
	}

	// The next controller begins with what was saved, and takes the newest reports.
	w.must(w.s.Close())
	next := &world{T: t, clock: w.clock, s: open(t, w.Now), sequence: w.sequence}
	w.Add(live / 4)
	next.must(next.s.Heard(w.ctx(), h, "agent-1", live))
	if got := next.hostNow(h); !got.BackAt.Equal(epoch) {
		t.Errorf("a restart counts as a silence that ended at %s", got.BackAt)
	}
	next.report(h)

	// A silence ends in the database.
	at := w.Add(live)
	next.must(next.s.Heard(w.ctx(), h, "agent-1", live))
	if got := next.hostNow(h); !got.BackAt.Equal(at) {
		t.Errorf("the silence ended at %s", got.BackAt)
	}
	next.wantErr(next.s.Heard(w.ctx(), h, "agent-0", live), fleet.ErrSuperseded)
	next.wantErr(next.s.Heard(w.ctx(), "h-none", "agent-1", live), fleet.ErrNoHost)
}

// An older report stays older, whether its number is in memory or on disk, and a new
// instance counts anew.
func TestReportsInOrder(t *testing.T) {
	t.Parallel()
	w := newWorld(t, openSQLite)
	h := w.host("h", 2)
	w.report(h)
	w.report(h)
	id := w.place(h)
	old := fleet.HostReport{Instance: "agent-1", Sequence: 2, Facts: facts(2), Runners: []fleet.RunnerReport{said(id, fleet.ObservedBusy)}}
	w.must(w.s.Report(w.ctx(), h, old, live))
	if got := w.runner(id).Observed; got != fleet.ObservedNone {
		t.Errorf("a report that is not newer is taken: %s", got)
	}
	w.must(w.s.Hello(w.ctx(), h, "agent-2", "machine-h", facts(2), live))
	old.Instance, old.Sequence = "agent-2", 1
	w.must(w.s.Report(w.ctx(), h, old, live))
	if got := w.runner(id).Observed; got != fleet.ObservedBusy {
		t.Errorf("the first report of a new agent is not taken: %s", got)
	}
}
