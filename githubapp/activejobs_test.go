// SPDX-License-Identifier: MIT

package githubapp_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// All pages of runs and of jobs, of runs queued and in progress, latest attempts only.
func TestActiveJobs(t *testing.T) {
	sim, a, id := newSim(t)
	queue := func(n int, label string) githubsim.Run {
		t.Helper()
		w := githubsim.Workflow{Repo: "acme/rockets"}
		for i := range n {
			w.Jobs = append(w.Jobs, githubsim.JobSpec{Name: fmt.Sprintf("job-%d", i), Labels: []string{"self-hosted", label}})
		}
		r, err := sim.QueueRun(w)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	want := map[fleet.JobID]fleet.JobEvent{}
	for _, j := range queue(150, "big").JobIDs {
		want[fleet.JobID(j)] = fleet.SeenQueued
	}
	for range 101 {
		want[fleet.JobID(queue(1, "macOS").JobIDs[0])] = fleet.SeenQueued
	}
	over := queue(2, "gone")
	if err := sim.CancelRun(over.ID); err != nil {
		t.Fatal(err)
	}
	again := queue(1, "again")
	if err := sim.CancelRun(again.ID); err != nil {
		t.Fatal(err)
	}
	second, err := sim.Rerun(again.ID, 0)
	if err != nil {
		t.Fatal(err)
	}
	want[fleet.JobID(second.JobIDs[0])] = fleet.SeenQueued
	half := queue(2, "half")
	if err := sim.CancelJob(half.JobIDs[0]); err != nil {
		t.Fatal(err)
	}
	want[fleet.JobID(half.JobIDs[0])], want[fleet.JobID(half.JobIDs[1])] = fleet.SeenCompleted, fleet.SeenQueued

	before := time.Now()
	list, err := a.ActiveJobs(t.Context(), "acme", "rockets")
	if err != nil {
		t.Fatal(err)
	}
	got := map[fleet.JobID]fleet.JobEvent{}
	for _, n := range list {
		got[n.Job.ID] = n.Event
		if n.Asked.Before(before) || n.Asked.After(time.Now()) || n.Job.InstallationID != id || n.Job.Repository() != "acme/rockets" || len(n.Job.Labels) != 2 {
			t.Fatalf("%+v", n)
		}
	}
	if len(list) != len(want) {
		t.Errorf("%d jobs, want %d", len(list), len(want))
	}
	for id, e := range want {
		if got[id] != e {
			t.Errorf("job %d: %q, want %q", id, got[id], e)
		}
	}
	for _, j := range append(over.JobIDs, again.JobIDs...) {
		if _, listed := got[fleet.JobID(j)]; listed {
			t.Errorf("job %d of a run that is over, or of an attempt before, is listed", j)
		}
	}
	if _, err := a.ActiveJobs(t.Context(), "acme", ""); err == nil {
		t.Error("the jobs of an organization")
	}
}

// A queued job is found whatever GitHub says of its run: one job at a gate, or behind others of
// its concurrency group, hides another that a runner could be given.
func TestQueuedJobsOfRunsThatWait(t *testing.T) {
	o := newOdd(t)
	runs := map[string]int64{"queued": 1, "in_progress": 2, "waiting": 3, "pending": 4, "completed": 5}
	o.on("GET /repos/acme/rockets/actions/runs", func(w http.ResponseWriter, r *http.Request) {
		id := runs[r.URL.Query().Get("status")]
		reply(w, http.StatusOK, fmt.Sprintf(`{"total_count":1,"workflow_runs":[{"id":%d}]}`, id))
	})
	for status, id := range runs {
		o.on(fmt.Sprintf("GET /repos/acme/rockets/actions/runs/%d/jobs", id), replying(http.StatusOK, fmt.Sprintf(
			`{"total_count":2,"jobs":[{"id":%d,"run_id":%d,"status":"queued","labels":["macOS"]},{"id":%d,"run_id":%d,"status":%q,"labels":["macOS"]}]}`,
			10*id, id, 10*id+1, id, status)))
	}
	list, err := o.app().ActiveJobs(t.Context(), "acme", "rockets")
	if err != nil {
		t.Fatal(err)
	}
	var queued []fleet.JobID
	for _, n := range list {
		if n.Event == fleet.SeenQueued && n.Job.ID%10 == 0 {
			queued = append(queued, n.Job.ID)
		}
	}
	slices.Sort(queued)
	if want := []fleet.JobID{10, 20, 30, 40}; !slices.Equal(queued, want) {
		t.Errorf("queued jobs %v, want %v", queued, want)
	}
}

// A run that goes between two calls hides no other; any other failure spoils the list.
func TestActiveJobsWhileRunsGo(t *testing.T) {
	sim, a, _ := newSim(t)
	var runs []githubsim.Run
	for range 2 {
		r, err := sim.QueueRun(githubsim.Workflow{Repo: "acme/rockets", Jobs: []githubsim.JobSpec{{Name: "x", Labels: []string{"macOS"}}}})
		if err != nil {
			t.Fatal(err)
		}
		runs = append(runs, r)
	}
	jobsOf := func(r githubsim.Run) string { return fmt.Sprintf("/runs/%d/jobs", r.ID) }
	for status, want := range map[int]int{http.StatusNotFound: 1, http.StatusBadGateway: 0} {
		if err := sim.Inject(githubsim.Fault{Kind: githubsim.FaultStatus, Method: http.MethodGet, Path: jobsOf(runs[0]), Status: status}); err != nil {
			t.Fatal(err)
		}
		list, err := a.ActiveJobs(t.Context(), "acme", "rockets")
		if len(list) != want || (err == nil) != (want > 0) {
			t.Errorf("%d: %d jobs, %v", status, len(list), err)
		}
		if err == nil && list[0].Job.ID != fleet.JobID(runs[1].JobIDs[0]) {
			t.Errorf("%d: %+v", status, list)
		}
	}
	asked := slices.IndexFunc(sim.Requests(), func(r githubsim.Request) bool { return strings.HasSuffix(r.Path, jobsOf(runs[0])) })
	if asked < 0 {
		t.Error("the fault was never met")
	}
}
