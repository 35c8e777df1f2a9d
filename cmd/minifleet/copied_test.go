// SPDX-License-Identifier: MIT

package main

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/githubapp"
)

// A controller whose database is a copy deletes what it has made itself since, and
// nothing else.
func TestCopySparesRegistrations(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	app, err := githubapp.New(githubapp.Config{AppID: s.sim.AppID(), PrivateKey: s.sim.PrivateKeyPEM(), BaseURL: s.sim.URL()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(app.Close)
	scope := fleet.Scope{Owner: "octo", Repo: "demo"}
	github := gitHubPort{githubapp.NewApps(app)}
	made, err := github.Register(t.Context(), fleet.Pool{LabelNames: []string{"demo"}, RunnerGroup: "default"}, scope, githubapp.RunnerName("s1te", "mac"))
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	removed := func() bool { return !s.sim.Runners()[0].RemovedAt.IsZero() }
	for _, begun := range []time.Time{{}, start.Add(-time.Second)} {
		err := sparing{github, start}.Unregister(t.Context(), fleet.RegistrationRef{Scope: scope, ID: made.ID, Begun: begun})
		if !errors.Is(err, fleet.ErrLater) || !strings.Contains(err.Error(), "--replaces-old") || removed() {
			t.Errorf("begun %s: %v, removed %t", begun, err, removed())
		}
	}
	if err := (sparing{github, start}).Unregister(t.Context(), fleet.RegistrationRef{Scope: scope, ID: made.ID, Begun: start}); err != nil || !removed() {
		t.Errorf("its own: %v, removed %t", err, removed())
	}
	if err := (sparing{github, time.Time{}}).Unregister(t.Context(), fleet.RegistrationRef{Scope: scope, ID: made.ID}); err != nil {
		t.Errorf("of no copy: %v", err)
	}
}

func TestServeOnACopy(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	const complaint = "the database is a copy"
	for _, c := range []struct {
		name   string
		moved  bool // somewhere else
		args   []string
		copied bool
	}{
		{"new", false, nil, false},
		{"restored elsewhere", true, nil, true},
		{"still undecided", false, nil, true},
		{"replacing the original", false, []string{"--replaces-old"}, false},
		{"decided", false, nil, false},
		{"copied again", true, []string{"--new-site"}, false},
	} {
		if c.moved {
			if err := os.Remove(s.path("state.db.place")); err != nil {
				t.Fatal(err)
			}
		}
		s.args = c.args
		served := s.serve()
		served.stop()
		if got := strings.Contains(served.log.String(), complaint); got != c.copied {
			t.Errorf("%s: taken for a copy: %t", c.name, got)
		}
	}
	s.args = []string{"--replaces-old", "--new-site"}
	if err := run(t.Context(), append([]string{"serve", "--config", s.config()}, s.args...), strings.NewReader(""), &strings.Builder{}, &strings.Builder{}, nothing); err == nil {
		t.Error("both at once are taken")
	}
}
