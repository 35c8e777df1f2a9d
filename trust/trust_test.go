// SPDX-License-Identifier: MIT

package trust_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/trust"
)

// own is a job of a private repository that runs its own code.
func own(change func(*trust.Facts)) trust.Facts {
	f := trust.Facts{
		Repository: "Octo/Demo", Visibility: trust.Private, Origin: true, Event: "push",
		Head: "octo/demo", Actor: "ann", TriggeringActor: "ann",
	}
	if change != nil {
		change(&f)
	}
	return f
}

func fork(f *trust.Facts)      { f.Head, f.Event = "eve/demo", "pull_request" }
func public(f *trust.Facts)    { f.Visibility = trust.Public }
func unheard(f *trust.Facts)   { *f = trust.Facts{Repository: f.Repository, Visibility: f.Visibility} }
func invisible(f *trust.Facts) { f.Visibility = trust.Unknown }

func both(changes ...func(*trust.Facts)) func(*trust.Facts) {
	return func(f *trust.Facts) {
		for _, c := range changes {
			c(f)
		}
	}
}

func TestJudge(t *testing.T) {
	const allowed, pending, refused = "allowed", "pending", "refused"
	for name, c := range map[string]struct {
		policy trust.Policy
		change func(*trust.Facts)
		want   string
		says   string
	}{
		"private and its own":           {trust.Policy{}, nil, allowed, ""},
		"a public repository":           {trust.Policy{}, public, refused, "Octo/Demo is public, and trust.public is false"},
		"a public one, allowed":         {trust.Policy{Public: true}, public, allowed, ""},
		"a fork":                        {trust.Policy{}, fork, refused, "the code comes from eve/demo, and trust.forks is false"},
		"a fork, allowed":               {trust.Policy{Forks: true}, fork, allowed, ""},
		"a fork of a public one":        {trust.Policy{Public: true}, both(public, fork), refused, "trust.forks"},
		"a fork that is gone":           {trust.Policy{}, func(f *trust.Facts) { f.Head = "" }, refused, "gone"},
		"nothing heard":                 {trust.Policy{}, unheard, pending, "where the code"},
		"nothing heard, all allowed":    {trust.Policy{Public: true, Forks: true}, both(invisible, unheard), allowed, ""},
		"public is known before a run":  {trust.Policy{}, both(public, unheard), refused, "public"},
		"visibility not heard":          {trust.Policy{}, invisible, pending, "whether Octo/Demo is public"},
		"a fork of unknown visibility":  {trust.Policy{}, both(invisible, fork), refused, "eve/demo"},
		"visibility does not matter":    {trust.Policy{Public: true}, invisible, allowed, ""},
		"a visibility of the future":    {trust.Policy{}, func(f *trust.Facts) { f.Visibility = "moon" }, pending, "public"},
		"denied":                        {trust.Policy{Deny: []string{"octo/d*"}}, nil, refused, "trust.deny has octo/d*"},
		"denied before anything else":   {trust.Policy{Deny: []string{"*/DEMO"}, Public: true, Forks: true}, unheard, refused, "*/DEMO"},
		"deny wins":                     {trust.Policy{Repositories: []string{"octo/*"}, Deny: []string{"octo/demo"}}, nil, refused, "trust.deny"},
		"listed":                        {trust.Policy{Repositories: []string{"x/y", "OCTO/demo"}}, nil, allowed, ""},
		"not listed":                    {trust.Policy{Repositories: []string{"octo/other", "x/*"}}, nil, refused, "trust.repositories lists no Octo/Demo"},
		"listed, and a fork":            {trust.Policy{Repositories: []string{"octo/*"}}, fork, refused, "eve/demo"},
		"an event is denied":            {trust.Policy{DenyEvents: []string{"pull_request_target"}}, func(f *trust.Facts) { f.Event = "pull_request_target" }, refused, "trust.deny_events has pull_request_target"},
		"another event":                 {trust.Policy{DenyEvents: []string{"pull_request_target"}}, nil, allowed, ""},
		"an unknown event":              {trust.Policy{DenyEvents: []string{"push"}}, func(f *trust.Facts) { f.Event = "" }, pending, "event"},
		"events need the run":           {trust.Policy{Public: true, Forks: true, DenyEvents: []string{"push"}}, unheard, pending, "where"},
		"pull_request_target of a fork": {trust.Policy{}, both(fork, func(f *trust.Facts) { f.Event = "pull_request_target" }), refused, "eve/demo"},
		"a trusted one's fork": {
			trust.Policy{ForkActors: []string{"EVE"}},
			both(fork, func(f *trust.Facts) { f.Actor, f.TriggeringActor = "eve", "Eve" }), allowed, "",
		},
		"somebody touched another's pull request": {trust.Policy{ForkActors: []string{"ann"}}, fork, refused, "eve, who owns the fork"},
		"another's push to a trusted fork": {
			trust.Policy{ForkActors: []string{"eve"}},
			both(fork, func(f *trust.Facts) { f.Actor, f.TriggeringActor = "mallory", "eve" }), refused, "mallory, who began the run",
		},
		"a re-run by another": {
			trust.Policy{ForkActors: []string{"eve"}},
			both(fork, func(f *trust.Facts) { f.Actor, f.TriggeringActor = "eve", "mallory" }), refused, "mallory, who began this attempt",
		},
		"nobody said who": {
			trust.Policy{ForkActors: []string{"eve"}},
			both(fork, func(f *trust.Facts) { f.Actor = "" }), refused, "somebody unknown",
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := c.policy.Judge(own(c.change))
			got := allowed
			if v.Pending {
				got = pending
			}
			if v.Refused {
				got = refused
			}
			if got != c.want || v.Pending && v.Refused || !strings.Contains(v.Reason, c.says) || (v.Reason == "") != v.Allowed() {
				t.Errorf("%+v; want %s: ... %s ...", v, c.want, c.says)
			}
		})
	}
}

// What is learnt later never takes a refusal back, and never allows what less knowledge
// would not have left open.
func TestKnowingMoreTakesNoRefusalBack(t *testing.T) {
	policies := []trust.Policy{
		{},
		{Public: true},
		{Forks: true},
		{Public: true, Forks: true},
		{Deny: []string{"octo/*"}},
		{Repositories: []string{"octo/demo"}},
		{DenyEvents: []string{"push"}},
		{ForkActors: []string{"eve"}},
		{Public: true, ForkActors: []string{"ann", "eve"}},
	}
	facts := []trust.Facts{own(nil), own(public), own(fork), own(both(public, fork)), own(func(f *trust.Facts) { f.Head = "" })}
	for _, p := range policies {
		for _, f := range facts {
			last := p.Judge(f)
			for _, less := range []func(*trust.Facts){invisible, unheard, both(invisible, unheard)} {
				partly := f
				less(&partly)
				first := p.Judge(partly)
				if first.Refused && !last.Refused || first.Allowed() && !last.Allowed() || last.Pending {
					t.Errorf("%+v: of %+v first %+v, then %+v", p, f, first, last)
				}
			}
		}
	}
}

func TestGlobs(t *testing.T) {
	for _, c := range []struct {
		glob, repository string
		want             bool
	}{
		{"octo/demo", "octo/demo", true},
		{"octo/demo", "octo/demo2", false},
		{"octo/*", "octo/demo", true},
		{"octo/*", "octopus/demo", false},
		{"octo*/demo", "octopus/demo", true},
		{"*/*", "a/b", true},
		{"*", "a/b", false},
		{"*/demo", "x/y/demo", false},
		{"octo/*-ios-*", "octo/the-ios-app", true},
		{"octo/*-ios-*", "octo/the-ios", false},
		{"octo/a*b*c", "octo/abbbcbc", true},
		{"octo/a**", "octo/a", true},
		{"octo/.github", "octo/xgithub", false},
		{"a*", "a/b", false},
	} {
		p := trust.Policy{Repositories: []string{c.glob}}
		if got := p.Judge(own(func(f *trust.Facts) { f.Repository, f.Head = c.repository, c.repository })).Allowed(); got != c.want {
			t.Errorf("%s matches %s: %t", c.glob, c.repository, got)
		}
	}
	long := trust.Policy{Deny: []string{strings.Repeat("a*", 100) + "/b"}}
	long.Judge(own(func(f *trust.Facts) { f.Repository = strings.Repeat("a", 100_000) + "/c" })) // ends
}

func TestValidate(t *testing.T) {
	many := make([]string, 101)
	for i := range many {
		many[i] = "octo/demo"
	}
	for name, c := range map[string]struct {
		policy trust.Policy
		says   string
	}{
		"the default":        {trust.Policy{}, ""},
		"all of it":          {trust.Policy{Repositories: []string{"octo/*", "*/.github"}, Deny: []string{"Octo/old-*"}, Public: true, ForkActors: []string{"ann-b", "dependabot[bot]"}, DenyEvents: []string{"pull_request_target"}}, ""},
		"an owner alone":     {trust.Policy{Repositories: []string{"octo"}}, `trust.repositories has "octo": give owner/name`},
		"two slashes":        {trust.Policy{Deny: []string{"a/b/c"}}, "trust.deny"},
		"a pattern of RE":    {trust.Policy{Deny: []string{"octo/(a|b)"}}, "trust.deny"},
		"no login":           {trust.Policy{ForkActors: []string{"eve mallory"}}, "trust.fork_actors"},
		"no event":           {trust.Policy{DenyEvents: []string{"Pull Request"}}, "trust.deny_events"},
		"too many":           {trust.Policy{Repositories: many}, "101 entries"},
		"too long":           {trust.Policy{Repositories: []string{"octo/" + strings.Repeat("a", 200)}}, "trust.repositories"},
		"actors for nothing": {trust.Policy{Forks: true, ForkActors: []string{"eve"}}, "remove one"},
	} {
		err := c.policy.Validate()
		if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A policy travels to the guest as JSON, and is the same there.
func TestWire(t *testing.T) {
	p := trust.Policy{Repositories: []string{"octo/*"}, Deny: []string{"octo/x"}, Public: true, Forks: false, ForkActors: []string{"ann"}, DenyEvents: []string{"push"}}
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"repositories":["octo/*"],"deny":["octo/x"],"public":true,"fork_actors":["ann"],"deny_events":["push"]}`
	var back trust.Policy
	if err := json.Unmarshal(text, &back); err != nil || !reflect.DeepEqual(back, p) || string(text) != want {
		t.Errorf("%s %+v %v", text, back, err)
	}
}
