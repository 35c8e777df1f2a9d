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
