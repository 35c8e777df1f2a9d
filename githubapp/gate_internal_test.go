// SPDX-License-Identifier: MIT

package githubapp

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// turnstile has requests enter a gate, and notes when each went or was refused.
type turnstile struct {
	t    *testing.T
	g    *gate
	from time.Time
	over chan string
}

func newTurnstile(t *testing.T) *turnstile {
	g := emptyGate()
	t.Cleanup(g.close)
	return &turnstile{t, g, time.Now(), make(chan string, 100)}
}

// enter begins; what becomes of it is told by a name. It returns the request.
func (s *turnstile) enter(ctx context.Context, name string, lane int64, p Priority, points int) *pass {
	request := &pass{lane: lane, class: ClassOther, path: "/" + name, priority: p, points: points}
	s.pass(ctx, name, request)
	return request
}

func (s *turnstile) pass(ctx context.Context, name string, request *pass) {
	go func() {
		err := s.g.enter(ctx, request)
		text := "goes"
		if limited := (*RateLimited)(nil); errors.As(err, &limited) {
			text = "refused until " + limited.Until.Sub(s.from).String()
			if !limited.Outage.IsZero() {
				text += ", an outage since " + limited.Outage.Sub(s.from).String()
			}
		} else if err != nil {
			text = err.Error()
		}
		s.over <- fmt.Sprintf("%s %s at %s", name, text, time.Since(s.from))
	}()
	synctest.Wait() // so that they come in order
}

// want waits for so many to be over, in whatever order.
func (s *turnstile) want(want ...string) {
	s.t.Helper()
	var got []string
	for range want {
		got = append(got, <-s.over)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		s.t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
	synctest.Wait()
	if n := len(s.over); n != 0 {
		s.t.Errorf("%d more are over: %s", n, <-s.over)
	}
}

// full lets nothing through until somebody leaves.
func (s *turnstile) full() *pass {
	s.g.open = maxConcurrent - 1
	s.enter(s.t.Context(), "first", 1, PriorityMint, 1)
	s.want("first goes at " + time.Since(s.from).String())
	return &pass{lane: 1, points: 1, resource: "core", path: "/"}
}

// Within a priority the first that came is the first that goes, one for each that leaves.
func TestGateKeepsTheOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTurnstile(t)
		first := s.full()
		for _, c := range []struct {
			name string
			p    Priority
		}{{"list", PriorityPoll}, {"ask-1", PriorityAsk}, {"mint", PriorityMint}, {"ask-2", PriorityAsk}, {"ask-3", PriorityAsk}} {
			s.enter(t.Context(), c.name, 1, c.p, 1)
		}
		if got, want := s.g.app.Queued(), (map[string]int{"mint": 1, "end": 0, "ask": 3, "poll": 1}); !maps.Equal(got, want) {
			t.Errorf("queued: %v, want %v", got, want)
		}
		for _, name := range []string{"mint", "ask-1", "ask-2", "ask-3", "list"} {
			s.g.leave(first, outcomeAnswered)
			s.want(name + " goes at 0s")
		}
		if got := s.g.app.Queued(); got["ask"]+got["mint"]+got["poll"] != 0 {
			t.Errorf("queued: %v", got)
		}
	})
}

// Each waits no longer than its priority, its kind or its caller has it wait. What nobody
// knows the end of may be tried again soon.
func TestGatePatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTurnstile(t)
		s.full()
		for name, p := range map[string]Priority{"mint": PriorityMint, "end": PriorityEnd, "ask": PriorityAsk, "poll": PriorityPoll} {
			s.enter(t.Context(), name, 1, p, 1)
		}
		s.pass(t.Context(), "token", &pass{class: ClassToken, path: "/", priority: PriorityMint, points: 5})
		bounded, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		s.enter(bounded, "bounded", 1, PriorityMint, 1)
		s.want("bounded refused until 2.5s at 500ms")
		s.want("token refused until 3s at 1s")
		s.want("end refused until 4s at 2s")
		s.want("ask refused until 12s at 10s")
		s.want("poll refused until 32s at 30s")
		s.want("mint refused until 1m32s at 1m30s")
	})
}

// What cannot go before its caller gives up is refused at once, with the time at which it
// could; what can waits for it, each as long as it has to.
func TestGateWaitsOnlyIfItHelps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTurnstile(t)
		for lane, shut := range map[int64]time.Duration{1: 5 * time.Second, 2: 3 * time.Second, 3: 4 * time.Second, 4: time.Minute} {
			s.g.lane(lane).shut = s.from.Add(shut)
		}
		for lane := range int64(4) {
			s.enter(t.Context(), fmt.Sprint("lane-", lane+1), lane+1, PriorityAsk, 1)
		}
		bounded, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		s.enter(bounded, "bounded", 1, PriorityAsk, 1)
		s.want("lane-4 refused until 1m0s at 0s", "bounded refused until 5s at 0s")
		s.want("lane-2 goes at 3s")
		s.want("lane-3 goes at 4s")
		s.want("lane-1 goes at 5s")
	})
}

// Who waits for points of the minute is not overtaken by those that need fewer, but in
// another lane; when it gives up, they go.
func TestGateNobodyOvertakesForPoints(t *testing.T) {
	for name, c := range map[string]struct {
		gaveUp time.Duration
		want   []string
	}{
		"it goes":     {0, []string{"write goes at 8s", "read goes at 8s"}},
		"it gives up": {time.Second, []string{"write enough at 1s", "read goes at 1s"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newTurnstile(t)
				used(&s.g.lane(1).minute, s.from.Add(8*time.Second), int(shares[PriorityAsk].minute*minutePoints)-3)
				ctx, cancel := context.WithCancelCause(t.Context())
				if c.gaveUp > 0 {
					time.AfterFunc(c.gaveUp, func() { cancel(errEnoughWaited) })
				}
				s.enter(ctx, "write", 1, PriorityAsk, writePoints)
				s.enter(t.Context(), "read", 1, PriorityAsk, readPoints)
				s.enter(t.Context(), "elsewhere", 2, PriorityAsk, readPoints)
				s.want("elsewhere goes at 0s")
				s.want(c.want...)
				cancel(nil)
			})
		})
	}
}

var errEnoughWaited = errors.New("enough")

// What closes one lane, or one kind of call in it, holds back nothing else in it.
func TestGateOtherKindsGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTurnstile(t)
		s.g.lane(1).resource[ClassRegister] = "registrations"
		s.g.lane(1).spent["registrations"] = s.from.Add(time.Minute)
		mint := func(name, path string, lane int64) {
			s.pass(t.Context(), name, &pass{lane: lane, class: ClassRegister, path: path, priority: PriorityMint, points: writePoints})
		}
		mint("spent", appsMint, 1)
		s.enter(t.Context(), "read", 1, PriorityPoll, readPoints)
		s.want("read goes at 0s")
		used(s.g.registrations.of("/orgs/beta/actions/"), s.from.Add(30*time.Second), registrationsAtMost)
		mint("beta", "/orgs/beta/actions/runners/generate-jitconfig", 2)
		mint("gamma", "/orgs/gamma/actions/runners/generate-jitconfig", 2)
		s.want("gamma goes at 0s")
		s.want("beta goes at 30s")
		s.want("spent goes at 1m0s")
	})
}

// A request counts, in all that is counted, from when it goes until a while after its end.
func TestGateCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := emptyGate()
		defer g.close()
		g.lane(place).resource[ClassRegister] = "registrations"
		p := &pass{lane: place, class: ClassRegister, path: appsMint, priority: PriorityMint, points: writePoints}
		read := &pass{lane: place, class: ClassJob, path: appsMint, priority: PriorityPoll, points: readPoints}
		for _, one := range []*pass{p, read} {
			if err := g.enter(t.Context(), one); err != nil {
				t.Fatal(err)
			}
		}
		l, scope := g.lane(place), g.registrations.of(appsMint)
		counts := func() string {
			l.minute.roll(time.Now())
			scope.roll(time.Now())
			return fmt.Sprint(g.open, l.calls["registrations"], l.calls["core"], l.minute.open, l.minute.sum, scope.open, scope.sum)
		}
		if got, want := counts(), "2 1 1 6 0 1 0"; got != want {
			t.Errorf("under way: %s, want %s", got, want)
		}
		for _, one := range []*pass{p, read} {
			g.leave(one, outcomeAnswered)
		}
		if got, want := counts(), "0 0 0 0 6 0 1"; got != want {
			t.Errorf("answered: %s, want %s", got, want)
		}
		time.Sleep(time.Minute)
		if got, want := counts(), "0 0 0 0 0 0 1"; got != want {
			t.Errorf("a minute later: %s, want %s", got, want)
		}
		time.Sleep(registrationPeriod - time.Minute - time.Nanosecond)
		if got, want := counts(), "0 0 0 0 0 0 1"; got != want {
			t.Errorf("just within five minutes: %s, want %s", got, want)
		}
		time.Sleep(time.Nanosecond)
		if got, want := counts(), "0 0 0 0 0 0 0"; got != want {
			t.Errorf("five minutes later: %s, want %s", got, want)
		}
	})
}

// What an answer says of a limit closes what it is about, for as long as it says or, where it
// does not, longer each time; a later word never opens what an earlier one closed.
func TestGateCharged(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	g := emptyGate()
	p := &pass{lane: place, class: ClassRegister}
	l := g.lane(place)
	say := func(resource string, a *limitAnswer, want time.Duration) {
		t.Helper()
		until := g.charged(p, resource, a, now)
		if a == nil && !until.IsZero() || a != nil && until.Sub(now) != want {
			t.Errorf("until %s, want %s after %s", until, want, now)
		}
	}
	silent := &limitAnswer{}
	for _, want := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60, 60, 60} {
		say("core", silent, want*time.Minute)
	}
	say("core", nil, 0) // an answer about no limit ends the row
	say("core", silent, time.Minute)
	if shut := l.shut.Sub(now); shut != time.Hour {
		t.Errorf("shut for %s, want an hour", shut)
	}
	say("core", &limitAnswer{until: now.Add(2 * time.Hour)}, 2*time.Hour)
	if shut := l.shut.Sub(now); shut != 2*time.Hour {
		t.Errorf("shut for %s, want two hours", shut)
	}
	l.shut = time.Time{}
	say("registrations", &limitAnswer{primary: true, until: now.Add(time.Minute)}, time.Minute)
	if !l.shut.IsZero() || !l.spent["registrations"].Equal(now.Add(time.Minute)) || len(l.spent) != 1 {
		t.Errorf("shut until %s, spent %v", l.shut, l.spent)
	}
	for told, want := range map[string]string{"": "registrations", strings.Repeat("x", 65): "registrations", strings.Repeat("x", 64): strings.Repeat("x", 64)} {
		l.resource[ClassRegister] = "registrations"
		say(told, nil, 0)
		if got := l.resourceOf(ClassRegister); got != want {
			t.Errorf("told %q: charged to %q, want %q", told, got, want)
		}
	}
}

// A server's limits hold once an answer tells of one, unless it is known to have none.
func TestGateLearnsOfLimits(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		limits Limits
		told   string
		want   bool
	}{{LimitsAuto, "core", true}, {LimitsAuto, "", false}, {LimitsAuto, strings.Repeat("x", 65), false}, {LimitsOff, "core", false}} {
		g := emptyGate()
		g.paced, g.app.limits = false, c.limits
		g.charged(&pass{lane: place}, c.told, nil, time.Now())
		if g.paced != c.want {
			t.Errorf("%s, told of %q: paced %t", c.limits, c.told, g.paced)
		}
	}
}

// A call's priority is that of its kind, unless its caller knows better.
func TestPriorityOfCalls(t *testing.T) {
	t.Parallel()
	for c, want := range map[Class]Priority{
		ClassToken: PriorityAsk, ClassRegister: PriorityMint, ClassDelete: PriorityEnd, ClassRunner: PriorityAsk, ClassRunners: PriorityPoll,
		ClassGroups: PriorityAsk, ClassJob: PriorityAsk, ClassJobs: PriorityPoll, ClassRun: PriorityAsk, ClassRuns: PriorityPoll,
		ClassInstallation: PriorityAsk, ClassDeliveries: PriorityPoll, ClassOther: PriorityAsk,
	} {
		ctx := t.Context()
		if got := priorityOf(ctx, c); got != want {
			t.Errorf("%s: %s, want %s", c, priorityNames[got], priorityNames[want])
		}
		for _, odd := range []Priority{-1, priorities} {
			if got := priorityOf(WithPriority(ctx, odd), c); got != want {
				t.Errorf("%s at priority %d: %s", c, odd, priorityNames[got])
			}
		}
		for p := range priorities {
			if got := priorityOf(prefer(WithPriority(ctx, p), PriorityEnd), c); got != p {
				t.Errorf("%s: %s, its caller wants %s", c, priorityNames[got], priorityNames[p])
			}
		}
		if got := priorityOf(prefer(ctx, PriorityEnd), c); got != PriorityEnd {
			t.Errorf("%s: %s is preferred", c, priorityNames[got])
		}
	}
}
