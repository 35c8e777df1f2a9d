// SPDX-License-Identifier: MIT

package autoscaler_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/autoscaler"
	"github.com/minifleet/minifleet/fleet"
)

// memory is a store of which a test holds the strings.
type memory struct {
	mu       sync.Mutex // guards all
	state    fleet.State
	changed  chan struct{}
	reads    []time.Time
	plans    []fleet.Plan
	outcomes []string
	broken   error // what State and Carry answer
	deaf     error // what storing an outcome answers
}

func newMemory() *memory {
	return &memory{changed: make(chan struct{}), state: fleet.State{
		Hosts: []fleet.Host{{ID: "h-1", Name: "1", Slots: 9, SeenAt: time.Now().Add(time.Hour)}},
	}}
}

func (m *memory) State(context.Context) (fleet.State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reads = append(m.reads, time.Now())
	st := m.state
	st.Runners, st.Jobs = slices.Clone(st.Runners), slices.Clone(st.Jobs)
	return st, m.broken
}

func (m *memory) Carry(_ context.Context, p fleet.Plan) (fleet.Carried, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.broken != nil {
		return fleet.Carried{}, m.broken
	}
	m.plans = append(m.plans, p)
	var out fleet.Carried
	for _, a := range p.Deletes {
		i := m.index(a.Runner)
		if m.state.Runners[i].Version != a.Version {
			out.Void++
			continue
		}
		if m.state.Runners[i].Registration != fleet.RegDeleting {
			m.state.Runners[i].Registration = fleet.RegDeleting
			m.state.Runners[i].Version++
		}
		out.Deletes = append(out.Deletes, fleet.Deletion{
			Runner: a.Runner, Attempt: 1, Since: m.state.Runners[i].Since, Ref: fleet.RegistrationRef{Name: m.state.Runners[i].RunnerName, Scope: fleet.Scope{Owner: "acme"}},
		})
		out.Done++
	}
	return out, nil
}

func (m *memory) index(id fleet.RunnerID) int {
	return slices.IndexFunc(m.state.Runners, func(r fleet.Runner) bool { return r.ID == id })
}

func (m *memory) outcome(id fleet.RunnerID, what string, edit func(*fleet.Runner)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.deaf != nil {
		return m.deaf
	}
	m.outcomes = append(m.outcomes, what)
	r := &m.state.Runners[m.index(id)]
	edit(r)
	r.Version++
	return nil
}

func (m *memory) RegistrationDeleted(_ context.Context, id fleet.RunnerID, attempt int) error {
	return m.outcome(id, fmt.Sprintf("%s/%d deleted", id, attempt), func(r *fleet.Runner) { r.Registration = fleet.RegGone })
}

func (m *memory) DeleteVetoed(_ context.Context, id fleet.RunnerID, attempt int, retry time.Time) error {
	return m.outcome(id, fmt.Sprintf("%s/%d vetoed for %s", id, attempt, time.Until(retry)), func(r *fleet.Runner) { r.Registration, r.DeleteAfter = fleet.RegBusy, retry })
}

func (m *memory) DeleteFailed(_ context.Context, id fleet.RunnerID, attempt int, retry time.Time) error {
	return m.outcome(id, fmt.Sprintf("%s/%d failed for %s", id, attempt, time.Until(retry)), func(r *fleet.Runner) { r.DeleteAfter = retry })
}

func (m *memory) Changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

// change edits the state and tells those who wait.
func (m *memory) change(edit func(*fleet.State)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	edit(&m.state)
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *memory) read() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.reads)
}

// got returns what was stored so far.
func (m *memory) got() (plans []fleet.Plan, outcomes []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.plans), slices.Clone(m.outcomes)
}

// leftovers gives the state n VMs that are gone and left registrations.
func (m *memory) leftovers(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range n {
		id := fmt.Sprint("r", i)
		m.state.Runners = append(m.state.Runners, fleet.Runner{
			ID: fleet.RunnerID(id), Pool: "a", Host: "h-1", Wanted: fleet.WantGone, Observed: fleet.ObservedGone,
			Registration: fleet.RegMinted, RunnerName: "mf-" + id, Attempt: 1, Version: 1, Since: time.Now(),
		})
	}
}

// unregister is a GitHub made of a function.
type unregister func(context.Context, fleet.RegistrationRef) error

func (f unregister) Unregister(ctx context.Context, ref fleet.RegistrationRef) error {
	return f(ctx, ref)
}

func never(context.Context, fleet.RegistrationRef) error { return errors.New("not expected") }

func site(m *memory, github unregister) autoscaler.Config {
	return autoscaler.Config{
		Store: m, GitHub: github,
		Pools: []fleet.Pool{{Name: "a", Labels: fleet.NewLabels("macos"), Scopes: []fleet.Scope{{Owner: "acme"}}, Image: "i"}},
	}
}

// run starts the loop in a synctest bubble; the returned function ends it.
func run(t *testing.T, c autoscaler.Config) (*autoscaler.Loop, func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := autoscaler.New(c)
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	synctest.Wait()
	return l, func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

func TestLoopWakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		l, stop := run(t, site(m, never))
		defer stop()
		expect := func(n int, why string) {
			t.Helper()
			synctest.Wait()
			if got := m.read(); got != n {
				t.Errorf("%s: %d decisions, want %d", why, got, n)
			}
		}
		expect(1, "at the start")
		m.change(func(*fleet.State) {})
		expect(2, "on a change")
		l.Wake()
		expect(3, "when woken")
		l.Wake()
		l.Wake()
		l.Wake()
		synctest.Wait()
		if n := m.read(); n < 4 || n > 5 {
			t.Errorf("three wakes at once make %d decisions", n-3)
		}
		n := m.read()
		time.Sleep(29 * time.Second)
		expect(n, "nothing happens")
		time.Sleep(2 * time.Second)
		expect(n+1, "to repair what nobody told")
		m.change(func(s *fleet.State) { // a surplus standby is due in 10 s
			s.Runners = []fleet.Runner{{
				ID: "r", Pool: "a", Host: "h-1", Wanted: fleet.WantUp, Observed: fleet.ObservedStandby, Version: 1, Since: time.Now().Add(-50 * time.Second),
			}}
		})
		expect(n+2, "on a change")
		time.Sleep(9 * time.Second)
		expect(n+2, "before it is due")
		time.Sleep(time.Second)
		expect(n+3, "when due")
		if plans, _ := m.got(); len(plans) != 1 || len(plans[0].Retires) != 1 {
			t.Errorf("plans %+v", plans)
		}
	})
}

// slow is a store whose state takes a while to read, as that of a huge fleet.
type slow struct {
	*memory
	takes time.Duration
}

func (s slow) State(ctx context.Context) (fleet.State, error) {
	time.Sleep(s.takes)
	return s.memory.State(ctx)
}

// In a storm of changes deciding takes no more than a fifth of the time, and the last
// change is not forgotten.
func TestLoopTakesBreath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		c := site(m, never)
		c.Store = slow{m, 100 * time.Millisecond}
		_, stop := run(t, c)
		defer stop()
		for range 1000 {
			m.change(func(*fleet.State) {})
			time.Sleep(10 * time.Millisecond)
		}
		if n := m.read(); n < 15 || n > 21 {
			t.Errorf("%d decisions of 100 ms in 10 s", n)
		}
		time.Sleep(time.Second)
		settled := m.read()
		m.change(func(s *fleet.State) { s.Hosts = nil })
		time.Sleep(time.Second)
		if m.read() != settled+1 {
			t.Errorf("%d decisions after one change", m.read()-settled)
		}
	})
}

// No deletion is recorded before its call can be made: what was decided of a runner
// while others were waited for may not hold any more.
func TestLoopBeginsNoDeletionThatWouldWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		m.leftovers(5)
		answer := make(chan struct{})
		c := site(m, func(ctx context.Context, _ fleet.RegistrationRef) error {
			select {
			case <-answer:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		c.Deletes = 2
		_, stop := run(t, c)
		defer stop()
		begun := func() (n int) {
			plans, _ := m.got()
			for _, p := range plans {
				n += len(p.Deletes)
			}
			return n
		}
		for _, want := range []int{2, 3, 4, 5} {
			synctest.Wait()
			if n := begun(); n != want {
				t.Errorf("%d deletions begun, want %d", n, want)
			}
			answer <- struct{}{}
		}
	})
}

func TestLoopConfirmsDeletions(t *testing.T) {
	for name, c := range map[string]struct {
		err  func() error
		want string
		next time.Duration // until GitHub is asked again; 0: never
	}{
		"deleted":      {func() error { return nil }, "r0/1 deleted", 0},
		"vetoed":       {func() error { return fmt.Errorf("422: %w", fleet.ErrRunnerBusy) }, "r0/1 vetoed for 1m0s", time.Minute},
		"rate limited": {func() error { return fmt.Errorf("x: %w", &fleet.RateLimited{Until: time.Now().Add(42 * time.Second)}) }, "r0/1 failed for 42s", 42 * time.Second},
		"uncertain":    {func() error { return fleet.ErrUncertain }, "r0/1 failed for 10s", 10 * time.Second},
		"anything":     {func() error { return errors.New("no network") }, "r0/1 failed for 10s", 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemory()
				m.leftovers(1)
				var mu sync.Mutex
				var asked []time.Time
				start := time.Now()
				_, stop := run(t, site(m, func(_ context.Context, ref fleet.RegistrationRef) error {
					if ref.Name != "mf-r0" {
						t.Errorf("%+v", ref)
					}
					mu.Lock()
					defer mu.Unlock()
					asked = append(asked, time.Now())
					return c.err()
				}))
				defer stop()
				_, outcomes := m.got()
				if diff := cmp.Diff([]string{c.want}, outcomes); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
				time.Sleep(c.next + time.Second)
				synctest.Wait()
				mu.Lock()
				defer mu.Unlock()
				switch {
				case c.next == 0 && len(asked) != 1:
					t.Errorf("asked %d times", len(asked))
				case c.next != 0 && (len(asked) != 2 || asked[1].Sub(start) != c.next):
					t.Errorf("asked at %v", asked)
				}
			})
		})
	}
}

// What fails for long is tried less often, and what GitHub refuses for more than a
// day is given up.
func TestLoopDeletionsThatFailForLong(t *testing.T) {
	for name, c := range map[string]struct {
		age  time.Duration
		err  error
		want string
	}{
		"young":             {0, fleet.ErrUncertain, "r0/1 failed for 10s"},
		"a minute":          {time.Minute, fleet.ErrUncertain, "r0/1 failed for 30s"},
		"hours":             {5 * time.Hour, fleet.ErrUncertain, "r0/1 failed for 10m0s"},
		"refused, hours":    {5 * time.Hour, fleet.ErrRefused, "r0/1 failed for 10m0s"},
		"refused, a day":    {26 * time.Hour, fleet.ErrRefused, "r0/1 deleted"},
		"no answer, a week": {7 * 24 * time.Hour, fleet.ErrUncertain, "r0/1 failed for 10m0s"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemory()
				m.leftovers(1)
				m.state.Runners[0].Since = time.Now().Add(-c.age)
				_, stop := run(t, site(m, func(context.Context, fleet.RegistrationRef) error { return c.err }))
				defer stop()
				if _, outcomes := m.got(); !slices.Equal(outcomes, []string{c.want}) {
					t.Errorf("got %q, want %q", outcomes, c.want)
				}
			})
		})
	}
}

// A deletion that fails is warned of once, however often it is repeated, and its end is told;
// one that succeeds at once is not told of at all.
func TestLoopWarnsOfADeletionOnce(t *testing.T) {
	limited := func() error { return &fleet.RateLimited{Until: time.Now().Add(time.Minute)} }
	for name, c := range map[string]struct {
		answers []func() error // in turn
		age     time.Duration
		want    []string
	}{
		"deleted at once": {[]func() error{func() error { return nil }}, 0, nil},
		"deleted at last": {
			[]func() error{func() error { return fleet.ErrUncertain }, limited, func() error { return fleet.ErrUncertain }, func() error { return nil }},
			0,
			[]string{"WARN registration not deleted yet", "DEBUG registration still not deleted", "DEBUG registration still not deleted", "INFO registration deleted at last"},
		},
		"limited, then deleted": {
			[]func() error{limited, func() error { return nil }},
			0,
			[]string{"WARN registration not deleted yet", "INFO registration deleted at last"},
		},
		"a job, and then again": {
			[]func() error{func() error { return fleet.ErrUncertain }, func() error { return fleet.ErrRunnerBusy }, func() error { return fleet.ErrUncertain }},
			0,
			[]string{"WARN registration not deleted yet", "INFO registration not deleted: GitHub says that it runs a job", "WARN registration not deleted yet"},
		},
		"given up": {
			[]func() error{func() error { return fleet.ErrUncertain }, func() error { return fleet.ErrRefused }},
			26 * time.Hour,
			[]string{"WARN registration not deleted yet", "ERROR registration given up: GitHub refuses to delete it, and removes it by itself when it was offline for a day"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemory()
				m.leftovers(1)
				m.state.Runners[0].Since = time.Now().Add(-c.age)
				asked := 0 // one call at a time
				config := site(m, func(context.Context, fleet.RegistrationRef) error {
					asked++
					return c.answers[asked-1]()
				})
				var lines bytes.Buffer
				config.Log = slog.New(slog.NewTextHandler(&lines, &slog.HandlerOptions{Level: slog.LevelDebug}))
				_, stop := run(t, config)
				for range len(c.answers) - 1 {
					m.mu.Lock()
					next := m.state.Runners[0].DeleteAfter
					m.mu.Unlock()
					time.Sleep(time.Until(next) + time.Second)
					synctest.Wait()
				}
				stop()
				var got []string
				for line := range strings.Lines(lines.String()) {
					_, rest, _ := strings.Cut(line, "level=")
					level, rest, _ := strings.Cut(rest, " msg=")
					if !strings.Contains(rest, "runner=r0") || strings.HasPrefix(rest, "\"delete registration\"") {
						continue
					}
					text, _, _ := strings.Cut(strings.TrimPrefix(rest, "\""), "\"")
					got = append(got, level+" "+text)
				}
				if diff := cmp.Diff(c.want, got); diff != "" {
					t.Errorf("logged (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestLoopDeletesSeveralAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		m.leftovers(10)
		var mu sync.Mutex
		running, most, asked := 0, 0, map[string]int{}
		c := site(m, func(_ context.Context, ref fleet.RegistrationRef) error {
			mu.Lock()
			running++
			most = max(most, running)
			asked[ref.Name]++
			mu.Unlock()
			time.Sleep(time.Second)
			mu.Lock()
			running--
			mu.Unlock()
			return nil
		})
		c.Deletes = 3
		_, stop := run(t, c)
		defer stop()
		for range 5 { // decisions meanwhile do not ask again for what is under way
			m.change(func(*fleet.State) {})
			synctest.Wait()
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		// A decision from before the outcome is void: the version has moved on.
		mu.Lock()
		defer mu.Unlock()
		if _, outcomes := m.got(); most != 3 || len(asked) != 10 || len(outcomes) != 10 {
			t.Errorf("%d at once, %d registrations, %d outcomes", most, len(asked), len(outcomes))
		}
		for name, n := range asked {
			if n != 1 {
				t.Errorf("%s was asked for %d times", name, n)
			}
		}
	})
}

// A slow GitHub keeps nobody waiting but its own call.
func TestLoopDecidesWhileGitHubIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		m.leftovers(1)
		release := make(chan struct{})
		_, stop := run(t, site(m, func(context.Context, fleet.RegistrationRef) error { <-release; return nil }))
		defer stop()
		m.change(func(s *fleet.State) {
			s.Jobs = []fleet.Job{{ID: 1, Owner: "acme", Repo: "app", Labels: fleet.NewLabels("macos"), State: fleet.JobQueued}}
		})
		synctest.Wait()
		if plans, _ := m.got(); len(plans) < 2 || len(plans[1].Places) != 1 {
			t.Errorf("%+v", plans)
		}
		m.change(func(s *fleet.State) { s.Jobs = nil })
		close(release)
	})
}

func TestLoopRepeatsDeletionsAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		m.leftovers(1)
		var asked atomic.Int64
		_, stop := run(t, site(m, func(ctx context.Context, _ fleet.RegistrationRef) error {
			asked.Add(1)
			<-ctx.Done()
			return ctx.Err()
		}))
		stop() // in the middle of the call: its outcome is not known
		if _, outcomes := m.got(); len(outcomes) != 0 || m.state.Runners[0].Registration != fleet.RegDeleting {
			t.Fatalf("outcomes %v, %q", outcomes, m.state.Runners[0].Registration)
		}
		_, stop = run(t, site(m, func(context.Context, fleet.RegistrationRef) error { asked.Add(1); return nil }))
		defer stop()
		if _, outcomes := m.got(); asked.Load() != 2 || !slices.Equal(outcomes, []string{"r0/1 deleted"}) {
			t.Errorf("asked %d times, outcomes %v", asked.Load(), outcomes)
		}
	})
}

// A runner may have become busy while no controller heard of it.
func TestLoopRepeatsDeletionsOfLivingRunnersOnceTheirHostHasReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		m.leftovers(1)
		r := &m.state.Runners[0]
		r.Wanted, r.Observed, r.Registration = fleet.WantArmed, fleet.ObservedIdle, fleet.RegDeleting
		r.RetiredAt = time.Now()
		l, stop := run(t, site(m, unregister(func(context.Context, fleet.RegistrationRef) error { return nil })))
		defer stop()
		if plans, outcomes := m.got(); len(plans)+len(outcomes) != 0 {
			t.Fatalf("before its host has reported: plans %+v, outcomes %v", plans, outcomes)
		}
		l.Reported("h-1")
		l.Reported("h-1")
		synctest.Wait()
		if _, outcomes := m.got(); !slices.Equal(outcomes, []string{"r0/1 deleted"}) {
			t.Errorf("after it: outcomes %v", outcomes)
		}
	})
}

func TestLoopDoesNotSpinOnAStoreInTrouble(t *testing.T) {
	t.Run("it cannot be read", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := newMemory()
			m.broken = errors.New("disk on fire")
			close(m.changed) // it even says that something changed
			_, stop := run(t, site(m, never))
			defer stop()
			time.Sleep(10*time.Second + time.Millisecond)
			synctest.Wait()
			if n := m.read(); n != 11 {
				t.Errorf("%d tries in 10 s, want 11", n)
			}
			m.mu.Lock()
			m.broken, m.changed = nil, make(chan struct{})
			m.mu.Unlock()
			time.Sleep(2 * time.Second)
			synctest.Wait()
			if n := m.read(); n != 12 {
				t.Errorf("%d tries, want 12: it works again", n)
			}
		})
	})
	t.Run("outcomes cannot be stored", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := newMemory()
			m.leftovers(1)
			m.deaf = errors.New("disk full")
			var asked atomic.Int64
			_, stop := run(t, site(m, func(context.Context, fleet.RegistrationRef) error { asked.Add(1); return nil }))
			defer stop()
			time.Sleep(10*time.Second + time.Millisecond)
			synctest.Wait()
			if n := asked.Load(); n < 2 || n > 11 {
				t.Errorf("GitHub was asked %d times in 10 s", n)
			}
		})
	})
}

func TestLoopTrustsSilenceOnlyAfterAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		m.state.Hosts[0].SeenAt = time.Now().Add(-time.Hour)
		m.state.Runners = []fleet.Runner{{
			ID: "r", Pool: "a", Host: "h-1", Scope: fleet.Scope{Owner: "acme"}, Wanted: fleet.WantArmed, ArmedAt: time.Now(), HasConfig: true,
			Observed: fleet.ObservedIdle, Registration: fleet.RegMinted, Since: time.Now(), Version: 1,
		}}
		m.state.Jobs = []fleet.Job{{ID: 1, Owner: "acme", Repo: "app", Labels: fleet.NewLabels("macos"), State: fleet.JobQueued}}
		c := site(m, never)
		c.Rules.HostDeadline = 40 * time.Second
		l, stop := run(t, c)
		defer stop()
		wait := func(want fleet.WaitCode) {
			t.Helper()
			w, ok, err := l.Explain(t.Context(), 1)
			if err != nil || !ok || w.Code != want {
				t.Errorf("%+v, %t, %v; want %q", w, ok, err, want)
			}
		}
		wait(fleet.WaitAssignment)
		time.Sleep(41 * time.Second)
		wait(fleet.WaitUnreachable)
		if _, ok, err := l.Explain(t.Context(), 404); ok || err != nil {
			t.Errorf("a job that does not wait: %t, %v", ok, err)
		}
		m.mu.Lock()
		m.broken = errors.New("gone")
		m.mu.Unlock()
		time.Sleep(2 * time.Second) // an answer is good for a second
		if _, _, err := l.Explain(t.Context(), 1); err == nil {
			t.Error("explained out of nothing")
		}
	})
}

func TestLoopAsksThePolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		m.state.Jobs = []fleet.Job{{ID: 1, Owner: "acme", Repo: "app", Labels: fleet.NewLabels("macos"), State: fleet.JobQueued}}
		c := site(m, never)
		c.Policy = func(st fleet.State) map[fleet.JobID]fleet.Verdict {
			return map[fleet.JobID]fleet.Verdict{st.Jobs[0].ID: {Refused: true, Reason: "no"}}
		}
		_, stop := run(t, c)
		defer stop()
		if plans, _ := m.got(); len(plans) != 0 {
			t.Errorf("%+v", plans)
		}
	})
}

// Until GitHub's lists were read, what is wanted is served and nothing is let go.
func TestLoopKnowsWhatItDoesNotKnow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		m.change(func(s *fleet.State) {
			s.Runners = []fleet.Runner{{
				ID: "r", Pool: "a", Host: "h-1", Wanted: fleet.WantUp, Observed: fleet.ObservedStandby, Version: 1, Since: time.Now().Add(-time.Hour),
			}}
		})
		var fresh atomic.Bool
		c := site(m, never)
		c.Fresh = fresh.Load
		l, stop := run(t, c)
		defer stop()
		if plans, _ := m.got(); len(plans) != 0 {
			t.Errorf("plans %+v without knowing of the demand", plans)
		}
		m.change(func(s *fleet.State) {
			s.Jobs = []fleet.Job{{ID: 1, Owner: "acme", Repo: "x", Labels: fleet.NewLabels("macos"), State: fleet.JobQueued, QueuedAt: time.Now()}}
		})
		synctest.Wait()
		if plans, _ := m.got(); len(plans) == 0 || len(plans[0].Arms) != 1 {
			t.Errorf("plans %+v, want the standby armed", plans)
		}
		m.change(func(s *fleet.State) { s.Jobs = nil })
		synctest.Wait()
		before, _ := m.got()
		fresh.Store(true)
		l.Wake()
		synctest.Wait()
		if plans, _ := m.got(); len(plans) != len(before)+1 || slices.ContainsFunc(before, func(p fleet.Plan) bool { return len(p.Retires) > 0 }) || len(plans[len(before)].Retires) != 1 {
			t.Errorf("plans %+v, want the surplus retired", plans)
		}
	})
}
