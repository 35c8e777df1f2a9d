// SPDX-License-Identifier: MIT

package githubapp_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/githubapp"
	"github.com/minifleet/minifleet/githubapp/githubsim"
)

func TestWebURL(t *testing.T) {
	for base, want := range map[string]string{
		"":                            "https://github.com",
		"https://api.github.com":      "https://github.com",
		"https://api.acme.ghe.com/":   "https://acme.ghe.com",
		"https://ghes.example/api/v3": "https://ghes.example",
		"http://127.0.0.1:8080":       "http://127.0.0.1:8080",
		"ftp://ghes.example":          "",
	} {
		if got, err := githubapp.WebURL(base); got != want || (err != nil) != (want == "") {
			t.Errorf("%q: %q, %v, want %q", base, got, err, want)
		}
	}
}

// What scale sets need of the App: a token that GitHub takes, and the jobs of a run.
func TestForScaleSets(t *testing.T) {
	sim, a, _ := newSim(t)
	ctx := t.Context()
	token, err := a.RegistrationToken(ctx, org)
	if err != nil || token.Empty() {
		t.Errorf("a token: %v", err)
	}
	if _, err := a.RegistrationToken(ctx, fleet.Scope{Owner: "nobody"}); !errors.Is(err, githubapp.ErrNotInstalled) {
		t.Errorf("where the App is not installed: %v", err)
	}
	if err := sim.Inject(githubsim.Fault{Kind: githubsim.FaultRetryAfter, Delay: time.Minute, Path: "/registration-token"}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second is not sent
		var limited *githubapp.RateLimited
		if token, err := a.RegistrationToken(ctx, rocket); !errors.As(err, &limited) || !token.Empty() {
			t.Errorf("within a limit: %v", err)
		}
	}
	sent := 0
	for _, r := range sim.Requests() {
		if strings.HasSuffix(r.Path, "/repos/acme/rockets/actions/runners/registration-token") {
			sent++
		}
	}
	if sent != 1 {
		t.Errorf("%d calls for a token were sent within a limit, want 1", sent)
	}
	sim, a, _ = newSim(t)
	run, err := sim.QueueRun(githubsim.Workflow{Repo: "acme/rockets", Jobs: []githubsim.JobSpec{{Name: "a", Labels: []string{"x"}}, {Name: "b", Labels: []string{"x"}}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := sim.CancelJob(run.JobIDs[0]); err != nil {
		t.Fatal(err)
	}
	jobs, err := a.RunJobs(ctx, rocket, run.ID)
	if err != nil || len(jobs) != 2 || jobs[0].Event != fleet.SeenCompleted || jobs[1].Event != fleet.SeenQueued {
		t.Errorf("the jobs of a run: %+v, %v", jobs, err)
	}
	if jobs, err := a.RunJobs(ctx, rocket, run.ID+1); err != nil || len(jobs) != 0 {
		t.Errorf("the jobs of a run that is not there: %+v, %v", jobs, err)
	}
}
