// SPDX-License-Identifier: MIT

package store_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/fleet"
)

func testReport(t *testing.T, open opener) {
	t.Run("a whole life", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 2)
		id := w.place(h)
		for _, o := range []fleet.Observed{"preparing", "booting", "standby", "registering", "idle", "busy", "finished", "destroying", "gone"} {
			w.Add(time.Second)
			s := said(id, o)
			s.HasConfig = o == "registering" // said once is enough
			s.HoldsSlot = o != "finished" && o != "gone"
			w.report(h, s)
			r := w.runner(id)
			if r.Observed != o || !r.Since.Equal(w.Now()) || !r.MovedAt.Equal(w.Now()) {
				t.Errorf("%s: observed %q since %s", o, r.Observed, r.Since)
			}
			if r.HoldsSlot != s.HoldsSlot {
				t.Errorf("%s: holds its slot %t", o, r.HoldsSlot)
			}
		}
		if r := w.runner(id); !r.Over() || !r.HasConfig || r.Failure != "" {
			t.Errorf("%+v", r)
		}
		if st := w.state(); len(st.Runners) != 0 {
			t.Error("a runner of the past is in the state")
		}
	})
	t.Run("an older report changes nothing", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 2)
		id := w.place(h)
		w.sequence[h] = 9
		w.report(h, said(id, fleet.ObservedStandby)) // 10
		before := w.runner(id)
		for _, seq := range []int64{10, 9, 0, -1} {
			at := w.Add(time.Second)
			rep := fleet.HostReport{Instance: "agent-1", Sequence: seq, Facts: facts(77), Runners: []fleet.RunnerReport{said(id, fleet.ObservedBusy)}}
			w.must(w.s.Report(w.ctx(), h, rep, live))
			if diff := cmp.Diff(before, w.runner(id)); diff != "" {
				t.Errorf("sequence %d:\n%s", seq, diff)
			}
			now := w.hostNow(h)
			if now.Slots != 2 || now.Sequence != 10 {
				t.Errorf("sequence %d: %+v", seq, now)
			}
			if !now.SeenAt.Equal(at) {
				t.Error("yet the host was heard")
			}
		}
	})
	t.Run("a new instance counts from the beginning", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 2)
		id := w.place(h)
		w.sequence[h] = 99
		w.report(h, said(id, fleet.ObservedStandby))
		w.must(w.s.Hello(w.ctx(), h, "agent-2", "machine-a", facts(2), live))
		w.must(w.s.Report(w.ctx(), h, fleet.HostReport{Instance: "agent-2", Sequence: 1, Facts: facts(2), Runners: []fleet.RunnerReport{said(id, fleet.ObservedBusy)}}, live))
		if r := w.runner(id); r.Observed != fleet.ObservedBusy {
			t.Errorf("%+v", r)
		}
	})
	t.Run("facts change", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 2)
		changed := w.s.Changed()
		w.must(w.s.Report(w.ctx(), h, fleet.HostReport{Instance: "agent-1", Sequence: 1, Facts: facts(2)}, live))
		if closed(changed) {
			t.Error("a report without news wakes the autoscaler")
		}
		f := facts(1)
		f.Images, f.Degraded = nil, "disk is full"
		w.must(w.s.Report(w.ctx(), h, fleet.HostReport{Instance: "agent-1", Sequence: 2, Facts: f}, live))
		if got := w.hostNow(h); got.Slots != 1 || len(got.Images) != 0 || got.Degraded != "disk is full" {
			t.Errorf("%+v", got)
		}
		if !closed(changed) {
			t.Error("new facts wake nobody")
		}
	})
	t.Run("only forward", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 2)
		id := w.standby(h)
		w.report(h, said(id, fleet.ObservedBooting))
		if r := w.runner(id); r.Observed != fleet.ObservedStandby {
			t.Errorf("%q", r.Observed)
		}
	})
	t.Run("progress moves the clock of a phase, not its start", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 2)
		id := w.place(h)
		start := w.Add(time.Second)
		s := said(id, fleet.ObservedPreparing)
		s.Progress = "10 %"
		w.report(h, s)
		moved := w.Add(time.Minute)
		s.Progress = "20 %"
		w.report(h, s)
		w.Add(time.Minute)
		w.report(h, s) // the same again is no progress
		if r := w.runner(id); !r.Since.Equal(start) || !r.MovedAt.Equal(moved) || r.Progress != "20 %" {
			t.Errorf("since %s, moved %s, %q", r.Since, r.MovedAt, r.Progress)
		}
	})
	t.Run("the times of steps", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 2)
		id := w.place(h)
		s := said(id, fleet.ObservedStandby)
		for _, step := range fleet.Steps()[:fleet.StepListener] {
			s.Took[step] = time.Duration(step+1) * time.Millisecond
		}
		w.report(h, s)
		want := s.Took
		// An agent that was started again knows only what it saw itself.
		s = said(id, fleet.ObservedGone)
		s.HoldsSlot, s.Took = false, fleet.StepTimes{fleet.StepStop: 7 * time.Microsecond}
		w.report(h, s)
		want[fleet.StepStop] = 7 * time.Microsecond
		if r := w.runner(id); r.Took != want {
			t.Errorf("got %v, want %v", r.Took, want)
		}
	})
	t.Run("missing", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 5)
		notBegun := w.place(h)
		lost, leaving, ending := w.standby(h), w.standby(h), w.standby(h)
		w.carry(fleet.Plan{Retires: []fleet.Retire{{Runner: leaving, Version: w.runner(leaving).Version, Reason: "test"}}})
		w.report(h, w.others(h, said(ending, fleet.ObservedDestroying))...)
		w.report(h)
		if r := w.runner(notBegun); r.Observed != fleet.ObservedNone || !r.TakesSlot() {
			t.Errorf("one that no agent has begun: %+v", r)
		}
		if r := w.runner(lost); r.Observed != fleet.ObservedGone || r.Failure == "" || r.TakesSlot() {
			t.Errorf("lost: %+v", r)
		}
		for _, id := range []fleet.RunnerID{leaving, ending} {
			if r := w.runner(id); r.Observed != fleet.ObservedGone || r.Failure != "" {
				t.Errorf("one that was to go: %+v", r)
			}
		}
		if got := w.hostNow(h).Failures; got != 1 {
			t.Errorf("%d failures, want 1", got)
		}
	})
	t.Run("a result ends the registration", func(t *testing.T) {
		t.Parallel()
		for _, c := range []struct {
			o      fleet.Observed
			result string
			named  bool // GitHub said that it has a job: the guest's word alone is not enough
			want   fleet.Registration
		}{
			{fleet.ObservedFinished, "succeeded", true, fleet.RegGone},
			{fleet.ObservedDestroying, "failed", true, fleet.RegGone},
			{fleet.ObservedGone, "canceled", true, fleet.RegGone},
			{fleet.ObservedGone, "", true, fleet.RegBusy},
			{fleet.ObservedGone, "succeeded", false, fleet.RegMinted},
			{fleet.ObservedFinished, "succeeded", false, fleet.RegMinted},
			{fleet.ObservedFailed, "", false, fleet.RegMinted},
			{fleet.ObservedBusy, "", false, fleet.RegMinted},
		} {
			w := newWorld(t, open)
			h := w.host("a", 2)
			id := w.minted(h, 1, "mf-1")
			if c.named {
				w.job(1, fleet.ToldInProgress, "mf-1")
			}
			s := said(id, c.o)
			s.Result = c.result
			w.report(h, s)
			if r := w.runner(id); r.Registration != c.want || r.Result != c.result {
				t.Errorf("%s, result %q: registration %q, want %q", c.o, c.result, r.Registration, c.want)
			}
		}
	})
	t.Run("an agent that obeyed a later revision than is known here", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 2)
		rep := fleet.HostReport{Instance: "agent-1", Sequence: 1, Revision: 500, Facts: facts(2)}
		w.must(w.s.Report(w.ctx(), h, rep, live))
		if d := w.desired(h); d.Revision <= 500 {
			t.Errorf("revision %d would be refused", d.Revision)
		}
		before := w.desired(h).Revision
		rep.Sequence = 2
		w.must(w.s.Report(w.ctx(), h, rep, live))
		if d := w.desired(h); d.Revision != before {
			t.Errorf("revision %d, before %d", d.Revision, before)
		}
	})
	t.Run("the timeline has an end", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 2)
		id := w.place(h)
		w.report(h, said(id, fleet.ObservedIdle))
		for range 150 { // a guest that goes back and forth
			w.report(h, said(id, fleet.ObservedRegistering))
			w.report(h, said(id, fleet.ObservedIdle))
		}
		if tl, err := w.s.Timeline(w.ctx(), id); err != nil || len(tl) != 200 {
			t.Errorf("%d moments, %v", len(tl), err)
		}
		w.report(h, said(id, fleet.ObservedGone))
		if r := w.runner(id); !r.Over() {
			t.Error("its life went on unseen")
		}
	})
	t.Run("the first failure and result stand", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 2)
		id := w.standby(h)
		s := said(id, fleet.ObservedFailed)
		s.Failure, s.Result = "first", "failed"
		w.report(h, s)
		s.Failure, s.Result, s.Observed = "second", "succeeded", fleet.ObservedDestroying
		w.report(h, s)
		if r := w.runner(id); r.Failure != "first" || r.Result != "failed" || r.Observed != fleet.ObservedFailed {
			t.Errorf("%+v", r)
		}
	})
	t.Run("another host cannot speak of a runner", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		a, b := w.host("a", 2), w.host("b", 2)
		id := w.standby(a)
		before := w.runner(id)
		w.report(b, said(id, fleet.ObservedGone))
		w.report(b, said(id, fleet.ObservedBusy))
		if diff := cmp.Diff(before, w.runner(id)); diff != "" {
			t.Errorf("%s", diff)
		}
	})
}

func testAdopt(t *testing.T, open opener) {
	t.Run("without a config it goes", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 2)
		revision := w.desired(h).Revision
		w.report(h, said("r-old", fleet.ObservedStandby))
		r := w.runner("r-old")
		if r.Wanted != fleet.WantGone || !r.TakesSlot() || r.Host != h || r.Pool != "mac" {
			t.Errorf("%+v", r)
		}
		if d := w.desired(h); d.Revision <= revision || len(d.Runners) != 1 || d.Runners[0].Wanted != fleet.WantGone {
			t.Errorf("%+v", d)
		}
	})
	t.Run("with a config it stays", func(t *testing.T) {
		t.Parallel()
		for own, want := range map[bool]fleet.Registration{true: fleet.RegMinted, false: fleet.RegNone} {
			w := newWorld(t, open)
			h := w.host("a", 2)
			s := said("r-old", fleet.ObservedBusy)
			s.HasConfig, s.Scope, s.RunnerName = true, acme, "someone-mac-1"
			if own {
				s.RunnerName = w.s.Site() + "-mac-1"
			}
			w.report(h, s)
			r := w.runner("r-old")
			if r.Wanted != fleet.WantArmed || r.Registration != want || r.Scope != acme || r.Phase() != fleet.PhaseBusy || !r.Adopted() || !r.Unvouched() {
				t.Errorf("%+v", r)
			}
			w.job(1, fleet.ToldInProgress, s.RunnerName)
			if r := w.runner("r-old"); (r.Job == 1) != own {
				t.Errorf("a name with our site id %t: bound to %d", own, r.Job)
			}
			s.Observed, s.Result, s.HoldsSlot = fleet.ObservedGone, "succeeded", false
			w.report(h, s)
			if r := w.runner("r-old"); !r.Over() {
				t.Errorf("it ended and stays in the books: %+v", r)
			}
		}
	})
	t.Run("a registration that an older copy of the database forgot", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 2)
		id := w.armed(h, 1)
		s := said(id, fleet.ObservedIdle)
		s.HasConfig, s.Scope, s.RunnerName = true, acme, w.s.Site()+"-mac-9"
		w.report(h, s)
		if r := w.runner(id); r.Registration != fleet.RegMinted || r.RunnerName != s.RunnerName {
			t.Errorf("%+v", r)
		}
		if use := w.state().Mints["acme"]; len(use.Begun) != 0 {
			t.Errorf("it counts against the budget: %+v", use)
		}
		w.job(1, fleet.ToldInProgress, s.RunnerName)
		if r := w.runner(id); r.Job != 1 {
			t.Errorf("%+v", r)
		}
	})
	t.Run("another runner's registration is not taken", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		name := w.s.Site() + "-mac-theirs"
		victim := w.minted(w.host("a", 2), 1, name)
		thief := w.host("b", 2)
		s := said("r-made-up", fleet.ObservedIdle)
		s.HasConfig, s.Scope, s.RunnerName = true, acme, name
		w.report(thief, s)
		if r := w.runner("r-made-up"); r.Registration != fleet.RegNone || r.RunnerName != "" {
			t.Errorf("%+v", r)
		}
		w.job(1, fleet.ToldInProgress, name)
		if w.runner(victim).Job != 1 {
			t.Error("deliveries do not find its own runner any more")
		}
	})
	t.Run("no more than a host can run", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 2)
		var all []fleet.RunnerReport
		for i := range 50 {
			all = append(all, said(fleet.RunnerID(fmt.Sprintf("r-%02d", i)), fleet.ObservedBusy))
		}
		for range 3 {
			w.report(h, all...)
		}
		if n := len(w.state().Runners); n != 6 {
			t.Errorf("%d strangers were adopted on 2 slots, want 6", n)
		}
	})
	t.Run("another host's past", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		a, b := w.host("a", 2), w.host("b", 2)
		id := w.standby(a)
		w.report(a, said(id, fleet.ObservedGone))
		w.report(b, said(id, fleet.ObservedBusy))
		if r := w.runner(id); !r.Over() || r.Host != a {
			t.Errorf("%+v", r)
		}
	})
	t.Run("what is gone is not adopted", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		w.report(w.host("a", 2), said("r-old", fleet.ObservedGone))
		if _, ok, err := w.s.Runner(w.ctx(), "r-old"); ok || err != nil {
			t.Errorf("%t, %v", ok, err)
		}
	})
	t.Run("written off and back", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 2)
		id := w.standby(h)
		w.must(w.s.RemoveHost(w.ctx(), h))
		if r := w.runner(id); !r.Over() {
			t.Fatal("not over")
		}
		again := w.host("a2", 2)
		w.sequence[again] = 0
		s := said(id, fleet.ObservedBusy)
		s.HasConfig = true
		w.report(again, s)
		r := w.runner(id)
		if r.Over() || r.Host != again || r.Wanted != fleet.WantDrain || r.Phase() != fleet.PhaseBusy || !r.TakesSlot() {
			t.Errorf("%+v", r)
		}
		if len(w.state().Runners) != 1 {
			t.Error("it is not in the state")
		}
		s.Observed = fleet.ObservedGone
		w.report(again, s)
		if r := w.runner(id); !r.Over() {
			t.Errorf("%+v", w.runner(id))
		}
	})
}

func testHealth(t *testing.T, open opener) {
	fail := func(w *world, h fleet.HostID) {
		id := w.place(h)
		s := said(id, fleet.ObservedFailed)
		s.Failure = "did not boot"
		w.report(h, w.others(h, s)...)
		w.report(h, w.others(h, s)...) // told twice, counted once
		s.Observed, s.HoldsSlot = fleet.ObservedGone, false
		w.report(h, w.others(h, s)...)
	}
	counts := func(w *world, h fleet.HostID, host, pool int) {
		w.Helper()
		if got := w.hostNow(h).Failures; got != host {
			w.Errorf("host: %d failures in a row, want %d", got, host)
		}
		if got := w.state().Pools["mac"].Failures; got != pool {
			w.Errorf("pool: %d failures in a row, want %d", got, pool)
		}
	}
	t.Run("counted and forgotten", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 3)
		for i := range 3 {
			w.Add(time.Second)
			fail(w, h)
			counts(w, h, i+1, i+1)
		}
		if at := w.state().Pools["mac"].FailedAt; !at.Equal(w.Now()) {
			t.Errorf("failed at %s", at)
		}
		id := w.standby(h)
		counts(w, h, 0, 3) // the host works; whether the pool does is not known
		w.report(h, said(id, fleet.ObservedBusy))
		counts(w, h, 0, 0)
	})
	t.Run("reports that skip the steps", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 3)
		fail(w, h)
		id := w.place(h)
		s := said(id, fleet.ObservedFinished)
		s.Result = "succeeded"
		w.report(h, s)
		counts(w, h, 0, 0)
	})
	t.Run("blameless", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 9)
		broken := func(id fleet.RunnerID) {
			s := said(id, fleet.ObservedFailed)
			s.Failure = "broke"
			w.report(h, w.others(h, s)...)
		}
		busy := w.standby(h)
		w.report(h, w.others(h, said(busy, fleet.ObservedBusy))...)
		broken(busy) // what a job does to its VM
		leaving := w.standby(h)
		w.carry(fleet.Plan{Retires: []fleet.Retire{{Runner: leaving, Version: w.runner(leaving).Version, Drain: true, Reason: "surplus"}}})
		broken(leaving)
		deleted := w.minted(h, 1, "mf-1")
		w.carry(fleet.Plan{Deletes: []fleet.Delete{{Runner: deleted, Version: w.runner(deleted).Version, Reason: "surplus"}}})
		broken(deleted)
		w.report(h, w.others(h, said("r-adopted", fleet.ObservedStandby))...)
		broken("r-adopted")
		counts(w, h, 0, 0)
		broken(w.standby(h))
		counts(w, h, 1, 1)
	})
	t.Run("a retirement that counts", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 3)
		id := w.place(h)
		w.carry(fleet.Plan{Retires: []fleet.Retire{{Runner: id, Version: w.runner(id).Version, Drain: true, Failure: true, Reason: "too slow"}}})
		counts(w, h, 1, 1)
		s := said(id, fleet.ObservedFailed)
		s.Failure = "ended before it was up"
		w.report(h, s)
		counts(w, h, 1, 1) // the same failure
		if r := w.runner(id); r.Failure != "too slow" || r.Retired != "too slow" {
			t.Errorf("%+v", r)
		}
	})
}
