// SPDX-License-Identifier: MIT

package setup_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/githubapp"
	"github.com/minifleet/minifleet/githubapp/githubsim"
	"github.com/minifleet/minifleet/githubapp/setup"
	"github.com/minifleet/minifleet/internal/keepport"
)

func TestCreate(t *testing.T) {
	t.Parallel()
	sim := newSim(t, githubsim.Options{})
	dir := filepath.Join(t.TempDir(), "etc", "minifleet")
	m := create(t, sim, func(c *setup.Creation) { c.Dir = dir })
	status, _, next := get(t, toGitHub(t, sim, m.page))
	made, err := m.wait()
	if err != nil || status != http.StatusSeeOther || next != sim.URL()+"/apps/minifleet-acme/installations/new" {
		t.Fatalf("%d to %s, %v", status, next, err)
	}
	self, err := made.App.Self(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"actions": "read", "metadata": "read", "organization_self_hosted_runners": "write"}
	if diff := cmp.Diff(want, self.Permissions); diff != "" || self.Owner != "acme" || self.OwnerIsUser || len(self.Events) != 2 {
		t.Errorf("made %+v: %s", self, diff)
	}
	hook, err := made.App.Hook(t.Context())
	if err != nil || hook.URL != "https://minifleet.acme.example/webhook" {
		t.Errorf("hook %+v, %v", hook, err)
	}
	if !sim.WebhookSecret().Equal(made.Credentials.WebhookSecret) {
		t.Error("the secret is not GitHub's")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 4 {
		t.Errorf("%v, %v", entries, err)
	}
	for name, content := range map[string]string{
		setup.KeyFile: sim.PrivateKeyPEM().Reveal(), setup.SecretFile: sim.WebhookSecret().Reveal(), setup.TokenFile: "", setup.ConfigFile: "",
	} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || content != "" && string(b) != content || len(b) < 40 {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Installed by the page that the browser was led to.
	if _, err := setup.AwaitInstallation(t.Context(), made.App, "acme", time.Millisecond, 5*time.Millisecond, t.Logf); !errors.Is(err, setup.ErrNotYet) {
		t.Errorf("before it is installed: %v", err)
	}
	_, page, _ := get(t, next)
	if status, body, _ := press(t, next, page); status != http.StatusFound {
		t.Fatalf("installing answered %d: %s", status, body)
	}
	place, err := setup.AwaitInstallation(t.Context(), made.App, "ACME", time.Millisecond, patience, t.Logf)
	if err != nil || place.Account != "acme" || place.User {
		t.Errorf("installed %+v, %v", place, err)
	}
}

// A person's own account has runners of repositories only, which are known when the
// App is installed.
func TestCreateForUser(t *testing.T) {
	t.Parallel()
	sim := newSim(t, githubsim.Options{})
	var c setup.Creation
	m := create(t, sim, func(x *setup.Creation) { x.Org, x.Scopes, x.Hook = "", nil, ""; c = *x })
	get(t, toGitHub(t, sim, m.page))
	made, err := m.wait()
	if err != nil {
		t.Fatal(err)
	}
	self, err := made.App.Self(t.Context())
	if err != nil || self.Permissions["administration"] != "write" || !self.OwnerIsUser {
		t.Errorf("made %+v, %v", self, err)
	}
	if _, err := sim.AddInstallation(githubsim.Installation{Account: "octocat", User: true, Repositories: []string{"one", "two"}}); err != nil {
		t.Fatal(err)
	}
	place, err := setup.AwaitInstallation(t.Context(), made.App, "octocat", time.Millisecond, patience, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.FillScopes(t.Context(), made, place); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(made.Config); err != nil || !strings.Contains(string(b), "scopes: [octocat/one, octocat/two]") || !strings.Contains(string(b), "deliveries: pull") {
		t.Errorf("%v: %s", err, b)
	}
	// What GitHub delivers goes nowhere, and can be pulled.
	if hook, err := made.App.Hook(t.Context()); err != nil || hook.URL != "https://webhook.invalid/" {
		t.Errorf("hook %+v, %v", hook, err)
	}
}

func TestPageRefuses(t *testing.T) {
	t.Parallel()
	sim := newSim(t, githubsim.Options{})
	m := create(t, sim, nil)
	back := toGitHub(t, sim, m.page)
	root := m.page[:strings.LastIndex(m.page, "/")]
	as := func(url, host string) int {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if host != "" {
			req.Host = host
		}
		status, _, _ := visit(t, req)
		return status
	}
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(root, "http://"))
	for _, c := range []struct {
		name, url, host string
		want            int
	}{
		{"without its secret path", root + "/", "", 404},
		{"under another's name", m.page, "evil.example:" + port, 421},
		{"the answer under another's name", back, "evil.example", 421},
		{"as localhost", m.page, "localhost:" + port, 200},
		{"wrong state", root + "/created?code=abc&state=abc", "", 403},
		{"no state", root + "/created?code=abc", "", 403},
		{"no code", back[:strings.Index(back, "code=")] + back[strings.Index(back, "&")+1:], "", 400},
		{"a code that is a path", strings.Replace(back, "code=", "code=..%2F..%2F", 1), "", 400},
	} {
		if got := as(c.url, c.host); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
	// None of these used the state up.
	if got := as(back, ""); got != 303 {
		t.Errorf("the right answer: %d", got)
	}
	if _, err := m.wait(); err != nil {
		t.Error(err)
	}
}

func TestCodeCountsOnce(t *testing.T) {
	t.Parallel()
	sim := newSim(t, githubsim.Options{})
	m := create(t, sim, nil)
	back := toGitHub(t, sim, m.page)
	at := strings.Index(back, "code=") + len("code=")
	code := back[at : at+strings.IndexByte(back[at:]+"&", '&')]
	if _, err := githubapp.ConvertManifest(t.Context(), browser(), sim.URL(), code, "other"); err != nil {
		t.Fatal(err)
	}
	if status, _, _ := get(t, back); status != http.StatusBadGateway {
		t.Errorf("answered %d", status)
	}
	if _, err := m.wait(); !errors.Is(err, githubapp.ErrCode) {
		t.Errorf("error %v", err)
	}
}

func TestCodeExpires(t *testing.T) {
	t.Parallel()
	sim := newSim(t, githubsim.Options{Timing: githubsim.Timing{ManifestCode: time.Nanosecond}})
	m := create(t, sim, nil)
	get(t, toGitHub(t, sim, m.page))
	if _, err := m.wait(); !errors.Is(err, githubapp.ErrCode) {
		t.Errorf("error %v", err)
	}
}

func TestExchangeAgain(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		fault githubsim.Fault
		want  string // in the error; "" for none
	}{
		{"GitHub is down", githubsim.Fault{Kind: githubsim.FaultStatus, Status: 503, Count: 3}, ""},
		{"rate limit", githubsim.Fault{Kind: githubsim.FaultRetryAfter, Count: 1}, ""},
		{"hung up", githubsim.Fault{Kind: githubsim.FaultDrop, Count: 1}, ""},
		{"the answer is lost", githubsim.Fault{Kind: githubsim.FaultTimeoutAfterSuccess, Count: 1}, "generate a private key"},
		{"bad request", githubsim.Fault{Kind: githubsim.FaultStatus, Status: 422, Count: 1}, "422"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.fault.Method, c.fault.Path = http.MethodPost, "app-manifests"
			sim := newSim(t, githubsim.Options{Faults: []githubsim.Fault{c.fault}})
			m := create(t, sim, nil)
			get(t, toGitHub(t, sim, m.page))
			_, err := m.wait()
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

// What cannot be written is not given up: the folder is there again at last.
func TestKeyIsKeptAtLast(t *testing.T) {
	t.Parallel()
	sim := newSim(t, githubsim.Options{})
	dir := filepath.Join(t.TempDir(), "dir")
	m := create(t, sim, func(c *setup.Creation) { c.Dir = dir })
	back := toGitHub(t, sim, m.page)
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		get(t, back)
	}()
	m.hear("NOT ON THE DISK")
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	made, err := m.wait()
	<-answered
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, setup.KeyFile)); err != nil || string(b) != made.Credentials.PrivateKey.Reveal() {
		t.Error(err)
	}
}

// A stop in the middle of it says what is lost, and where to mend that.
func TestStoppedWithoutDisk(t *testing.T) {
	t.Parallel()
	sim := newSim(t, githubsim.Options{})
	dir := filepath.Join(t.TempDir(), "dir")
	m := create(t, sim, func(c *setup.Creation) { c.Dir = dir })
	back := toGitHub(t, sim, m.page)
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		get(t, back)
	}()
	m.hear("NOT ON THE DISK")
	m.stop()
	_, err := m.wait()
	<-answered
	if err == nil || !strings.Contains(err.Error(), "/organizations/acme/settings/apps/minifleet-acme") {
		t.Errorf("error %v", err)
	}
}

func TestCreateRefusesAtOnce(t *testing.T) {
	t.Parallel()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	sim := newSim(t, githubsim.Options{})
	nobody := "http://" + keepport.Address(t)
	gone := setup.Server{Web: nobody, API: nobody}
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/pages/meta":
			fmt.Fprint(w, "<html>welcome</html>")
		case "/moved/meta":
			http.Redirect(w, r, "https://elsewhere.example", http.StatusFound)
		default:
			http.NotFound(w, r)
		}
	}))
	defer other.Close()
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, setup.KeyFile), []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, want string
		change     func(*setup.Creation)
	}{
		{"files are there", "--force", func(c *setup.Creation) { c.Dir = full }},
		{"port in use", "--listen", func(c *setup.Creation) { c.Listen = l.Addr().String() }},
		{"not loopback", "loopback", func(c *setup.Creation) { c.Listen = "0.0.0.0:0" }},
		{"long name", "34", func(c *setup.Creation) { c.Name = strings.Repeat("x", 35) }},
		{"bad hook", "webhook URL", func(c *setup.Creation) { c.Hook = "ftp://x/y" }},
		{"hook without path", "no path", func(c *setup.Creation) { c.Hook = "https://example.org" }},
		{"repository of another", "--public", func(c *setup.Creation) {
			c.Scopes = []fleet.Scope{{Owner: "Acme", Repo: "a"}, {Owner: "beta", Repo: "b"}}
		}},
		{"address without a port", "HOST:PORT", func(c *setup.Creation) { c.Address = "127.0.0.1" }},
		{"a file in place of the folder", "--dir", func(c *setup.Creation) { c.Dir = filepath.Join(full, setup.KeyFile) }},
		{"name that does not resolve", "nowhere.invalid does not resolve", func(c *setup.Creation) { c.Server.API, c.Client = "https://nowhere.invalid", astray() }},
		{"nothing listens", "no connection", func(c *setup.Creation) { c.Server = gone }},
		{"not GitHub", "no GitHub", func(c *setup.Creation) { c.Server.API = other.URL }},
		{"a web page", "no GitHub", func(c *setup.Creation) { c.Server.API = other.URL + "/pages" }},
		{"a redirect", "no GitHub", func(c *setup.Creation) { c.Server.API = other.URL + "/moved" }},
		{"bad organization", "organization", func(c *setup.Creation) { c.Org = "a/b" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			creation := setup.Creation{
				Wish: setup.Wish{Server: setup.Server{Web: sim.URL(), API: sim.URL()}, Org: "acme", Name: "m"},
				Dir:  t.TempDir(), Listen: "127.0.0.1:0", Client: browser(), Say: t.Logf,
			}
			c.change(&creation)
			if _, err := setup.Create(t.Context(), creation); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
	if b, err := os.ReadFile(filepath.Join(full, setup.KeyFile)); err != nil || string(b) != "old" {
		t.Errorf("the old key: %q, %v", b, err)
	}
}

// A GitHub that is there is taken, whatever it refuses or cannot do just now.
func TestCreateAtAGitHubInTrouble(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusTooManyRequests, http.StatusBadGateway} {
		sim := newSim(t, githubsim.Options{})
		if err := sim.Inject(githubsim.Fault{Kind: githubsim.FaultStatus, Status: status, Path: "/meta"}); err != nil {
			t.Fatal(err)
		}
		create(t, sim, nil) // it shows its page
	}
}

// An App that others may install can serve them.
func TestPublicAppServesOthers(t *testing.T) {
	t.Parallel()
	w := setup.Wish{Org: "acme", Name: "m", Public: true, Scopes: []fleet.Scope{{Owner: "beta", Repo: "b"}}, Address: "127.0.0.1:8080"}
	if err := w.Validate(); err != nil {
		t.Error(err)
	}
}

func TestStoppedBeforeTheBrowser(t *testing.T) {
	t.Parallel()
	m := create(t, newSim(t, githubsim.Options{}), nil)
	m.stop()
	if _, err := m.wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestParseServer(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]setup.Server{
		"":                                 {Web: "https://github.com", API: "https://api.github.com"},
		"github.com":                       {Web: "https://github.com", API: "https://api.github.com"},
		"https://acme.ghe.com/":            {Web: "https://acme.ghe.com", API: "https://api.acme.ghe.com"},
		"https://github.acme.example":      {Web: "https://github.acme.example", API: "https://github.acme.example/api/v3"},
		"https://github.acme.example:8443": {Web: "https://github.acme.example:8443", API: "https://github.acme.example:8443/api/v3"},
		"http://127.0.0.1:9":               {Web: "http://127.0.0.1:9", API: "http://127.0.0.1:9/api/v3"},
		"http://github.acme.example":       {},
		"https://user@github.com":          {},
		"https://github.acme.example/path": {},
		"https://":                         {},
	} {
		got, err := setup.ParseServer(text)
		if got != want || (err == nil) != (want != setup.Server{}) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func TestNeeds(t *testing.T) {
	t.Parallel()
	both := setup.Needs([]fleet.Scope{{Owner: "a"}, {Owner: "a", Repo: "b"}})
	want := map[string]string{"actions": "read", "metadata": "read", "organization_self_hosted_runners": "write", "administration": "write"}
	if diff := cmp.Diff(want, both); diff != "" {
		t.Error(diff)
	}
}
