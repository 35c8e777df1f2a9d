// SPDX-License-Identifier: MIT

package store_test

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

func testLists(t *testing.T, open opener) {
	answer := func(w *world, id fleet.JobID, e fleet.JobEvent, runner string, asked time.Time) {
		w.Helper()
		n := *news(id, e, runner)
		n.Asked = asked
		_, err := w.s.Ingest(w.ctx(), fleet.Ingest{Answers: []fleet.JobNews{n}})
		w.must(err)
	}
	t.Run("answers come without a delivery", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		changed := w.s.Changed()
		one, two := *news(1, fleet.SeenQueued, ""), *news(2, fleet.SeenCompleted, "")
		one.Asked, two.Asked = epoch.Add(-time.Second), epoch.Add(-time.Second)
		got, err := w.s.Ingest(w.ctx(), fleet.Ingest{Answers: []fleet.JobNews{one, two}})
		w.must(err)
		if !got.Changed || got.Duplicate || !closed(changed) {
			t.Errorf("%+v", got)
		}
		if j := w.jobNow(1); j.State != fleet.JobQueued || !j.ToldAt.IsZero() || !j.AskedAt.Equal(one.Asked) || !j.QueuedAt.Equal(epoch) {
			t.Errorf("%+v", j)
		}
		list, _, err := w.s.ListDeliveries(w.ctx(), fleet.DeliveryQuery{})
		w.must(err)
		if len(list) != 0 {
			t.Errorf("deliveries %+v", list)
		}
		again, err := w.s.Ingest(w.ctx(), fleet.Ingest{Answers: []fleet.JobNews{one, two}})
		w.must(err)
		if again.Changed {
			t.Error("the same answers again change something")
		}
	})
	t.Run("an answer that a delivery has overtaken does not undo it", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		w.job(1, fleet.ToldQueued, "")
		asked := w.Add(time.Second)
		w.Add(time.Second)
		w.job(1, fleet.ToldInProgress, "mf-1")
		w.Add(time.Second)
		answer(w, 1, fleet.SeenQueued, "", asked)
		if j := w.jobNow(1); j.State != fleet.JobInProgress || j.RunnerName != "mf-1" {
			t.Errorf("%+v", j)
		}
		answer(w, 1, fleet.SeenQueued, "", w.Now())
		if j := w.jobNow(1); j.State != fleet.JobQueued {
			t.Errorf("%+v", j)
		}
	})
	t.Run("even news that moves nothing is newer", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		w.job(1, fleet.ToldInProgress, "mf-1")
		asked := w.Add(time.Second)
		w.Add(time.Second)
		w.job(1, fleet.ToldQueued, "") // late
		answer(w, 1, fleet.SeenQueued, "", asked)
		if j := w.jobNow(1); j.State != fleet.JobInProgress || !j.ToldAt.Equal(w.Now()) || !j.AskedAt.Equal(asked) {
			t.Errorf("%+v", j)
		}
	})
	t.Run("an answer ends a job's runner as a delivery does", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("mini", 2)
		id := w.minted(h, 1, "mf-1")
		w.Add(time.Second)
		answer(w, 1, fleet.SeenCompleted, "mf-1", w.Now())
		if r := w.runner(id); !r.JobDone || r.Job != 1 {
			t.Errorf("%+v", r)
		}
	})
	t.Run("unsettled", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("mini", 4)
		id := w.minted(h, 1, "mf-1")
		w.standby(h) // of no owner yet
		w.job(2, fleet.ToldCompleted, "")
		w.job(3, fleet.ToldWaiting, "")
		jobs, runners, err := w.s.Unsettled(w.ctx(), "ACME", w.Now())
		w.must(err)
		if len(jobs) != 2 || jobs[0].ID != 1 || jobs[1].ID != 3 || len(runners) != 1 || runners[0].ID != id {
			t.Errorf("jobs %+v, runners %+v", jobs, runners)
		}
		jobs, runners, err = w.s.Unsettled(w.ctx(), "other", w.Now())
		w.must(err)
		if len(jobs)+len(runners) != 0 {
			t.Errorf("of another owner: %+v, %+v", jobs, runners)
		}
		// It ends, and stays to be seen for a while.
		w.must(w.s.RegistrationLost(w.ctx(), id, 1))
		w.report(h, w.others(h, fleet.RunnerReport{ID: id, Observed: fleet.ObservedGone, Pool: "mac"})...)
		end := w.Now()
		w.Add(time.Minute)
		for since, want := range map[time.Duration]int{0: 0, time.Second: 1} {
			_, runners, err = w.s.Unsettled(w.ctx(), "acme", end.Add(-since))
			w.must(err)
			if len(runners) != want {
				t.Errorf("moved after %s before its end: %+v", since, runners)
			}
		}
	})
	t.Run("repositories", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		w.job(1, fleet.ToldQueued, "")
		first := w.Now()
		w.Add(time.Hour)
		w.job(2, fleet.ToldQueued, "")
		got, err := w.s.Repositories(w.ctx(), "acme", first.Add(-time.Second))
		w.must(err)
		if !maps.Equal(got, map[fleet.Scope]time.Time{acme: w.Now()}) {
			t.Errorf("%v", got)
		}
		got, err = w.s.Repositories(w.ctx(), "acme", w.Now())
		w.must(err)
		if len(got) != 0 {
			t.Errorf("heard of long ago: %v", got)
		}
	})
	t.Run("names that stand", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("mini", 4)
		id := w.minted(h, 1, "Mf-1")
		w.armed(h, 2)
		lost := fleet.RunnerReport{ID: "r-lost", Observed: fleet.ObservedIdle, HoldsSlot: true, HasConfig: true, Pool: "mac", Scope: acme, RunnerName: w.s.Site() + "-mac-lost"}
		w.report(h, w.others(h, lost)...)
		names := func() []string {
			t.Helper()
			got, err := w.s.StandingNames(w.ctx())
			w.must(err)
			return slices.Sorted(maps.Keys(got))
		}
		want := slices.Sorted(slices.Values([]string{"mf-1", w.s.Site() + "-mac-lost"}))
		if got := names(); !slices.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
		w.report(h, w.others(h, fleet.RunnerReport{ID: id, Observed: fleet.ObservedGone, Pool: "mac"})...)
		if got := names(); !slices.Equal(got, want) {
			t.Errorf("%v: its registration is not gone", got)
		}
		w.must(w.s.RegistrationDeleted(w.ctx(), id, 1))
		if got := names(); len(got) != 1 {
			t.Errorf("%v: it is over", got)
		}
	})
	t.Run("a lost registration", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("mini", 4)
		id := w.minted(h, 1, "mf-1")
		w.must(w.s.RegistrationLost(w.ctx(), id, 7))
		if r := w.runner(id); r.Registration != fleet.RegMinted {
			t.Errorf("of another attempt: %s", r.Registration)
		}
		w.must(w.s.RegistrationLost(w.ctx(), id, 1))
		if r := w.runner(id); r.Registration != fleet.RegGone {
			t.Errorf("%s", r.Registration)
		}
		busy := w.minted(h, 2, "mf-2")
		w.job(2, fleet.ToldInProgress, "mf-2")
		w.must(w.s.RegistrationLost(w.ctx(), busy, 1))
		if r := w.runner(busy); r.Registration != fleet.RegBusy {
			t.Errorf("of a runner that has a job: %s", r.Registration)
		}
		w.wantErr(w.s.RegistrationLost(w.ctx(), "r-none", 1), fleet.ErrNotFound)
	})
}
