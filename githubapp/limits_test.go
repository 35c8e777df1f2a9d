// SPDX-License-Identifier: MIT

package githubapp_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/githubapp"
	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// direct hands requests to a handler of the same bubble.
type direct struct{ handler http.Handler }

func (d direct) RoundTrip(r *http.Request) (resp *http.Response, err error) {
	defer func() {
		if recover() != nil {
			err = errors.New("connection closed")
		}
	}()
	r = r.Clone(r.Context())
	if r.Body == nil {
		r.Body = http.NoBody
	}
	w := httptest.NewRecorder()
	d.handler.ServeHTTP(w, r)
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	return w.Result(), nil
}

// timed is a simulated GitHub, with its limits where the option OneKey is set, and an App, in a bubble of its own time.
func timed(t *testing.T, opt githubsim.Options, change ...func(*githubapp.Config)) (*githubsim.Sim, *githubapp.App, int64) {
	t.Helper()
	opt.Kind, opt.Prompt, opt.PrivateKey, opt.AppID = true, !opt.OneKey, keyPEM(), appID
	opt.BaseURL = "http://127.0.0.1:1"
	sim, err := githubsim.New(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sim.Close(); err != nil {
			t.Error(err)
		}
	})
	id, err := sim.AddInstallation(githubsim.Installation{Account: "acme", Repositories: []string{"rockets"}})
	if err != nil {
		t.Fatal(err)
	}
	c := githubapp.Config{AppID: appID, PrivateKey: keyPEM(), BaseURL: opt.BaseURL, Transport: direct{sim.Handler()}}
	for _, f := range change {
		f(&c)
	}
	a, err := githubapp.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return sim, a, id
}

// refusals counts the answers about limits.
func refusals(sim *githubsim.Sim) (n int) {
	for _, r := range sim.Requests() {
		if r.Status == http.StatusTooManyRequests || r.Status == http.StatusForbidden {
			n++
		}
	}
	return n
}

func name() string { return githubapp.RunnerName("s7k2", "mac") }

// However much is wanted, GitHub never has to refuse: a minute's registrations go at
// once, the others as soon as there is room, and what is worth less waits or is told
// until when.
func TestPacedWithinGitHubsLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim, a, _ := timed(t, githubsim.Options{OneKey: true, Latency: 150 * time.Millisecond})
		// Its answer tells that there are limits; the token is there (the library waits for
		// one with a lock, which no bubble of time sees).
		if _, _, err := a.GetRunner(t.Context(), rocket, 1); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		began := time.Now()
		var wg sync.WaitGroup
		var mu sync.Mutex
		var at []time.Duration
		for range 200 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				defer cancel()
				if _, err := a.Register(ctx, githubapp.RegisterRequest{Scope: rocket, Name: name(), Labels: []string{"x"}}); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				at = append(at, time.Since(began))
			})
		}
		wg.Wait()
		first := 0
		for _, d := range at {
			if d < time.Minute {
				first++
			}
		}
		if first != 180 || at[179] > 3*time.Second || at[199] > 65*time.Second {
			t.Errorf("%d registrations in the first minute, the 180th after %s, the last after %s", first, at[179], at[199])
		}
		if n := refusals(sim); n != 0 {
			t.Errorf("GitHub refused %d calls", n)
		}
		// Within the same minute nothing is left for a list, and it is not sent.
		var limited *githubapp.RateLimited
		err := a.ListRunners(t.Context(), rocket, func(githubapp.Runner) bool { return true })
		if err == nil {
			time.Sleep(time.Until(began.Add(2 * time.Minute)))
		} else if !errors.As(err, &limited) || !limited.Until.After(time.Now()) || !limited.Outage.IsZero() {
			t.Errorf("a list within the minute: %v", err)
		}
	})
}

// Registrations go first, then deletions, then questions, then lists.
func TestPriorities(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim, a, _ := timed(t, githubsim.Options{Latency: 500 * time.Millisecond}, func(c *githubapp.Config) { c.Limits = githubapp.LimitsOff })
		if _, _, err := a.GetRunner(t.Context(), rocket, 1); err != nil { // signs in
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 50 { // all that go at once
			wg.Go(func() { _, _, _ = a.GetRunner(t.Context(), rocket, 1) })
		}
		synctest.Wait()
		before := len(sim.Requests())
		for _, call := range []func(){
			func() { _ = a.ListRunners(t.Context(), rocket, func(githubapp.Runner) bool { return true }) },
			func() { _, _, _ = a.GetJob(t.Context(), "acme", "rockets", 1) },
			func() { _ = a.DeleteRunner(t.Context(), rocket, 1) },
			func() {
				_, _ = a.Register(t.Context(), githubapp.RegisterRequest{Scope: rocket, Name: name(), Labels: []string{"x"}})
			},
		} {
			for range 50 {
				wg.Go(call)
			}
			synctest.Wait()
		}
		wg.Wait()
		got := map[string]int{}
		var order []string
		for _, r := range sim.Requests()[before:] {
			kind := r.Method + " " + r.Path
			if got[kind]++; got[kind] == 1 {
				order = append(order, kind)
			}
		}
		want := []string{
			"GET /repos/acme/rockets/actions/runners/1", "POST /repos/acme/rockets/actions/runners/generate-jitconfig",
			"DELETE /repos/acme/rockets/actions/runners/1", "GET /repos/acme/rockets/actions/jobs/1", "GET /repos/acme/rockets/actions/runners",
		}
		if fmt.Sprint(order) != fmt.Sprint(want) {
			t.Errorf("the order was\n%v, want\n%v", order, want)
		}
		if n := refusals(sim); n != 0 {
			t.Errorf("GitHub refused %d calls", n)
		}
	})
}

// The last part of the hour's calls is kept for what is worth more.
func TestHourlyReserve(t *testing.T) {
	list := func(a *githubapp.App, ctx context.Context) error {
		return a.ListRunners(ctx, rocket, func(githubapp.Runner) bool { return true })
	}
	ask := func(a *githubapp.App, ctx context.Context) error {
		_, _, err := a.GetJob(ctx, "acme", "rockets", 1)
		return err
	}
	end := func(a *githubapp.App, ctx context.Context) error { return a.DeleteRunner(ctx, rocket, 1) }
	mint := func(a *githubapp.App, ctx context.Context) error {
		_, err := a.Register(ctx, githubapp.RegisterRequest{Scope: rocket, Name: name(), Labels: []string{"x"}})
		return err
	}
	calls := []func(*githubapp.App, context.Context) error{mint, end, ask, list}
	for left, sent := range map[int]int{2100: 4, 1990: 3, 700: 2, 240: 1, 1: 1, 0: 0} {
		synctest.Test(t, func(t *testing.T) {
			reset := time.Now().Add(30 * time.Minute)
			_, a, _ := timed(t, githubsim.Options{}, func(c *githubapp.Config) {
				c.Transport = telling{c.Transport, left, reset}
			})
			if _, _, err := a.GetRunner(t.Context(), rocket, 1); err != nil { // tells what is left
				t.Fatal(err)
			}
			for i, call := range calls {
				err := call(a, t.Context())
				var limited *githubapp.RateLimited
				if held := errors.As(err, &limited); held == (i < sent) || err != nil && !held {
					t.Errorf("%d left: call %d: %v", left, i, err)
				} else if held && !limited.Until.Equal(reset.Truncate(time.Second)) {
					t.Errorf("%d left: until %s, want %s", left, limited.Until, reset)
				}
			}
			time.Sleep(time.Until(reset))
			if err := list(a, t.Context()); err != nil {
				t.Errorf("in the next hour: %v", err)
			}
		})
	}
}

// telling is a GitHub of whose hourly limit so much is left.
type telling struct {
	http.RoundTripper
	left  int
	reset time.Time
}

func (r telling) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := r.RoundTripper.RoundTrip(req)
	if err == nil && strings.Contains(req.URL.Path, "/actions/") {
		h := resp.Header
		h.Set("X-RateLimit-Limit", "5000")
		h.Set("X-RateLimit-Remaining", fmt.Sprint(r.left))
		h.Set("X-RateLimit-Reset", fmt.Sprint(r.reset.Unix()))
	}
	return resp, err
}

// A secondary limit closes the installation that it was told to, and no other; where
// GitHub does not say for how long, for a minute and then longer each time.
func TestSecondaryLimitClosesOneInstallation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim, a, _ := timed(t, githubsim.Options{})
		if _, err := sim.AddInstallation(githubsim.Installation{Account: "beta", Repositories: []string{"b"}}); err != nil {
			t.Fatal(err)
		}
		beta := fleet.Scope{Owner: "beta", Repo: "b"}
		get := func(s fleet.Scope) error { _, _, err := a.GetRunner(t.Context(), s, 1); return err }
		var limited *githubapp.RateLimited
		if err := sim.Inject(githubsim.Fault{Kind: githubsim.FaultRetryAfter, Delay: 7 * time.Minute, Path: "/actions/"}); err != nil {
			t.Fatal(err)
		}
		if err := get(rocket); !errors.As(err, &limited) || time.Until(limited.Until) != 7*time.Minute {
			t.Fatalf("%v", err)
		}
		if err := get(beta); err != nil {
			t.Errorf("another installation: %v", err)
		}
		sent := len(sim.Requests())
		if err := a.DeleteRunner(t.Context(), rocket, 1); !errors.As(err, &limited) || time.Until(limited.Until) != 7*time.Minute {
			t.Errorf("meanwhile: %v", err)
		}
		if len(sim.Requests()) != sent {
			t.Error("a call was sent although GitHub wants none")
		}
		time.Sleep(7 * time.Minute)
		if err := get(rocket); err != nil {
			t.Errorf("afterwards: %v", err)
		}
		for _, pause := range []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute} {
			if err := sim.Inject(githubsim.Fault{Kind: githubsim.FaultStatus, Status: 429, Path: "/actions/"}); err != nil {
				t.Fatal(err)
			}
			if err := get(rocket); !errors.As(err, &limited) || time.Until(limited.Until) != pause {
				t.Errorf("without a word on how long: %v, want %s from %s", err, pause, time.Now())
			}
			time.Sleep(pause)
		}
	})
}

// During an outage calls wait, and one question is asked ever more seldom; the first answer
// ends it.
func TestOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var changes atomic.Int32
		sim, a, _ := timed(t, githubsim.Options{}, func(c *githubapp.Config) { c.Changed = func() { changes.Add(1) } })
		get := func() error { _, _, err := a.GetRunner(t.Context(), rocket, 1); return err }
		if err := get(); err != nil {
			t.Fatal(err)
		}
		if err := sim.Inject(githubsim.Fault{Kind: githubsim.FaultDrop, Count: -1}); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		var limited *githubapp.RateLimited
		for range 3 {
			if err := get(); err == nil || errors.As(err, &limited) {
				t.Fatalf("%v", err)
			}
		}
		if since, next, out := a.Outage(); !out || !since.Equal(began) || !next.After(began) || changes.Load() != 1 {
			t.Fatalf("since %s, next %s, %t; %d changes", since, next, out, changes.Load())
		}
		sent := len(sim.Requests())
		// Many want something all the time.
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				for time.Since(began) < 40*time.Minute { // the token lives for an hour
					err := get()
					if err == nil {
						t.Error("answered during an outage")
						return
					}
					if limited := (*githubapp.RateLimited)(nil); errors.As(err, &limited) {
						if !limited.Outage.Equal(began) || time.Until(limited.Until) > time.Minute {
							t.Errorf("%v", err)
						}
						time.Sleep(time.Until(limited.Until))
					}
				}
			})
		}
		wg.Wait()
		if n := len(sim.Requests()) - sent; n < 35 || n > 100 {
			t.Errorf("%d questions were asked in 40 minutes", n)
		}
		sim.ClearFaults()
		for {
			err := get()
			if err == nil {
				break
			}
			if !errors.As(err, &limited) {
				t.Fatal(err)
			}
			time.Sleep(time.Until(limited.Until))
		}
		if _, _, out := a.Outage(); out || changes.Load() != 2 {
			t.Errorf("still out: %t, %d changes", out, changes.Load())
		}
		if since := time.Since(began); since > 42*time.Minute {
			t.Errorf("found out only after %s", since)
		}
	})
}

// What GitHub refuses, however often, is no outage.
func TestRefusalsAreNoOutage(t *testing.T) {
	o := newOdd(t)
	o.on("DELETE /orgs/acme/actions/runners/5", replying(403, ``))
	a := o.app()
	for range 20 {
		if err := a.DeleteRunner(t.Context(), org, 5); !errors.Is(err, githubapp.ErrRefused) {
			t.Fatal(err)
		}
	}
}

// A server without limits is not paced.
func TestLimitsOff(t *testing.T) {
	for limits, want := range map[githubapp.Limits]int{githubapp.LimitsOff: 0, githubapp.LimitsAuto: 20} {
		synctest.Test(t, func(t *testing.T) {
			_, a, _ := timed(t, githubsim.Options{}, func(c *githubapp.Config) { c.Limits = limits })
			if _, _, err := a.GetRunner(t.Context(), rocket, 1); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Minute)
			began, late := time.Now(), 0
			var wg sync.WaitGroup
			var mu sync.Mutex
			for range 200 {
				wg.Go(func() {
					_, err := a.Register(t.Context(), githubapp.RegisterRequest{Scope: rocket, Name: name(), Labels: []string{"x"}})
					mu.Lock()
					defer mu.Unlock()
					if err != nil {
						t.Error(err)
					} else if time.Since(began) > 10*time.Second {
						late++
					}
				})
			}
			wg.Wait()
			if late != want {
				t.Errorf("%s: %d were held back, want %d", limits, late, want)
			}
		})
	}
}
