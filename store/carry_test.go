// SPDX-License-Identifier: MIT

package store_test

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/fleet"
)

func testCarry(t *testing.T, open opener) {
	t.Run("place", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 2)
		id := w.place(h)
		r := w.runner(id)
		want := fleet.Runner{
			ID: id, Pool: "mac", Host: h, Reason: "test", Wanted: fleet.WantUp, HoldsSlot: true,
			Since: epoch, MovedAt: epoch, CreatedAt: epoch, Version: 1,
		}
		if diff := cmp.Diff(want, r); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if !strings.HasPrefix(string(id), "r-") || len(id) != 12 {
			t.Errorf("id %q", id)
		}
	})
	t.Run("a job that a runner listened for in vain", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 2)
		id := w.minted(h, 1, "mf-1")
		w.job(2, fleet.ToldInProgress, "elsewhere")
		for range 2 { // a repeated DELETE is the same runner
			w.carry(fleet.Plan{Deletes: []fleet.Delete{{Runner: id, Version: w.runner(id).Version, Reason: "test", PassedOver: 1}}})
		}
		j := w.state().Jobs[0]
		if j.ID != 1 || j.PassedOver != 1 || !j.PassedAt.Equal(w.Now()) {
			t.Errorf("%+v", j)
		}
		w.job(1, fleet.ToldInProgress, "elsewhere-2")
		back := news(1, fleet.SeenQueued, "")
		back.Asked = w.Now().Add(time.Second)
		_, err := w.s.Ingest(w.ctx(), fleet.Ingest{Answers: []fleet.JobNews{*back}})
		w.must(err)
		if j := w.state().Jobs[0]; j.PassedOver != 0 || !j.PassedAt.IsZero() {
			t.Errorf("after it ran: %+v", j)
		}
	})
	t.Run("never more than the slots", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 2)
		p := fleet.Place{Pool: "mac", Host: h}
		if done := w.carry(fleet.Plan{Places: []fleet.Place{p, p, p}}); done.Done != 2 || done.Void != 1 || len(done.Placed) != 2 {
			t.Errorf("%+v", done)
		}
		if n := len(w.desired(h).Runners); n != 2 {
			t.Errorf("%d runners", n)
		}
		if taken, err := w.s.SlotsTaken(w.ctx()); err != nil || taken[h] != 2 {
			t.Errorf("%v, %v", taken, err)
		}
	})
	t.Run("a slot is free when the lock is released, not before", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 1)
		id := w.standby(h)
		try := func(want int, when string) {
			t.Helper()
			if done := w.carry(fleet.Plan{Places: []fleet.Place{{Pool: "mac", Host: h}}}); len(done.Placed) != want {
				t.Errorf("%s: %+v", when, done)
			}
		}
		w.carry(fleet.Plan{Retires: []fleet.Retire{{Runner: id, Version: w.runner(id).Version, Reason: "x"}}})
		try(0, "told to go")
		w.report(h, said(id, fleet.ObservedDestroying))
		try(0, "destroying, the VM runs")
		s := said(id, fleet.ObservedDestroying)
		s.HoldsSlot = false
		w.report(h, s)
		try(1, "the VM has stopped, its files are being deleted")
	})
	t.Run("a host that is not there", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		if done := w.carry(fleet.Plan{Places: []fleet.Place{{Pool: "mac", Host: "h-none"}}}); done.Void != 1 || done.Done != 0 {
			t.Errorf("%+v", done)
		}
	})
	t.Run("arm", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 9)
		id := w.standby(h)
		w.job(1, fleet.ToldQueued, "")
		at := w.Add(time.Second)
		arm := fleet.Arm{Runner: id, Version: w.runner(id).Version, Scope: acme, Job: 1}
		if done := w.carry(fleet.Plan{Arms: []fleet.Arm{arm, arm}}); done.Done != 1 || done.Void != 1 {
			t.Errorf("granted twice: %+v", done)
		}
		r := w.runner(id)
		if r.Wanted != fleet.WantArmed || r.Scope != acme || !r.ArmedAt.Equal(at) || r.Phase() != fleet.PhaseArmed {
			t.Errorf("%+v", r)
		}
	})
	t.Run("an arm is void once its job is not queued", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 9)
		for i, e := range []fleet.JobEvent{fleet.ToldInProgress, fleet.ToldCompleted, fleet.SeenWaiting} {
			job := fleet.JobID(i + 1)
			id := w.standby(h)
			w.job(job, fleet.ToldQueued, "")
			arm := fleet.Arm{Runner: id, Version: w.runner(id).Version, Scope: acme, Job: job}
			w.job(job, e, "somebody")
			if done := w.carry(fleet.Plan{Arms: []fleet.Arm{arm}}); done.Void != 1 {
				t.Errorf("after %s: %+v", e, done)
			}
		}
		id := w.standby(h)
		if done := w.carry(fleet.Plan{Arms: []fleet.Arm{{Runner: id, Version: w.runner(id).Version, Scope: acme, Job: 404}}}); done.Void != 1 {
			t.Errorf("a job never heard of: %+v", done)
		}
	})
	t.Run("a guest that holds a config is never armed again", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 9)
		id := w.place(h)
		s := said(id, fleet.ObservedStandby)
		s.HasConfig = true
		w.report(h, s)
		w.job(1, fleet.ToldQueued, "")
		if done := w.carry(fleet.Plan{Arms: []fleet.Arm{{Runner: id, Version: w.runner(id).Version, Scope: acme, Job: 1}}}); done.Void != 1 {
			t.Errorf("%+v", done)
		}
	})
	t.Run("disarm", func(t *testing.T) {
		t.Parallel()
		for reg, void := range map[fleet.Registration]bool{
			fleet.RegNone: false, fleet.RegGone: false, fleet.RegMinting: true, fleet.RegMinted: true, fleet.RegBusy: true, fleet.RegDeleting: true,
		} {
			w := newWorld(t, open)
			id := w.at(w.host("a", 2), reg)
			done := w.carry(fleet.Plan{Disarms: []fleet.Disarm{{Runner: id, Version: w.runner(id).Version, Reason: "x"}}})
			if (done.Void == 1) != void {
				t.Errorf("registration %q: %+v", reg, done)
			}
			if r := w.runner(id); !void && (r.Wanted != fleet.WantUp || !r.Scope.IsZero()) {
				t.Errorf("registration %q: %+v", reg, r)
			}
		}
	})
	t.Run("every stale action is void", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 9)
		id := w.minted(h, 1, "mf-1")
		v := w.runner(id).Version
		w.report(h, w.others(h, said(id, fleet.ObservedBusy))...) // what the plan did not know
		w.job(2, fleet.ToldQueued, "")
		before := w.runner(id)
		done := w.carry(fleet.Plan{
			Arms:    []fleet.Arm{{Runner: id, Version: v, Scope: acme, Job: 2}},
			Disarms: []fleet.Disarm{{Runner: id, Version: v}},
			Retires: []fleet.Retire{{Runner: id, Version: v}, {Runner: id, Version: v, Drain: true}, {Runner: "r-none", Version: 1}},
			Deletes: []fleet.Delete{{Runner: id, Version: v}},
		})
		if done.Void != 6 || done.Done != 0 || len(done.Deletes) != 0 {
			t.Errorf("%+v", done)
		}
		if diff := cmp.Diff(before, w.runner(id)); diff != "" {
			t.Errorf("%s", diff)
		}
	})
	t.Run("what holds is done beside what is void", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 2)
		id := w.standby(h)
		done := w.carry(fleet.Plan{
			Retires: []fleet.Retire{{Runner: id, Version: 99}, {Runner: id, Version: w.runner(id).Version, Reason: "surplus"}},
			Places:  []fleet.Place{{Pool: "mac", Host: "h-none"}, {Pool: "mac", Host: h}},
		})
		if done.Done != 2 || done.Void != 2 || w.runner(id).Retired != "surplus" {
			t.Errorf("%+v", done)
		}
	})
	t.Run("an empty plan", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		if done := w.carry(fleet.Plan{}); done.Done+done.Void != 0 {
			t.Errorf("%+v", done)
		}
	})
}

func testConcurrency(t *testing.T, open opener) {
	t.Run("two who decide never overcommit", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 3)
		var wg sync.WaitGroup
		var placed atomic.Int64
		for range 12 {
			wg.Go(func() {
				done, err := w.s.Carry(w.ctx(), fleet.Plan{Places: []fleet.Place{{Pool: "mac", Host: h}}})
				if err != nil {
					t.Error(err)
				}
				placed.Add(int64(len(done.Placed)))
			})
		}
		wg.Wait()
		if placed.Load() != 3 {
			t.Errorf("%d placed on 3 slots", placed.Load())
		}
	})
	t.Run("one grant, one mint", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 3)
		id := w.standby(h)
		version := w.runner(id).Version
		w.job(1, fleet.ToldQueued, "")
		var wg sync.WaitGroup
		var granted, named atomic.Int64
		for i := range 8 {
			wg.Go(func() {
				done, err := w.s.Carry(w.ctx(), fleet.Plan{Arms: []fleet.Arm{{Runner: id, Version: version, Scope: acme, Job: 1}}})
				if err != nil {
					t.Error(err)
				}
				granted.Add(int64(done.Done))
				m, err := w.s.BeginMint(w.ctx(), h, id, fmt.Sprintf("mf-%d", i))
				if err == nil && m.Name != "" {
					named.Add(1)
				}
			})
		}
		wg.Wait()
		if granted.Load() != 1 || named.Load() != 1 {
			t.Errorf("%d grants, %d names", granted.Load(), named.Load())
		}
	})
	// Deliveries, reports, decisions, mints and readers at the same time: nobody
	// fails, and nobody undoes what another wrote.
	t.Run("all at once", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 200)
		ids := make([]fleet.RunnerID, 12)
		for i := range ids {
			ids[i] = w.minted(h, fleet.JobID(i+1), fmt.Sprintf("mf-%d", i+1))
		}
		var wg sync.WaitGroup
		check := func(err error) {
			if err != nil {
				t.Error(err)
			}
		}
		for i, id := range ids {
			job := fleet.JobID(i + 1)
			wg.Go(func() {
				check(w.s.Learn(w.ctx(), *news(job, fleet.ToldInProgress, fmt.Sprintf("mf-%d", job))))
				check(w.s.Learn(w.ctx(), *news(job, fleet.ToldCompleted, fmt.Sprintf("mf-%d", job))))
			})
			wg.Go(func() { check(w.s.DeleteFailed(w.ctx(), id, 1, w.Now().Add(time.Hour))) })
		}
		wg.Go(func() {
			for seq := range int64(10) {
				var all []fleet.RunnerReport
				for _, id := range ids {
					all = append(all, said(id, []fleet.Observed{fleet.ObservedIdle, fleet.ObservedBusy}[seq/5]))
				}
				check(w.s.Report(w.ctx(), h, fleet.HostReport{Instance: "agent-1", Sequence: 1000 + seq, Facts: facts(200), Runners: all}, live))
			}
		})
		wg.Go(func() {
			for range 10 {
				st, err := w.s.State(w.ctx())
				check(err)
				var p fleet.Plan
				for _, r := range st.Runners {
					p.Retires = append(p.Retires, fleet.Retire{Runner: r.ID, Version: r.Version, Drain: true, Reason: "test"})
				}
				_, err = w.s.Carry(w.ctx(), p)
				check(err)
			}
		})
		wg.Wait()
		for i, id := range ids {
			r := w.runner(id)
			if r.Job != fleet.JobID(i+1) || !r.JobDone || r.Observed != fleet.ObservedBusy || r.Registration == fleet.RegMinted {
				t.Errorf("lost an update: %+v", r)
			}
		}
	})
}

func testWatch(t *testing.T, open opener) {
	t.Run("what a decision reads", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 9)
		job := fleet.JobID(0)
		var id fleet.RunnerID
		for _, step := range []struct {
			what  string
			do    func()
			wakes bool
		}{
			{"a queued job", func() { job++; w.job(job, fleet.ToldQueued, "") }, true},
			{"the same again", func() { w.job(job, fleet.ToldQueued, "") }, false},
			{"an ignored delivery", func() {
				_, err := w.s.Ingest(w.ctx(), fleet.Ingest{Delivery: w.delivery("ignored", fleet.DeliveryIgnored)})
				w.must(err)
			}, false},
			{"a place", func() { id = w.place(h) }, true},
			{"a report with news", func() { w.report(h, said(id, fleet.ObservedStandby)) }, true},
			{"a report without news", func() { w.report(h, said(id, fleet.ObservedStandby)) }, false},
			{"an arm", func() {
				w.carry(fleet.Plan{Arms: []fleet.Arm{{Runner: id, Version: w.runner(id).Version, Scope: acme, Job: job}}})
			}, true},
			{"a void plan", func() { w.carry(fleet.Plan{Retires: []fleet.Retire{{Runner: id, Version: 1}}}) }, false},
			{"a mint", func() { _, err := w.s.BeginMint(w.ctx(), h, id, "mf-1"); w.must(err) }, true},
			{"a grant", func() { w.must(w.s.Granted(w.ctx(), id, 1, 5)) }, true},
			{"the same grant", func() { w.must(w.s.Granted(w.ctx(), id, 1, 5)) }, false},
			{"a read", func() { w.state(); w.desired(h) }, false},
			{"a failed call", func() { _, _ = w.s.BeginMint(w.ctx(), "h-none", id, "x") }, false},
		} {
			changed := w.s.Changed()
			step.do()
			if closed(changed) != step.wakes {
				t.Errorf("%s: wakes %t, want %t", step.what, !step.wakes, step.wakes)
			}
		}
	})
	t.Run("hosts apart", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		a, b := w.host("a", 2), w.host("b", 2)
		onA, onA2, onB := w.s.HostChanged(a), w.s.HostChanged(a), w.s.HostChanged(b)
		w.place(a)
		if !closed(onA) || !closed(onA2) || closed(onB) {
			t.Errorf("a %t, %t; b %t", closed(onA), closed(onA2), closed(onB))
		}
		if closed(w.s.HostChanged(a)) {
			t.Error("the next wait begins closed")
		}
	})
	// Ask, read, wait: whoever keeps to this order sees the last change.
	t.Run("no change is missed", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 60)
		start := w.desired(h).Revision
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 50 {
				if _, err := w.s.Carry(w.ctx(), fleet.Plan{Places: []fleet.Place{{Pool: "mac", Host: h}}}); err != nil {
					t.Error(err)
					return
				}
			}
		}()
		for {
			changed := w.s.HostChanged(h)
			d, err := w.s.Desired(w.ctx(), h)
			if err != nil {
				t.Fatal(err)
			}
			if d.Revision == start+50 {
				if len(d.Runners) != 50 {
					t.Errorf("%d runners at the last revision", len(d.Runners))
				}
				break
			}
			select {
			case <-changed:
			case <-t.Context().Done():
				t.Fatal("a change was missed")
			}
		}
		<-done
	})
}
