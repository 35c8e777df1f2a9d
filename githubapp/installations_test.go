// SPDX-License-Identifier: MIT

package githubapp_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/githubapp"
)

func runnerHandler(id int64) http.HandlerFunc {
	return replying(200, fmt.Sprintf(`{"id":%d,"name":"s1-mac-abc","os":"macOS","status":"online","busy":true,"labels":[{"name":"macOS","type":"custom"}]}`, id))
}

// checked answers only to a valid token, as the handlers of a test do not.
func (o *odd) checked(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		o.mu.Lock()
		_, ok := o.tokens[strings.TrimPrefix(r.Header.Get("Authorization"), "token ")]
		o.mu.Unlock()
		if !ok {
			reply(w, 401, `{"message":"Bad credentials"}`)
			return
		}
		h(w, r)
	}
}

// The App was removed and installed again: neither the old id nor its token hold.
func TestStaleInstallation(t *testing.T) {
	t.Run("token revoked", func(t *testing.T) {
		o := newOdd(t)
		o.on("GET /orgs/acme/actions/runners/5", o.checked(runnerHandler(5)))
		a := o.app()
		get := func() error { _, _, err := a.GetRunner(t.Context(), org, 5); return err }
		if err := get(); err != nil {
			t.Fatal(err)
		}
		o.reinstall(8)
		if err := get(); err != nil {
			t.Fatal(err)
		}
		if id, err := a.InstallationID(t.Context(), org); id != 8 || err != nil {
			t.Errorf("installation %d, %v", id, err)
		}
		if n := o.count("GET", "/installation"); n != 2 {
			t.Errorf("%d look-ups", n)
		}
	})
	t.Run("id gone before the first token", func(t *testing.T) {
		o := newOdd(t)
		mint := replying(201, registered(359, "s1-mac-abc", config("s1-mac-abc", true)))
		o.on(orgMint, o.checked(mint))
		a := o.app()
		if _, err := a.InstallationID(t.Context(), org); err != nil {
			t.Fatal(err)
		}
		o.reinstall(8)
		if _, err := a.Register(t.Context(), ask(org)); err != nil {
			t.Fatal(err)
		}
		if n := o.count("POST", "generate-jitconfig"); n != 1 {
			t.Errorf("asked %d times", n)
		}
	})
	t.Run("gone for good", func(t *testing.T) {
		o := newOdd(t)
		a := o.app()
		if _, err := a.InstallationID(t.Context(), org); err != nil {
			t.Fatal(err)
		}
		o.reinstall(8)
		o.on("GET /orgs/acme/installation", replying(404, `{"message":"Not Found"}`))
		_, err := a.Register(t.Context(), ask(org))
		if !errors.Is(err, githubapp.ErrNotInstalled) || errors.Is(err, githubapp.ErrUncertain) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("token refused for ever", func(t *testing.T) {
		o := newOdd(t)
		o.on("POST /app/installations/7/access_tokens", replying(404, `{}`))
		_, _, err := o.app().GetRunner(t.Context(), org, 5)
		if !errors.Is(err, githubapp.ErrNotInstalled) || o.count("POST", "/access_tokens") != 2 {
			t.Errorf("error %v after %d requests for a token", err, o.count("POST", "/access_tokens"))
		}
	})
	t.Run("suspended", func(t *testing.T) {
		o := newOdd(t)
		o.on("POST /app/installations/7/access_tokens", replying(403, `{"message":"This installation has been suspended"}`))
		if _, _, err := o.app().GetRunner(t.Context(), org, 5); !errors.Is(err, githubapp.ErrNotInstalled) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("wrong key", func(t *testing.T) {
		o := newOdd(t)
		o.on("GET /orgs/acme/installation", replying(401, `{"message":"A JSON web token could not be decoded"}`))
		if _, _, err := o.app().GetRunner(t.Context(), org, 5); err == nil || !strings.Contains(err.Error(), "private key") || errors.Is(err, githubapp.ErrNotInstalled) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("repository moved, token good", func(t *testing.T) {
		o := newOdd(t)
		clock := &clock{now: time.Now()}
		a := o.app(func(c *githubapp.Config) { c.Now = clock.Now })
		get := func() (bool, error) { _, ok, err := a.GetRunner(t.Context(), rocket, 5); return ok, err }
		if ok, err := get(); ok || err != nil {
			t.Fatal(ok, err)
		}
		if n := o.count("GET", "/installation"); n != 1 {
			t.Errorf("a 404 right after a look-up led to %d", n)
		}
		clock.add(2 * time.Minute)
		o.on("GET /repos/acme/rockets/installation", replying(404, `{}`))
		if _, err := get(); !errors.Is(err, githubapp.ErrNotInstalled) {
			t.Errorf("error %v", err)
		}
	})
}

type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func TestInstallationCache(t *testing.T) {
	o := newOdd(t)
	clock := &clock{now: time.Now()}
	a := o.app(func(c *githubapp.Config) { c.Now = clock.Now })
	lookups := func(want int) {
		t.Helper()
		a.InstallationID(t.Context(), fleet.Scope{Owner: "ACME"})
		if _, err := a.InstallationID(t.Context(), org); err != nil {
			t.Fatal(err)
		}
		if n := o.count("GET", "/orgs/acme/installation") + o.count("GET", "/orgs/ACME/installation"); n != want {
			t.Errorf("%d look-ups, want %d", n, want)
		}
	}
	o.on("GET /orgs/ACME/installation", replying(200, `{"id":7}`))
	lookups(1)
	lookups(1)
	a.ForgetInstallation(8)
	lookups(1)
	a.ForgetInstallation(7)
	lookups(2)
	clock.add(61 * time.Minute)
	lookups(3)
}

func TestNotInstalled(t *testing.T) {
	o := newOdd(t)
	clock := &clock{now: time.Now()}
	a := o.app(func(c *githubapp.Config) { c.Now = clock.Now })
	other := fleet.Scope{Owner: "other"}
	for range 3 { // asked once: the answer is remembered for a while
		if _, err := a.InstallationID(t.Context(), other); !errors.Is(err, githubapp.ErrNotInstalled) {
			t.Fatalf("error %v", err)
		}
	}
	if n := o.count("GET", "/orgs/other/installation"); n != 1 {
		t.Errorf("%d look-ups", n)
	}
	o.on("GET /orgs/other/installation", replying(200, `{"id":9}`))
	a.ForgetInstallation(9) // what an installation webhook does
	if id, err := a.InstallationID(t.Context(), other); id != 9 || err != nil {
		t.Errorf("after the installation: %d, %v", id, err)
	}

	o.on("GET /users/marta/installation", replying(200, `{"id":10}`))
	if _, err := a.InstallationID(t.Context(), fleet.Scope{Owner: "marta"}); !errors.Is(err, githubapp.ErrNotInstalled) || !strings.Contains(err.Error(), "marta/REPOSITORY") {
		t.Errorf("a user: %v", err)
	}
	o.on("GET /repos/marta/x/installation", replying(200, `{"id":10}`))
	if id, err := a.InstallationID(t.Context(), fleet.Scope{Owner: "marta", Repo: "x"}); id != 10 || err != nil {
		t.Errorf("a user's repository: %d, %v", id, err)
	}
	o.on("GET /orgs/paused/installation", replying(200, `{"id":11,"suspended_at":"2026-11-20T12:00:00Z"}`))
	if _, err := a.InstallationID(t.Context(), fleet.Scope{Owner: "paused"}); !errors.Is(err, githubapp.ErrNotInstalled) || !strings.Contains(err.Error(), "suspended") {
		t.Errorf("suspended: %v", err)
	}
	o.on("GET /orgs/broken/installation", replying(502, ``))
	for range 2 { // not an answer, so not remembered
		if _, err := a.InstallationID(t.Context(), fleet.Scope{Owner: "broken"}); err == nil || errors.Is(err, githubapp.ErrNotInstalled) {
			t.Errorf("broken: %v", err)
		}
	}
	if n := o.count("GET", "/orgs/broken/installation"); n != 2 {
		t.Errorf("%d look-ups", n)
	}
}

func TestInstallations(t *testing.T) {
	o := newOdd(t)
	o.on("GET /app/installations", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("page") == "2" {
			reply(w, 200, `[{"id":9,"account":{"login":"marta"},"suspended_at":"2026-11-20T12:00:00Z"},{"id":0}]`)
			return
		}
		w.Header().Set("Link", `<http://`+r.Host+`/app/installations?page=2>; rel="next"`)
		reply(w, 200, `[{"id":7,"account":{"login":"acme"}}]`)
	})
	got, err := o.app().Installations(t.Context())
	if err != nil || len(got) != 2 || got[0] != (fleet.Installation{ID: 7, Account: "acme"}) || got[1] != (fleet.Installation{ID: 9, Account: "marta", Suspended: true}) {
		t.Errorf("%+v, %v", got, err)
	}
}

// Credentials go nowhere but to the configured host.
func TestRedirects(t *testing.T) {
	o := newOdd(t)
	foreign := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("a foreign host was sent %s with %q", r.URL, r.Header.Get("Authorization"))
	}))
	defer foreign.Close()
	o.on("GET /orgs/acme/actions/runners/5", replying(301, ``, "Location", foreign.URL+"/x"))
	o.on("GET /orgs/acme/actions/runners/6", replying(301, ``, "Location", "/orgs/9001/actions/runners/6"))
	o.on("GET /orgs/9001/actions/runners/6", o.checked(runnerHandler(6)))
	a := o.app()
	if _, _, err := a.GetRunner(t.Context(), org, 5); !errors.Is(err, githubapp.ErrRefused) {
		t.Errorf("to another host: %v", err)
	}
	if r, ok, err := a.GetRunner(t.Context(), org, 6); !ok || err != nil || r.ID != 6 {
		t.Errorf("within the host: %+v, %v", r, err)
	}
}

func TestConfig(t *testing.T) {
	good := githubapp.Config{AppID: 1, PrivateKey: keyPEM()}
	for name, c := range map[string]struct {
		base string
		ok   bool
	}{
		"github.com":        {"", true},
		"enterprise server": {"https://github.example.com/api/v3", true},
		"slash at the end":  {"https://github.example.com/api/v3/", true},
		"loopback":          {"http://127.0.0.1:8080", true},
		"localhost":         {"http://localhost:8080", true},
		"loopback, v6":      {"http://[::1]:8080/api/v3", true},
		"plain http":        {"http://github.example.com", false},
		"no scheme":         {"api.github.com", false},
		"other scheme":      {"ftp://api.github.com", false},
		"credentials":       {"https://me:pass@api.github.com", false},
		"query":             {"https://api.github.com?x=1", false},
		"no host":           {"https:///api", false},
	} {
		config := good
		config.BaseURL = c.base
		a, err := githubapp.New(config)
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), "pass") {
			t.Errorf("%s: the error shows the password", name)
		}
		if a != nil {
			a.Close()
		}
	}
	for name, change := range map[string]func(*githubapp.Config){
		"no app":           func(c *githubapp.Config) { c.AppID = 0 },
		"no key":           func(c *githubapp.Config) { c.PrivateKey = githubapp.Config{}.PrivateKey },
		"negative timeout": func(c *githubapp.Config) { c.CallTimeout = -1 },
	} {
		config := good
		change(&config)
		if _, err := githubapp.New(config); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestEnterprisePath(t *testing.T) {
	o := newOdd(t)
	stripped := httptest.NewServer(http.StripPrefix("/api/v3", o))
	defer stripped.Close()
	o.on("GET /orgs/acme/actions/runners/5", o.checked(runnerHandler(5)))
	a := o.app(func(c *githubapp.Config) { c.BaseURL = stripped.URL + "/api/v3/" })
	if _, ok, err := a.GetRunner(t.Context(), org, 5); !ok || err != nil {
		t.Errorf("%t, %v", ok, err)
	}
}

func TestLogHoldsNoSecret(t *testing.T) {
	o := newOdd(t)
	secretConfig := config("s1-mac-abc", true)
	o.on(orgMint, o.checked(replying(201, registered(359, "s1-mac-abc", secretConfig))))
	var log bytes.Buffer
	if _, err := o.app(logTo(&log)).Register(t.Context(), ask(org)); err != nil {
		t.Fatal(err)
	}
	if log.Len() == 0 || strings.Contains(log.String(), secretConfig) || strings.Contains(log.String(), "ghs_") || strings.Contains(log.String(), "eyJ") {
		t.Errorf("log: %s", log.String())
	}
}

// Of two that want to know the same, the one that gives up leaves the other alone.
func TestWaitingForALookUp(t *testing.T) {
	o := newOdd(t)
	asked, answer := make(chan struct{}), make(chan struct{})
	o.on("GET /orgs/acme/installation", func(w http.ResponseWriter, _ *http.Request) {
		close(asked)
		<-answer
		reply(w, 200, `{"id":7}`)
	})
	a := o.app()
	var wg sync.WaitGroup
	wg.Go(func() {
		if id, err := a.InstallationID(t.Context(), org); id != 7 || err != nil {
			t.Errorf("the first: %d, %v", id, err)
		}
	})
	<-asked
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.InstallationID(ctx, org); !errors.Is(err, context.Canceled) {
		t.Errorf("the second: %v", err)
	}
	close(answer)
	wg.Wait()
	if id, err := a.InstallationID(t.Context(), org); id != 7 || err != nil || o.count("GET", "/installation") != 1 {
		t.Errorf("later: %d, %v", id, err)
	}
}
