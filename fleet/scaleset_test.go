// SPDX-License-Identifier: MIT

package fleet_test

import (
	"strings"
	"testing"

	"github.com/minifleet/minifleet/fleet"
)

// A pool serves jobs of one source of demand only.
func TestSourceOfDemand(t *testing.T) {
	pool := func(name, set, scope string, labels ...string) fleet.Pool {
		s, err := fleet.ParseScope(scope)
		if err != nil {
			t.Fatal(err)
		}
		return fleet.Pool{Name: name, ScaleSet: set, Labels: fleet.NewLabels(labels...), Scopes: []fleet.Scope{s}, Image: "sonoma"}
	}
	hooks, set := pool("hooks", "", "octo", "mac"), pool("set", "macs", "octo", "mac-set")
	told := fleet.Job{Owner: "octo", Repo: "demo", Labels: fleet.NewLabels("mac")}
	given := fleet.Job{Pool: "set", Owner: "octo", Repo: "demo", Labels: fleet.NewLabels("mac")}
	copied := fleet.Job{Owner: "octo", Repo: "demo", Labels: fleet.NewLabels("mac-set")}
	nameless := fleet.Job{Pool: "set", Owner: "octo", SetKey: fleet.NamelessJob + "1"}
	for _, c := range []struct {
		what           string
		pool           fleet.Pool
		job            fleet.Job
		serves, claims bool
	}{
		{"webhooks' job", hooks, told, true, false},
		{"webhooks' job", set, told, false, false},
		{"the set's job", hooks, given, false, false},
		{"the set's job", set, given, true, false},
		{"what webhooks say of the set's job", hooks, copied, false, false},
		{"what webhooks say of the set's job", set, copied, false, true},
		{"a job without a name", set, nameless, true, false},
		{"a job elsewhere", set, fleet.Job{Owner: "other", Repo: "demo", Labels: fleet.NewLabels("mac-set")}, false, false},
		{"a job of another set", set, fleet.Job{Pool: "other", Owner: "octo", Repo: "demo"}, false, false},
	} {
		if got := c.pool.Serves(c.job); got != c.serves {
			t.Errorf("pool %s serves %s: %t", c.pool.Name, c.what, got)
		}
		if _, ok := c.pool.ScopeOf(c.job); ok != c.serves {
			t.Errorf("pool %s has a scope for %s: %t", c.pool.Name, c.what, ok)
		}
		if got := c.pool.Claims(c.job); got != c.claims {
			t.Errorf("pool %s claims %s: %t", c.pool.Name, c.what, got)
		}
	}
	if s, _ := set.ScopeOf(nameless); s.String() != "octo" || nameless.Repository() != "octo" || !nameless.Nameless() || given.Nameless() {
		t.Errorf("a job without a name is for %s of %s", s, nameless.Repository())
	}

	elsewhere := pool("elsewhere", "", "other", "mac-set")
	inside := pool("inside", "", "octo/demo", "x", "mac-set")
	twin := pool("twin", "macs", "octo/demo", "y")
	for _, c := range []struct {
		pools []fleet.Pool
		want  string
	}{
		{[]fleet.Pool{hooks, set, elsewhere}, ""},
		{[]fleet.Pool{hooks, pool("hooks2", "", "octo", "mac")}, ""},
		{[]fleet.Pool{set, inside}, `share the label "mac-set"`},
		{[]fleet.Pool{inside, set}, `share the label "mac-set"`},
		{[]fleet.Pool{set, twin}, `name the scale set "macs"`},
	} {
		err := fleet.Disjoint(c.pools)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s beside %s: %v, want %q", c.pools[0].Name, c.pools[1].Name, err, c.want)
		}
	}
	set.Scopes = append(set.Scopes, fleet.Scope{Owner: "more"})
	set.ScaleSet = " macs\n"
	if err := set.Validate(); err == nil || !strings.Contains(err.Error(), "2 scopes") || !strings.Contains(err.Error(), "without blanks") {
		t.Errorf("a wrong scale set: %v", err)
	}
}
