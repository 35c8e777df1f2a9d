// SPDX-License-Identifier: MIT

package autoscaler_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/fleet"
)

// The jobs of a scale set are served by its pool alone, wherever they are and whatever
// their labels, and its pool serves no others.
func TestScaleSetJobs(t *testing.T) {
	labels := []string{"mac"}
	build := func() *snap {
		s := newSnap()
		s.pool("hooks", labels)
		s.pool("set", []string{"mac-set"}, func(p *fleet.Pool) { p.ScaleSet, p.MaxRunners = "macs", 2 })
		s.host("a", 9)
		return s
	}
	given := func(s *snap, id int, repo string) {
		s.job(id, repo)
		j := &s.State.Jobs[len(s.State.Jobs)-1]
		j.Pool, j.SetKey = "set", "1/x"
	}
	for name, c := range map[string]struct {
		state func(*snap)
		want  []string
		waits map[int]fleet.WaitCode
	}{
		"placed up to the pool's limit": {
			func(s *snap) { given(s, 1, "app"); given(s, 2, ""); given(s, 3, "lib"); s.job(4, "app", "mac") },
			[]string{"place hooks on h-a", "place set on h-a", "place set on h-a"},
			map[int]fleet.WaitCode{1: fleet.WaitBooting, 2: fleet.WaitBooting, 3: fleet.WaitPoolLimit, 4: fleet.WaitBooting},
		},
		"what webhooks say of them is no demand": {
			func(s *snap) { s.job(1, "app", "mac-set") },
			nil,
			map[int]fleet.WaitCode{1: fleet.WaitNoPool},
		},
		"armed in the set's scope, though the repository is not known": {
			func(s *snap) { s.runner("r", "set", "a", fleet.PhaseStandby); given(s, 1, "") },
			[]string{"arm r for Acme"},
			map[int]fleet.WaitCode{1: fleet.WaitStandby},
		},
		"a listener of the set covers its job and no other": {
			func(s *snap) {
				s.runner("r", "set", "a", fleet.PhaseIdle)
				s.runner("q", "hooks", "a", fleet.PhaseIdle)
				given(s, 1, "app")
				given(s, 2, "app")
				s.job(3, "app", "mac")
			},
			[]string{"place set on h-a"},
			map[int]fleet.WaitCode{1: fleet.WaitAssignment, 2: fleet.WaitBooting, 3: fleet.WaitAssignment},
		},
		"where GitHub refuses registrations, its jobs rest": {
			func(s *snap) {
				given(s, 1, "")
				s.State.Refused = map[fleet.PoolScope]fleet.Refusals{{Pool: "set", Scope: "acme"}: {Times: 3, LastAt: now, Reason: "no"}}
			},
			nil,
			map[int]fleet.WaitCode{1: fleet.WaitRefused},
		},
		"a set that is not configured any more": {
			func(s *snap) { given(s, 1, "app"); s.State.Jobs[0].Pool = "gone" },
			nil,
			map[int]fleet.WaitCode{1: fleet.WaitNoPool},
		},
		"a pool that went back to webhooks": {
			func(s *snap) { given(s, 1, "app"); s.State.Jobs[0].Pool = "hooks" },
			nil,
			map[int]fleet.WaitCode{1: fleet.WaitNoPool},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := build()
			c.state(s)
			p := s.decide()
			if got := brief(p); !slices.Equal(got, c.want) {
				t.Errorf("plan %q, want %q", got, c.want)
			}
			for id, want := range c.waits {
				if w := waitOf(t, p, id); w.Code != want {
					t.Errorf("job %d waits: %s (%s), want %s", id, w.Code, w.Reason, want)
				} else if want == fleet.WaitNoPool && !strings.Contains(w.Reason, "scale set") {
					t.Errorf("job %d: %s", id, w.Reason)
				}
			}
		})
	}
}
