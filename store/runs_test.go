// SPDX-License-Identifier: MIT

package store_test

import (
	"testing"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/trust"
)

func testRuns(t *testing.T, open opener) {
	run := func(id int64, change func(*fleet.Run)) fleet.Run {
		r := fleet.Run{
			ID: id, Attempt: 1, Repository: "Acme/App", Visibility: trust.Private, Event: "pull_request", HeadRepository: "eve/App", Fork: true,
			Actor: "eve", TriggeringActor: "ann", Status: "queued",
		}
		if change != nil {
			change(&r)
		}
		return r
	}
	told := func(w *world, r fleet.Run) bool {
		w.Helper()
		got, err := w.s.Ingest(w.ctx(), fleet.Ingest{Run: &r})
		w.must(err)
		return got.Changed
	}
	of := func(w *world, j fleet.JobID) fleet.Run {
		w.Helper()
		if r := w.state().Runs[fleet.RunKey{ID: int64(j) * 10, Attempt: 1}]; r != nil {
			return *r
		}
		return fleet.Run{}
	}
	for name, first := range map[string]bool{"the run comes first": true, "the job comes first": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, open)
			if first {
				told(w, run(10, nil))
				if len(w.state().Runs) != 0 {
					t.Error("a decision reads a run without a queued job")
				}
				w.job(1, fleet.ToldQueued, "")
			} else {
				w.job(1, fleet.ToldQueued, "")
				changed := w.s.Changed()
				if !told(w, run(10, nil)) || !closed(changed) {
					t.Error("the run wakes nobody")
				}
			}
			w.job(2, fleet.ToldQueued, "") // of a run that is not known
			if got := of(w, 1); got != run(10, nil) || len(w.state().Runs) != 1 {
				t.Errorf("%+v", w.state().Runs)
			}
			w.job(1, fleet.ToldInProgress, "somebody's")
			if len(w.state().Runs) != 0 {
				t.Error("it is still there without its job")
			}
		})
	}
	t.Run("what is heard later", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		w.job(1, fleet.ToldQueued, "")
		told(w, run(10, func(r *fleet.Run) { r.Visibility = "" }))
		changed := w.s.Changed()
		if told(w, run(10, func(r *fleet.Run) { r.Visibility = "" })) || closed(changed) {
			t.Error("the same again changes something")
		}
		told(w, run(10, nil))
		told(w, run(10, func(r *fleet.Run) { r.Visibility, r.Status = "", "completed" }))
		if got := of(w, 1); got != run(10, func(r *fleet.Run) { r.Status = "completed" }) {
			t.Errorf("%+v", got)
		}
		if told(w, run(10, func(r *fleet.Run) { r.HeadRepository, r.Fork, r.Status = "Acme/App", false, "queued" })) {
			t.Error("late news changes a run that is over")
		}
		told(w, run(10, func(r *fleet.Run) { r.Visibility = trust.Public }))
		if got := of(w, 1); got.Visibility != trust.Public || !got.Fork {
			t.Errorf("%+v", got)
		}
		told(w, run(10, func(r *fleet.Run) { r.Attempt, r.TriggeringActor = 2, "mallory" }))
		if got := of(w, 1); got.TriggeringActor != "ann" || len(w.state().Runs) != 1 {
			t.Errorf("another attempt's is not this one's: %+v", w.state().Runs)
		}
	})
	t.Run("jobs of one run take turns", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		told(w, run(10, nil))
		same := func(id fleet.JobID, e fleet.JobEvent) fleet.JobNews {
			n := *news(id, e, "")
			n.Job.RunID = 10
			return n
		}
		_, err := w.s.Ingest(w.ctx(), fleet.Ingest{Answers: []fleet.JobNews{same(1, fleet.SeenQueued)}})
		w.must(err)
		_, err = w.s.Ingest(w.ctx(), fleet.Ingest{Answers: []fleet.JobNews{same(1, fleet.SeenCompleted), same(2, fleet.SeenQueued), same(3, fleet.SeenQueued)}})
		w.must(err)
		if of(w, 1) != run(10, nil) {
			t.Errorf("%+v", w.state().Runs)
		}
	})
	t.Run("who can read a repository is kept with the job", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		say := func(v trust.Visibility) {
			n := *news(1, fleet.ToldQueued, "")
			n.Job.Visibility = v
			w.guid++
			_, err := w.s.Ingest(w.ctx(), fleet.Ingest{Delivery: w.delivery(string(rune('a'+w.guid)), fleet.DeliveryProcessed), Job: &n})
			w.must(err)
		}
		for _, c := range []struct{ said, want trust.Visibility }{{"", ""}, {trust.Private, trust.Private}, {"", trust.Private}, {trust.Public, trust.Public}} {
			say(c.said)
			if j := w.jobNow(1); j.Visibility != c.want || w.state().Jobs[0].Visibility != c.want {
				t.Errorf("said %q: %q", c.said, j.Visibility)
			}
		}
	})
	t.Run("what a guest was told of its job", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 2)
		id := w.minted(h, 1, w.s.Site()+"-mac-one")
		busy := said(id, fleet.ObservedBusy)
		busy.HasConfig, busy.JobRepository, busy.JobRun, busy.JobRefused = true, "Acme/App", 10, "it is a fork's"
		w.report(h, busy)
		ended := said(id, fleet.ObservedFinished)
		ended.HasConfig, ended.Result, ended.JobRun = true, "failed", 99
		w.report(h, ended)
		r := w.runner(id)
		if r.JobRepository != "Acme/App" || r.JobRun != 10 || r.JobRefused != "it is a fork's" {
			t.Errorf("%+v", r)
		}
		moments, err := w.s.Timeline(w.ctx(), id)
		w.must(err)
		if last := moments[len(moments)-1]; last.Detail != "job failed, which its guest ended: it is a fork's" {
			t.Errorf("%+v", last)
		}
	})
}
