// SPDX-License-Identifier: MIT

package admin_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/minifleet/minifleet/admin"
	"github.com/minifleet/minifleet/admin/admintest"
	"github.com/minifleet/minifleet/secret"
)

func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	store := admintest.Sample()
	good := admin.Config{Token: secret.New("t"), Store: store, Explainer: store, Enroller: store, Roller: store}
	if _, err := admin.New(good); err != nil {
		t.Errorf("the smallest configuration is refused: %v", err)
	}
	for name, c := range map[string]struct {
		change func(*admin.Config)
		want   string
	}{
		"no token":          {func(c *admin.Config) { c.Token = secret.Text{} }, "token is empty"},
		"blank token":       {func(c *admin.Config) { c.Token = secret.New(" \n") }, "token is empty"},
		"no store":          {func(c *admin.Config) { c.Store = nil }, "required"},
		"no explainer":      {func(c *admin.Config) { c.Explainer = nil }, "required"},
		"no enroller":       {func(c *admin.Config) { c.Enroller = nil }, "required"},
		"negative deadline": {func(c *admin.Config) { c.HostDeadline = -1 }, "negative"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := good
			c.change(&cfg)
			if _, err := admin.New(cfg); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestToken(t *testing.T) {
	t.Parallel()
	h := start(t, admintest.Sample())
	for name, c := range map[string]struct {
		path, authorization string
		status              int
	}{
		"right":                       {"/api/v1/jobs", "Bearer " + operatorToken, 200},
		"scheme in lower case":        {"/api/v1/jobs", "bearer " + operatorToken, 200},
		"missing":                     {"/api/v1/jobs", "", 401},
		"wrong":                       {"/api/v1/jobs", "Bearer not-the-secret-token", 401},
		"part of the right one":       {"/api/v1/jobs", "Bearer " + operatorToken[:5], 401},
		"right and more":              {"/api/v1/jobs", "Bearer " + operatorToken + "x", 401},
		"another scheme":              {"/api/v1/jobs", "Basic " + operatorToken, 401},
		"no scheme":                   {"/api/v1/jobs", operatorToken, 401},
		"missing, path unknown":       {"/api/v1/nothing", "", 401},
		"missing, contract":           {"/api/v1/openapi.yaml", "", 401},
		"missing, bad parameter":      {"/api/v1/jobs?limit=x", "", 401},
		"missing, health":             {"/healthz", "", 200},
		"missing, readiness":          {"/readyz", "", 200},
		"missing, health in disguise": {"/api/v1/../../healthz", "", 401},
		"the neighbour is not ours":   {"/other", "", 200},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := h.send(t, http.MethodGet, c.path, "", "Authorization", c.authorization)
			if got.status != c.status {
				t.Fatalf("status %d, want %d: %s", got.status, c.status, got.body)
			}
			if asks := strings.HasPrefix(got.header.Get("WWW-Authenticate"), "Bearer"); asks != (c.status == 401) {
				t.Errorf("WWW-Authenticate is %q with status %d", got.header.Get("WWW-Authenticate"), got.status)
			}
			if c.status == 401 && got.errorText() == "" {
				t.Errorf("no reason in %q", got.body)
			}
		})
	}
}

func TestTwoAuthorizationHeadersAreRefused(t *testing.T) {
	t.Parallel()
	h := start(t, admintest.Sample())
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, h.url+"/api/v1/jobs", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header["Authorization"] = []string{"Bearer other", "Bearer " + operatorToken}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("status %d, want 401", resp.StatusCode)
	}
}

func TestProfilesAreTheOperators(t *testing.T) {
	t.Parallel()
	h := start(t, admintest.Sample())
	const path = "/debug/pprof/goroutine?debug=1"
	if got := h.send(t, http.MethodGet, path, ""); got.status != http.StatusOK || !strings.HasPrefix(got.body, "goroutine profile: total ") {
		t.Errorf("status %d: %.100s", got.status, got.body)
	}
	if got := h.send(t, http.MethodGet, path, "", "Authorization", ""); got.status != http.StatusUnauthorized {
		t.Errorf("without the token: status %d", got.status)
	}
	if got := h.send(t, http.MethodGet, "/debug/pprof/nothing", ""); got.status != http.StatusNotFound {
		t.Errorf("an unknown profile: status %d", got.status)
	}
}

func TestNoTokenIsLogged(t *testing.T) {
	t.Parallel()
	h := start(t, admintest.Sample())
	h.send(t, http.MethodGet, "/api/v1/jobs", "", "Authorization", "Bearer not-the-secret-token")
	got := h.send(t, http.MethodPost, "/api/v1/enrolment-tokens", `{"host_name":"mini-9"}`)
	h.store.Err = errors.New("disk is gone")
	h.get(t, "/api/v1/jobs")
	log := h.log.String()
	for _, secret := range []string{operatorToken, "not-the-secret-token", "enrol-once"} {
		if strings.Contains(log, secret) {
			t.Errorf("the log has %q:\n%s", secret, log)
		}
	}
	for _, want := range []string{"operator token refused", "name=mini-9", "disk is gone"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %q:\n%s", want, log)
		}
	}
	if !strings.Contains(got.body, "enrol-once") {
		t.Errorf("the answer does not show the token: %s", got.body)
	}
}

func TestEveryAnswerHasSecurityHeaders(t *testing.T) {
	t.Parallel()
	h := start(t, admintest.Sample())
	for _, path := range []string{"/healthz", "/api/v1/jobs", "/api/v1/nothing", "/api/v1/jobs?x=1"} {
		got := h.get(t, path)
		for name, want := range map[string]string{
			"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
			"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'", "Content-Type": "application/json",
		} {
			if got.header.Get(name) != want {
				t.Errorf("%s: %s is %q, want %q", path, name, got.header.Get(name), want)
			}
		}
	}
}

func TestUnknownPathsAndMethods(t *testing.T) {
	t.Parallel()
	h := start(t, admintest.Sample())
	for name, c := range map[string]struct {
		method, path string
		status       int
		allow, want  string
	}{
		"unknown path":         {"GET", "/api/v1/nothing", 404, "", "openapi.yaml"},
		"root of the API":      {"GET", "/api/v1", 404, "", "openapi.yaml"},
		"slash at the end":     {"GET", "/api/v1/jobs/", 404, "", "openapi.yaml"},
		"wrong method":         {"POST", "/api/v1/jobs", 405, "GET, HEAD", "takes GET, HEAD"},
		"get of a post":        {"GET", "/api/v1/enrolment-tokens", 405, "POST", "takes POST"},
		"get of a delete":      {"GET", "/api/v1/hosts/h1", 405, "DELETE", "takes DELETE"},
		"post to a probe":      {"POST", "/healthz", 405, "GET, HEAD", "takes GET, HEAD"},
		"method of a stranger": {"PATCH", "/api/v1/pools", 405, "GET, HEAD", "takes GET, HEAD"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := h.send(t, c.method, c.path, "")
			if got.status != c.status || got.header.Get("Allow") != c.allow || !strings.Contains(got.errorText(), c.want) {
				t.Errorf("got %d, Allow %q, %s; want %d, %q, %q", got.status, got.header.Get("Allow"), got.body, c.status, c.allow, c.want)
			}
		})
	}
	if got := h.send(t, http.MethodHead, "/healthz", ""); got.status != 200 || got.body != "" {
		t.Errorf("HEAD /healthz: status %d, body %q", got.status, got.body)
	}
}

func TestReadiness(t *testing.T) {
	t.Parallel()
	var broken atomic.Bool
	h := start(t, admintest.Sample(), func(c *admin.Config) {
		c.Ready = func(ctx context.Context) error {
			if _, bounded := ctx.Deadline(); !bounded {
				t.Error("the check of readiness has no deadline")
			}
			if broken.Load() {
				return errors.New("store: database is locked")
			}
			return nil
		}
	})
	probe := func(status int) {
		t.Helper()
		got := h.send(t, http.MethodGet, "/readyz", "", "Authorization", "")
		if got.status != status {
			t.Errorf("status %d, want %d", got.status, status)
		}
		if strings.Contains(got.body, "database") {
			t.Errorf("a probe without a token shows the cause: %s", got.body)
		}
	}
	probe(200)
	broken.Store(true)
	for range 5 {
		probe(503)
	}
	if got := h.get(t, "/healthz"); got.status != 200 {
		t.Errorf("not ready is not dead: /healthz has status %d", got.status)
	}
	broken.Store(false)
	probe(200)
	log := h.log.String()
	if strings.Count(log, "database is locked") != 1 || strings.Count(log, "ready again") != 1 {
		t.Errorf("want each change logged once:\n%s", log)
	}
}

func TestFaultsOfTheController(t *testing.T) {
	t.Parallel()
	paths := []string{
		"/api/v1/jobs", "/api/v1/jobs/15", "/api/v1/jobs/15/explain", "/api/v1/runners", "/api/v1/runners/r-busy",
		"/api/v1/runners/r-busy/timeline", "/api/v1/hosts", "/api/v1/pools", "/api/v1/deliveries",
	}
	for name, breakIt := range map[string]func(*admintest.Store){
		"error": func(s *admintest.Store) { s.Err = errors.New("secret path /var/db") },
		"panic": func(s *admintest.Store) { s.Panic = "secret path /var/db" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := admintest.Sample()
			breakIt(store)
			h := start(t, store)
			for _, path := range paths {
				got := h.get(t, path)
				if got.status != 500 || got.errorText() == "" || strings.Contains(got.body, "/var/db") {
					t.Errorf("%s: got %d %s, want 500 and no cause", path, got.status, got.body)
				}
				if log := h.log.String(); !strings.Contains(log, "path="+path+" ") || !strings.Contains(log, "/var/db") {
					t.Errorf("%s: the log lacks the cause:\n%s", path, log)
				}
			}
			if got := h.send(t, http.MethodDelete, "/api/v1/hosts/h1", ""); got.status != 500 {
				t.Errorf("DELETE: got %d, want 500", got.status)
			}
			if got := h.send(t, http.MethodPost, "/api/v1/enrolment-tokens", ""); got.status != 500 || strings.Contains(got.body, "enrol-once") {
				t.Errorf("POST: got %d %s, want 500 and no token", got.status, got.body)
			}
			if got := h.get(t, "/healthz"); got.status != 200 {
				t.Errorf("/healthz: got %d, want 200", got.status)
			}
		})
	}
}
