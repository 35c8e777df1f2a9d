// SPDX-License-Identifier: MIT

package autoscaler_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/autoscaler"
	"github.com/minifleet/minifleet/fleet"
)

// rollout gives pool a the rollout "current next previous held", each a letter or "-".
func (s *snap) rollout(shape string, edit ...func(*fleet.Rollout)) {
	r := fleet.NewRollout("a", reference, now)
	r.Version = 3
	for i, to := range []*string{&r.Current, &r.Next, &r.Previous, &r.Held} {
		if letter := shape[i : i+1]; letter != "-" {
			*to = image(letter)
		}
	}
	if r.Next != "" {
		r.StartedAt = now.Add(-10 * time.Minute)
	}
	for _, e := range edit {
		e(&r)
	}
	s.State.Rollouts["a"] = r
}

func with(letters string) func(*fleet.Host) {
	return func(h *fleet.Host) {
		h.Images = nil
		for _, l := range letters {
			h.Images = append(h.Images, digest(string(l)))
		}
	}
}

func from(letter string) func(*fleet.Runner) {
	return func(r *fleet.Runner) { r.Image = image(letter) }
}

func tried(ago time.Duration) func(*fleet.Rollout) {
	return func(r *fleet.Rollout) { r.TriedAt = now.Add(-ago) }
}

// doing is a plan in words, without what the hosts are told to fetch.
func doing(p fleet.Plan) []string {
	var out []string
	for _, line := range brief(p) {
		if !strings.HasPrefix(line, "cache of") {
			out = append(out, line)
		}
	}
	for _, a := range p.Places {
		out = append(out, "image "+fleet.ImageShort(a.Image)[:3])
	}
	slices.Sort(out)
	return out
}

func TestRollouts(t *testing.T) {
	t.Parallel()
	canary := fleet.Canary{Percent: 10, For: time.Hour}
	for name, c := range map[string]struct {
		make func(*snap)
		want []string
		wake time.Duration // 0: not looked at
	}{
		"no digest yet": {
			make: func(s *snap) { s.rollout("----"); s.host("1", 2); s.job(1, "app", "macos") },
		},
		"the first start: no host has it": {
			make: func(s *snap) { s.rollout("a---"); s.host("1", 2); s.job(1, "app", "macos") },
			want: []string{"image i@a", "place a on h-1"},
		},
		"a host that has it comes first": {
			make: func(s *snap) {
				s.rollout("a---")
				s.host("1", 5)
				s.host("2", 1, with("a"))
				s.job(1, "app", "macos")
			},
			want: []string{"image i@a", "place a on h-2"},
		},
		"while hosts fetch the next, the old one serves": {
			make: func(s *snap) {
				s.rollout("ab--")
				s.host("1", 1, with("ab"))
				s.host("2", 1, with("a"))
				s.job(1, "app", "macos")
				s.job(2, "app", "macos")
			},
			want: []string{"image i@a", "image i@a", "place a on h-1", "place a on h-2"},
		},
		"all hosts have the next": {
			make: func(s *snap) {
				s.rollout("ab--")
				s.host("1", 1, with("ab"))
				s.host("2", 1, with("ab"))
				s.job(1, "app", "macos")
			},
			want: []string{"image i@b", "place a on h-1", "promote a"},
		},
		"a host that is silent is not waited for": {
			make: func(s *snap) { s.rollout("ab--"); s.host("1", 1, with("ab")); s.host("2", 1, silent(time.Hour)) },
			want: []string{"promote a"},
		},
		"a host of another backend is not waited for": {
			make: func(s *snap) {
				s.Pools[0].Backend = "process"
				s.rollout("ab--")
				s.host("1", 1, with("ab"))
				s.host("2", 1, with("a"), func(h *fleet.Host) { h.Backends = []string{"vz"} })
			},
			want: []string{"promote a"},
		},
		"a part of the hosts is enough, if that is configured": {
			make: func(s *snap) {
				s.Rules.Images.ReadyPercent = 50
				s.rollout("ab--")
				s.host("1", 1, with("ab"))
				s.host("2", 1, with("a"))
			},
			want: []string{"promote a"},
		},
		"the limit is over and one host has it": {
			make: func(s *snap) {
				s.Rules.Images.PrefetchLimit = 10 * time.Minute
				s.rollout("ab--")
				s.host("1", 1, with("ab"))
				s.host("2", 1, with("a"))
			},
			want: []string{"promote a"},
		},
		"the limit is not over": {
			make: func(s *snap) {
				s.Rules.Images.PrefetchLimit, s.Rules.Images.Stall = 11*time.Minute, time.Hour
				s.rollout("ab--")
				s.host("1", 1, with("ab"))
				s.host("2", 1, with("a"), func(h *fleet.Host) { h.SeenAt = now.Add(30 * time.Second) })
			},
			wake: time.Minute,
		},
		"the limit is over and no host has it": {
			make: func(s *snap) {
				s.Rules.Images.PrefetchLimit = time.Minute
				s.rollout("ab--")
				s.host("1", 1, with("a"))
			},
		},
		"all hosts are silent": {
			make: func(s *snap) { s.rollout("ab--"); s.host("1", 1, silent(time.Hour), with("ab")) },
		},
		"no host could ever serve it": {
			make: func(s *snap) { s.rollout("ab--"); s.host("1", 0) },
			want: []string{"promote a"},
		},
		"hosts had no time to report": {
			make: func(s *snap) { s.Fresh.Hosts = false; s.rollout("ab--"); s.host("1", 1, with("ab")) },
		},
		"hosts have reported since the start": {
			make: func(s *snap) {
				s.Fresh.Hosts, s.Fresh.Reported = false, map[fleet.HostID]bool{"h-1": true}
				s.rollout("ab--")
				s.host("1", 1, with("ab"))
				s.host("2", 1, func(h *fleet.Host) { h.SeenAt = time.Time{} }) // enrolled, and never heard of
			},
			want: []string{"promote a"},
		},
		"some have not": {
			make: func(s *snap) {
				s.Fresh.Hosts, s.Fresh.Reported = false, map[fleet.HostID]bool{"h-1": true}
				s.rollout("ab--")
				s.host("1", 1, with("ab"))
				s.host("2", 1, with("ab"))
			},
		},
		"one of ten tries the next": {
			make: func(s *snap) {
				s.Pools[0].Canary = canary
				s.rollout("ab--")
				s.host("1", 5, with("a"))
				s.host("2", 5, with("ab"))
				for i := range 10 {
					s.job(i+1, "app", "macos")
				}
			},
			want: slices.Concat(slices.Repeat([]string{"image i@a"}, 9), []string{"image i@b"},
				slices.Repeat([]string{"place a on h-1"}, 5), slices.Repeat([]string{"place a on h-2"}, 5)),
		},
		"nobody has what is to be tried": {
			make: func(s *snap) {
				s.Pools[0].Canary = canary
				s.rollout("ab--")
				s.host("1", 1, with("a"))
				s.job(1, "app", "macos")
			},
			want: []string{"image i@a", "place a on h-1"},
		},
		"one tries it already": {
			make: func(s *snap) {
				s.Pools[0].Canary = canary
				s.rollout("ab--")
				s.host("1", 5, with("ab"))
				s.runner("r", "a", "1", fleet.PhaseBusy, bound(9), from("b"))
				s.job(1, "app", "macos")
			},
			want: []string{"image i@a", "place a on h-1"},
		},
		"a canary that nobody has started is not promoted": {
			make: func(s *snap) { s.Pools[0].Canary = canary; s.rollout("ab--"); s.host("1", 5, with("ab")) },
		},
		"tried for long enough": {
			make: func(s *snap) {
				s.Pools[0].Canary = canary
				s.rollout("ab--", tried(time.Hour))
				s.host("1", 5, with("ab"))
			},
			want: []string{"promote a"},
		},
		"tried for long enough, and the hosts are not ready": {
			make: func(s *snap) {
				s.Pools[0].Canary = canary
				s.rollout("ab--", tried(time.Hour))
				s.host("1", 5, with("ab"))
				s.host("2", 5, with("a"))
			},
		},
		"not tried for long enough": {
			make: func(s *snap) {
				s.Pools[0].Canary = canary
				s.rollout("ab--", tried(time.Hour-20*time.Second))
				s.host("1", 5, with("ab"))
			},
			wake: 20 * time.Second,
		},
		"a failure begins the time anew": {
			make: func(s *snap) {
				s.Pools[0].Canary = canary
				s.rollout("ab--", tried(2*time.Hour), func(r *fleet.Rollout) { r.Failures, r.FailedAt = 1, now.Add(-time.Minute) })
				s.host("1", 5, with("ab"))
			},
		},
		"only an operator promotes": {
			make: func(s *snap) {
				s.Pools[0].Canary = fleet.Canary{Percent: 10}
				s.rollout("ab--", tried(1000*time.Hour))
				s.host("1", 5, with("ab"))
			},
		},
		"too many canaries failed": {
			make: func(s *snap) {
				s.Pools[0].Canary = canary
				s.rollout("ab--", tried(2*time.Hour), func(r *fleet.Rollout) { r.Failures = 3 })
				s.host("1", 5, with("ab"))
				s.job(1, "app", "macos")
			},
			want: []string{"go back a", "image i@a", "place a on h-1"},
		},
		"as many failures as are configured": {
			make: func(s *snap) {
				s.Pools[0].Canary = fleet.Canary{Percent: 10, Failures: 1}
				s.rollout("ab--", func(r *fleet.Rollout) { r.Failures = 1 })
			},
			want: []string{"go back a"},
		},
		"what runs on an image that was left ends, but no job": {
			make: func(s *snap) {
				s.rollout("a--b")
				s.host("1", 9, with("ab"))
				s.runner("standby", "a", "1", fleet.PhaseStandby, from("b"))
				s.runner("coming", "a", "1", fleet.PhaseBooting, from("b"))
				s.runner("idle", "a", "1", fleet.PhaseIdle, from("b"))
				s.runner("busy", "a", "1", fleet.PhaseBusy, from("b"))
				s.runner("good", "a", "1", fleet.PhaseIdle, from("a"))
				s.job(1, "app", "macos")
				s.job(2, "app", "macos")
				s.job(3, "app", "macos")
			},
			want: []string{"delete idle", "drain coming", "drain standby", "image i@a", "place a on h-1"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSnap()
			s.pool("a", mac, rolled(fleet.Canary{}))
			c.make(s)
			p := s.decide()
			if diff := cmp.Diff(c.want, doing(p)); diff != "" {
				t.Errorf("(-want +got):\n%s\n%s", diff, s.show(p))
			}
			if c.wake != 0 && !p.WakeAt.Equal(now.Add(c.wake)) {
				t.Errorf("looks again after %s, want %s", p.WakeAt.Sub(now), c.wake)
			}
			for _, broken := range append(brokenLaws(s.Snapshot, p), imageLaws(s.Snapshot, p)...) {
				t.Error(broken)
			}
		})
	}
}

// Standbys of an old image are replaced, few at once, and only where that costs nobody
// anything.
func TestStandbysAreRenewed(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		make func(*snap)
		want int // that go
	}{
		"one at a time":           {make: func(s *snap) { s.standbys(3, "a") }, want: 1},
		"a quarter of many":       {make: func(s *snap) { s.standbys(8, "a") }, want: 2},
		"they have the right one": {make: func(s *snap) { s.standbys(3, "b") }},
		"of before images were recorded": {make: func(s *snap) {
			s.standbys(3, "a")
			for i := range s.State.Runners {
				s.State.Runners[i].Image = ""
			}
		}},
		"one is coming": {make: func(s *snap) {
			s.standbys(3, "a")
			s.State.Runners[0].Observed, s.State.Runners[0].Image = fleet.ObservedBooting, image("b")
		}},
		"one is going": {make: func(s *snap) { s.standbys(3, "a"); s.State.Runners[0].Wanted = fleet.WantDrain }},
		"no host has the new one": {make: func(s *snap) {
			s.standbys(3, "a")
			with("a")(&s.State.Hosts[0])
		}},
		"the host that has it rests": {make: func(s *snap) {
			s.standbys(3, "a")
			s.State.Hosts[0].Failures, s.State.Hosts[0].FailedAt = 9, now
		}},
		"the pool rests": {make: func(s *snap) {
			s.standbys(3, "a")
			s.State.Pools["a"] = fleet.PoolHealth{Failures: 9, FailedAt: now}
		}},
		"jobs are to have them": {make: func(s *snap) {
			s.standbys(1, "a")
			s.job(1, "app", "macos")
			s.State.Hosts[0].Slots = 1
		}},
		"demand is not known": {make: func(s *snap) { s.standbys(3, "a"); s.Fresh.Demand = false }},
		"one makes room for a canary": {make: func(s *snap) {
			s.standbys(8, "a")
			s.Pools[0].Canary = fleet.Canary{Percent: 10}
			s.rollout("ab--")
		}, want: 1},
		"a canary stands already": {make: func(s *snap) {
			s.standbys(8, "a")
			s.State.Runners[0].Image = image("b")
			s.Pools[0].Canary = fleet.Canary{Percent: 10}
			s.rollout("ab--")
		}},
		"the old one serves until the next does": {make: func(s *snap) {
			s.standbys(8, "a")
			s.rollout("ab--")
			s.host("2", 1, with("a"))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSnap()
			s.pool("a", mac, rolled(fleet.Canary{}))
			s.rollout("b-a-")
			s.host("1", 8, with("ab"))
			c.make(s)
			p := s.decide()
			if len(p.Retires) != c.want {
				t.Errorf("%d are replaced, want %d\n%s", len(p.Retires), c.want, s.show(p))
			}
			for _, r := range p.Retires {
				if !r.Drain || !strings.HasPrefix(r.Reason, "replaced") {
					t.Errorf("%+v", r)
				}
			}
		})
	}
}

func (s *snap) standbys(n int, letter string) {
	s.Pools[0].Standby, s.State.Hosts[0].Slots = n, n
	for i := range n {
		s.runner(fmt.Sprint("r", i), "a", "1", fleet.PhaseStandby, from(letter))
	}
}

// turn gives a host an image to fetch, since so long.
func turn(letter string, hold bool, ago time.Duration) func(*fleet.Host) {
	return func(h *fleet.Host) {
		h.Prefetch = append(h.Prefetch, fleet.Prefetch{Image: image(letter), Hold: hold, Turn: now.Add(-ago)})
	}
}

func fetched(letter string, state fleet.CacheState, ago time.Duration) func(*fleet.Host) {
	return func(h *fleet.Host) {
		h.Cached = append(h.Cached, fleet.CachedImage{Digest: digest(letter), State: state, MovedAt: now.Add(-ago)})
	}
}

func TestTurnsToFetch(t *testing.T) {
	t.Parallel()
	hosts := func(n int, edit ...func(*fleet.Host)) func(*snap) {
		return func(s *snap) {
			for i := range n {
				s.host(fmt.Sprint(i+1), 1, append([]func(*fleet.Host){with("")}, edit...)...)
			}
		}
	}
	for name, c := range map[string]struct {
		shape string
		make  func(*snap)
		want  []string // what hosts are told that differs from before
		wake  time.Duration
	}{
		"two at once": {
			shape: "a---", make: hosts(3),
			want: []string{"cache of h-1: i@aaa", "cache of h-2: i@aaa", "cache of h-3: i@aaa held"},
		},
		"they share what there is": {
			shape: "a---", make: func(s *snap) { hosts(2)(s); s.Rules.Images.BytesPerSecond = 100 << 20 },
			want: []string{"cache of h-1: i@aaa at 52428800", "cache of h-2: i@aaa at 52428800"},
		},
		"what serves comes first": {
			shape: "ab--", make: func(s *snap) {
				s.host("1", 1, with("a"))
				s.host("2", 1, with(""))
				s.Rules.Images.PrefetchHosts = 1
			},
			want: []string{"cache of h-1: i@aaa held i@bbb held", "cache of h-2: i@aaa i@bbb held"},
		},
		"what it has is kept, and what it could go back to": {
			shape: "a-b-", make: func(s *snap) { s.host("1", 1, with("ab")); s.host("2", 1, with("a")) },
			want: []string{"cache of h-1: i@aaa held i@bbb held", "cache of h-2: i@aaa held"},
		},
		"what it could go back to is not in the way of what serves": {
			shape: "a-b-", make: func(s *snap) { s.host("1", 1, with("b")) },
			want: []string{"cache of h-1: i@aaa"},
		},
		"what was left is not": {
			shape: "a--b", make: func(s *snap) { s.host("1", 1, with("ab")) },
			want: []string{"cache of h-1: i@aaa held"},
		},
		"a host that serves no pool fetches nothing": {
			shape: "a---", make: func(s *snap) { s.host("1", 0, with("")) },
		},
		"a silent host has no turn": {
			shape: "a---", make: func(s *snap) { s.host("1", 1, with(""), silent(time.Hour)); s.host("2", 1, with("")) },
			want: []string{"cache of h-1: i@aaa held", "cache of h-2: i@aaa"},
		},
		"a host that becomes silent gives up its turn": {
			shape: "a---", make: hosts(1, turn("a", false, time.Minute), silent(time.Hour)),
			want: []string{"cache of h-1: i@aaa held"},
		},
		"it goes on": {
			shape: "a---", make: hosts(1, turn("a", false, time.Hour), fetched("a", fleet.CacheFetching, time.Minute), func(h *fleet.Host) { h.SeenAt = now.Add(time.Hour) }),
			wake: 4 * time.Minute,
		},
		"nothing has come for long": {
			shape: "a---", make: func(s *snap) {
				hosts(1, turn("a", false, time.Hour), fetched("a", fleet.CacheFetching, 5*time.Minute))(s)
				s.host("2", 1, with(""), turn("a", true, 0), func(h *fleet.Host) { h.Prefetch[0].Turn = time.Time{} })
				s.Rules.Images.PrefetchHosts = 1
			},
			want: []string{"cache of h-1: i@aaa held", "cache of h-2: i@aaa"},
		},
		"nothing has come, and it is only just back": {
			shape: "a---", make: hosts(1, turn("a", false, time.Hour), func(h *fleet.Host) { h.BackAt = now.Add(-time.Minute) }),
		},
		"the controller is only just back": {
			shape: "a---", make: func(s *snap) { hosts(1, turn("a", false, time.Hour))(s); s.Fresh.Hosts = false },
		},
		"it failed, and others wait": {
			shape: "a---", make: func(s *snap) {
				hosts(3, turn("a", false, time.Minute), fetched("a", fleet.CacheFailed, time.Second))(s)
				s.host("4", 1, with(""))
				s.host("5", 1, with(""))
				s.Rules.Images.PrefetchHosts = 3
			},
			want: []string{"cache of h-2: i@aaa held", "cache of h-3: i@aaa held", "cache of h-4: i@aaa", "cache of h-5: i@aaa"},
		},
		"it failed, and nobody else waits": {
			shape: "a---", make: hosts(1, turn("a", false, time.Minute), fetched("a", fleet.CacheFailed, time.Second)),
		},
		"it failed, and what is next for it waits": {
			shape: "ab--", make: hosts(1, turn("a", false, time.Minute), fetched("a", fleet.CacheFailed, time.Second)),
			want: []string{"cache of h-1: i@aaa held i@bbb"},
		},
		"it failed in an earlier turn": {
			shape: "a---", make: hosts(1, turn("a", false, time.Minute), fetched("a", fleet.CacheFailed, time.Hour)),
		},
		"after a turn in vain it waits": {
			shape: "a---", make: func(s *snap) {
				hosts(1, turn("a", true, time.Minute), func(h *fleet.Host) { h.SeenAt = now.Add(time.Hour) })(s)
				s.host("2", 1, with(""), func(h *fleet.Host) { h.SeenAt = now.Add(time.Hour) })
				s.Rules.Images.PrefetchHosts = 1
			},
			want: []string{"cache of h-2: i@aaa"},
			wake: 4 * time.Minute,
		},
		"or not, where nobody else wants one": {
			shape: "a---", make: hosts(1, turn("a", true, time.Minute)),
			want: []string{"cache of h-1: i@aaa"},
		},
		"and has another": {
			shape: "a---", make: hosts(1, turn("a", true, 5*time.Minute)),
			want: []string{"cache of h-1: i@aaa"},
		},
		"who was there first": {
			shape: "a---", make: func(s *snap) {
				s.host("1", 1, with(""), turn("a", true, 10*time.Minute))
				s.host("2", 1, with(""), turn("a", true, 20*time.Minute))
				s.Rules.Images.PrefetchHosts = 1
			},
			want: []string{"cache of h-2: i@aaa"},
		},
		"it came": {
			shape: "a---", make: func(s *snap) { s.host("1", 1, with("a"), turn("a", false, time.Minute)) },
			want: []string{"cache of h-1: i@aaa held"},
		},
		"nobody wants it any more": {
			shape: "b---", make: func(s *snap) { s.host("1", 1, with("b"), turn("a", false, time.Minute)) },
			want: []string{"cache of h-1: i@bbb held"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSnap()
			s.pool("a", mac, rolled(fleet.Canary{Percent: 10}))
			s.rollout(c.shape)
			c.make(s)
			p := s.decide()
			if diff := cmp.Diff(c.want, brief(p)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if c.wake != 0 && !p.WakeAt.Equal(now.Add(c.wake)) {
				t.Errorf("looks again after %s, want %s", p.WakeAt.Sub(now), c.wake)
			}
			for _, broken := range imageLaws(s.Snapshot, p) {
				t.Error(broken)
			}
		})
	}
}

// Where the last pool with a reference is gone, hosts are told to fetch nothing.
func TestNothingIsFetchedForNobody(t *testing.T) {
	t.Parallel()
	s := newSnap()
	s.pool("a", mac)
	s.host("1", 1, turn("a", false, time.Minute))
	if p := s.decide(); !cmp.Equal(brief(p), []string{"cache of h-1:"}) || p.Fetches[0].Images != nil {
		t.Errorf("%q", brief(p))
	}
	s = newSnap()
	s.Rules.Images = autoscaler.ImageRules{}
	s.pool("a", mac)
	s.host("1", 1)
	if p := s.decide(); !p.Empty() {
		t.Errorf("%q", brief(p))
	}
}
