// SPDX-License-Identifier: MIT

package autoscaler_test

import (
	"context"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minifleet/minifleet/autoscaler"
	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/store"
)

// waitCodes reads from the code which reasons to wait there are.
func waitCodes(t *testing.T) map[fleet.WaitCode]bool {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), filepath.Join("..", "fleet", "plan.go"), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	out := map[fleet.WaitCode]bool{}
	ast.Inspect(f, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if kind, ok := v.Type.(*ast.Ident); ok && kind.Name == "WaitCode" {
			code, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			out[fleet.WaitCode(code)] = true
		}
		return true
	})
	if len(out) < 13 {
		t.Fatalf("only %d reasons to wait were found in the code: %v", len(out), out)
	}
	return out
}

// reason is a scenario in which job 1 waits for a reason, and what ends that.
type reason struct {
	make  func(*snap)
	says  string // part of the sentence
	clear func(*snap)
	next  fleet.WaitCode // what it waits for then, "" if for nothing any more
}

// reasons has one for every code.
func reasons() map[fleet.WaitCode]reason {
	first := func(edit func(*fleet.Runner)) func(*snap) {
		return func(s *snap) { edit(&s.State.Runners[0]) }
	}
	leaves := func(s *snap) { s.State.Runners = nil }
	// with is one host with so many slots, a runner of pool a on it and a job for it.
	with := func(slots int, phase fleet.Phase, edit ...func(*fleet.Runner)) func(*snap) {
		return func(s *snap) {
			s.pool("a", mac)
			s.host("1", slots)
			s.runner("r", "a", "1", phase, edit...)
			s.job(1, "app", "macos")
		}
	}
	empty := func(edit func(*snap)) func(*snap) {
		return func(s *snap) {
			s.pool("a", mac)
			s.host("1", 1)
			s.job(1, "app", "macos")
			edit(s)
		}
	}
	return map[fleet.WaitCode]reason{
		fleet.WaitNoPool: {
			make:  func(s *snap) { s.pool("a", mac); s.host("1", 1); s.job(1, "app", "windows") },
			says:  "windows",
			clear: func(s *snap) { s.pool("b", []string{"windows"}) },
			next:  fleet.WaitBooting,
		},
		fleet.WaitNoHost: {
			make:  empty(func(s *snap) { s.Pools[0].Backend = "vz" }),
			says:  "vz",
			clear: func(s *snap) { s.host("2", 1, func(h *fleet.Host) { h.Backends = []string{"vz"} }) },
			next:  fleet.WaitBooting,
		},
		fleet.WaitUnreachable: {
			make:  empty(func(s *snap) { s.State.Hosts[0].SeenAt = now.Add(-time.Hour) }),
			says:  "all 1 hosts",
			clear: func(s *snap) { s.State.Hosts[0].SeenAt = now },
			next:  fleet.WaitBooting,
		},
		fleet.WaitImage: {
			make: func(s *snap) {
				s.pool("a", mac, rolled(fleet.Canary{}))
				s.host("1", 1)
				s.State.Rollouts["a"] = fleet.NewRollout("a", reference, now).Unresolved("403 Forbidden", now)
				s.job(1, "app", "macos")
			},
			says:  "the image of pool a, gs://b/i:stable, was never found: 403 Forbidden",
			clear: func(s *snap) { s.State.Rollouts["a"] = s.State.Rollouts["a"].Resolved(digest("a"), now) },
			next:  fleet.WaitBooting,
		},
		fleet.WaitPoolLimit: {
			make: func(s *snap) {
				s.pool("a", mac, most(1))
				s.host("1", 9)
				s.runner("r", "a", "1", fleet.PhaseBusy, bound(9))
				s.job(1, "app", "macos")
			},
			says:  "limit of 1",
			clear: leaves,
			next:  fleet.WaitBooting,
		},
		fleet.WaitNoSlot: {make: with(1, fleet.PhaseBusy, bound(9)), says: "every slot", clear: leaves, next: fleet.WaitBooting},
		fleet.WaitBackoff: {
			make: empty(func(s *snap) {
				s.State.Pools["a"] = fleet.PoolHealth{Failures: 3, FailedAt: now.Add(-time.Second), Reason: "no image"}
			}),
			says:  "failed 3 times in a row: the next try at 12:00:03 UTC; the last failure: no image",
			clear: func(s *snap) { s.Now = now.Add(3 * time.Second) },
			next:  fleet.WaitBooting,
		},
		fleet.WaitBooting: {
			make:  with(1, fleet.PhasePreparing, func(r *fleet.Runner) { r.Progress = "42 %" }),
			says:  "preparing (42 %)",
			clear: first(func(r *fleet.Runner) { r.Observed = fleet.ObservedStandby }),
			next:  fleet.WaitStandby,
		},
		fleet.WaitStandby: {
			make:  with(1, fleet.PhaseStandby),
			says:  "being armed",
			clear: first(func(r *fleet.Runner) { r.Wanted, r.Scope = fleet.WantArmed, fleet.Scope{Owner: "acme"} }),
			next:  fleet.WaitRegistering,
		},
		fleet.WaitPolicy: {
			make: func(s *snap) {
				with(1, fleet.PhaseStandby)(s)
				s.Verdicts[1] = fleet.Verdict{Pending: true, Reason: "who opened it is not known yet"}
			},
			says:  "who opened it",
			clear: func(s *snap) { s.Verdicts[1] = fleet.Verdict{} },
			next:  fleet.WaitStandby,
		},
		fleet.WaitMintBudget: {
			make: func(s *snap) {
				with(1, fleet.PhaseStandby)(s)
				s.Rules.MintsPerMinute = 5
				s.State.Mints["acme"] = begun(5, now.Add(-50*time.Second))
			},
			says: "12:00:10",
			clear: func(s *snap) {
				s.Now, s.State.Mints["acme"] = now.Add(10*time.Second), begun(4, now)
			},
			next: fleet.WaitStandby,
		},
		fleet.WaitGitHub: {
			make: func(s *snap) {
				with(1, fleet.PhaseArmed)(s)
				s.trouble(fleet.Trouble{Code: fleet.WaitGitHub, Reason: "GitHub cannot be reached since 11:58:00 UTC", Until: now.Add(time.Second)})
			},
			says:  "since 11:58:00",
			clear: func(s *snap) { s.Troubles = nil },
			next:  fleet.WaitRegistering,
		},
		fleet.WaitRateLimit: {
			make: func(s *snap) {
				with(1, fleet.PhaseStandby)(s)
				s.trouble(fleet.Trouble{Code: fleet.WaitRateLimit, Reason: "the next call is at 12:07:00", Until: now.Add(7 * time.Minute)})
			},
			says:  "12:07:00",
			clear: func(s *snap) { s.Troubles = nil },
			next:  fleet.WaitStandby,
		},
		fleet.WaitInstallation: {
			make: func(s *snap) {
				s.pool("a", mac)
				s.host("1", 1)
				s.job(1, "app", "macos")
				s.trouble(fleet.Trouble{Code: fleet.WaitInstallation, Barred: true, Reason: "the App is suspended in acme"})
			},
			says:  "suspended",
			clear: func(s *snap) { s.Troubles = nil },
			next:  fleet.WaitBooting,
		},
		fleet.WaitRegistering: {
			make: with(1, fleet.PhaseArmed),
			says: "registering",
			clear: first(func(r *fleet.Runner) {
				r.Observed, r.Registration, r.HasConfig = fleet.ObservedIdle, fleet.RegMinted, true
			}),
			next: fleet.WaitAssignment,
		},
		fleet.WaitAssignment: {
			make: with(1, fleet.PhaseIdle),
			says: "listens",
			clear: func(s *snap) { // GitHub names the pair
				s.State.Runners[0].Job, s.State.Runners[0].Registration = 1, fleet.RegBusy
				s.State.Jobs = nil
			},
		},
		fleet.WaitNotAssigned: {
			make: empty(func(s *snap) {
				s.State.Jobs[0].PassedOver, s.State.Jobs[0].PassedAt = 3, now.Add(-10*time.Minute)
			}),
			says:  "3 runners with its labels listened one after the other, and GitHub kept it queued; look whether the pool's runner group may be used by acme/app",
			clear: func(s *snap) { s.Now = now.Add(10 * time.Minute); s.State.Hosts[0].SeenAt = s.Now },
			next:  fleet.WaitBooting,
		},
		fleet.WaitRefused: {
			make: empty(func(s *snap) {
				s.State.Refused = map[fleet.PoolScope]fleet.Refusals{{Pool: "a", Scope: "acme"}: {Times: 3, LastAt: now, Reason: "no runner group macs"}}
			}),
			says:  "GitHub has refused pool a a runner in Acme, 3 times in a row: no runner group macs; the next try at 12:00:04 UTC",
			clear: func(s *snap) { s.Now = now.Add(4 * time.Second) },
			next:  fleet.WaitBooting,
		},
		fleet.WaitQueueLimit: {
			make:  empty(func(s *snap) { s.State.Jobs[0].QueuedAt = now.Add(-25 * time.Hour) }),
			says:  "GitHub is asked whether it has it still",
			clear: func(s *snap) { s.State.Jobs[0].AskedAt = now },
			next:  fleet.WaitBooting,
		},
		fleet.WaitUnnamed: {
			make:  with(2, fleet.PhaseBusy),
			says:  "r has begun",
			clear: first(func(r *fleet.Runner) { r.Job = 9 }), // GitHub names another
			next:  fleet.WaitBooting,
		},
	}
}

// Every reason to wait comes up, with a sentence that says what it is about, and is
// gone when what it is about has changed.
func TestEveryReasonToWait(t *testing.T) {
	t.Parallel()
	codes, all := waitCodes(t), reasons()
	for code := range codes {
		if _, ok := all[code]; !ok {
			t.Errorf("no scenario for the reason %q", code)
		}
	}
	for code, c := range all {
		t.Run(string(code), func(t *testing.T) {
			t.Parallel()
			if !codes[code] {
				t.Errorf("there is no such reason in the code")
			}
			s := newSnap()
			c.make(s)
			p := s.decide()
			if w := waitOf(t, p, 1); w.Code != code || !strings.Contains(w.Reason, c.says) {
				t.Errorf("waits for %q: %s; want %q: ... %s ...", w.Code, w.Reason, code, c.says)
			}
			c.clear(s)
			after := s.decide()
			if c.next == "" {
				if len(after.Waits) > 0 || !after.Empty() {
					t.Errorf("it waits on: %+v, %q", after.Waits, brief(after))
				}
				return
			}
			if w := waitOf(t, after, 1); w.Code != c.next {
				t.Errorf("then it waits for %q: %s; want %q", w.Code, w.Reason, c.next)
			}
			for _, bad := range append(untrueReasons(s.Snapshot, after), brokenLaws(s.Snapshot, after)...) {
				t.Error(bad)
			}
		})
	}
}

// What the loop explains over the real store, along the whole way of a job whose
// every obstacle comes up and goes.
func TestExplainOverTheRealStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newExplained(t)
		defer x.stop()

		x.job(1, fleet.ToldQueued, "")
		x.waits(1, fleet.WaitNoHost, "none has enrolled")
		x.enrol()
		x.waits(1, fleet.WaitBooting, "placed")
		first := x.runners()[0].ID
		x.report(fleet.RunnerReport{ID: first, Observed: fleet.ObservedFailed, Failure: "no image", HoldsSlot: true})
		x.report(fleet.RunnerReport{ID: first, Observed: fleet.ObservedGone})
		x.waits(1, fleet.WaitBooting, "placed") // one failure may be chance
		second := x.runners()[0].ID
		x.report(fleet.RunnerReport{ID: second, Observed: fleet.ObservedFailed, Failure: "no image", HoldsSlot: true})
		x.report(fleet.RunnerReport{ID: second, Observed: fleet.ObservedGone})
		x.waits(1, fleet.WaitBackoff, "2 times in a row")
		x.pass(3 * time.Second)
		x.waits(1, fleet.WaitBooting, "placed")

		r := fleet.RunnerReport{ID: x.runners()[0].ID, Observed: fleet.ObservedStandby, HoldsSlot: true}
		x.report(r)
		x.waits(1, fleet.WaitRegistering, string(r.ID)) // the loop has armed it
		x.mint(r.ID, "mf-1", 1)
		r.Observed, r.HasConfig = fleet.ObservedIdle, true
		x.report(r)
		x.waits(1, fleet.WaitAssignment, "listens")
		r.Observed = fleet.ObservedBusy
		x.report(r)
		x.waits(1, fleet.WaitUnnamed, string(r.ID))
		x.job(1, fleet.ToldInProgress, "mf-1")
		x.waits(1, "", "")

		x.job(2, fleet.ToldQueued, "")
		x.waits(2, fleet.WaitNoSlot, "every slot")
		x.pass(2 * time.Minute) // nothing is heard of the host
		x.waits(2, fleet.WaitUnreachable, "all 1 hosts")
		x.report(r)
		x.waits(2, fleet.WaitNoSlot, "every slot")
		x.job(1, fleet.ToldCompleted, "mf-1")
		x.waits(2, fleet.WaitNoSlot, "is being freed")
		r.Observed, r.HoldsSlot, r.Result = fleet.ObservedGone, false, "succeeded"
		x.report(r)
		x.waits(2, fleet.WaitBooting, "placed")
		x.job(2, fleet.ToldCompleted, "")
		x.waits(2, "", "")
	})
}

// explained is a running loop over a real store, with one host of one slot.
type explained struct {
	*testing.T
	s        *store.Store
	loop     *autoscaler.Loop
	stop     func()
	host     fleet.HostID
	sequence int64
}

const silence = time.Minute

func newExplained(t *testing.T) *explained {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Path: filepath.Join(t.TempDir(), "x.db")})
	if err != nil {
		t.Fatal(err)
	}
	x := &explained{T: t, s: s}
	loop, end := run(t, autoscaler.Config{
		Store: s, GitHub: unregister(func(context.Context, fleet.RegistrationRef) error { return nil }),
		Pools: []fleet.Pool{{Name: "a", Labels: fleet.NewLabels("macos"), Scopes: []fleet.Scope{{Owner: "acme"}}, Image: "i"}},
		Rules: autoscaler.Rules{HostDeadline: silence},
	})
	x.loop = loop
	x.stop = func() {
		end()
		x.must(s.Close())
	}
	return x
}

func (x *explained) must(err error) {
	x.Helper()
	if err != nil {
		x.Fatal(err)
	}
}

func (x *explained) enrol() {
	x.Helper()
	x.must(x.s.AddEnrolment(x.Context(), fleet.Enrolment{TokenHash: "t", ExpiresAt: time.Now().Add(time.Hour)}, 1))
	h, err := x.s.Enrol(x.Context(), "t", "c", "mini", "m")
	x.must(err)
	x.host = h.ID
	x.must(x.s.Hello(x.Context(), h.ID, "agent", "m", fleet.HostFacts{Slots: 1}, silence))
}

func (x *explained) report(r fleet.RunnerReport) {
	x.Helper()
	x.sequence++
	r.Pool = "a"
	x.must(x.s.Report(x.Context(), x.host, fleet.HostReport{Instance: "agent", Sequence: x.sequence, Facts: fleet.HostFacts{Slots: 1}, Runners: []fleet.RunnerReport{r}}, silence))
	synctest.Wait()
}

func (x *explained) mint(id fleet.RunnerID, name string, githubID int64) {
	x.Helper()
	m, err := x.s.BeginMint(x.Context(), x.host, id, name)
	x.must(err)
	x.must(x.s.Granted(x.Context(), id, m.Attempt, githubID))
}

func (x *explained) job(id fleet.JobID, e fleet.JobEvent, runner string) {
	x.Helper()
	x.must(x.s.Learn(x.Context(), fleet.JobNews{Event: e, Job: fleet.Job{ID: id, Owner: "acme", Repo: "app", Name: "build", Labels: fleet.NewLabels("macos"), RunnerName: runner}}))
}

func (x *explained) pass(d time.Duration) { time.Sleep(d) } // of the bubble: no time passes

func (x *explained) runners() []fleet.Runner {
	x.Helper()
	list, _, err := x.s.ListRunners(x.Context(), fleet.RunnerQuery{})
	x.must(err)
	if len(list) == 0 {
		x.Fatal("there is no runner")
	}
	return list
}

// waits checks what the loop explains once it has done all that it can; code "" is
// a job that waits no more.
func (x *explained) waits(id fleet.JobID, code fleet.WaitCode, says string) {
	x.Helper()
	synctest.Wait()
	w, ok, err := x.loop.Explain(x.Context(), id)
	x.must(err)
	if ok != (code != "") || w.Code != code || !strings.Contains(w.Reason, says) {
		x.Fatalf("job %d waits for %q: %s; want %q: ... %s ...", id, w.Code, w.Reason, code, says)
	}
}
