// SPDX-License-Identifier: MIT

package store_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/fleet"
)

func testEnrol(t *testing.T, open opener) {
	add := func(w *world, token, name string, uses int) {
		w.Helper()
		w.must(w.s.AddEnrolment(w.ctx(), fleet.Enrolment{TokenHash: token, HostName: name, ExpiresAt: w.Now().Add(time.Hour)}, uses))
	}
	t.Run("once", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		add(w, "tok", "", 1)
		h, err := w.s.Enrol(w.ctx(), "tok", "cred", "mini", "m1")
		w.must(err)
		if h.Name != "mini" || h.ID == "" || h.Machine != "m1" {
			t.Errorf("%+v", h)
		}
		_, err = w.s.Enrol(w.ctx(), "tok", "cred2", "mini2", "m2")
		w.wantErr(err, fleet.ErrToken)
		got, err := w.s.HostByCredential(w.ctx(), "cred")
		w.must(err)
		if got.ID != h.ID {
			t.Errorf("%+v", got)
		}
		_, err = w.s.HostByCredential(w.ctx(), "cred2")
		w.wantErr(err, fleet.ErrNotFound)
	})
	t.Run("repeated after a lost answer", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		add(w, "tok", "", 1)
		first, err := w.s.Enrol(w.ctx(), "tok", "cred", "mini", "m1")
		w.must(err)
		again, err := w.s.Enrol(w.ctx(), "tok", "cred", "mini", "m1")
		w.must(err)
		if first.ID != again.ID {
			t.Errorf("two hosts: %s, %s", first.ID, again.ID)
		}
	})
	t.Run("unknown and expired", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		_, err := w.s.Enrol(w.ctx(), "tok", "cred", "mini", "m1")
		w.wantErr(err, fleet.ErrToken)
		add(w, "tok", "", 1)
		w.Add(time.Hour + time.Second)
		_, err = w.s.Enrol(w.ctx(), "tok", "cred", "mini", "m1")
		w.wantErr(err, fleet.ErrToken)
		add(w, "tok2", "", 1) // clears what is expired
		_, err = w.s.Enrol(w.ctx(), "tok2", "cred", "mini", "m1")
		w.must(err)
	})
	t.Run("several uses", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		add(w, "tok", "", 2)
		for i, want := range []error{nil, nil, fleet.ErrToken} {
			_, err := w.s.Enrol(w.ctx(), "tok", string(rune('a'+i)), "mini-"+string(rune('a'+i)), "m")
			w.wantErr(err, want)
		}
	})
	t.Run("the enrolment fixes the name", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		add(w, "tok", "rack-7", 1)
		h, err := w.s.Enrol(w.ctx(), "tok", "cred", "mini", "m1")
		w.must(err)
		if h.Name != "rack-7" {
			t.Errorf("name %q", h.Name)
		}
	})
	t.Run("a taken name uses no token up", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		w.host("mini", 1)
		add(w, "tok", "", 1)
		_, err := w.s.Enrol(w.ctx(), "tok", "cred", "mini", "another machine")
		w.wantErr(err, fleet.ErrHostName)
		_, err = w.s.Enrol(w.ctx(), "tok", "cred", "mini2", "another machine")
		w.must(err)
	})
	t.Run("a machine that comes back replaces its credential", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		id := w.host("mini", 1)
		add(w, "open", "", 1)
		_, err := w.s.Enrol(w.ctx(), "open", "new credential", "mini", "machine-mini")
		w.wantErr(err, fleet.ErrHostName) // a token for any name replaces nobody
		add(w, "tok", "mini", 1)
		h, err := w.s.Enrol(w.ctx(), "tok", "new credential", "mini", "machine-mini")
		w.must(err)
		if h.ID != id {
			t.Errorf("another host: %s", h.ID)
		}
		_, err = w.s.HostByCredential(w.ctx(), "credential-mini")
		w.wantErr(err, fleet.ErrNotFound)
		w.wantErr(w.s.Heard(w.ctx(), id, "agent-1", live), fleet.ErrSuperseded)
	})
}

func testHello(t *testing.T, open opener) {
	t.Run("facts are stored", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		id := w.host("mini", 3)
		got := w.hostNow(id)
		want := fleet.Host{
			ID: id, Name: "mini", Slots: 3, Backends: []string{"process"}, Images: []string{"sonoma"}, OS: "linux", Arch: "arm64", AgentVersion: "1",
			Revision: 1, Instance: "agent-1", Machine: "machine-mini", SeenAt: epoch, BackAt: epoch, CreatedAt: epoch,
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
	t.Run("the same machine takes over at once", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		id := w.host("mini", 1)
		w.must(w.s.Hello(w.ctx(), id, "agent-2", "machine-mini", facts(1), live))
		w.wantErr(w.s.Heard(w.ctx(), id, "agent-1", live), fleet.ErrSuperseded)
		w.wantErr(w.s.Report(w.ctx(), id, fleet.HostReport{Instance: "agent-1", Sequence: 99}, live), fleet.ErrSuperseded)
		w.must(w.s.Heard(w.ctx(), id, "agent-2", live))
	})
	t.Run("another machine only when the host is silent", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		id := w.host("mini", 1)
		w.Add(live - time.Second)
		w.wantErr(w.s.Hello(w.ctx(), id, "copy", "other", facts(1), live), fleet.ErrOtherMachine)
		w.must(w.s.Heard(w.ctx(), id, "agent-1", live)) // refusing changed nothing
		w.Add(live)
		w.must(w.s.Hello(w.ctx(), id, "copy", "other", facts(1), live))
		w.wantErr(w.s.Heard(w.ctx(), id, "agent-1", live), fleet.ErrSuperseded)
	})
	t.Run("who never said hello speaks for nobody", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		w.must(w.s.AddEnrolment(w.ctx(), fleet.Enrolment{TokenHash: "t", ExpiresAt: w.Now().Add(time.Hour)}, 1))
		h, err := w.s.Enrol(w.ctx(), "t", "c", "mini", "m")
		w.must(err)
		w.wantErr(w.s.Heard(w.ctx(), h.ID, "", live), fleet.ErrSuperseded)
		w.wantErr(w.s.Report(w.ctx(), h.ID, fleet.HostReport{Sequence: 1}, live), fleet.ErrSuperseded)
	})
	t.Run("a repeated hello keeps the order of reports", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		id := w.host("mini", 1)
		r := w.place(id)
		w.report(id, said(r, fleet.ObservedBooting))
		w.report(id, said(r, fleet.ObservedStandby))
		w.must(w.s.Hello(w.ctx(), id, "agent-1", "machine-mini", facts(1), live))
		w.must(w.s.Report(w.ctx(), id, fleet.HostReport{Instance: "agent-1", Sequence: 1, Facts: facts(1)}, live)) // an old one, late
		if got := w.runner(r).Observed; got != fleet.ObservedStandby {
			t.Errorf("an old report was taken: %q", got)
		}
	})
	t.Run("unknown host", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		w.wantErr(w.s.Hello(w.ctx(), "h-none", "a", "m", facts(1), live), fleet.ErrNoHost)
		w.wantErr(w.s.Heard(w.ctx(), "h-none", "a", live), fleet.ErrNoHost)
		w.wantErr(w.s.Report(w.ctx(), "h-none", fleet.HostReport{}, live), fleet.ErrNoHost)
		_, err := w.s.Desired(w.ctx(), "h-none")
		w.wantErr(err, fleet.ErrNoHost)
		w.wantErr(w.s.RemoveHost(w.ctx(), "h-none"), fleet.ErrNoHost)
	})
	t.Run("heard", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		id := w.host("mini", 1)
		changed := w.s.Changed()
		at := w.Add(live / 2)
		w.must(w.s.Heard(w.ctx(), id, "agent-1", live))
		if !w.hostNow(id).SeenAt.Equal(at) {
			t.Error("not noted")
		}
		if closed(changed) {
			t.Error("each poll of a live host wakes the autoscaler")
		}
		if back := w.hostNow(id).BackAt; !back.Equal(epoch) {
			t.Errorf("a live host came back at %s", back)
		}
		at = w.Add(live)
		w.must(w.s.Heard(w.ctx(), id, "agent-1", live))
		if !closed(changed) {
			t.Error("a host that is back wakes nobody")
		}
		if h := w.hostNow(id); !h.BackAt.Equal(at) || !h.SeenAt.Equal(at) {
			t.Errorf("seen %s, back %s, want %s", h.SeenAt, h.BackAt, at)
		}
	})
}

func testRemoveHost(t *testing.T, open opener) {
	w := newWorld(t, open)
	a, b := w.host("a", 2), w.host("b", 2)
	clean, registered, other := w.standby(a), w.minted(a, 1, "mf-1"), w.standby(b)
	waiting := w.s.HostChanged(a)
	w.must(w.s.RemoveHost(w.ctx(), a))
	if !closed(waiting) {
		t.Error("an agent that waits for its desired is not told")
	}
	_, err := w.s.HostByCredential(w.ctx(), "credential-a")
	w.wantErr(err, fleet.ErrNotFound)
	if r := w.runner(clean); !r.Over() || r.Wanted != fleet.WantGone || r.TakesSlot() {
		t.Errorf("%+v", r)
	}
	if r := w.runner(registered); r.Over() || r.Observed != fleet.ObservedGone || r.Registration != fleet.RegMinted {
		t.Errorf("its registration at GitHub is forgotten: %+v", r)
	}
	if r := w.runner(other); r.Observed != fleet.ObservedStandby {
		t.Errorf("another host's runner is touched: %+v", r)
	}

	waiting = w.s.HostChanged(b)
	w.report(b, said(other, fleet.ObservedGone))
	w.must(w.s.RemoveHost(w.ctx(), b))
	if !closed(waiting) {
		t.Error("an agent without runners is not told that its host is removed")
	}
}

func testDesired(t *testing.T, open opener) {
	w := newWorld(t, open)
	a, b := w.host("a", 4), w.host("b", 4)
	other := w.desired(b)
	last := w.desired(a)
	if last.Site != w.s.Site() || last.Epoch != w.s.Epoch() || len(last.Runners) != 0 {
		t.Errorf("%+v", last)
	}
	raised := func(what string, want ...fleet.DesiredRunner) {
		t.Helper()
		d := w.desired(a)
		if d.Revision <= last.Revision {
			t.Errorf("%s: revision %d after %d", what, d.Revision, last.Revision)
		}
		if diff := cmp.Diff(want, d.Runners); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
		last = d
	}
	same := func(what string) {
		t.Helper()
		if d := w.desired(a); d.Revision != last.Revision {
			t.Errorf("%s raises the revision", what)
		}
	}
	id := w.place(a)
	raised("place", fleet.DesiredRunner{ID: id, Wanted: fleet.WantUp, Pool: "mac"})
	w.report(a, said(id, fleet.ObservedStandby))
	same("a report")
	w.job(1, fleet.ToldQueued, "")
	same("a job")
	w.carry(fleet.Plan{Arms: []fleet.Arm{{Runner: id, Version: w.runner(id).Version, Scope: acme, Job: 1}}})
	raised("arm", fleet.DesiredRunner{ID: id, Wanted: fleet.WantArmed, Scope: acme, Pool: "mac"})
	w.carry(fleet.Plan{Disarms: []fleet.Disarm{{Runner: id, Version: w.runner(id).Version}}})
	raised("disarm", fleet.DesiredRunner{ID: id, Wanted: fleet.WantUp, Pool: "mac"})
	w.carry(fleet.Plan{Arms: []fleet.Arm{{Runner: id, Version: w.runner(id).Version, Scope: acme, Job: 1}}})
	raised("arm again", fleet.DesiredRunner{ID: id, Wanted: fleet.WantArmed, Scope: acme, Pool: "mac"})
	_, err := w.s.BeginMint(w.ctx(), a, id, "mf-1")
	w.must(err)
	same("a mint")
	w.carry(fleet.Plan{Retires: []fleet.Retire{{Runner: id, Version: w.runner(id).Version, Drain: true, Reason: "x"}}})
	raised("drain", fleet.DesiredRunner{ID: id, Wanted: fleet.WantDrain, Scope: acme, Pool: "mac"})
	w.carry(fleet.Plan{Retires: []fleet.Retire{{Runner: id, Version: w.runner(id).Version, Reason: "x"}}})
	raised("retire", fleet.DesiredRunner{ID: id, Wanted: fleet.WantGone, Scope: acme, Pool: "mac"})
	w.report(a, said(id, fleet.ObservedDestroying))
	same("a report of destroying")
	w.report(a, said(id, fleet.ObservedGone))
	raised("gone") // no longer named, even while its registration is not gone
	if d := w.desired(b); d.Revision != other.Revision {
		t.Error("another host's revision rose")
	}
}
