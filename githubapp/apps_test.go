// SPDX-License-Identifier: MIT

package githubapp_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/githubapp"
	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// Two Apps have twice the limits: neither is refused anything, and what one may not do
// the other does.
func TestSeveralApps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := func(c *githubapp.Config) { c.Limits = githubapp.LimitsAuto }
		// Each App sees its own simulated GitHub: what one of them is asked is not asked of the other.
		simA, a, _ := timed(t, githubsim.Options{OneKey: true, Latency: 100 * time.Millisecond}, shared)
		simB, b, idB := timed(t, githubsim.Options{OneKey: true, Latency: 100 * time.Millisecond}, shared)
		for _, one := range []*githubapp.App{a, b} {
			if _, _, err := one.GetRunner(t.Context(), rocket, 1); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(2 * time.Minute)
		apps := githubapp.NewApps(a, b)
		began := time.Now()
		register := func() error {
			_, err := apps.Register(t.Context(), githubapp.RegisterRequest{Scope: rocket, Name: name(), Labels: []string{"x"}})
			return err
		}
		var wg sync.WaitGroup
		for range 300 {
			wg.Go(func() {
				if err := register(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("300 registrations of two Apps took %s", took)
		}
		if n := refusals(simA) + refusals(simB); n != 0 {
			t.Errorf("GitHub refused %d calls", n)
		}
		if x, y := len(simA.Runners()), len(simB.Runners()); x+y != 300 || x > 180 || y > 180 {
			t.Errorf("one App registered %d, the other %d", x, y)
		}

		// Where one is told to wait, the other goes on.
		time.Sleep(2 * time.Minute)
		if err := simA.Inject(githubsim.Fault{Kind: githubsim.FaultRetryAfter, Delay: 10 * time.Minute, Path: "generate-jitconfig"}); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := register(); err != nil {
				t.Error(err)
			}
		}
		if tr, ok := apps.Trouble(rocket); ok {
			t.Errorf("with an App that may: %+v", tr)
		}
		// Where one is not installed any more, neither is asked of it.
		b.NoteInstallation(fleet.Installation{ID: idB, Account: "acme", Deleted: true})
		var limited *githubapp.RateLimited
		sent := len(simB.Requests())
		if err := register(); !errors.As(err, &limited) {
			t.Errorf("with none that may: %v", err)
		}
		if tr, ok := apps.Trouble(rocket); !ok || tr.Code == "" {
			t.Errorf("with none that may: %+v", tr)
		}
		if len(simB.Requests()) != sent {
			t.Error("an App that was removed was used")
		}
	})
}

// What webhooks tell of an installation holds at once.
func TestInstallationNews(t *testing.T) {
	sim, a, id := newSim(t)
	apps := githubapp.NewApps(a)
	register := func() error {
		_, err := apps.Register(t.Context(), githubapp.RegisterRequest{Scope: rocket, Name: name(), Labels: []string{"x"}})
		return err
	}
	trouble := func() fleet.Trouble {
		tr, _ := apps.Trouble(rocket)
		return tr
	}
	if _, err := apps.Installations(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := register(); err != nil || trouble() != (fleet.Trouble{}) {
		t.Fatalf("%v, %+v", err, trouble())
	}
	for what, in := range map[string]fleet.Installation{
		"suspended": {ID: id, Account: "Acme", Suspended: true}, "removed": {ID: id, Account: "Acme", Deleted: true},
	} {
		apps.NoteInstallation(in)
		sent := len(sim.Requests())
		if err := register(); !errors.Is(err, githubapp.ErrNotInstalled) || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
		if tr := trouble(); tr.Code != fleet.WaitInstallation || !tr.Barred || !strings.Contains(tr.Reason, what) {
			t.Errorf("%s: %+v", what, tr)
		}
		if len(sim.Requests()) != sent {
			t.Errorf("%s: a call was made", what)
		}
		apps.NoteInstallation(fleet.Installation{ID: id, Account: "acme"})
		if err := register(); err != nil || trouble() != (fleet.Trouble{}) {
			t.Errorf("after being %s: %v, %+v", what, err, trouble())
		}
	}
	// Old news of an installation that was made anew since changes nothing.
	apps.NoteInstallation(fleet.Installation{ID: id + 1000, Account: "acme", Deleted: true})
	if err := register(); err != nil {
		t.Errorf("after old news: %v", err)
	}
	// A list that lacks it tells the same, and one that has it again, too.
	if err := sim.Uninstall(id); err != nil {
		t.Fatal(err)
	}
	if _, err := apps.Installations(t.Context()); err != nil {
		t.Fatal(err)
	}
	if tr := trouble(); !tr.Barred {
		t.Errorf("not in the list: %+v", tr)
	}
	if _, err := sim.AddInstallation(githubsim.Installation{Account: "acme", Repositories: []string{"rockets"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := apps.Installations(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := register(); err != nil {
		t.Errorf("in the list again: %v", err)
	}
}

// A group that was made anew under its name is found by the registration that is refused
// for the old one.
func TestGroupMadeAnew(t *testing.T) {
	o := newOdd(t)
	const groups = "GET /orgs/acme/actions/runner-groups"
	in := ask(org)
	in.Group = "Macs"
	o.on(groups, replying(200, `{"total_count":1,"runner_groups":[{"id":12,"name":"Macs"}]}`))
	o.on(orgMint, replying(201, registered(359, "s1-mac-abc", config("s1-mac-abc", true))))
	a := o.app()
	if _, err := a.Register(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	o.on(groups, replying(200, `{"total_count":1,"runner_groups":[{"id":13,"name":"Macs"}]}`))
	tries := 0
	o.on(orgMint, func(w http.ResponseWriter, r *http.Request) {
		if tries++; tries == 1 {
			reply(w, 404, `{"message":"Not Found"}`)
			return
		}
		reply(w, 201, registered(360, "s1-mac-abc", config("s1-mac-abc", true)))
	})
	if _, err := a.Register(t.Context(), in); err != nil || tries != 2 || !strings.Contains(o.bodies[len(o.bodies)-1], `"runner_group_id":13`) {
		t.Errorf("%v after %d tries", err, tries)
	}
	o.on(groups, replying(200, `{"total_count":0,"runner_groups":[]}`))
	o.on(orgMint, replying(404, `{"message":"Not Found"}`))
	for range 2 {
		if _, err := a.Register(t.Context(), in); !errors.Is(err, githubapp.ErrGroup) {
			t.Errorf("a group that is gone: %v", err)
		}
	}
}

// The refresh of tokens, over and over in every call of two installations at once.
func TestTokensOfShortLife(t *testing.T) {
	sim, err := githubsim.New(githubsim.Options{Kind: true, Prompt: true, Timing: githubsim.Timing{InstallationToken: 50 * time.Second}})
	if err != nil {
		t.Fatal(err)
	}
	if err := sim.Start(); err != nil {
		t.Fatal(err)
	}
	defer sim.Close()
	var scopes []fleet.Scope
	for _, account := range []string{"acme", "beta"} {
		if _, err := sim.AddInstallation(githubsim.Installation{Account: account, Repositories: []string{"r"}}); err != nil {
			t.Fatal(err)
		}
		scopes = append(scopes, fleet.Scope{Owner: account, Repo: "r"})
	}
	a, err := githubapp.New(githubapp.Config{AppID: sim.AppID(), PrivateKey: sim.PrivateKeyPEM(), BaseURL: sim.URL(), Limits: githubapp.LimitsOff})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			for range 3 {
				if _, _, err := a.GetRunner(t.Context(), scopes[i%2], 1); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	tokens := 0
	for _, r := range sim.Requests() {
		if strings.HasSuffix(r.Path, "/access_tokens") {
			tokens++
		}
	}
	if tokens < 36 {
		t.Errorf("%d tokens were asked for, want at least one for each call", tokens)
	}
}

func TestEnterpriseServer(t *testing.T) {
	for version, ok := range map[string]bool{"3.9.4": false, "3.10.0": true, "3.21.1": true} {
		sim, err := githubsim.New(githubsim.Options{Kind: true, Prompt: true, Enterprise: version})
		if err != nil {
			t.Fatal(err)
		}
		if err := sim.Start(); err != nil {
			t.Fatal(err)
		}
		defer sim.Close()
		if _, err := sim.AddInstallation(githubsim.Installation{Account: "acme", Repositories: []string{"rockets"}}); err != nil {
			t.Fatal(err)
		}
		a, err := githubapp.New(githubapp.Config{AppID: sim.AppID(), PrivateKey: sim.PrivateKeyPEM(), BaseURL: sim.URL() + "/api/v3"})
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		made, err := a.Register(t.Context(), githubapp.RegisterRequest{Scope: rocket, Name: name(), Labels: []string{"x"}})
		if !ok {
			if !errors.Is(err, githubapp.ErrRefused) || errors.Is(err, githubapp.ErrUncertain) || !strings.Contains(err.Error(), version) || !strings.Contains(err.Error(), "3.10") {
				t.Errorf("%s: %v", version, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", version, err)
			continue
		}
		if err := a.DeleteRunner(t.Context(), rocket, made.ID); err != nil {
			t.Errorf("%s: %v", version, err)
		}
		if len(a.Rates()) != 0 {
			t.Errorf("%s tells of rates: %+v", version, a.Rates())
		}
	}
}

func TestWhereAnAPIIs(t *testing.T) {
	for base, want := range map[string]string{
		"https://api.github.com":                  "",
		"https://api.octo.ghe.com":                "",
		"https://github.example.com/api/v3":       "",
		"https://github.example.com:8443/api/v3/": "",
		"https://github.com":                      "https://api.github.com",
		"https://api.github.com/api/v3":           "https://api.github.com",
		"https://octo.ghe.com":                    "https://api.octo.ghe.com",
		"https://octo.ghe.com/api/v3":             "https://api.octo.ghe.com",
		"https://api.octo.ghe.com/api/v3":         "https://api.octo.ghe.com",
		"https://github.example.com":              "https://github.example.com/api/v3",
		"https://github.example.com/":             "https://github.example.com/api/v3",
		"https://github.example.com:8443":         "https://github.example.com:8443/api/v3",
		"https://github.example.com/api":          "https://github.example.com/api/v3",
	} {
		err := githubapp.Config{AppID: 1, PrivateKey: keyPEM(), BaseURL: base}.Validate()
		if (err == nil) != (want == "") || err != nil && !strings.HasSuffix(err.Error(), "want "+want) {
			t.Errorf("%s: %v, want a hint of %q", base, err, want)
		}
	}
}

// A caller's own priority and its end are kept in the queue.
func TestCallerGivesUpInTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim, a, _ := timed(t, githubsim.Options{Latency: 20 * time.Second}, func(c *githubapp.Config) { c.Limits = githubapp.LimitsOff })
		if _, _, err := a.GetRunner(t.Context(), rocket, 1); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() { _, _, _ = a.GetRunner(t.Context(), rocket, 1) })
		}
		synctest.Wait()
		sent := len(sim.Requests())
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() {
			_, err := a.Register(ctx, githubapp.RegisterRequest{Scope: rocket, Name: name(), Labels: []string{"x"}})
			if !errors.Is(err, context.Canceled) || errors.Is(err, githubapp.ErrUncertain) {
				t.Errorf("given up in the queue: %v", err)
			}
		})
		synctest.Wait()
		cancel()
		// A deletion does not wait for its turn: its guest may be given a job meanwhile.
		began := time.Now()
		var limited *githubapp.RateLimited
		if err := a.DeleteRunner(t.Context(), rocket, 1); !errors.As(err, &limited) || time.Since(began) > 3*time.Second {
			t.Errorf("a deletion behind a full queue: %v after %s", err, time.Since(began))
		}
		wg.Wait()
		for _, r := range sim.Requests()[sent:] {
			if r.Method != http.MethodGet {
				t.Errorf("%s %s was sent", r.Method, r.Path)
			}
		}
	})
}
