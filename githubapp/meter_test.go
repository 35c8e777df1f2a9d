// SPDX-License-Identifier: MIT

package githubapp_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// tally counts calls, and refuses more than it allows.
type tally struct {
	mu                  sync.Mutex
	begun, ended, freed int
	allowed             int
	last                fleet.Rate
	unanswered          int
}

var errEnough = errors.New("enough")

func (m *tally) Begin(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.begun == m.allowed {
		return errEnough
	}
	m.begun++
	return nil
}

func (m *tally) End(free bool, rate fleet.Rate, known bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ended++
	if free {
		m.freed++
	}
	if !known {
		m.unanswered++
		return
	}
	m.last = rate
}

// What has not changed costs nothing, and is read as if it were new; what has changed is
// seen at once.
func TestUnchangedListsAreFree(t *testing.T) {
	sim, a, _ := newSim(t)
	queue := func(n int) {
		t.Helper()
		w := githubsim.Workflow{Repo: "acme/rockets"}
		for i := range n {
			w.Jobs = append(w.Jobs, githubsim.JobSpec{Name: fmt.Sprint(i), Labels: []string{"macOS"}})
		}
		if _, err := sim.QueueRun(w); err != nil {
			t.Fatal(err)
		}
	}
	list := func() (jobs int, m *tally) {
		t.Helper()
		m = &tally{allowed: -1}
		all, err := a.ActiveJobs(fleet.WithMeter(t.Context(), m), "acme", "rockets")
		if err != nil {
			t.Fatal(err)
		}
		return len(all), m
	}
	queue(150) // two pages of jobs
	queue(1)
	jobs, m := list()
	if jobs != 151 || m.begun != 7 || m.freed != 0 || m.ended != m.begun {
		t.Errorf("first: %d jobs, %+v", jobs, m)
	}
	first := m.last
	if first.Limit != 5000 || first.Remaining <= 0 || first.Reset.IsZero() {
		t.Errorf("rate %+v", first)
	}
	for range 20 {
		if jobs, m = list(); jobs != 151 || m.begun != 7 || m.freed != 7 {
			t.Fatalf("unchanged: %d jobs, %+v", jobs, m)
		}
	}
	if m.last.Remaining != first.Remaining {
		t.Errorf("%d calls are left, %d were", m.last.Remaining, first.Remaining)
	}
	queue(1)
	if jobs, m = list(); jobs != 152 || m.begun != 8 || m.freed != 6 { // the list of queued runs, and the new run's jobs
		t.Errorf("changed: %d jobs, %+v", jobs, m)
	}
	if _, err := a.Repositories(t.Context(), org); err != nil {
		t.Fatal(err)
	}
	m = &tally{allowed: -1}
	repos, err := a.Repositories(fleet.WithMeter(t.Context(), m), org)
	if err != nil || len(repos) != 1 || repos[0] != rocket || m.freed != 1 {
		t.Errorf("repositories %v, %v, %+v", repos, err, m)
	}
}

// A meter ends what is beyond it before it is sent, and its error is told from GitHub's.
func TestMeterRefuses(t *testing.T) {
	sim, a, _ := newSim(t)
	if _, err := sim.QueueRun(githubsim.Workflow{Repo: "acme/rockets", Jobs: []githubsim.JobSpec{{Name: "x", Labels: []string{"macOS"}}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.InstallationID(t.Context(), rocket); err != nil { // the App's own affair
		t.Fatal(err)
	}
	before := len(sim.Requests())
	m := &tally{allowed: 2}
	_, err := a.ActiveJobs(fleet.WithMeter(t.Context(), m), "acme", "rockets")
	if !errors.Is(err, errEnough) || m.begun != 2 || m.ended != 2 {
		t.Errorf("%v, %+v", err, m)
	}
	if n := len(sim.Requests()) - before; n != 3 { // with the request for the token
		t.Errorf("%d requests were sent", n)
	}
	if err := sim.Inject(githubsim.Fault{Kind: githubsim.FaultDrop, Method: http.MethodGet, Count: -1}); err != nil {
		t.Fatal(err)
	}
	m = &tally{allowed: -1}
	if _, _, err := a.GetJob(fleet.WithMeter(t.Context(), m), "acme", "rockets", 1); err == nil || m.unanswered != 1 {
		t.Errorf("%v, %+v", err, m)
	}
}
