// SPDX-License-Identifier: MIT

package setup_test

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/githubapp"
	"github.com/minifleet/minifleet/githubapp/githubsim"
	"github.com/minifleet/minifleet/githubapp/setup"
	"github.com/minifleet/minifleet/internal/keepport"
	"github.com/minifleet/minifleet/secret"
)

// checked is an App that lacks nothing, and what a check finds of it.
type checked struct {
	t       *testing.T
	sim     *githubsim.Sim
	install int64
	c       setup.Checker
}

func newChecked(t *testing.T) *checked {
	t.Helper()
	sim := newSim(t, githubsim.Options{})
	id, err := sim.AddInstallation(githubsim.Installation{Account: "acme", Repositories: []string{"rockets"}})
	if err != nil {
		t.Fatal(err)
	}
	x := &checked{t: t, sim: sim, install: id}
	x.c = setup.Checker{AppID: sim.AppID(), API: sim.URL(), Client: browser(), Pools: []fleet.Pool{{
		Name: "mac", Scopes: []fleet.Scope{{Owner: "acme"}, {Owner: "acme", Repo: "rockets"}}, RunnerGroup: "default",
	}}}
	x.c.App = x.app(sim.AppID(), sim.URL())
	return x
}

func (x *checked) app(id int64, base string) *githubapp.App {
	x.t.Helper()
	app, err := githubapp.New(githubapp.Config{AppID: id, PrivateKey: x.sim.PrivateKeyPEM(), BaseURL: base})
	if err != nil {
		x.t.Fatal(err)
	}
	x.t.Cleanup(app.Close)
	return app
}

// hooked lets GitHub deliver to a receiver.
func (x *checked) hooked(key secret.Text) {
	x.t.Helper()
	r, address := receive(x.t, key)
	x.t.Cleanup(func() { r.Close() })
	if err := x.sim.SetWebhook("http://"+address+"/webhook", secret.Text{}); err != nil {
		x.t.Fatal(err)
	}
	x.delivered()
}

func (x *checked) delivered() {
	x.t.Helper()
	if err := x.sim.WaitDelivered(x.t.Context()); err != nil {
		x.t.Fatal(err)
	}
}

// receive starts a receiver at an address that is free.
func receive(t *testing.T, key secret.Text) (*setup.Receiver, string) {
	t.Helper()
	address := keepport.Address(t)
	r, err := setup.Receive(t.Context(), address, key, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return r, address
}

func (x *checked) findings() []string {
	var out []string
	for _, f := range x.c.Check(x.t.Context()) {
		out = append(out, fmt.Sprintf("%s %s %s: %s | %s", f.Verdict, f.Check, f.Subject, f.Found, f.Do))
	}
	return out
}

func TestCheckFindsNothing(t *testing.T) {
	t.Parallel()
	x := newChecked(t)
	x.hooked(x.sim.WebhookSecret())
	for _, f := range x.findings() {
		if !strings.HasPrefix(f, "ok ") && !strings.Contains(f, "in clear") { // the simulated hook has no TLS
			t.Error(f)
		}
	}
}

// Each fault is found, named, and comes with the place where it is mended.
func TestCheckFinds(t *testing.T) {
	t.Parallel()
	full := map[string]string{"actions": "read", "metadata": "read", "administration": "write", "organization_self_hosted_runners": "write"}
	without := func(name string) map[string]string {
		m := map[string]string{}
		for k, v := range full {
			if k != name {
				m[k] = v
			}
		}
		return m
	}
	events := []string{"workflow_job", "workflow_run"}
	for _, c := range []struct {
		name   string
		change func(x *checked)
		want   []string // parts of one finding
	}{
		{"permission", func(x *checked) { x.sim.ChangeApp(without("actions"), events) }, []string{"fault permissions", "permission Actions: read", "/organizations/minifleet/settings/apps/minifleet-dev/permissions"}},
		{"read where write is needed", func(x *checked) {
			m := without("")
			m["organization_self_hosted_runners"] = "read"
			x.sim.ChangeApp(m, events)
		}, []string{"fault permissions", "Self-hosted runners: write"}},
		{"event", func(x *checked) { x.sim.ChangeApp(full, []string{"workflow_job"}) }, []string{"fault events", "Workflow run", "Subscribe to events"}},
		{"other App's key", func(x *checked) { x.c.AppID = 17 }, []string{"fault key", "belongs to App 4242", "app_id"}},
		{"other App's id", func(x *checked) { x.c.App = x.app(17, x.sim.URL()) }, []string{"fault key", "401", "app_id"}},
		{"no GitHub there", func(x *checked) {
			x.c.API = "http://127.0.0.1:1"
			x.c.App = x.app(4242, x.c.API)
		}, []string{"fault clock", "cannot be asked"}},
		{"suspended", func(x *checked) { x.must(x.sim.Suspend(x.install, true)) }, []string{"fault installation acme", "suspended", "/organizations/acme/settings/installations/"}},
		{"not installed", func(x *checked) { x.must(x.sim.Uninstall(x.install)) }, []string{"fault installation", "nowhere", "/installations/new"}},
		{"not installed there", func(x *checked) { x.scope("other/thing") }, []string{"fault installation other/thing", "not installed on other"}},
		{"not selected", func(x *checked) { x.must(x.sim.RemoveRepositories(x.install, "rockets")) }, []string{"fault installation acme/rockets", "not among those selected"}},
		{"no such repository", func(x *checked) { x.scope("acme/nothing") }, []string{"fault installation acme/nothing", "no such repository"}},
		{"user as organization", func(x *checked) {
			_, err := x.sim.AddInstallation(githubsim.Installation{Account: "bob", User: true})
			x.must(err)
			x.scope("bob")
		}, []string{"fault installation bob", "bob is a user", "bob/REPOSITORY"}},
		{"permission not accepted", func(x *checked) {
			_, err := x.sim.AddInstallation(githubsim.Installation{Account: "corp", Permissions: without("organization_self_hosted_runners")})
			x.must(err)
			x.scope("corp")
		}, []string{"fault installation corp", "not granted", "Self-hosted runners: write", "accepts"}},
		{"no group", func(x *checked) { x.c.Pools[0].RunnerGroup = "macs" }, []string{"fault runner group acme/macs", "no runner group", "runner_group of pool mac"}},
		{"group for the public", func(x *checked) {
			_, err := x.sim.AddRunnerGroup("acme", "macs", true)
			x.must(err)
			x.c.Pools[0].RunnerGroup = "macs"
		}, []string{"warn runner group acme/macs", "public repositories"}},
		{"group for some", func(x *checked) {
			_, err := x.sim.AddRunnerGroup("acme", "macs", false, "rockets")
			x.must(err)
			x.c.Pools[0].RunnerGroup = "macs"
		}, []string{"ok runner group acme/macs", "selected"}},
		{"wrong secret", func(x *checked) { x.hooked(secret.New("another")) }, []string{"fault deliveries", "401", "webhook_secret_file"}},
		{"nobody listens", func(x *checked) {
			x.must(x.sim.SetWebhook("http://127.0.0.1:1/webhook", secret.Text{}))
			x.delivered()
		}, []string{"fault deliveries", "failed to connect"}},
		{"nobody needs to listen", func(x *checked) {
			x.c.Pulls = true
			x.must(x.sim.SetWebhook("http://127.0.0.1:1/webhook", secret.Text{}))
			x.delivered()
		}, []string{"ok deliveries", "can be pulled"}},
		{"pulled by whoever listens", func(x *checked) {
			x.c.Pulls = true
			x.must(x.sim.SetWebhook("http://127.0.0.1:1/webhook", secret.Text{}))
		}, []string{"warn webhook", "whoever answers at http://127.0.0.1:1/webhook"}},
		{"nothing to pull", func(x *checked) { x.c.Pulls = true }, []string{"fault webhook", "https://webhook.invalid/"}},
		{"some failed", func(x *checked) {
			x.must(x.sim.SetWebhook("http://127.0.0.1:1/webhook", secret.Text{}))
			x.delivered()
			x.hooked(x.sim.WebhookSecret())
		}, []string{"warn deliveries", "1 of the last 2 failed"}},
		{"no hook", func(*checked) {}, []string{"fault webhook", "leads nowhere", "github.deliveries: pull"}},
		{"form", func(x *checked) { x.set("content_type", "form") }, []string{"warn webhook", "content type is form"}},
		{"certificates not checked", func(x *checked) { x.set("insecure_ssl", "1") }, []string{"warn webhook", "does not check"}},
		{"clock ahead", func(x *checked) { x.skew(-2 * time.Minute) }, []string{"warn clock", "ahead of GitHub's"}},
		{"clock behind", func(x *checked) { x.skew(5 * time.Minute) }, []string{"warn clock", "behind GitHub's"}},
		{"clock a bit off", func(x *checked) { x.skew(40 * time.Second) }, []string{"warn clock", "behind"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			x := newChecked(t)
			c.change(x)
			list := x.findings()
			for _, f := range list {
				all := true
				for _, part := range c.want {
					all = all && strings.Contains(f, part)
				}
				if all {
					return
				}
			}
			t.Errorf("want %q in\n%s", c.want, strings.Join(list, "\n"))
		})
	}
}

func (x *checked) must(err error) {
	x.t.Helper()
	if err != nil {
		x.t.Fatal(err)
	}
}

func (x *checked) scope(text string) {
	x.t.Helper()
	s, err := fleet.ParseScope(text)
	x.must(err)
	x.c.Pools[0].Scopes = append(x.c.Pools[0].Scopes, s)
}

// set changes one field of the hook's configuration.
func (x *checked) set(field, value string) {
	x.t.Helper()
	x.hooked(x.sim.WebhookSecret())
	x.must(x.sim.SetHook(field, value))
}

// skew puts a server between that tells another time.
func (x *checked) skew(by time.Duration) {
	x.t.Helper()
	to, err := url.Parse(x.sim.URL())
	x.must(err)
	proxy := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(to) },
		Transport: &http.Transport{DisableKeepAlives: true},
		ModifyResponse: func(r *http.Response) error {
			r.Header.Set("Date", time.Now().Add(by).UTC().Format(http.TimeFormat))
			return nil
		},
	}
	server := httptest.NewServer(proxy)
	x.t.Cleanup(server.Close)
	x.c.API = server.URL
}

func TestTestDelivery(t *testing.T) {
	t.Parallel()
	x := newChecked(t)
	if _, err := setup.TestDelivery(t.Context(), x.c.App, time.Millisecond, 10*time.Millisecond); err == nil || !strings.Contains(err.Error(), setup.ErrNoDelivery.Error()) {
		t.Errorf("without any delivery: %v", err)
	}
	x.must(x.sim.SetWebhook("http://127.0.0.1:1/webhook", secret.Text{}))
	x.delivered()
	a, err := setup.TestDelivery(t.Context(), x.c.App, time.Millisecond, patience)
	if err != nil || a.OK || !a.Redelivery || a.Event != "ping" {
		t.Errorf("to nobody: %+v, %v", a, err)
	}
	x.hooked(x.sim.WebhookSecret())
	a, err = setup.TestDelivery(t.Context(), x.c.App, time.Millisecond, patience)
	if err != nil || !a.OK || !a.Redelivery {
		t.Errorf("to a receiver: %+v, %v", a, err)
	}
}

func TestExplain(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		code   int
		status string
		want   string
	}{
		{401, "Unauthorized", "signature"},
		{403, "Forbidden", "refuses GitHub"},
		{404, "Not Found", "nothing answers"},
		{503, "Service Unavailable", "could not store"},
		{504, "timed out", "no answer in time"},
		{502, "failed to connect to host", "no connection"},
		{502, "couldn't resolve host name", "does not resolve"},
		{502, "Peer certificate cannot be authenticated", "TLS failed"},
		{502, "Bad Gateway", "proxy without a controller"},
		{301, "Moved Permanently", "redirects"},
		{418, "teapot", "418"},
	} {
		why, do := setup.Explain(fleet.Attempt{Code: c.code, Words: c.status})
		if !strings.Contains(why, c.want) || do == "" {
			t.Errorf("%d %s: %q, %q", c.code, c.status, why, do)
		}
	}
}

func TestProbe(t *testing.T) {
	t.Parallel()
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	secure.StartTLS()
	defer secure.Close()
	r, address := receive(t, secret.New("x"))
	defer r.Close()
	for _, c := range []struct {
		url, want string
		reached   bool
	}{
		{"http://" + address + "/webhook", "a controller answers", true},
		{plain.URL + "/webhook", "404", false},
		{secure.URL + "/webhook", "certificate", false},
		{strings.Replace(plain.URL, "http:", "https:", 1), "no TLS", false},
		{"http://127.0.0.1:1/", "no connection", false},
	} {
		found, reached := setup.Probe(t.Context(), browser(), c.url)
		if !strings.Contains(found, c.want) || reached != c.reached {
			t.Errorf("%s: %q, %t", c.url, found, reached)
		}
	}
	if found, reached := setup.Probe(t.Context(), astray(), "http://minifleet.invalid/"); !strings.Contains(found, "minifleet.invalid does not resolve") || reached {
		t.Errorf("a name that there is not: %q, %t", found, reached)
	}
	if _, err := setup.Receive(t.Context(), address, secret.New("x"), slog.New(slog.DiscardHandler)); !errors.Is(err, setup.ErrTaken) {
		t.Errorf("an address that is taken: %v", err)
	}
}
