// SPDX-License-Identifier: MIT

package hosts_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/hosts"
	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/trust"
)

func TestMint(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.agent("mini-1", 2)
	id := a.armed()
	// What the database says at the moment of the call to GitHub, seen from outside.
	var atCall string
	var atCallErr error
	w.gh.mood(func(g *github) {
		g.register = func(_ context.Context, name string) error {
			atCall, atCallErr = w.row(`SELECT r.registration || ' ' || r.attempt || ' ' || m.owner FROM runners r JOIN mints m ON m.runner = r.id
				WHERE r.id = $1 AND r.runner_name = $2 AND m.name = $2`, string(id), name)
			return nil
		}
	})
	got, answered := a.mint(id)
	want := protocol.Minted{Name: "mf-" + w.s.Site() + "-mac-1", JITConfig: jitConfig + "mf-" + w.s.Site() + "-mac-1", Trust: &trust.Policy{Deny: []string{"acme/secret"}}}
	if diff := cmp.Diff(want, got); diff != "" || answered.header.Get("Cache-Control") != "no-store" {
		t.Errorf("%v\n%s", answered.header, diff)
	}
	if atCallErr != nil || atCall != "minting 1 acme" {
		t.Errorf("when GitHub was asked the database said %q, %v", atCall, atCallErr)
	}
	calls, registered := w.gh.took()
	if diff := cmp.Diff([]string{"register " + got.Name + ` in Acme as macOS,ARM64 of "minis"`}, calls); diff != "" {
		t.Errorf("%s", diff)
	}
	r := w.runner(id)
	if r.Registration != fleet.RegMinted || r.RunnerName != got.Name || r.GitHubID != w.gh.registered[registered[0]] {
		t.Errorf("%+v", r)
	}
	if !strings.Contains(w.log.String(), got.Name) {
		t.Error("the log does not tell of it")
	}
	w.holdsNowhere(jitConfig, a.credential)
}

func TestMintNeedsAGrant(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.agent("mini-1", 5), w.agent("mini-2", 2)
	armed, clean := a.armed(), a.place()
	check := func(got answer, status int, code protocol.Code) {
		t.Helper()
		w.refused(got, status, code)
		if calls, _ := w.gh.took(); len(calls) != 0 {
			t.Errorf("GitHub was asked: %q", calls)
		}
	}
	_, got := a.mint(clean)
	check(got, http.StatusConflict, protocol.CodeNoGrant)
	_, got = b.mint(armed)
	check(got, http.StatusForbidden, protocol.CodeWrongHost)
	_, got = a.mint("r-none")
	check(got, http.StatusNotFound, protocol.CodeNoSuchRunner)
	check(w.do(http.MethodPost, mintPath(armed), a.credential, "no JSON", nil), http.StatusBadRequest, protocol.CodeBadRequest)
	done, err := w.s.Carry(t.Context(), fleet.Plan{Disarms: []fleet.Disarm{{Runner: armed, Version: w.runner(armed).Version}}})
	if err != nil || done.Done != 1 {
		t.Fatalf("%+v, %v", done, err)
	}
	_, got = a.mint(armed)
	check(got, http.StatusConflict, protocol.CodeNoGrant)
}

// TestMintForMadeUpRunners: whoever has stolen a host's credential can have nothing
// registered that the controller did not grant, least of all elsewhere.
func TestMintForMadeUpRunners(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.agent("mini-1", 5)
	clean := a.place()
	site := w.s.Site()
	a.report(
		protocol.RunnerReport{ID: "x1", Observed: "standby", HasConfig: true, Pool: "mac", Scope: "other/never-served", RunnerName: site + "-mac-x1"},
		protocol.RunnerReport{ID: "x2", Observed: "idle", HasConfig: true, Pool: "mac", Scope: "other/never-served"},
		protocol.RunnerReport{ID: string(clean), Observed: "standby", HoldsSlot: true, HasConfig: true, Pool: "mac", Scope: "other/never-served", RunnerName: site + "-mac-x3"},
	)
	for _, id := range []fleet.RunnerID{"x1", "x2", clean} {
		_, got := a.mint(id)
		w.refused(got, http.StatusConflict, protocol.CodeNoGrant)
	}
	if calls, _ := w.gh.took(); len(calls) != 0 {
		t.Errorf("GitHub was asked: %q", calls)
	}
}

func TestMintAgain(t *testing.T) {
	t.Parallel()
	type result struct {
		*world
		a  *agent
		id fleet.RunnerID
	}
	begin := func(t *testing.T) result {
		t.Helper()
		w := newWorld(t)
		a := w.agent("mini-1", 2)
		return result{w, a, a.armed()}
	}
	one := func(w *world, name string) {
		w.Helper()
		if _, registered := w.gh.took(); !slices.Equal(registered, []string{name}) {
			w.Errorf("registered at GitHub: %q, want %q alone", registered, name)
		}
	}
	t.Run("after a lost answer the earlier registration goes first", func(t *testing.T) {
		t.Parallel()
		w := begin(t)
		first, _ := w.a.mint(w.id)
		var atCall string
		var err error
		w.gh.mood(func(g *github) {
			g.unregister = func(fleet.RegistrationRef) error {
				atCall, err = w.row(`SELECT registration FROM runners WHERE id = $1`, string(w.id))
				return nil
			}
		})
		w.gh.took()
		second, _ := w.a.mint(w.id)
		calls, _ := w.gh.took()
		want := []string{
			"unregister " + first.Name + " (1) in Acme",
			"register " + second.Name + ` in Acme as macOS,ARM64 of "minis"`,
		}
		if diff := cmp.Diff(want, calls); diff != "" || second.Name == first.Name || second.JITConfig == first.JITConfig {
			t.Errorf("%s", diff)
		}
		if atCall != "deleting" || err != nil {
			t.Errorf("the intent to delete was not stored before the call: %q, %v", atCall, err)
		}
		one(w.world, second.Name)
		w.holdsNowhere(jitConfig)
	})
	for name, took := range map[string]bool{"uncertain, and it took effect": true, "uncertain, and it did not": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := begin(t)
			fails := func(string) error { return fmt.Errorf("POST: time-out: %w", fleet.ErrUncertain) }
			w.gh.mood(func(g *github) {
				if took {
					g.answer = fails
				} else {
					g.register = func(context.Context, string) error { return fails("") }
				}
			})
			_, got := w.a.mint(w.id)
			w.refused(got, http.StatusServiceUnavailable, protocol.CodeLater)
			if r := w.runner(w.id); r.Registration != fleet.RegMinting {
				t.Errorf("%q: it may exist", r.Registration)
			}
			w.gh.mood(func(g *github) { g.answer, g.register, g.calls = nil, nil, nil })
			second, _ := w.a.mint(w.id)
			calls, _ := w.gh.took()
			if len(calls) != 2 || !strings.HasPrefix(calls[0], "unregister ") || !strings.Contains(calls[0], "(0)") {
				t.Errorf("it was not looked for by name first: %q", calls)
			}
			one(w.world, second.Name)
		})
	}
	t.Run("an error nobody knows is an uncertain one", func(t *testing.T) {
		t.Parallel()
		w := begin(t)
		w.gh.mood(func(g *github) { g.answer = func(string) error { return errors.New("connection reset") } })
		_, got := w.a.mint(w.id)
		w.refused(got, http.StatusServiceUnavailable, protocol.CodeUnavailable)
		w.gh.mood(func(g *github) { g.answer = nil })
		second, _ := w.a.mint(w.id)
		one(w.world, second.Name)
	})
	t.Run("refused", func(t *testing.T) {
		t.Parallel()
		w := begin(t)
		w.gh.mood(func(g *github) {
			g.register = func(context.Context, string) error { return fmt.Errorf("403: no such group: %w", fleet.ErrRefused) }
		})
		_, got := w.a.mint(w.id)
		w.refused(got, http.StatusBadGateway, protocol.CodeRefused)
		if r := w.runner(w.id); r.Registration != fleet.RegGone || r.Phase() != fleet.PhaseStandby {
			t.Errorf("the grant was not taken back: %+v", r)
		}
		_, got = w.a.mint(w.id)
		w.refused(got, http.StatusConflict, protocol.CodeNoGrant)
		w.gh.mood(func(g *github) { g.register, g.calls = nil, nil })
		w.a.arm(w.id)
		second, _ := w.a.mint(w.id)
		if calls, _ := w.gh.took(); len(calls) != 1 {
			t.Errorf("%q", calls)
		}
		one(w.world, second.Name)
	})
	t.Run("certainly not made, and worth another try", func(t *testing.T) {
		t.Parallel()
		w := begin(t)
		w.gh.mood(func(g *github) {
			g.register = func(context.Context, string) error { return fmt.Errorf("no route: %w", fleet.ErrLater) }
		})
		_, got := w.a.mint(w.id)
		w.refused(got, http.StatusServiceUnavailable, protocol.CodeLater)
		if r := w.runner(w.id); r.Registration != fleet.RegGone || r.Wanted != fleet.WantArmed {
			t.Errorf("%+v", r)
		}
		w.gh.mood(func(g *github) { g.register, g.calls = nil, nil })
		second, _ := w.a.mint(w.id)
		if calls, _ := w.gh.took(); len(calls) != 1 {
			t.Errorf("nothing was there to look for first: %q", calls)
		}
		one(w.world, second.Name)
	})
	t.Run("a taken name", func(t *testing.T) {
		t.Parallel()
		w := begin(t)
		var tried []string
		w.gh.mood(func(g *github) {
			g.register = func(_ context.Context, name string) error {
				if tried = append(tried, name); len(tried) < 3 {
					return fmt.Errorf("409: %w", fleet.ErrNameTaken)
				}
				return nil
			}
		})
		got, _ := w.a.mint(w.id)
		slices.Sort(tried)
		if len(slices.Compact(tried)) != 3 || got.Name == "" {
			t.Errorf("tried %q, got %q", tried, got.Name)
		}
		if calls, _ := w.gh.took(); slices.ContainsFunc(calls, func(c string) bool { return strings.HasPrefix(c, "unregister") }) {
			t.Errorf("somebody else's registration was deleted: %q", calls)
		}
		one(w.world, got.Name)
	})
	t.Run("names that are all taken", func(t *testing.T) {
		t.Parallel()
		w := begin(t)
		w.gh.mood(func(g *github) { g.register = func(context.Context, string) error { return fleet.ErrNameTaken } })
		_, got := w.a.mint(w.id)
		w.refused(got, http.StatusServiceUnavailable, protocol.CodeLater)
		if calls, _ := w.gh.took(); len(calls) > 10 {
			t.Errorf("%d names were tried in one call", len(calls))
		}
	})
	t.Run("rate limited", func(t *testing.T) {
		t.Parallel()
		w := begin(t)
		w.gh.mood(func(g *github) {
			g.register = func(context.Context, string) error {
				return fmt.Errorf("POST: %w", &fleet.RateLimited{Until: time.Now().Add(90 * time.Minute)})
			}
		})
		_, got := w.a.mint(w.id)
		w.refused(got, http.StatusServiceUnavailable, protocol.CodeLater)
		if s, err := strconv.Atoi(got.header.Get("Retry-After")); err != nil || s < 80*60 || s > 90*60 {
			t.Errorf("Retry-After %q", got.header.Get("Retry-After"))
		}
		if r := w.runner(w.id); r.Registration != fleet.RegGone {
			t.Errorf("%q: GitHub certainly did nothing", r.Registration)
		}
	})
	t.Run("GitHub would not delete the earlier one: it runs a job", func(t *testing.T) {
		t.Parallel()
		w := begin(t)
		first, _ := w.a.mint(w.id)
		w.gh.mood(func(g *github) {
			g.unregister = func(fleet.RegistrationRef) error { return fmt.Errorf("422: %w", fleet.ErrRunnerBusy) }
		})
		_, got := w.a.mint(w.id)
		w.refused(got, http.StatusConflict, protocol.CodeRunnerBusy)
		if r := w.runner(w.id); r.Registration != fleet.RegBusy {
			t.Errorf("%+v", r)
		}
		w.gh.took()
		_, got = w.a.mint(w.id)
		w.refused(got, http.StatusConflict, protocol.CodeRunnerBusy)
		if calls, _ := w.gh.took(); len(calls) != 0 {
			t.Errorf("it is final, and GitHub was asked again: %q", calls)
		}
		one(w.world, first.Name)
	})
	t.Run("the earlier one cannot be deleted now", func(t *testing.T) {
		t.Parallel()
		for name, c := range map[string]struct {
			err   error
			code  protocol.Code
			after time.Duration
		}{
			"rate limited": {&fleet.RateLimited{Until: time.Now().Add(40 * time.Minute)}, protocol.CodeLater, 40 * time.Minute},
			"uncertain":    {fleet.ErrUncertain, protocol.CodeLater, time.Second},
			"unknown":      {errors.New("no network"), protocol.CodeLater, time.Second},
		} {
			w := begin(t)
			w.a.mint(w.id)
			w.gh.mood(func(g *github) { g.unregister = func(fleet.RegistrationRef) error { return c.err } })
			_, got := w.a.mint(w.id)
			w.refused(got, http.StatusServiceUnavailable, c.code)
			s, _ := strconv.Atoi(got.header.Get("Retry-After"))
			if after := time.Duration(s) * time.Second; after < c.after-10*time.Minute || after > c.after || s < 1 {
				t.Errorf("%s: Retry-After %d", name, s)
			}
			if r := w.runner(w.id); r.Registration != fleet.RegDeleting {
				t.Errorf("%s: %q", name, r.Registration)
			}
			w.gh.mood(func(g *github) { g.unregister = nil })
			second, _ := w.a.mint(w.id)
			one(w.world, second.Name)
		}
	})
	t.Run("the store fails when the grant is to be confirmed", func(t *testing.T) {
		t.Parallel()
		w := begin(t)
		w.s.granted = func() error { return errors.New("disk full") }
		minted, got := w.a.mint(w.id)
		w.refused(got, http.StatusServiceUnavailable, protocol.CodeUnavailable)
		if minted.JITConfig != "" || strings.Contains(string(got.body), jitConfig) {
			t.Error("a config is out that is not confirmed")
		}
		w.s.granted = nil
		second, _ := w.a.mint(w.id)
		one(w.world, second.Name)
		w.holdsNowhere(jitConfig)
	})
	t.Run("its pool does not serve the scope any more", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, func(c *hosts.Config) { c.Pools[0].Scopes = []fleet.Scope{{Owner: "Other"}} })
		a := w.agent("mini-1", 2)
		id := a.armed()
		_, got := a.mint(id)
		w.refused(got, http.StatusBadGateway, protocol.CodeRefused)
		if calls, _ := w.gh.took(); len(calls) != 0 {
			t.Errorf("%q", calls)
		}
	})
	t.Run("its pool is not configured any more", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, func(c *hosts.Config) { c.Pools = nil })
		a := w.agent("mini-1", 2)
		id := a.armed()
		_, got := a.mint(id)
		w.refused(got, http.StatusBadGateway, protocol.CodeRefused)
		if calls, _ := w.gh.took(); len(calls) != 0 {
			t.Errorf("%q", calls)
		}
		if r := w.runner(id); r.Registration != fleet.RegGone {
			t.Errorf("%q", r.Registration)
		}
	})
}

// An agent hangs up while GitHub is slow: what was begun there is confirmed all the
// same, a second request does not overtake it, and the next one cleans up.
func TestMintWhileGitHubIsSlow(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.agent("mini-1", 2)
	id := a.armed()
	asked, release := make(chan struct{}), make(chan struct{})
	w.gh.mood(func(g *github) {
		g.register = func(ctx context.Context, _ string) error {
			close(asked)
			select {
			case <-release:
				return nil
			case <-ctx.Done():
				return fmt.Errorf("%w: %w", fleet.ErrUncertain, context.Cause(ctx))
			}
		}
	})
	for len(w.returned) > 0 {
		<-w.returned
	}
	ctx, cancel := context.WithCancel(t.Context())
	hungUp := make(chan error, 1)
	go func() {
		_, err := w.call(ctx, http.MethodPost, mintPath(id), a.credential, protocol.MintRequest{Instance: a.instance})
		hungUp <- err
	}()
	<-asked
	cancel()
	if err := <-hungUp; !errors.Is(err, context.Canceled) {
		t.Fatalf("%v", err)
	}
	_, got := a.mint(id) // the agent's second try, while the first is still under way
	w.refused(got, http.StatusServiceUnavailable, protocol.CodeLater)
	if r := w.runner(id); r.Registration != fleet.RegMinting || r.Attempt != 1 {
		t.Errorf("the second request interfered: %+v", r)
	}
	<-w.returned // of the second
	close(release)
	select {
	case <-w.returned:
	case <-time.After(patience):
		t.Fatal("the first call never ended")
	}
	if r := w.runner(id); r.Registration != fleet.RegMinted || r.GitHubID != 1 {
		t.Errorf("what GitHub made is not confirmed: %+v", r)
	}
	w.gh.mood(func(g *github) { g.register = nil })
	minted, _ := a.mint(id)
	if _, registered := w.gh.took(); !slices.Equal(registered, []string{minted.Name}) {
		t.Errorf("registered at GitHub: %q, want %q alone", registered, minted.Name)
	}
}

// Many requests at once for one grant: never two registrations at GitHub.
func TestMintManyAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.agent("mini-1", 2)
	id := a.armed()
	var names []string
	answers := make(chan answer, 12)
	for range cap(answers) {
		go func() {
			got, err := w.call(t.Context(), http.MethodPost, mintPath(id), a.credential, protocol.MintRequest{Instance: a.instance})
			if err != nil {
				t.Error(err)
			}
			answers <- got
		}()
	}
	for range cap(answers) {
		got := <-answers
		if got.status == http.StatusOK {
			names = append(names, string(got.body))
		} else if got.code() != protocol.CodeLater {
			t.Errorf("%d %s", got.status, got.body)
		}
	}
	_, registered := w.gh.took()
	if len(names) == 0 || len(registered) != 1 {
		t.Errorf("%d answers with a config, registered at GitHub: %q", len(names), registered)
	}
	if r := w.runner(id); r.Registration != fleet.RegMinted || r.RunnerName != registered[0] {
		t.Errorf("%+v", r)
	}
}
