// SPDX-License-Identifier: MIT

package githubsim_test

import (
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-github/v62/github"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

func TestAppJWT(t *testing.T) {
	sim, _ := newSim(t, githubsim.Options{Kind: true})
	stranger, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for name, tc := range map[string]struct {
		token string
		want  int
	}{
		"good":                  {jwt(t, appKey(), nil), http.StatusOK},
		"issuer as a number":    {jwt(t, appKey(), map[string]any{"iss": 4242}), http.StatusOK},
		"none":                  {"", http.StatusUnauthorized},
		"foreign key":           {jwt(t, stranger, nil), http.StatusUnauthorized},
		"other app":             {jwt(t, appKey(), map[string]any{"iss": "7"}), http.StatusUnauthorized},
		"expired":               {jwt(t, appKey(), map[string]any{"exp": now.Add(-time.Second).Unix()}), http.StatusUnauthorized},
		"expires in 11 minutes": {jwt(t, appKey(), map[string]any{"exp": now.Add(11 * time.Minute).Unix()}), http.StatusUnauthorized},
		"without expiry":        {jwt(t, appKey(), map[string]any{"exp": nil}), http.StatusUnauthorized},
		"without issue time":    {jwt(t, appKey(), map[string]any{"iat": nil}), http.StatusUnauthorized},
		"from the future":       {jwt(t, appKey(), map[string]any{"iat": now.Add(2 * time.Minute).Unix()}), http.StatusUnauthorized},
		"not a JWT":             {"a.b.c", http.StatusUnauthorized},
		"unknown token":         {"ghs_unknown", http.StatusUnauthorized},
	} {
		t.Run(name, func(t *testing.T) {
			want(t, call(t, sim, "GET", "/app", tc.token, ""), tc.want)
		})
	}
}

func TestWhoMayCallWhat(t *testing.T) {
	sim, octo := newSim(t, githubsim.Options{Kind: true})
	if _, err := sim.AddInstallation(githubsim.Installation{Account: "elsewhere", Repositories: []string{"secret"}}); err != nil {
		t.Fatal(err)
	}
	token := tokenFor(t, sim, octo, "")
	narrow := tokenFor(t, sim, octo, `{"repositories":["demo"],"permissions":{"actions":"read"}}`)
	for name, tc := range map[string]struct {
		token, method, path string
		want                int
	}{
		"installation token where a JWT is needed": {token, "GET", "/app", http.StatusUnauthorized},
		"JWT where an installation is needed":      {jwt(t, appKey(), nil), "GET", "/repos/octo/demo", http.StatusForbidden},
		"own organization":                         {token, "GET", "/orgs/octo/actions/runners", http.StatusOK},
		"any case":                                 {token, "GET", "/orgs/OCTO/actions/runners", http.StatusOK},
		"foreign organization":                     {token, "GET", "/orgs/elsewhere/actions/runners", http.StatusNotFound},
		"foreign repository":                       {token, "GET", "/repos/elsewhere/secret", http.StatusNotFound},
		"repository outside of the token":          {narrow, "GET", "/repos/octo/other", http.StatusNotFound},
		"repository inside of the token":           {narrow, "GET", "/repos/octo/demo", http.StatusOK},
		"permission left out":                      {narrow, "GET", "/repos/octo/demo/actions/runners", http.StatusForbidden},
		"permission too low":                       {narrow, "POST", "/repos/octo/demo/actions/runs/1/cancel", http.StatusForbidden},
		"enterprise prefix":                        {token, "GET", "/api/v3/repos/octo/demo", http.StatusOK},
		"no such path":                             {token, "GET", "/nowhere", http.StatusNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			want(t, call(t, sim, tc.method, tc.path, tc.token, ""), tc.want)
		})
	}
}

func TestInstallationTokens(t *testing.T) {
	sim, octo := newSim(t, githubsim.Options{Kind: true})
	path := fmt.Sprintf("/app/installations/%d/access_tokens", octo)
	for name, tc := range map[string]struct {
		path, body string
		want       int
	}{
		"all":                    {path, "", http.StatusCreated},
		"narrowed":               {path, `{"repositories":["demo"],"permissions":{"actions":"read"}}`, http.StatusCreated},
		"permission not granted": {path, `{"permissions":{"contents":"write"}}`, http.StatusUnprocessableEntity},
		"level not granted":      {path, `{"permissions":{"metadata":"write"}}`, http.StatusUnprocessableEntity},
		"unknown repository":     {path, `{"repositories":["nope"]}`, http.StatusUnprocessableEntity},
		"broken body":            {path, `{`, http.StatusBadRequest},
		"unknown installation":   {"/app/installations/1/access_tokens", "", http.StatusNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			want(t, call(t, sim, "POST", tc.path, jwt(t, appKey(), nil), tc.body), tc.want)
		})
	}
}

func TestSuspendedAndUninstalled(t *testing.T) {
	sim, octo := newSim(t, githubsim.Options{Kind: true})
	token := tokenFor(t, sim, octo, "")
	path := fmt.Sprintf("/app/installations/%d/access_tokens", octo)
	if err := sim.Suspend(octo, true); err != nil {
		t.Fatal(err)
	}
	want(t, call(t, sim, "GET", "/repos/octo/demo", token, ""), http.StatusForbidden)
	want(t, call(t, sim, "POST", path, jwt(t, appKey(), nil), ""), http.StatusForbidden)
	if err := sim.Suspend(octo, false); err != nil {
		t.Fatal(err)
	}
	want(t, call(t, sim, "GET", "/repos/octo/demo", token, ""), http.StatusOK)
	if err := sim.Uninstall(octo); err != nil {
		t.Fatal(err)
	}
	want(t, call(t, sim, "GET", "/repos/octo/demo", token, ""), http.StatusUnauthorized)
	want(t, call(t, sim, "POST", path, jwt(t, appKey(), nil), ""), http.StatusNotFound)
}

func TestTokenExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim, octo := newSim(t, githubsim.Options{})
		token := tokenFor(t, sim, octo, "")
		time.Sleep(59 * time.Minute)
		want(t, call(t, sim, "GET", "/repos/octo/demo", token, ""), http.StatusOK)
		time.Sleep(2 * time.Minute)
		want(t, call(t, sim, "GET", "/repos/octo/demo", token, ""), http.StatusUnauthorized)
	})
}

func TestSameJWTTwiceInASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim, octo := newSim(t, githubsim.Options{})
		kind, kindID := newSim(t, githubsim.Options{Kind: true})
		path := func(id int64) string { return fmt.Sprintf("/app/installations/%d/access_tokens", id) }
		token := jwt(t, appKey(), nil)
		want(t, call(t, sim, "POST", path(octo), token, ""), http.StatusCreated)
		want(t, call(t, sim, "POST", path(octo), token, ""), http.StatusNotFound)
		want(t, call(t, sim, "POST", path(octo), token, ""), http.StatusCreated)

		later := jwt(t, appKey(), nil)
		want(t, call(t, sim, "POST", path(octo), later, ""), http.StatusCreated)
		time.Sleep(2 * time.Second)
		want(t, call(t, sim, "POST", path(octo), later, ""), http.StatusCreated)

		want(t, call(t, kind, "POST", path(kindID), token, ""), http.StatusCreated)
		want(t, call(t, kind, "POST", path(kindID), token, ""), http.StatusCreated)
	})
}

func TestFindInstallation(t *testing.T) {
	sim, octo := startSim(t, githubsim.Options{Kind: true})
	if _, err := sim.AddInstallation(githubsim.Installation{Account: "someone", User: true, Selected: true, Repositories: []string{"mine"}}); err != nil {
		t.Fatal(err)
	}
	app := asApp(t, sim)
	in, _, err := app.Apps.FindOrganizationInstallation(t.Context(), "octo")
	if err != nil || in.GetID() != octo || in.GetTargetType() != "Organization" {
		t.Errorf("organization: %v, %v", in, err)
	}
	in, _, err = app.Apps.FindRepositoryInstallation(t.Context(), "octo", "demo")
	if err != nil || in.GetID() != octo {
		t.Errorf("repository: %v, %v", in, err)
	}
	in, _, err = app.Apps.FindUserInstallation(t.Context(), "someone")
	if err != nil || in.GetTargetType() != "User" || in.GetRepositorySelection() != "selected" {
		t.Errorf("user: %v, %v", in, err)
	}
	for name, find := range map[string]func() (*github.Installation, *github.Response, error){
		"user as organization": func() (*github.Installation, *github.Response, error) {
			return app.Apps.FindOrganizationInstallation(t.Context(), "someone")
		},
		"unknown repository": func() (*github.Installation, *github.Response, error) {
			return app.Apps.FindRepositoryInstallation(t.Context(), "octo", "nope")
		},
	} {
		if _, resp, err := find(); err == nil || resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
	all, _, err := app.Apps.ListInstallations(t.Context(), nil)
	if err != nil || len(all) != 2 {
		t.Errorf("installations: %v, %v", all, err)
	}
	repos, _, err := asInstallation(t, sim, octo).Apps.ListRepos(t.Context(), nil)
	if err != nil || repos.GetTotalCount() != 2 {
		t.Errorf("repositories: %v, %v", repos, err)
	}
}
