// SPDX-License-Identifier: MIT

package fleet_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/fleet"
)

func TestLabels(t *testing.T) {
	t.Parallel()
	if got := fleet.NewLabels(" macOS", "ARM64", "macos", "", "  ").String(); got != "arm64,macos" {
		t.Errorf("normalised: %q", got)
	}
	for name, c := range map[string]struct {
		job, pool []string
		want      bool
	}{
		"same":                 {[]string{"a", "b"}, []string{"a", "b"}, true},
		"subset":               {[]string{"b"}, []string{"a", "b", "c"}, true},
		"any case, any order":  {[]string{"B", "a"}, []string{"A", "b"}, true},
		"one is missing":       {[]string{"a", "d"}, []string{"a", "b", "c"}, false},
		"before all of them":   {[]string{"a"}, []string{"b"}, false},
		"after all of them":    {[]string{"z"}, []string{"b"}, false},
		"empty matches none":   {nil, []string{"a"}, false},
		"nothing within none":  {nil, nil, false},
		"prefix is no match":   {[]string{"mac"}, []string{"macos"}, false},
		"pool without labels":  {[]string{"a"}, nil, false},
		"repeated label of it": {[]string{"a", "A"}, []string{"a"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := fleet.NewLabels(c.job...).Within(fleet.NewLabels(c.pool...)); got != c.want {
				t.Errorf("%v within %v: %t, want %t", c.job, c.pool, got, c.want)
			}
		})
	}
}

// Within is checked against the plain definition, over all pairs of small sets.
func TestLabelsWithinByDefinition(t *testing.T) {
	t.Parallel()
	var sets []fleet.Labels
	for bits := range 16 {
		var l []string
		for i, word := range []string{"a", "b", "c", "d"} {
			if bits>>i&1 == 1 {
				l = append(l, word)
			}
		}
		sets = append(sets, fleet.NewLabels(l...))
	}
	for _, a := range sets {
		for _, b := range sets {
			want := len(a) > 0
			for _, l := range a {
				want = want && slices.Contains(b, l)
			}
			if a.Within(b) != want {
				t.Errorf("%v within %v: %t", a, b, !want)
			}
		}
	}
}

func TestParseScope(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]fleet.Scope{
		"acme": {Owner: "acme"}, "acme/app": {Owner: "acme", Repo: "app"}, "Acme-2/.github": {Owner: "Acme-2", Repo: ".github"},
		"user_corp/a.b_c-d": {Owner: "user_corp", Repo: "a.b_c-d"},
	} {
		got, err := fleet.ParseScope(text)
		if err != nil || got != want || got.String() != text {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{
		"", "/", "acme/", "/app", "-acme", "acme/..", "acme/.", "acme/app/x", "ac me", "acme/a b", "acme?x=1", "acme/a#b", "../x", "acme/a%2f",
		strings.Repeat("a", 120), "acme/" + strings.Repeat("a", 101), "acme\n", "acme/app\n",
	} {
		if got, err := fleet.ParseScope(text); err == nil {
			t.Errorf("%q is taken as %+v", text, got)
		}
	}
}

func TestScopeCovers(t *testing.T) {
	t.Parallel()
	org, repo := fleet.Scope{Owner: "Acme"}, fleet.Scope{Owner: "Acme", Repo: "App"}
	for _, c := range []struct {
		s           fleet.Scope
		owner, name string
		want        bool
	}{
		{org, "acme", "anything", true},
		{org, "acme2", "app", false},
		{repo, "ACME", "app", true},
		{repo, "acme", "app2", false},
		{repo, "other", "app", false},
		{fleet.Scope{}, "", "", false},
	} {
		if got := c.s.Covers(c.owner, c.name); got != c.want {
			t.Errorf("%s covers %s/%s: %t", c.s, c.owner, c.name, got)
		}
	}
	if org.Key() != "acme" || repo.Key() != "acme/app" {
		t.Errorf("keys %q, %q", org.Key(), repo.Key())
	}
}

func pool() fleet.Pool {
	return fleet.Pool{Name: "mac", Labels: fleet.NewLabels("macos"), LabelNames: []string{"macOS"}, Scopes: []fleet.Scope{{Owner: "acme"}}, Image: "sonoma"}
}

func TestScopeForAndServes(t *testing.T) {
	t.Parallel()
	p := pool()
	p.Scopes = []fleet.Scope{{Owner: "other"}, {Owner: "Acme"}, {Owner: "acme", Repo: "App"}, {Owner: "ACME"}}
	if s, ok := p.ScopeFor("acme", "app"); !ok || s != p.Scopes[2] {
		t.Errorf("the repository itself is preferred: got %v, %t", s, ok)
	}
	if s, ok := p.ScopeFor("acme", "lib"); !ok || s.Key() != "acme" {
		t.Errorf("the organization covers: got %v, %t", s, ok)
	}
	if s, ok := p.ScopeFor("else", "lib"); ok || !s.IsZero() {
		t.Errorf("nobody's repository: got %v, %t", s, ok)
	}
	for name, c := range map[string]struct {
		j    fleet.Job
		want bool
	}{
		"fits":            {fleet.Job{Owner: "ACME", Repo: "lib", Labels: fleet.NewLabels("MacOS")}, true},
		"foreign":         {fleet.Job{Owner: "x", Repo: "lib", Labels: fleet.NewLabels("macos")}, false},
		"label too many":  {fleet.Job{Owner: "acme", Repo: "lib", Labels: fleet.NewLabels("macos", "gpu")}, false},
		"no label at all": {fleet.Job{Owner: "acme", Repo: "lib"}, false},
	} {
		if got := p.Serves(c.j); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

func TestPoolValidate(t *testing.T) {
	t.Parallel()
	if err := pool().Validate(); err != nil {
		t.Fatalf("a good pool: %v", err)
	}
	many := make([]string, 101)
	for i := range many {
		many[i] = strings.Repeat("l", i+1)
	}
	for name, c := range map[string]struct {
		edit func(*fleet.Pool)
		want string
	}{
		"name":            {func(p *fleet.Pool) { p.Name = "Mac Pool" }, "name must be"},
		"no name":         {func(p *fleet.Pool) { p.Name = "" }, "name must be"},
		"dash at end":     {func(p *fleet.Pool) { p.Name = "mac-" }, "name must be"},
		"long name":       {func(p *fleet.Pool) { p.Name = strings.Repeat("m", 33) }, "name must be"},
		"no label":        {func(p *fleet.Pool) { p.Labels = nil }, "at least one label"},
		"many labels":     {func(p *fleet.Pool) { p.Labels = fleet.NewLabels(many...) }, "at most 100"},
		"long label":      {func(p *fleet.Pool) { p.LabelNames = []string{strings.Repeat("x", 257)} }, "longer than 256"},
		"no scope":        {func(p *fleet.Pool) { p.Scopes = nil }, "at least one scope"},
		"image":           {func(p *fleet.Pool) { p.Image = "a/b" }, "image"},
		"negative":        {func(p *fleet.Pool) { p.CPUs = -1 }, "negative"},
		"unknown guest":   {func(p *fleet.Pool) { p.Guest = "telnet" }, "telnet"},
		"unknown network": {func(p *fleet.Pool) { p.Network = "bridged" }, "isolated or nat"},
		"runner over http": {func(p *fleet.Pool) {
			p.Runner = fleet.RunnerArchive{URL: "http://x/r.tar.gz", SHA256: strings.Repeat("a", 64)}
		}, "runner.url"},
		"runner not pinned": {func(p *fleet.Pool) { p.Runner = fleet.RunnerArchive{URL: "https://x/r.tar.gz"} }, "runner.sha256"},
		"standby > max":     {func(p *fleet.Pool) { p.MaxRunners, p.Standby = 2, 3 }, "more than max_runners"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := pool()
			c.edit(&p)
			if err := p.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want it to say %q", err, c.want)
			}
		})
	}
	t.Run("all at once", func(t *testing.T) {
		t.Parallel()
		err := fleet.Pool{}.Validate()
		for _, want := range []string{"name must be", "label", "scope", "image"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v does not say %q", err, want)
			}
		}
	})
}

func TestLimitsWithDefaults(t *testing.T) {
	t.Parallel()
	set := fleet.Limits{Placed: 1, Preparing: 2, Booting: 3, Arming: 4, Registering: 5, Ending: 6, Surplus: 7, Unnamed: 8, Assignment: 9, Job: 10}
	if diff := cmp.Diff(set, set.WithDefaults()); diff != "" {
		t.Errorf("what is set is kept:\n%s", diff)
	}
	d := fleet.Limits{}.WithDefaults()
	for name, v := range map[string]time.Duration{
		"placed": d.Placed, "preparing": d.Preparing, "booting": d.Booting, "arming": d.Arming,
		"registering": d.Registering, "ending": d.Ending, "surplus": d.Surplus, "unnamed": d.Unnamed, "assignment": d.Assignment, "job": d.Job,
	} {
		if v <= 0 {
			t.Errorf("%s has no default", name)
		}
	}
}

func TestBackoffAfter(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]time.Duration{
		-1: 0, 0: 0, 1: 0, 2: 2 * time.Second, 3: 4 * time.Second, 4: 8 * time.Second, 9: 256 * time.Second, 10: 5 * time.Minute, 1 << 40: 5 * time.Minute,
	} {
		if got := fleet.BackoffAfter(n); got != want {
			t.Errorf("after %d failures: %s, want %s", n, got, want)
		}
	}
}

func TestRateLimitedSaysUntilWhen(t *testing.T) {
	t.Parallel()
	err := &fleet.RateLimited{Until: began}
	if !strings.Contains(err.Error(), "2026-03-01T12:00:00Z") {
		t.Errorf("%v", err)
	}
}
