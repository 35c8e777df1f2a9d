// SPDX-License-Identifier: MIT

package fleet_test

import (
	"strings"
	"testing"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/trust"
)

func TestJudgeJob(t *testing.T) {
	octo := []fleet.Scope{{Owner: "octo"}}
	pools := []fleet.Pool{
		{Name: "strict", Scopes: octo},
		{Name: "forks", Scopes: octo, Trust: trust.Policy{Public: true, Forks: true}},
		{Name: "elsewhere", Scopes: []fleet.Scope{{Owner: "acme"}}},
	}
	job := func(v trust.Visibility) fleet.Job {
		return fleet.Job{ID: 1, RunID: 7, RunAttempt: 2, Owner: "Octo", Repo: "demo", Visibility: v}
	}
	run := func(head string, v trust.Visibility) *fleet.Run {
		return &fleet.Run{ID: 7, Attempt: 2, Repository: "octo/demo", Visibility: v, Event: "pull_request", HeadRepository: head, Actor: "ann", TriggeringActor: "ann"}
	}
	for name, c := range map[string]struct {
		job    fleet.Job
		run    *fleet.Run
		strict string // what the strict pool says; the other one allows all
		wants  bool
	}{
		"its own code":                        {job(trust.Private), run("octo/demo", trust.Private), "", false},
		"a fork":                              {job(trust.Private), run("eve/demo", trust.Private), "the code comes from eve/demo", false},
		"a head that is gone":                 {job(trust.Private), run("", trust.Private), "gone", false},
		"no run yet":                          {job(trust.Private), nil, "where the code", true},
		"public, and no run yet":              {job(trust.Public), nil, "is public", false},
		"the run alone says private":          {job(trust.Unknown), run("octo/demo", trust.Private), "", false},
		"the run alone says public":           {job(trust.Unknown), run("octo/demo", trust.Public), "is public", false},
		"the run says public, the job not":    {job(trust.Private), run("octo/demo", trust.Public), "is public", false},
		"the job says public, the run not":    {job(trust.Public), run("octo/demo", trust.Private), "is public", false},
		"nobody says who may read it":         {job(trust.Unknown), run("octo/demo", trust.Unknown), "whether", true},
		"nobody says, and it is a fork's":     {job(trust.Unknown), run("eve/demo", trust.Unknown), "eve/demo", false},
		"its own code in another name's case": {job(trust.Private), run("OCTO/Demo", trust.Private), "", false},
	} {
		t.Run(name, func(t *testing.T) {
			v := fleet.JudgeJob(pools, c.job, c.run)
			said := v.In("strict")
			if (c.strict == "") != said.Allowed() || !strings.Contains(said.Reason, c.strict) || v.WantsRun() != c.wants {
				t.Errorf("strict: %+v, wants the run: %t", said, v.WantsRun())
			}
			if said := v.In("forks"); !said.Allowed() {
				t.Errorf("forks: %+v", said)
			}
			if _, ok := v.Pools["elsewhere"]; ok {
				t.Error("a pool of another scope has a say")
			}
		})
	}
	if k := job(trust.Private).Run(); k != (fleet.RunKey{ID: 7, Attempt: 2}) || run("x/y", "").Key() != k {
		t.Errorf("key %v", k)
	}
}
