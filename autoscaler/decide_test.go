// SPDX-License-Identifier: MIT

package autoscaler_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/autoscaler"
	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/trust"
)

var (
	mac  = []string{"macos"}
	both = []string{"macos", "xcode"}
)

func scopes(list ...string) func(*fleet.Pool) {
	return func(p *fleet.Pool) {
		p.Scopes = nil
		for _, s := range list {
			scope, err := fleet.ParseScope(s)
			if err != nil {
				panic(err)
			}
			p.Scopes = append(p.Scopes, scope)
		}
	}
}

func most(n int) func(*fleet.Pool)    { return func(p *fleet.Pool) { p.MaxRunners = n } }
func standby(n int) func(*fleet.Pool) { return func(p *fleet.Pool) { p.Standby = n } }
func scope(s string) func(*fleet.Runner) {
	return func(r *fleet.Runner) { r.Scope, _ = fleet.ParseScope(s) }
}

func bound(job int) func(*fleet.Runner) {
	return func(r *fleet.Runner) { r.Job, r.Registration = fleet.JobID(job), fleet.RegBusy }
}

func reg(s fleet.Registration) func(*fleet.Runner) {
	return func(r *fleet.Runner) { r.Registration = s }
}
func wanted(x fleet.Wanted) func(*fleet.Runner) { return func(r *fleet.Runner) { r.Wanted = x } }

func silent(d time.Duration) func(*fleet.Host) {
	return func(h *fleet.Host) { h.SeenAt = now.Add(-d) }
}

// decided is a situation and what must be decided.
type decided struct {
	make  func(*snap)
	want  []string
	waits map[int]fleet.WaitCode
	wake  time.Duration // 0: not looked at
}

func (c decided) check(t *testing.T) {
	t.Helper()
	s := newSnap()
	c.make(s)
	p := s.decide()
	if diff := cmp.Diff(c.want, brief(p)); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
	for id, code := range c.waits {
		if w := waitOf(t, p, id); w.Code != code || w.Reason == "" {
			t.Errorf("job %d waits for %q (%s), want %q", id, w.Code, w.Reason, code)
		}
	}
	if len(p.Waits) != len(s.State.Jobs) {
		t.Errorf("%d reasons for %d jobs", len(p.Waits), len(s.State.Jobs))
	}
	if c.wake != 0 && !p.WakeAt.Equal(now.Add(c.wake)) {
		t.Errorf("wake at %s, want %s", p.WakeAt.Sub(now), c.wake)
	}
	if !p.WakeAt.IsZero() && !p.WakeAt.After(now) {
		t.Errorf("wake in the past: %s", p.WakeAt.Sub(now))
	}
}

func TestDemand(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]decided{
		"nothing to do": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 2)
		}, wake: time.Minute},
		"a job asks for a runner": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 2)
			s.job(1, "app", "macos")
		}, want: []string{"place a on h-1"}, waits: map[int]fleet.WaitCode{1: fleet.WaitBooting}},
		"the smallest label set that covers the job": {make: func(s *snap) {
			s.pool("big", both)
			s.pool("small", mac)
			s.host("1", 9)
			s.job(1, "app", "macos")
			s.job(2, "app", "macos", "xcode")
		}, want: []string{"place big on h-1", "place small on h-1"}},
		"a standby is armed for the repository's scope": {make: func(s *snap) {
			s.pool("a", mac, scopes("acme", "acme/app"))
			s.host("1", 2)
			s.runner("r", "a", "1", fleet.PhaseStandby)
			s.job(1, "App", "macos")
		}, want: []string{"arm r for acme/app"}, waits: map[int]fleet.WaitCode{1: fleet.WaitStandby}},
		"one runner, one job": {
			make: func(s *snap) {
				s.pool("a", mac)
				s.host("1", 9)
				s.runner("r1", "a", "1", fleet.PhaseStandby)
				s.runner("r2", "a", "1", fleet.PhaseBooting)
				s.job(1, "app", "macos")
				s.job(2, "app", "macos")
				s.job(3, "app", "macos")
			}, want: []string{"arm r1 for Acme", "place a on h-1"},
			waits: map[int]fleet.WaitCode{1: fleet.WaitStandby, 2: fleet.WaitBooting, 3: fleet.WaitBooting},
		},
		"an idle runner covers: nothing more is armed": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 9)
			s.runner("r1", "a", "1", fleet.PhaseIdle)
			s.runner("r2", "a", "1", fleet.PhaseStandby)
			s.job(1, "app", "macos")
		}, waits: map[int]fleet.WaitCode{1: fleet.WaitAssignment}},
		"registering and armed cover": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 9)
			s.runner("r1", "a", "1", fleet.PhaseRegistering)
			s.runner("r2", "a", "1", fleet.PhaseArmed)
			s.runner("r3", "a", "1", fleet.PhaseStandby)
			s.job(1, "app", "macos")
			s.job(2, "app", "macos")
		}, waits: map[int]fleet.WaitCode{1: fleet.WaitRegistering, 2: fleet.WaitRegistering}},
		"an armed runner of another repository's scope covers nothing here": {make: func(s *snap) {
			s.pool("a", mac, scopes("acme/app", "acme/lib"))
			s.host("1", 9)
			s.runner("r1", "a", "1", fleet.PhaseIdle, scope("acme/lib"))
			s.runner("r2", "a", "1", fleet.PhaseStandby)
			s.job(1, "app", "macos")
		}, want: []string{"arm r2 for acme/app"}},
		"a standby serves any scope of its pool": {make: func(s *snap) {
			s.pool("a", mac, scopes("acme/app", "acme/lib", "other"))
			s.host("1", 9)
			s.runner("r1", "a", "1", fleet.PhaseStandby)
			s.runner("r2", "a", "1", fleet.PhaseStandby)
			s.job(1, "lib", "macos")
			s.job(2, "app", "macos")
		}, want: []string{"arm r1 for acme/app", "arm r2 for acme/lib"}},
		"many scopes, one runner each": {make: func(s *snap) {
			s.pool("a", mac, scopes("acme/r1", "acme/r2", "acme/r3"))
			s.host("1", 3)
			s.job(1, "r1", "macos")
			s.job(2, "r2", "macos")
			s.job(3, "r3", "macos")
		}, want: []string{"place a on h-1", "place a on h-1", "place a on h-1"}},
		"names in any case": {make: func(s *snap) {
			s.pool("a", []string{"macOS"}, scopes("ACME/App"))
			s.host("1", 3)
			s.job(1, "aPP", "MacOS")
		}, want: []string{"place a on h-1"}},
		"a guest is busy and GitHub has not said with what: it covers one job": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 9)
			s.runner("r1", "a", "1", fleet.PhaseBusy)
			s.job(1, "app", "macos")
		}, waits: map[int]fleet.WaitCode{1: fleet.WaitUnnamed}, wake: time.Minute},
		"but not for ever": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 9)
			s.runner("r1", "a", "1", fleet.PhaseBusy, aged(2*time.Minute))
			s.job(1, "app", "macos")
		}, want: []string{"place a on h-1"}},
		"once GitHub names the pair it covers nobody else": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 9)
			s.runner("r1", "a", "1", fleet.PhaseBusy, bound(7))
			s.job(1, "app", "macos")
		}, want: []string{"place a on h-1"}},
		"bound by name before its guest says anything": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 9)
			s.runner("r1", "a", "1", fleet.PhaseIdle, bound(7))
			s.job(1, "app", "macos")
		}, want: []string{"place a on h-1"}},
		"an unnamed busy guest of another scope covers nothing": {make: func(s *snap) {
			s.pool("a", mac, scopes("acme/app", "acme/lib"))
			s.host("1", 9)
			s.runner("r1", "a", "1", fleet.PhaseBusy, scope("acme/lib"))
			s.job(1, "app", "macos")
		}, want: []string{"place a on h-1"}},
		"overlapping pools: the only runner for a demanding job is left to it": {make: func(s *snap) {
			s.pool("small", mac)
			s.pool("big", both)
			s.host("1", 2)
			s.runner("big1", "big", "1", fleet.PhaseIdle)
			s.runner("small1", "small", "1", fleet.PhaseIdle)
			s.job(1, "app", "macos")
			s.job(2, "app", "macos", "xcode")
		}, waits: map[int]fleet.WaitCode{1: fleet.WaitAssignment, 2: fleet.WaitAssignment}},
		"overlapping pools, a chain of moves": {make: func(s *snap) {
			s.pool("a", []string{"x", "a"})
			s.pool("b", []string{"x", "a", "b"})
			s.pool("c", []string{"x", "a", "b", "c"})
			s.host("1", 3)
			s.runner("rb", "b", "1", fleet.PhaseIdle)
			s.runner("rc", "c", "1", fleet.PhaseIdle)
			s.runner("ra", "a", "1", fleet.PhaseStandby)
			s.job(1, "app", "x") // takes b or c at first
			s.job(2, "app", "b")
			s.job(3, "app", "c")
		}, want: []string{"arm ra for Acme"}},
		"a saturated pool: the next larger one serves": {make: func(s *snap) {
			s.pool("small", mac, most(1))
			s.pool("big", both)
			s.host("1", 9)
			s.runner("r1", "small", "1", fleet.PhaseBusy, bound(9))
			s.job(1, "app", "macos")
		}, want: []string{"place big on h-1"}},
		"saturated within one plan, and rearranged": {make: func(s *snap) {
			s.pool("small", []string{"x"}, most(1))
			s.pool("big", []string{"x", "y"}, most(1))
			s.host("1", 9)
			s.job(1, "app", "x") // small at first
			s.job(2, "app", "x") // big
			s.job(3, "app", "x") // none
		}, want: []string{"place big on h-1", "place small on h-1"}, waits: map[int]fleet.WaitCode{3: fleet.WaitPoolLimit}},
		"a later job that only one pool can serve is not left out": {make: func(s *snap) {
			s.pool("a", []string{"x", "only"}, most(1))
			s.pool("b", []string{"x", "y", "z"}, most(1))
			s.host("1", 9)
			s.job(1, "app", "x") // takes a, the smaller
			s.job(2, "app", "only")
		}, want: []string{"place a on h-1", "place b on h-1"}, waits: map[int]fleet.WaitCode{1: fleet.WaitBooting, 2: fleet.WaitBooting}},
		"the oldest get the last slots": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 2)
			for i := range 4 {
				s.job(4-i, "app", "macos")
			}
		}, want: []string{"place a on h-1", "place a on h-1"}, waits: map[int]fleet.WaitCode{
			4: fleet.WaitBooting, 3: fleet.WaitBooting, 2: fleet.WaitNoSlot, 1: fleet.WaitNoSlot,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.check(t)
		})
	}
}

func TestWaitSaysTheNearestObstacle(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		make func(*snap)
		want fleet.WaitCode
		says string
	}{
		"labels fit, scope does not": {func(s *snap) { s.pool("a", mac, scopes("other")); s.job(1, "app", "macos") }, fleet.WaitNoPool, "acme/app"},
		"a job without labels":       {func(s *snap) { s.pool("a", mac); s.job(1, "app") }, fleet.WaitNoPool, "no label"},
		"no host at all":             {func(s *snap) { s.pool("a", mac); s.job(1, "app", "macos") }, fleet.WaitNoHost, "none has enrolled"},
		"hosts without slots":        {func(s *snap) { s.pool("a", mac); s.host("1", 0); s.job(1, "app", "macos") }, fleet.WaitNoHost, "slot"},
		"one pool at its limit, the other without a host": {func(s *snap) {
			s.pool("a", mac, most(1))
			s.pool("b", both, func(p *fleet.Pool) { p.Backend = "vz" })
			s.host("1", 3)
			s.runner("r", "a", "1", fleet.PhaseBusy, bound(9))
			s.job(1, "app", "macos")
		}, fleet.WaitPoolLimit, "pool a"},
		"a host that failed rests": {func(s *snap) {
			s.pool("a", mac)
			s.host("1", 1, func(h *fleet.Host) { h.Failures, h.FailedAt = 4, now })
			s.job(1, "app", "macos")
		}, fleet.WaitBackoff, "host 1 failed 4 times in a row: the next try at 12:00:08"},
		"a refused job": {func(s *snap) {
			s.pool("a", mac)
			s.host("1", 1)
			s.Verdicts[1] = fleet.Verdict{Refused: true, Reason: "a fork"}
			s.job(1, "app", "macos")
		}, fleet.WaitPolicy, "a fork"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSnap()
			c.make(s)
			p := s.decide()
			w := waitOf(t, p, 1)
			if w.Code != c.want || !strings.Contains(w.Reason, c.says) {
				t.Errorf("waits for %q: %s; want %q: ... %s ...", w.Code, w.Reason, c.want, c.says)
			}
			if !p.Empty() {
				t.Errorf("plan %q", brief(p))
			}
		})
	}
}

// crowd is so many standbys and jobs for them.
func crowd(s *snap, ready, jobs int) {
	s.pool("a", mac, scopes("acme", "beta"))
	s.host("1", 20)
	for i := range ready {
		s.runner(string(rune('a'+i)), "a", "1", fleet.PhaseStandby)
	}
	for i := range jobs {
		s.job(i+1, "app", "macos")
	}
	s.Rules.MintsPerMinute = 3
}

func TestMintBudget(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		make func(*snap)
		arms int
		wake time.Duration
	}{
		"unlimited":                   {func(s *snap) { crowd(s, 5, 5); s.Rules.MintsPerMinute = 0 }, 5, time.Minute},
		"up to the limit in one plan": {func(s *snap) { crowd(s, 5, 5) }, 3, time.Minute},
		"what was begun counts": {func(s *snap) {
			crowd(s, 5, 5)
			s.State.Mints["acme"] = begun(2, now.Add(-20*time.Second))
		}, 1, 40 * time.Second},
		"grants not used yet count": {func(s *snap) { crowd(s, 5, 6); s.runner("x", "a", "1", fleet.PhaseArmed) }, 2, time.Minute},
		"another owner has its own": {func(s *snap) { crowd(s, 5, 5); s.State.Mints["beta"] = begun(9, now) }, 3, time.Minute},
		"used up, the owner's case": {func(s *snap) {
			crowd(s, 5, 5)
			s.State.Mints["acme"] = begun(3, now.Add(-59*time.Second))
		}, 0, time.Second},
		"the limit holds back no boot": {func(s *snap) { crowd(s, 0, 5); s.State.Mints["acme"] = begun(3, now) }, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSnap()
			c.make(s)
			p := s.decide()
			if len(p.Arms) != c.arms {
				t.Errorf("%d armed, want %d", len(p.Arms), c.arms)
			}
			if c.wake != 0 && !p.WakeAt.Equal(now.Add(c.wake)) {
				t.Errorf("wake in %s, want %s", p.WakeAt.Sub(now), c.wake)
			}
			if !slices.IsSortedFunc(p.Arms, func(a, b fleet.Arm) int { return int(a.Job - b.Job) }) {
				t.Error("not the oldest first")
			}
		})
	}
	s := newSnap()
	crowd(s, 0, 5)
	s.State.Mints["acme"] = begun(3, now)
	if p := s.decide(); len(p.Places) != 5 {
		t.Errorf("%d placed, want 5", len(p.Places))
	}
}

func TestPolicy(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]decided{
		"a missing verdict delays the arm, not the boot": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 1)
			s.Verdicts[1] = fleet.Verdict{Pending: true, Reason: "asking"}
			s.job(1, "app", "macos")
		}, want: []string{"place a on h-1"}, waits: map[int]fleet.WaitCode{1: fleet.WaitBooting}},
		"nothing is booted or armed for a refused job": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 1)
			s.runner("r", "a", "1", fleet.PhaseStandby)
			s.Verdicts[1] = fleet.Verdict{Refused: true, Reason: "a fork"}
			s.job(1, "app", "macos")
			s.job(2, "app", "macos")
		}, want: []string{"arm r for Acme"}, waits: map[int]fleet.WaitCode{1: fleet.WaitPolicy, 2: fleet.WaitStandby}},
		"a refused job keeps no listener": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 2)
			s.runner("r", "a", "1", fleet.PhaseIdle)
			s.Verdicts[1] = fleet.Verdict{Refused: true, Reason: "a fork"}
			s.job(1, "app", "macos")
			s.job(2, "app", "macos")
		}, waits: map[int]fleet.WaitCode{1: fleet.WaitPolicy, 2: fleet.WaitAssignment}},
		"what has a verdict goes before what has none": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 1)
			s.runner("r", "a", "1", fleet.PhaseStandby)
			s.Verdicts[1] = fleet.Verdict{Pending: true, Reason: "asking"}
			s.job(1, "app", "macos")
			s.job(2, "app", "macos")
		}, want: []string{"arm r for Acme"}, waits: map[int]fleet.WaitCode{1: fleet.WaitNoSlot, 2: fleet.WaitStandby}},
		"one pool refuses, another takes it": {make: func(s *snap) {
			s.pool("a", mac)
			s.pool("b", mac)
			s.host("1", 2)
			s.runner("r", "a", "1", fleet.PhaseStandby)
			s.Verdicts[1] = fleet.Verdict{Pools: map[string]trust.Verdict{"a": {Refused: true, Reason: "a fork"}}}
			s.job(1, "app", "macos")
		}, want: []string{"place b on h-1"}, waits: map[int]fleet.WaitCode{1: fleet.WaitBooting}},
		"one pool does not know, another takes it": {make: func(s *snap) {
			s.pool("a", mac)
			s.pool("b", mac)
			s.host("1", 2)
			s.runner("r", "a", "1", fleet.PhaseStandby)
			s.runner("t", "b", "1", fleet.PhaseStandby)
			s.Verdicts[1] = fleet.Verdict{Pools: map[string]trust.Verdict{"a": {Pending: true, Reason: "asking"}}}
			s.job(1, "app", "macos")
		}, want: []string{"arm t for Acme"}},
		"one pool refuses, the other does not know": {make: func(s *snap) {
			s.pool("a", mac)
			s.pool("b", mac)
			s.host("1", 2)
			s.runner("r", "a", "1", fleet.PhaseStandby)
			s.runner("t", "b", "1", fleet.PhaseStandby)
			s.Verdicts[1] = fleet.Verdict{Pools: map[string]trust.Verdict{"a": {Refused: true, Reason: "a fork"}, "b": {Pending: true, Reason: "asking"}}}
			s.job(1, "app", "macos")
		}, waits: map[int]fleet.WaitCode{1: fleet.WaitPolicy}},
		"a guest that ended a refused job has none of ours": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 2)
			s.runner("r", "a", "1", fleet.PhaseBusy, func(r *fleet.Runner) { r.JobRun, r.JobRefused = 5, "a fork" })
			s.job(1, "app", "macos")
		}, want: []string{"place a on h-1"}, waits: map[int]fleet.WaitCode{1: fleet.WaitBooting}},
		"a guest with a job of another run has none of ours": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 2)
			s.runner("r", "a", "1", fleet.PhaseBusy, func(r *fleet.Runner) { r.JobRun = 5 })
			s.job(1, "app", "macos")
			s.job(2, "app", "macos")
			s.State.Jobs[1].RunID = 5
		}, want: []string{"place a on h-1"}, waits: map[int]fleet.WaitCode{1: fleet.WaitBooting, 2: fleet.WaitUnnamed}},
		"that GitHub passed it over is no news of a refused job": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 1)
			s.Verdicts[1] = fleet.Verdict{Refused: true, Reason: "a fork"}
			s.job(1, "app", "macos")
			s.State.Jobs[0].PassedOver, s.State.Jobs[0].PassedAt = 3, now
		}, waits: map[int]fleet.WaitCode{1: fleet.WaitPolicy}},
		"only a job that can be armed for tries whether GitHub still refuses": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 2)
			s.runner("r", "a", "1", fleet.PhaseStandby)
			s.Verdicts[1] = fleet.Verdict{Pending: true, Reason: "asking"}
			s.job(1, "app", "macos")
			s.job(2, "app", "macos")
			s.State.Refused = map[fleet.PoolScope]fleet.Refusals{{Pool: "a", Scope: "acme"}: {Times: 1, LastAt: now.Add(-time.Hour)}}
		}, want: []string{"arm r for Acme"}, waits: map[int]fleet.WaitCode{1: fleet.WaitRefused, 2: fleet.WaitStandby}},
		"an allowed job needs no word": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 1)
			s.runner("r", "a", "1", fleet.PhaseStandby)
			s.Verdicts[1] = fleet.Verdict{}
			s.job(1, "app", "macos")
		}, want: []string{"arm r for Acme"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.check(t)
		})
	}
}

func TestPlacement(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]decided{
		"the host with the image, even if it has fewer slots": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 8, func(h *fleet.Host) { h.Images = nil })
			s.host("2", 1)
			s.job(1, "app", "macos")
		}, want: []string{"place a on h-2"}},
		"the emptiest host": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 2)
			s.host("2", 2)
			s.runner("r", "a", "1", fleet.PhaseBusy, bound(9))
			s.job(1, "app", "macos")
		}, want: []string{"place a on h-2"}},
		"spread": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 2)
			s.host("2", 2)
			s.host("3", 2)
			for i := range 5 {
				s.job(i+1, "app", "macos")
			}
		}, want: []string{"place a on h-1", "place a on h-1", "place a on h-2", "place a on h-2", "place a on h-3"}},
		"the emptiest host, though another pool filled it meanwhile": {make: func(s *snap) {
			s.pool("a", mac)
			s.pool("b", []string{"linux"}, func(p *fleet.Pool) { p.Backend = "qemu" })
			s.host("1", 3)
			s.host("2", 3, func(h *fleet.Host) { h.Backends = []string{"process", "qemu"} })
			s.job(1, "app", "macos")
			s.job(2, "app", "linux")
			s.job(3, "app", "linux")
			s.job(4, "app", "macos")
		}, want: []string{"place a on h-1", "place a on h-1", "place b on h-2", "place b on h-2"}},
		"one that failed less": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 2, func(h *fleet.Host) { h.Failures, h.FailedAt = 1, now })
			s.host("2", 2)
			s.job(1, "app", "macos")
		}, want: []string{"place a on h-2"}},
		"not one that rests after failures": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 8, func(h *fleet.Host) { h.Failures, h.FailedAt = 3, now.Add(-time.Second) })
			s.host("2", 1)
			s.job(1, "app", "macos")
			s.job(2, "app", "macos")
		}, want: []string{"place a on h-2"}, waits: map[int]fleet.WaitCode{2: fleet.WaitBackoff}, wake: 3 * time.Second},
		"rested enough": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 1, func(h *fleet.Host) { h.Failures, h.FailedAt = 3, now.Add(-4*time.Second) })
			s.job(1, "app", "macos")
		}, want: []string{"place a on h-1"}},
		"not on a host that is silent": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 8, silent(time.Minute))
			s.host("2", 1)
			s.job(1, "app", "macos")
		}, want: []string{"place a on h-2"}},
		"only where the backend is": {make: func(s *snap) {
			s.pool("a", mac, func(p *fleet.Pool) { p.Backend = "vz" })
			s.host("1", 8)
			s.host("2", 1, func(h *fleet.Host) { h.Backends = []string{"qemu", "vz"} })
			s.job(1, "app", "macos")
		}, want: []string{"place a on h-2"}},
		"a slot whose VM is not yet released is taken": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 1)
			s.runner("r", "a", "1", fleet.PhaseDestroying)
			s.job(1, "app", "macos")
		}, waits: map[int]fleet.WaitCode{1: fleet.WaitNoSlot}},
		"a slot whose lock is released is free, though files are being deleted": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 1)
			s.runner("r", "a", "1", fleet.PhaseDestroying, func(r *fleet.Runner) { r.HoldsSlot = false })
			s.job(1, "app", "macos")
		}, want: []string{"place a on h-1"}},
		"a pool that fails waits": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 8)
			s.State.Pools["a"] = fleet.PoolHealth{Failures: 4, FailedAt: now}
			s.job(1, "app", "macos")
		}, waits: map[int]fleet.WaitCode{1: fleet.WaitBackoff}, wake: 8 * time.Second},
		"a host with more runners than slots gets none": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 1)
			s.runner("r1", "a", "1", fleet.PhaseBusy, bound(8))
			s.runner("r2", "a", "1", fleet.PhaseBusy, bound(9))
			s.job(1, "app", "macos")
		}, waits: map[int]fleet.WaitCode{1: fleet.WaitNoSlot}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.check(t)
		})
	}
	t.Run("the reason is recorded", func(t *testing.T) {
		t.Parallel()
		s := newSnap()
		s.pool("a", mac)
		s.host("mini-7", 2)
		s.job(1, "app", "macos")
		reason := s.decide().Places[0].Reason
		for _, want := range []string{"job1", "acme/app", "mini-7", "with the image", "1 of 2"} {
			if !strings.Contains(reason, want) {
				t.Errorf("%q does not say %q", reason, want)
			}
		}
	})
}

func TestScalingDown(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]decided{
		"a standby that nobody needs goes after a while": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 2)
			s.runner("old", "a", "1", fleet.PhaseStandby, aged(time.Minute))
			s.runner("new", "a", "1", fleet.PhaseStandby, aged(10*time.Second))
		}, want: []string{"drain old"}, wake: 50 * time.Second},
		"the pool's standbys stay": {make: func(s *snap) {
			s.pool("a", mac, standby(1))
			s.host("1", 3)
			s.runner("old", "a", "1", fleet.PhaseStandby, aged(time.Hour))
			s.runner("new", "a", "1", fleet.PhaseStandby, aged(time.Hour))
		}, want: []string{"drain old"}},
		"an idle runner goes through GitHub": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 2)
			s.runner("r", "a", "1", fleet.PhaseIdle, aged(time.Hour))
		}, want: []string{"delete r"}},
		"and then through its guest": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 2)
			s.runner("r", "a", "1", fleet.PhaseIdle, reg(fleet.RegGone))
		}, want: []string{"drain r"}},
		"not again before the time that a refusal set": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 2)
			s.runner("r", "a", "1", fleet.PhaseIdle, aged(time.Hour), func(r *fleet.Runner) { r.DeleteAfter = now.Add(7 * time.Second) })
		}, wake: 7 * time.Second},
		"a deletion that was begun is repeated": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 2)
			s.runner("r", "a", "1", fleet.PhaseIdle, reg(fleet.RegDeleting))
		}, want: []string{"delete r"}},
		"but not before the guest was heard of by this controller": {make: func(s *snap) {
			s.Fresh.Hosts = false
			s.Fresh.Reported = map[fleet.HostID]bool{"h-heard": true}
			s.pool("a", mac)
			s.host("heard", 2)
			s.host("silent", 3)
			s.runner("heard", "a", "heard", fleet.PhaseIdle, reg(fleet.RegDeleting))
			s.runner("silent", "a", "silent", fleet.PhaseIdle, reg(fleet.RegDeleting))
			s.runner("surplus", "a", "silent", fleet.PhaseIdle, aged(time.Hour))
			s.runner("gone", "a", "silent", fleet.PhaseGone)
		}, want: []string{"delete gone", "delete heard"}},
		"nor while its guest runs a job that GitHub may not know of": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 2)
			s.runner("new", "a", "1", fleet.PhaseBusy, reg(fleet.RegDeleting), aged(110*time.Second))
			s.runner("old", "a", "1", fleet.PhaseBusy, reg(fleet.RegDeleting), aged(2*time.Minute))
		}, want: []string{"delete old"}, wake: 10 * time.Second},
		"and such a guest stands for the job that it runs": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 2)
			s.runner("r", "a", "1", fleet.PhaseBusy, reg(fleet.RegDeleting), aged(110*time.Second))
			s.job(1, "app", "macos")
		}, waits: map[int]fleet.WaitCode{1: fleet.WaitUnnamed}, wake: 10 * time.Second},
		"a deletion that GitHub does not confirm for long: the guest alone is asked": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 5)
			told := func(ago time.Duration) func(*fleet.Runner) {
				return func(r *fleet.Runner) {
					r.Registration, r.RetiredAt, r.Retired = fleet.RegDeleting, now.Add(-ago), "surplus"
				}
			}
			s.runner("fresh", "a", "1", fleet.PhaseIdle, told(4*time.Minute))
			s.runner("stale", "a", "1", fleet.PhaseIdle, told(5*time.Minute))
			s.runner("busy", "a", "1", fleet.PhaseBusy, told(time.Hour), func(r *fleet.Runner) { r.DeleteAfter = now.Add(time.Hour) })
		}, want: []string{"delete fresh", "drain stale"}},
		"and is asked when that is due": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 5)
			s.runner("r", "a", "1", fleet.PhaseIdle, func(r *fleet.Runner) {
				r.Registration, r.RetiredAt, r.DeleteAfter = fleet.RegDeleting, now.Add(-270*time.Second), now.Add(time.Hour)
			})
		}, wake: 30 * time.Second},
		"a mint that deletes an earlier registration is left to it": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 2)
			s.runner("r", "a", "1", fleet.PhaseArmed, reg(fleet.RegDeleting), aged(10*time.Second))
		}, wake: 20 * time.Second},
		"but not for long": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 2)
			s.runner("r", "a", "1", fleet.PhaseArmed, reg(fleet.RegDeleting), aged(30*time.Second))
		}, want: []string{"delete r"}},
		"an unused grant is taken back": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 2)
			s.runner("r", "a", "1", fleet.PhaseArmed)
		}, want: []string{"disarm r"}},
		"a grant that somebody needs is not": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 2)
			s.runner("r", "a", "1", fleet.PhaseArmed)
			s.job(1, "app", "macos")
		}},
		"a registration under way is let come": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 2)
			s.runner("r", "a", "1", fleet.PhaseRegistering, aged(3*time.Minute))
		}},
		"a busy runner is never touched": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 5)
			s.runner("named", "a", "1", fleet.PhaseBusy, bound(9), aged(100*time.Hour))
			s.runner("unnamed", "a", "1", fleet.PhaseBusy, aged(100*time.Hour))
			s.runner("foreign", "removed", "1", fleet.PhaseBusy, aged(100*time.Hour))
			s.runner("early", "a", "1", fleet.PhaseIdle, bound(8), aged(100*time.Hour))
			s.job(1, "app", "macos")
			s.job(2, "app", "macos")
		}, want: []string{"place a on h-1"}},
		"GitHub called it busy, and nobody else did": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 5)
			s.runner("fresh", "a", "1", fleet.PhaseIdle, reg(fleet.RegBusy), aged(time.Minute))
			s.runner("stale", "a", "1", fleet.PhaseIdle, reg(fleet.RegBusy), aged(2*time.Minute))
		}, want: []string{"delete stale"}},
		"its job is completed": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 2)
			s.runner("r", "a", "1", fleet.PhaseBusy, bound(9), func(r *fleet.Runner) { r.JobDone = true })
		}, want: []string{"retire r"}},
		"its listener has ended": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 2)
			s.runner("r", "a", "1", fleet.PhaseFinished)
		}, want: []string{"retire r"}},
		"failed": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 2)
			s.runner("r", "a", "1", fleet.PhaseFailed)
		}, want: []string{"retire r"}},
		"its VM is gone and left a registration": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 2)
			s.runner("r", "a", "1", fleet.PhaseGone)
			s.runner("busy", "a", "1", fleet.PhaseGone, reg(fleet.RegBusy))
		}, want: []string{"delete busy", "delete r"}},
		"its pool is not configured any more": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 9)
			s.runner("clean", "b", "1", fleet.PhaseStandby)
			s.runner("idle", "b", "1", fleet.PhaseIdle)
			s.runner("booting", "b", "1", fleet.PhaseBooting)
		}, want: []string{"delete idle", "drain booting", "drain clean"}},
		"what leaves already is left alone": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 9)
			s.runner("draining", "a", "1", fleet.PhaseStandby, wanted(fleet.WantDrain), aged(4*time.Minute))
			s.runner("going", "a", "1", fleet.PhaseStandby, wanted(fleet.WantGone), aged(time.Hour))
		}, wake: time.Minute},
		"a guest that does not answer to a drain": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 9)
			s.host("2", 9, silent(time.Hour))
			s.runner("draining", "a", "1", fleet.PhaseStandby, wanted(fleet.WantDrain), aged(5*time.Minute))
			s.runner("busy", "a", "1", fleet.PhaseBusy, wanted(fleet.WantDrain), aged(time.Hour))
			s.runner("named", "a", "1", fleet.PhaseIdle, wanted(fleet.WantDrain), bound(9), aged(time.Hour))
			s.runner("silent", "a", "2", fleet.PhaseIdle, wanted(fleet.WantDrain), aged(time.Hour))
		}, want: []string{"delete silent", "failed, retire draining"}},
		"a drain with a deletion outstanding asks GitHub on": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 1)
			s.runner("r", "a", "1", fleet.PhaseIdle, wanted(fleet.WantDrain), reg(fleet.RegDeleting), aged(10*time.Hour))
		}, want: []string{"delete r"}},
		"an earlier registration that cannot be deleted keeps no clean VM": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 1)
			old := func(r *fleet.Runner) { r.ArmedAt, r.DeleteAfter = now.Add(-15*time.Minute), now.Add(time.Minute) }
			s.runner("r", "a", "1", fleet.PhaseArmed, reg(fleet.RegDeleting), aged(15*time.Minute), old)
		}, want: []string{"drain r"}},
		"an unvouched runner that GitHub called busy for nothing": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 1)
			s.runner("r", "a", "1", fleet.PhaseIdle, reg(fleet.RegBusy), aged(10*time.Minute), func(r *fleet.Runner) {
				r.HasConfig, r.ArmedAt = true, time.Time{}
			})
		}, want: []string{"delete r"}},
		"after a start of the controller it gets its time": {make: func(s *snap) {
			s.Fresh.Hosts = false
			s.pool("a", mac)
			s.host("1", 9)
			s.runner("draining", "a", "1", fleet.PhaseStandby, wanted(fleet.WantDrain), aged(time.Hour))
		}},
		"missing knowledge of demand never scales down": {make: func(s *snap) {
			s.Fresh.Demand = false
			s.pool("a", mac)
			s.pool("b", both)
			s.host("1", 3)
			s.runner("clean", "a", "1", fleet.PhaseStandby, aged(time.Hour))
			s.runner("idle", "a", "1", fleet.PhaseIdle, aged(time.Hour))
			s.runner("armed", "a", "1", fleet.PhaseArmed)
			s.job(1, "app", "xcode")
		}, waits: map[int]fleet.WaitCode{1: fleet.WaitNoSlot}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.check(t)
		})
	}
}

// A host that has fewer slots than it had keeps no more runners than those, but for
// jobs that run.
func TestFewerSlots(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]decided{
		"the least costly goes first": {make: func(s *snap) {
			s.pool("a", mac, standby(9))
			s.host("1", 2)
			s.runner("idle", "a", "1", fleet.PhaseIdle)
			s.runner("standby", "a", "1", fleet.PhaseStandby)
			s.runner("busy", "a", "1", fleet.PhaseBusy, bound(9))
			s.runner("booting", "a", "1", fleet.PhaseBooting)
		}, want: []string{"drain booting", "drain standby"}},
		"a grant and a listener after that, through GitHub": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 1)
			s.runner("idle", "a", "1", fleet.PhaseIdle)
			s.runner("armed", "a", "1", fleet.PhaseArmed)
			s.runner("busy", "a", "1", fleet.PhaseBusy, bound(9))
			s.job(1, "app", "macos")
			s.job(2, "app", "macos")
		}, want: []string{"delete idle", "drain armed"}},
		"what leaves already counts": {make: func(s *snap) {
			s.pool("a", mac, standby(9))
			s.host("1", 1)
			s.runner("standby", "a", "1", fleet.PhaseStandby)
			s.runner("leaving", "a", "1", fleet.PhaseDestroying)
		}},
		"a job that runs is let end": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 1)
			s.runner("named", "a", "1", fleet.PhaseBusy, bound(9))
			s.runner("unnamed", "a", "1", fleet.PhaseBusy)
			s.job(1, "other", "windows")
		}},
		"of a host that is not heard of nothing is known": {make: func(s *snap) {
			s.pool("a", mac, standby(9))
			s.host("1", 1, silent(time.Hour))
			s.runner("r1", "a", "1", fleet.PhaseStandby)
			s.runner("r2", "a", "1", fleet.PhaseStandby)
		}},
		"nor right after a start of the controller": {make: func(s *snap) {
			s.Fresh.Hosts = false
			s.pool("a", mac, standby(9))
			s.host("1", 1, silent(time.Hour))
			s.runner("r1", "a", "1", fleet.PhaseStandby)
			s.runner("r2", "a", "1", fleet.PhaseStandby)
		}},
		"it waits as long as GitHub's refusal says": {make: func(s *snap) {
			s.pool("a", mac, standby(9))
			s.host("1", 1)
			s.runner("r1", "a", "1", fleet.PhaseIdle, func(r *fleet.Runner) { r.DeleteAfter = now.Add(7 * time.Second) })
			s.runner("r2", "a", "1", fleet.PhaseBusy, bound(9))
		}, wake: 7 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.check(t)
		})
	}
}

// TestDoubt: a runner that listens and is given nothing does not stand for a job for
// ever.
func TestDoubt(t *testing.T) {
	t.Parallel()
	at := func(idle, queued time.Duration, edit ...func(*snap)) (fleet.Plan, fleet.Wait) {
		s := newSnap()
		s.pool("a", mac)
		s.host("1", 2)
		s.runner("r", "a", "1", fleet.PhaseIdle, aged(idle))
		s.job(1, "app", "macos")
		s.State.Jobs[0].QueuedAt = now.Add(-queued)
		for _, e := range edit {
			e(s)
		}
		p := s.decide()
		return p, waitOf(t, p, 1)
	}
	const limit = 3 * time.Minute
	for name, c := range map[string]struct {
		idle, queued time.Duration
		want         []string
	}{
		"both long":         {limit, limit, []string{"delete r"}},
		"runner short":      {limit - time.Second, time.Hour, nil},
		"job short":         {time.Hour, limit - time.Second, nil},
		"GitHub let it go?": {time.Hour, time.Hour, []string{"delete r"}},
	} {
		t.Run(name, func(t *testing.T) {
			p, w := at(c.idle, c.queued)
			if diff := cmp.Diff(c.want, brief(p)); diff != "" {
				t.Error(diff)
			}
			if w.Code != fleet.WaitAssignment {
				t.Errorf("%+v", w)
			}
		})
	}
	t.Run("nothing is concluded from what is not known", func(t *testing.T) {
		for _, edit := range []func(*snap){
			func(s *snap) { s.Fresh.Hosts = false },
			func(s *snap) { s.Fresh.Demand = false },
			func(s *snap) { s.State.Hosts[0].BackAt = now.Add(-time.Second) },
		} {
			if p, _ := at(time.Hour, time.Hour, edit); !p.Empty() {
				t.Errorf("%q", brief(p))
			}
		}
	})
}

// TestSilenceStopsTheClocks: what a host did while it was not heard of is not held
// against its runners.
func TestSilenceStopsTheClocks(t *testing.T) {
	t.Parallel()
	s := newSnap()
	s.pool("a", mac)
	s.host("1", 1)
	s.State.Hosts[0].BackAt = now.Add(-time.Second)
	s.runner("r", "a", "1", fleet.PhaseBooting, aged(time.Hour))
	s.job(1, "app", "macos")
	if p := s.decide(); !p.Empty() {
		t.Errorf("%q", brief(p))
	}
	s.State.Hosts[0].BackAt = now.Add(-time.Hour)
	if diff := cmp.Diff([]string{"failed, drain r"}, brief(s.decide())); diff != "" {
		t.Error(diff)
	}
}

// TestUnvouched: a runner that only its agent knows of may end its job, and is no
// supply.
func TestUnvouched(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		phase fleet.Phase
		want  []string
	}{
		"idle": {fleet.PhaseIdle, []string{"delete r", "place a on h-1"}},
		"busy": {fleet.PhaseBusy, []string{"place a on h-1"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSnap()
			s.pool("a", mac)
			s.host("1", 2)
			s.runner("r", "a", "1", c.phase, func(r *fleet.Runner) { r.HasConfig, r.ArmedAt = true, time.Time{} })
			s.job(1, "app", "macos")
			if diff := cmp.Diff(c.want, brief(s.decide())); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDeadlines(t *testing.T) {
	t.Parallel()
	l := fleet.Limits{}.WithDefaults()
	for name, c := range map[string]struct {
		phase fleet.Phase
		limit time.Duration
		want  string
	}{
		"placed":      {fleet.PhasePlaced, l.Placed, "failed, drain r"},
		"preparing":   {fleet.PhasePreparing, l.Preparing, "failed, drain r"},
		"booting":     {fleet.PhaseBooting, l.Booting, "failed, drain r"},
		"armed":       {fleet.PhaseArmed, l.Arming, "drain r"},
		"registering": {fleet.PhaseRegistering, l.Registering, "delete r"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			at := func(age time.Duration, edit ...func(*snap)) fleet.Plan {
				s := newSnap()
				s.pool("a", mac)
				s.host("1", 1)
				s.runner("r", "a", "1", c.phase, aged(age))
				s.job(1, "app", "macos")
				for _, e := range edit {
					e(s)
				}
				return s.decide()
			}
			p := at(c.limit - time.Second)
			if !p.Empty() || p.WakeAt.After(now.Add(time.Second)) {
				t.Errorf("a second before: %q, wake in %s", brief(p), p.WakeAt.Sub(now))
			}
			p = at(c.limit)
			if diff := cmp.Diff([]string{c.want}, brief(p)); diff != "" {
				t.Errorf("when due:\n%s", diff)
			}
			if w := waitOf(t, p, 1); w.Code != fleet.WaitNoSlot {
				t.Errorf("the job still counts on it: %+v", w)
			}
			if p := at(c.limit*9, func(s *snap) { s.State.Hosts[0].SeenAt = now.Add(-time.Hour) }); !p.Empty() {
				t.Errorf("on a host that is not heard of: %q", brief(p))
			}
			if p := at(c.limit*9, func(s *snap) { s.Fresh.Hosts = false }); !p.Empty() {
				t.Errorf("before the host had time to report: %q", brief(p))
			}
		})
	}
	t.Run("preparing is timed from its last progress", func(t *testing.T) {
		t.Parallel()
		s := newSnap()
		s.pool("a", mac)
		s.host("1", 1)
		s.runner("r", "a", "1", fleet.PhasePreparing, aged(time.Hour), func(r *fleet.Runner) { r.MovedAt = now.Add(-time.Minute) })
		s.job(1, "app", "macos")
		if p := s.decide(); !p.Empty() {
			t.Errorf("%q", brief(p))
		}
	})
	t.Run("a refused mint does not start the grant's clock anew", func(t *testing.T) {
		t.Parallel()
		s := newSnap()
		s.pool("a", mac)
		s.host("1", 1)
		s.runner("r", "a", "1", fleet.PhaseArmed, aged(time.Hour), func(r *fleet.Runner) { r.Since, r.Registration, r.Attempt = now, fleet.RegGone, 3 })
		s.job(1, "app", "macos")
		if diff := cmp.Diff([]string{"drain r"}, brief(s.decide())); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("the pool's own limits", func(t *testing.T) {
		t.Parallel()
		s := newSnap()
		s.pool("a", mac, func(p *fleet.Pool) { p.Limits.Booting = time.Hour })
		s.host("1", 1)
		s.runner("r", "a", "1", fleet.PhaseBooting, aged(30*time.Minute))
		s.job(1, "app", "macos")
		if p := s.decide(); !p.Empty() {
			t.Errorf("%q", brief(p))
		}
	})
}

func TestUnreachableHost(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]decided{
		"its unbound runners stop counting at once, its slots stay taken": {make: func(s *snap) {
			s.pool("a", mac, most(1))
			s.host("1", 1, silent(time.Minute))
			s.host("2", 1)
			s.runner("r", "a", "1", fleet.PhaseIdle, aged(time.Hour))
			s.job(1, "app", "macos")
		}, want: []string{"place a on h-2"}},
		"its bound runners count against the limit": {make: func(s *snap) {
			s.pool("a", mac, most(1))
			s.host("1", 1, silent(time.Minute))
			s.host("2", 1)
			s.runner("r", "a", "1", fleet.PhaseBusy, bound(9))
			s.job(1, "app", "macos")
		}, waits: map[int]fleet.WaitCode{1: fleet.WaitPoolLimit}},
		"just before its deadline it counts": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 1, silent(59*time.Second))
			s.host("2", 1)
			s.runner("r", "a", "1", fleet.PhaseIdle)
			s.job(1, "app", "macos")
		}, waits: map[int]fleet.WaitCode{1: fleet.WaitAssignment}, wake: time.Second},
		"nothing of it is ended": {make: func(s *snap) {
			s.pool("a", mac)
			s.host("1", 3, silent(time.Hour))
			s.runner("r1", "a", "1", fleet.PhaseStandby, aged(time.Hour))
			s.runner("r2", "a", "1", fleet.PhaseBooting, aged(time.Hour))
			s.runner("r3", "a", "1", fleet.PhaseIdle, aged(time.Hour))
		}},
		"after a start of the controller every host gets its time": {make: func(s *snap) {
			s.Fresh.Hosts = false
			s.pool("a", mac)
			s.host("1", 1, silent(time.Hour))
			s.runner("r", "a", "1", fleet.PhaseIdle, aged(time.Hour))
			s.job(1, "app", "macos")
		}, waits: map[int]fleet.WaitCode{1: fleet.WaitAssignment}},
		"but a host that never said a word is not one": {make: func(s *snap) {
			s.Fresh.Hosts = false
			s.pool("a", mac)
			s.host("1", 1, func(h *fleet.Host) { h.SeenAt = time.Time{} })
			s.job(1, "app", "macos")
		}, waits: map[int]fleet.WaitCode{1: fleet.WaitUnreachable}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.check(t)
		})
	}
}

func TestStandbyAndRoom(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]decided{
		"topped up": {make: func(s *snap) {
			s.pool("a", mac, standby(2))
			s.host("1", 9)
			s.runner("r", "a", "1", fleet.PhaseBooting)
		}, want: []string{"place a on h-1"}},
		"beyond demand": {make: func(s *snap) {
			s.pool("a", mac, standby(1))
			s.host("1", 9)
			s.runner("r", "a", "1", fleet.PhaseStandby)
			s.job(1, "app", "macos")
		}, want: []string{"arm r for Acme", "place a on h-1"}},
		"within the limit": {make: func(s *snap) {
			s.pool("a", mac, standby(2), most(2))
			s.host("1", 9)
			s.runner("r", "a", "1", fleet.PhaseBusy, bound(9))
		}, want: []string{"place a on h-1"}},
		"jobs come before standbys": {make: func(s *snap) {
			s.pool("idle", []string{"other"}, standby(2))
			s.pool("a", mac)
			s.host("1", 1)
			s.job(1, "app", "macos")
		}, want: []string{"place a on h-1"}},
		"a clean VM of another pool makes room": {make: func(s *snap) {
			s.pool("idle", []string{"other"}, standby(1))
			s.pool("a", mac)
			s.host("1", 1)
			s.runner("r", "idle", "1", fleet.PhaseStandby)
			s.job(1, "app", "macos")
		}, want: []string{"drain r"}, waits: map[int]fleet.WaitCode{1: fleet.WaitNoSlot}},
		"only as many as are needed": {make: func(s *snap) {
			s.pool("idle", []string{"other"}, standby(3))
			s.pool("a", mac)
			s.host("1", 3)
			s.runner("r1", "idle", "1", fleet.PhaseStandby)
			s.runner("r2", "idle", "1", fleet.PhaseStandby)
			s.runner("r3", "idle", "1", fleet.PhaseStandby)
			s.job(1, "app", "macos")
		}, want: []string{"drain r3"}},
		"none while a slot is being freed anyway": {make: func(s *snap) {
			s.pool("idle", []string{"other"}, standby(1))
			s.pool("a", mac)
			s.host("1", 2)
			s.runner("r1", "idle", "1", fleet.PhaseStandby)
			s.runner("r2", "a", "1", fleet.PhaseDestroying)
			s.job(1, "app", "macos")
		}, waits: map[int]fleet.WaitCode{1: fleet.WaitNoSlot}},
		"a slot that is being freed is counted once": {make: func(s *snap) {
			s.pool("idle", []string{"other"}, standby(1))
			s.pool("a", mac)
			s.host("1", 2)
			s.runner("r1", "idle", "1", fleet.PhaseStandby)
			s.runner("r2", "a", "1", fleet.PhaseDestroying)
			s.job(1, "app", "macos")
			s.job(2, "app", "macos")
		}, want: []string{"drain r1"}, waits: map[int]fleet.WaitCode{1: fleet.WaitNoSlot, 2: fleet.WaitNoSlot}},
		"none while a registration that GitHub refused to delete once is deleted at last": {make: func(s *snap) {
			s.pool("idle", []string{"other"}, standby(1))
			s.pool("a", mac)
			s.host("1", 2)
			s.runner("r1", "idle", "1", fleet.PhaseStandby)
			s.runner("r2", "a", "1", fleet.PhaseIdle, reg(fleet.RegDeleting), func(r *fleet.Runner) {
				r.Scope, r.DeleteAfter = fleet.Scope{Owner: "other"}, now.Add(-time.Second)
			})
			s.job(1, "app", "macos")
		}, want: []string{"delete r2"}, waits: map[int]fleet.WaitCode{1: fleet.WaitNoSlot}},
		"nor while it is told to go for the second time": {make: func(s *snap) {
			s.pool("idle", []string{"other"}, standby(1))
			s.pool("a", mac)
			s.host("1", 2)
			s.runner("r1", "idle", "1", fleet.PhaseStandby)
			s.runner("r2", "gone", "1", fleet.PhaseIdle, func(r *fleet.Runner) { r.DeleteAfter = now })
			s.job(1, "app", "macos")
		}, want: []string{"delete r2"}, waits: map[int]fleet.WaitCode{1: fleet.WaitNoSlot}},
		"a working runner's deletion frees nothing": {make: func(s *snap) {
			s.pool("idle", []string{"other"}, standby(1))
			s.pool("a", mac)
			s.host("1", 2)
			s.runner("r1", "idle", "1", fleet.PhaseStandby)
			s.runner("r2", "a", "1", fleet.PhaseBusy, reg(fleet.RegDeleting), aged(2*time.Minute))
			s.job(1, "app", "macos")
		}, want: []string{"delete r2", "drain r1"}},
		"one that GitHub does not answer for is not waited for": {make: func(s *snap) {
			s.pool("idle", []string{"other"}, standby(1))
			s.pool("a", mac)
			s.host("1", 2)
			s.runner("r1", "idle", "1", fleet.PhaseStandby)
			s.runner("r2", "a", "1", fleet.PhaseIdle, reg(fleet.RegDeleting), func(r *fleet.Runner) { r.DeleteAfter = now.Add(time.Minute) })
			s.job(1, "app", "macos")
		}, want: []string{"drain r1"}, waits: map[int]fleet.WaitCode{1: fleet.WaitNoSlot}},
		"a slot that is being freed is none where the host has fewer by now": {make: func(s *snap) {
			s.pool("idle", []string{"other"}, standby(1))
			s.pool("a", mac)
			s.host("1", 1)
			s.host("2", 1)
			s.runner("r1", "a", "1", fleet.PhaseBusy, bound(9))
			s.runner("r2", "a", "1", fleet.PhaseDestroying)
			s.runner("r3", "idle", "2", fleet.PhaseStandby)
			s.job(1, "app", "macos")
		}, want: []string{"drain r3"}, waits: map[int]fleet.WaitCode{1: fleet.WaitNoSlot}},
		"a slot that was made is counted once, for jobs of several pools": {make: func(s *snap) {
			s.pool("idle", []string{"other"}, standby(2))
			s.pool("a", mac)
			s.pool("b", []string{"linux"})
			s.host("1", 2)
			s.runner("r1", "idle", "1", fleet.PhaseStandby)
			s.runner("r2", "idle", "1", fleet.PhaseStandby)
			s.job(1, "app", "macos")
			s.job(2, "app", "linux")
		}, want: []string{"drain r1", "drain r2"}},
		"an idle runner makes room, through GitHub": {make: func(s *snap) {
			s.pool("idle", []string{"other"})
			s.pool("a", mac)
			s.host("1", 1)
			s.runner("r", "idle", "1", fleet.PhaseIdle)
			s.job(1, "app", "macos")
		}, want: []string{"delete r"}},
		"a busy one does not": {make: func(s *snap) {
			s.pool("idle", []string{"other"})
			s.pool("a", mac)
			s.host("1", 1)
			s.runner("r", "idle", "1", fleet.PhaseBusy)
			s.job(1, "app", "macos")
		}, waits: map[int]fleet.WaitCode{1: fleet.WaitNoSlot}},
		"nor one that somebody needs": {make: func(s *snap) {
			s.pool("idle", []string{"other"})
			s.pool("a", mac)
			s.host("1", 1)
			s.runner("r", "idle", "1", fleet.PhaseIdle)
			s.job(1, "app", "other")
			s.job(2, "app", "macos")
		}, waits: map[int]fleet.WaitCode{1: fleet.WaitAssignment, 2: fleet.WaitNoSlot}},
		"not on a host that could not run the job": {make: func(s *snap) {
			s.pool("idle", []string{"other"}, standby(1))
			s.pool("a", mac, func(p *fleet.Pool) { p.Backend = "vz" })
			s.host("1", 1)
			s.host("2", 1, func(h *fleet.Host) { h.Backends = []string{"vz"} })
			s.runner("r", "idle", "1", fleet.PhaseStandby)
			s.runner("b", "a", "2", fleet.PhaseBusy, bound(9))
			s.job(1, "app", "macos")
		}, waits: map[int]fleet.WaitCode{1: fleet.WaitNoSlot}},
		"not on a host that rests after failures": {make: func(s *snap) {
			s.pool("idle", []string{"other"}, standby(1))
			s.pool("a", mac)
			s.host("1", 2, func(h *fleet.Host) { h.Failures, h.FailedAt = 5, now })
			s.runner("r", "idle", "1", fleet.PhaseStandby)
			s.job(1, "app", "macos")
		}, waits: map[int]fleet.WaitCode{1: fleet.WaitBackoff}},
		"not for a pool at its limit": {make: func(s *snap) {
			s.pool("idle", []string{"other"}, standby(1))
			s.pool("a", mac, most(1))
			s.host("1", 2)
			s.runner("r", "idle", "1", fleet.PhaseStandby)
			s.runner("b", "a", "1", fleet.PhaseBusy, bound(9))
			s.job(1, "app", "macos")
		}, waits: map[int]fleet.WaitCode{1: fleet.WaitPoolLimit}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.check(t)
		})
	}
}

func TestDecideDoesNotWriteToItsSnapshot(t *testing.T) {
	t.Parallel()
	s := random(7)
	before := random(7)
	autoscaler.Decide(s.Snapshot)
	if diff := cmp.Diff(before.Snapshot, s.Snapshot); diff != "" {
		t.Error(diff)
	}
	if !slices.EqualFunc(s.State.Jobs, before.State.Jobs, func(a, b fleet.Job) bool { return a.ID == b.ID }) {
		t.Error("jobs were reordered")
	}
}

// What is beyond the limit is told its place in the queue as a time.
func TestExpectedTurns(t *testing.T) {
	t.Parallel()
	s := newSnap()
	crowd(s, 8, 8)
	s.Rules.MintsPerMinute = 3
	s.State.Mints["acme"] = fleet.MintUse{Begun: []time.Time{now.Add(-40 * time.Second), now.Add(-20 * time.Second)}}
	var got []string
	for _, w := range s.decide().Waits {
		if w.Code == fleet.WaitMintBudget {
			_, turn, _ := strings.Cut(w.Reason, "expected at ")
			got = append(got, turn)
		}
	}
	want := []string{
		"12:00:20 UTC", "12:00:40 UTC", "12:01:00 UTC", // those begun, and the one that is granted now
		"12:01:20 UTC", "12:01:40 UTC", "12:02:00 UTC", "12:02:20 UTC",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// While no registration can be made, one runner tries and the others stay clean; no limit
// runs, and nothing is ended for it.
func TestTrouble(t *testing.T) {
	t.Parallel()
	out := fleet.Trouble{Code: fleet.WaitGitHub, Reason: "GitHub cannot be reached", Until: now.Add(30 * time.Second)}
	for name, c := range map[string]struct {
		trouble fleet.Trouble
		armed   bool // there is one already
		arms    int
		places  int
	}{
		"an outage":           {trouble: out},
		"with one armed":      {trouble: out, armed: true},
		"a limit says when":   {trouble: fleet.Trouble{Code: fleet.WaitRateLimit, Reason: "x", Until: now.Add(time.Minute)}},
		"the App was removed": {trouble: fleet.Trouble{Code: fleet.WaitInstallation, Reason: "x", Barred: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSnap()
			crowd(s, 3, 4)
			s.Rules.MintsPerMinute = 0
			if c.armed {
				s.runner("x", "a", "1", fleet.PhaseArmed, func(r *fleet.Runner) { r.ArmedAt = now.Add(-time.Hour) })
			}
			s.trouble(c.trouble)
			p := s.decide()
			if len(p.Arms) != c.arms {
				t.Errorf("%d armed, want %d", len(p.Arms), c.arms)
			}
			if len(p.Retires)+len(p.Deletes)+len(p.Disarms) > 0 {
				t.Errorf("ended for it: %q", brief(p))
			}
			if c.trouble.Barred && len(p.Places) > 0 {
				t.Errorf("%d VMs are made in vain", len(p.Places))
			}
		})
	}
	// Afterwards the limit begins anew.
	s := newSnap()
	crowd(s, 0, 1)
	s.runner("x", "a", "1", fleet.PhaseArmed, func(r *fleet.Runner) { r.ArmedAt = now.Add(-time.Hour) })
	s.Troubled = map[fleet.PoolScope]time.Time{{Pool: "a", Scope: "acme"}: now.Add(-time.Second)}
	if p := s.decide(); len(p.Retires)+len(p.Deletes) > 0 {
		t.Errorf("ended for an outage that is over: %q", brief(p))
	}
	s.Troubled = nil
	if p := s.decide(); len(p.Retires)+len(p.Deletes) != 1 {
		t.Errorf("kept for ever: %q", brief(p))
	}
}
