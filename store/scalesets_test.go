// SPDX-License-Identifier: MIT

package store_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// setWorld is a store with the scale set 7 of pool mac.
func setWorld(t *testing.T) *world {
	w := newWorld(t, openSQLite)
	_, err := w.s.UseScaleSet(w.ctx(), "mac", fleet.Scope{Owner: "acme"}, "macs", 7)
	w.must(err)
	return w
}

func (w *world) message(m fleet.SetMessage) (fleet.Ingested, error) {
	m.Pool = "mac"
	if m.Set == 0 {
		m.Set = 7
	}
	return w.s.Ingest(w.ctx(), fleet.Ingest{Message: &m})
}

func (w *world) heard(m fleet.SetMessage) fleet.Ingested {
	w.Helper()
	done, err := w.message(m)
	w.must(err)
	return done
}

func setJob(e fleet.JobEvent, key, runner string) fleet.JobNews {
	return fleet.JobNews{Event: e, Job: fleet.Job{SetKey: key, Owner: "Acme", Repo: "App", Name: key, RunID: 5, RunnerName: runner, Labels: fleet.NewLabels("x")}}
}

// setJobs are the open jobs of the set as "name state".
func (w *world) setJobs() []string {
	w.Helper()
	jobs, err := w.s.SetJobs(w.ctx(), "mac")
	w.must(err)
	out := []string{}
	for _, j := range jobs {
		name := j.Name
		if j.Nameless() {
			name = "?"
		}
		out = append(out, fmt.Sprintf("%s %s", name, j.State))
	}
	return out
}

func (w *world) wantSetJobs(want ...string) {
	w.Helper()
	if got := w.setJobs(); !slices.Equal(got, want) {
		w.Errorf("jobs of the set are %q, want %q", got, want)
	}
}

// What a message says and that it was taken are one change.
func TestSetMessages(t *testing.T) {
	w := setWorld(t)
	a, b := setJob(fleet.ToldQueued, "a", ""), setJob(fleet.ToldQueued, "b", "")
	w.heard(fleet.SetMessage{ID: 100, Assigned: 2, Jobs: []fleet.JobNews{a, b}})
	w.wantSetJobs("a queued", "b queued")
	jobs, err := w.s.SetJobs(w.ctx(), "mac")
	w.must(err)
	if jobs[0].ID != fleet.SetJobIDs+1 || jobs[1].ID != fleet.SetJobIDs+2 || jobs[0].Pool != "mac" {
		t.Errorf("jobs %+v", jobs)
	}
	if done := w.heard(fleet.SetMessage{ID: 100, Assigned: 0, Jobs: []fleet.JobNews{setJob(fleet.ToldCompleted, "a", "")}}); !done.Duplicate || done.Changed {
		t.Errorf("the message again: %+v", done)
	}
	w.wantSetJobs("a queued", "b queued")
	w.heard(fleet.SetMessage{ID: 101, Assigned: 2, Running: 1, Jobs: []fleet.JobNews{setJob(fleet.ToldInProgress, "a", "r")}})
	w.wantSetJobs("a in_progress", "b queued")
	// An older one after all moves nothing back.
	w.heard(fleet.SetMessage{ID: 99, Assigned: 2, Jobs: []fleet.JobNews{a, b}})
	w.wantSetJobs("a in_progress", "b queued")
	if _, err := w.message(fleet.SetMessage{Set: 8, ID: 102, Jobs: []fleet.JobNews{setJob(fleet.ToldCompleted, "b", "")}}); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("a message for another set: %v", err)
	}
	w.wantSetJobs("a in_progress", "b queued")
	sets, err := w.s.ScaleSets(w.ctx())
	w.must(err)
	if s := sets[0]; s.LastMessage != 99 || s.Assigned != 2 || s.Running != 0 || s.Name != "macs" || s.Scope.String() != "acme" || !s.HeardAt.Equal(w.Now()) {
		t.Errorf("the set is %+v", s)
	}
	// GitHub's lists know nothing of such jobs.
	open, _, err := w.s.Unsettled(w.ctx(), "acme", w.Now())
	w.must(err)
	repos, err := w.s.Repositories(w.ctx(), "acme", w.Now().Add(-time.Hour))
	w.must(err)
	if len(open)+len(repos) != 0 {
		t.Errorf("to be asked for at GitHub: %v in %v", open, repos)
	}
}

// GitHub's count stands for jobs that no message named, and gives way to those that are.
func TestNamelessSetJobs(t *testing.T) {
	w := setWorld(t)
	w.heard(fleet.SetMessage{Assigned: 2}) // something may be under way
	w.wantSetJobs()
	w.heard(fleet.SetMessage{Assigned: 2, Complete: true})
	w.wantSetJobs("? queued", "? queued")
	w.heard(fleet.SetMessage{ID: 100, Assigned: 2, Jobs: []fleet.JobNews{setJob(fleet.ToldInProgress, "a", "r")}})
	w.wantSetJobs("? queued", "a in_progress")
	w.heard(fleet.SetMessage{ID: 101, Assigned: 3, Jobs: []fleet.JobNews{setJob(fleet.ToldQueued, "b", "")}})
	w.wantSetJobs("? queued", "a in_progress", "b queued")
	w.heard(fleet.SetMessage{Assigned: 0, Complete: true}) // no named job is closed by a count
	w.wantSetJobs("a in_progress", "b queued")
	w.heard(fleet.SetMessage{ID: 102, Assigned: 0, Jobs: []fleet.JobNews{setJob(fleet.ToldCompleted, "a", "r"), setJob(fleet.ToldCompleted, "b", "")}})
	w.wantSetJobs()
}

// The runner that a message names is bound to the job if it is of the set's pool.
func TestSetJobBindsItsRunner(t *testing.T) {
	w := setWorld(t)
	h := w.host("mini", 2)
	id := w.minted(h, 1, "site-mac-1")
	other := setJob(fleet.ToldInProgress, "x", "site-mac-1")
	_, err := w.s.UseScaleSet(w.ctx(), "big", fleet.Scope{Owner: "acme"}, "big", 9)
	w.must(err)
	_, err = w.s.Ingest(w.ctx(), fleet.Ingest{Message: &fleet.SetMessage{Pool: "big", Set: 9, ID: 1, Jobs: []fleet.JobNews{other}}})
	w.must(err)
	if r := w.runner(id); r.Job != 0 {
		t.Errorf("bound to job %d of another pool's set", r.Job)
	}
	w.heard(fleet.SetMessage{ID: 1, Assigned: 1, Jobs: []fleet.JobNews{setJob(fleet.ToldInProgress, "a", "site-mac-1")}})
	jobs, err := w.s.SetJobs(w.ctx(), "mac")
	w.must(err)
	if r := w.runner(id); r.Job != jobs[0].ID || r.JobDone || r.Registration != fleet.RegBusy {
		t.Errorf("the runner is %+v", r)
	}
	// Nothing is concluded for the runner when its pool loses the set.
	w.must(w.s.DropScaleSet(w.ctx(), "mac"))
	if r := w.runner(id); r.Job == 0 || r.JobDone {
		t.Errorf("after the set was dropped the runner is %+v", r)
	}
	w.wantSetJobs()
}

// Another set of the same pool begins anew: no message for the old one comes any more.
func TestOtherScaleSet(t *testing.T) {
	w := setWorld(t)
	w.must(w.s.KeepSession(w.ctx(), "mac", "session"))
	w.heard(fleet.SetMessage{ID: 100, Assigned: 2, Jobs: []fleet.JobNews{setJob(fleet.ToldQueued, "a", ""), setJob(fleet.ToldInProgress, "b", "r")}})
	same, err := w.s.UseScaleSet(w.ctx(), "mac", fleet.Scope{Owner: "Acme"}, "macs", 7)
	w.must(err)
	if same.Session != "session" || same.LastMessage != 100 {
		t.Errorf("the same set again is %+v", same)
	}
	w.wantSetJobs("a queued", "b in_progress")
	next, err := w.s.UseScaleSet(w.ctx(), "mac", fleet.Scope{Owner: "acme"}, "macs", 8)
	w.must(err)
	if next.Session != "" || next.LastMessage != 0 || next.ID != 8 {
		t.Errorf("another set is %+v", next)
	}
	w.wantSetJobs("b in_progress")
	if _, err := w.message(fleet.SetMessage{ID: 101}); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("a message of the old set: %v", err)
	}
}
