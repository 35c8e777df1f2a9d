// SPDX-License-Identifier: MIT

package githubapp_test

import (
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/githubapp"
	"github.com/minifleet/minifleet/githubapp/githubsim"
)

func newSim(t *testing.T, faults ...githubsim.Fault) (*githubsim.Sim, *githubapp.App, int64) {
	t.Helper()
	sim, err := githubsim.New(githubsim.Options{Kind: true, OneKey: true, PrivateKey: keyPEM(), Faults: faults})
	if err != nil {
		t.Fatal(err)
	}
	if err := sim.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sim.Close(); err != nil {
			t.Error(err)
		}
	})
	id, err := sim.AddInstallation(githubsim.Installation{Account: "acme", Repositories: []string{"rockets"}})
	if err != nil {
		t.Fatal(err)
	}
	a, err := githubapp.New(githubapp.Config{AppID: sim.AppID(), PrivateKey: sim.PrivateKeyPEM(), BaseURL: sim.URL()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return sim, a, id
}

// A registration from its beginning to its end against the simulated GitHub.
func TestWholeWayAtSimulator(t *testing.T) {
	sim, a, id := newSim(t)
	list, err := a.Installations(t.Context())
	if err != nil || len(list) != 1 || list[0] != (fleet.Installation{ID: id, Account: "acme"}) {
		t.Fatalf("installations %+v, %v", list, err)
	}
	group, err := sim.AddRunnerGroup("acme", "Macs", false, "rockets")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		scope fleet.Scope
		group string
		id    int64
	}{{org, "", 1}, {org, "Macs", group}, {rocket, "", 1}} {
		t.Run(fmt.Sprintf("%s %s", c.scope, c.group), func(t *testing.T) {
			ctx := t.Context()
			r := githubapp.RegisterRequest{Scope: c.scope, Name: githubapp.RunnerName("s7k2", "mac"), Labels: []string{"self-hosted", "macOS"}, Group: c.group}
			made, err := a.Register(ctx, r)
			if err != nil {
				t.Fatal(err)
			}
			for _, known := range sim.Runners() {
				if known.ID == made.ID && (known.GroupID != c.id || known.Name != r.Name || len(known.Labels) != 2) {
					t.Errorf("the simulator knows %+v", known)
				}
			}
			if _, err := a.Register(ctx, r); !errors.Is(err, githubapp.ErrNameTaken) {
				t.Errorf("the same name again: %v", err)
			}
			found, ok, err := a.FindRunner(ctx, c.scope, r.Name)
			if !ok || err != nil || found.ID != made.ID {
				t.Errorf("found %+v, %t, %v", found, ok, err)
			}
			if got, ok, err := a.GetRunner(ctx, c.scope, made.ID); !ok || err != nil || got.Name != r.Name || got.Online || got.Busy {
				t.Errorf("got %+v, %t, %v", got, ok, err)
			}
			for range 2 { // the second time it is gone already
				if err := a.DeleteRunner(ctx, c.scope, made.ID); err != nil {
					t.Error(err)
				}
			}
			if _, ok, err := a.FindRunner(ctx, c.scope, r.Name); ok || err != nil {
				t.Errorf("found after its end: %t, %v", ok, err)
			}
			if _, ok, err := a.GetRunner(ctx, c.scope, made.ID); ok || err != nil {
				t.Errorf("got after its end: %t, %v", ok, err)
			}
		})
	}
	t.Run("unknown group", func(t *testing.T) {
		r := githubapp.RegisterRequest{Scope: org, Name: githubapp.RunnerName("s7k2", "mac"), Labels: []string{"x"}, Group: "None"}
		if _, err := a.Register(t.Context(), r); !errors.Is(err, githubapp.ErrGroup) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("job", func(t *testing.T) {
		run, err := sim.QueueRun(githubsim.Workflow{Repo: "acme/rockets", Jobs: []githubsim.JobSpec{{Name: "test", Labels: []string{"macOS"}, Steps: []githubsim.Step{{Run: "true"}}}}})
		if err != nil {
			t.Fatal(err)
		}
		for _, j := range sim.Jobs() {
			news, ok, err := a.GetJob(t.Context(), "acme", "rockets", fleet.JobID(j.ID))
			if !ok || err != nil || news.Event != fleet.SeenQueued || news.Job.RunID != run.ID || news.Job.InstallationID != id || news.Job.Labels.String() != "macos" {
				t.Errorf("job %+v, %t, %v", news, ok, err)
			}
		}
	})
	if len(a.Rates()) == 0 {
		t.Error("no rates were seen")
	}
	if _, err := a.InstallationID(t.Context(), fleet.Scope{Owner: "other"}); !errors.Is(err, githubapp.ErrNotInstalled) {
		t.Errorf("elsewhere: %v", err)
	}
}

// An answer lost after the registration was made leaves one that is found by name.
func TestLostAnswerAtSimulator(t *testing.T) {
	for name, f := range map[string]githubsim.Fault{
		"closed":      {Kind: githubsim.FaultTimeoutAfterSuccess},
		"bad gateway": {Kind: githubsim.FaultTimeoutAfterSuccess, Status: http.StatusBadGateway},
	} {
		t.Run(name, func(t *testing.T) {
			f.Method, f.Path = http.MethodPost, "generate-jitconfig"
			_, a, _ := newSim(t, f)
			r := githubapp.RegisterRequest{Scope: org, Name: githubapp.RunnerName("s7k2", "mac"), Labels: []string{"x"}}
			if _, err := a.Register(t.Context(), r); !errors.Is(err, githubapp.ErrUncertain) {
				t.Fatalf("error %v", err)
			}
			found, ok, err := a.FindRunner(t.Context(), org, r.Name)
			if !ok || err != nil {
				t.Fatalf("found %t, %v", ok, err)
			}
			if err := a.DeleteRunner(t.Context(), org, found.ID); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestReinstalledAtSimulator(t *testing.T) {
	sim, a, id := newSim(t)
	register := func() error {
		_, err := a.Register(t.Context(), githubapp.RegisterRequest{Scope: rocket, Name: githubapp.RunnerName("s7k2", "mac"), Labels: []string{"x"}})
		return err
	}
	if err := register(); err != nil {
		t.Fatal(err)
	}
	if err := sim.Uninstall(id); err != nil {
		t.Fatal(err)
	}
	if err := register(); !errors.Is(err, githubapp.ErrNotInstalled) {
		t.Errorf("without the App: %v", err)
	}
	id, err := sim.AddInstallation(githubsim.Installation{Account: "acme", Repositories: []string{"rockets"}})
	if err != nil {
		t.Fatal(err)
	}
	a.ForgetInstallation(id) // what the webhook's news leads to
	if err := register(); err != nil {
		t.Errorf("installed again: %v", err)
	}
}

func TestParallelAtSimulator(t *testing.T) {
	sim, a, _ := newSim(t)
	var wg sync.WaitGroup
	for i := range 30 {
		scope := org
		if i%2 == 0 {
			scope = rocket
		}
		wg.Go(func() {
			r := githubapp.RegisterRequest{Scope: scope, Name: githubapp.RunnerName("s7k2", "mac"), Labels: []string{"x"}}
			made, err := a.Register(t.Context(), r)
			if err != nil {
				t.Error(err)
				return
			}
			if _, ok, err := a.FindRunner(t.Context(), scope, r.Name); !ok || err != nil {
				t.Errorf("find %s: %t, %v", r.Name, ok, err)
			}
			if err := a.DeleteRunner(t.Context(), scope, made.ID); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, r := range sim.Runners() {
		if r.RemovedAt.IsZero() {
			t.Errorf("left over: %+v", r)
		}
	}
}
