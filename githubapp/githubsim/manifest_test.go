// SPDX-License-Identifier: MIT

package githubsim_test

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

const goodManifest = `{"name":"Made Here","url":"https://example.com","redirect_url":"http://127.0.0.1:1/created?x=1","public":false,
"hook_attributes":{"url":"https://example.com/webhook","active":false},"default_events":["workflow_job"],"default_permissions":{"actions":"read"}}`

// submit sends a form as a browser does, without following.
func submit(t *testing.T, sim *githubsim.Sim, path string, form url.Values) *httptest.ResponseRecorder {
	t.Helper()
	req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, strings.NewReader(form.Encode()))
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	rec := httptest.NewRecorder()
	sim.Handler().ServeHTTP(rec, req)
	return rec
}

// code makes an App by GitHub's pages.
func code(t *testing.T, sim *githubsim.Sim) string {
	t.Helper()
	form := submit(t, sim, "/organizations/acme/settings/apps/new?state=s1", url.Values{"manifest": {goodManifest}})
	if form.Code != 200 || !strings.Contains(form.Body.String(), `action="/organizations/acme/settings/apps"`) || !strings.Contains(form.Body.String(), `value="s1"`) {
		t.Fatalf("%d %s", form.Code, form.Body)
	}
	back, err := url.Parse(submit(t, sim, "/organizations/acme/settings/apps", url.Values{"manifest": {goodManifest}, "state": {"s1"}}).Header().Get("Location"))
	if err != nil || back.Query().Get("state") != "s1" || back.Query().Get("x") != "1" || back.Host != "127.0.0.1:1" {
		t.Fatalf("back to %s, %v", back, err)
	}
	return back.Query().Get("code")
}

func TestManifestFlow(t *testing.T) {
	sim, _ := newSim(t, githubsim.Options{Kind: true})
	before := sim.WebhookSecret()
	c := code(t, sim)
	made := call(t, sim, "POST", "/app-manifests/"+c+"/conversions", "", "")
	want(t, made, 201)
	for _, part := range []string{`"slug":"made-here"`, `"login":"acme"`, `"permissions":{"actions":"read","metadata":"read"}`, `"events":["workflow_job"]`, "RSA PRIVATE KEY", sim.WebhookSecret().Reveal()} {
		if !strings.Contains(made.Body.String(), part) {
			t.Errorf("the answer lacks %s", part)
		}
	}
	if sim.WebhookSecret().Equal(before) {
		t.Error("the webhook secret is the old one")
	}
	want(t, call(t, sim, "POST", "/app-manifests/"+c+"/conversions", "", ""), 404)
	want(t, call(t, sim, "POST", "/app-manifests/none/conversions", "", ""), 404)
}

func TestManifestCodeExpires(t *testing.T) {
	for after, status := range map[time.Duration]int{59 * time.Minute: 201, 61 * time.Minute: 404} {
		synctest.Test(t, func(t *testing.T) {
			sim, _ := newSim(t, githubsim.Options{Kind: true})
			c := code(t, sim)
			time.Sleep(after) // virtual
			want(t, call(t, sim, "POST", "/app-manifests/"+c+"/conversions", "", ""), status)
			if err := sim.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestManifestRefused(t *testing.T) {
	sim, _ := newSim(t, githubsim.Options{Kind: true})
	for name, m := range map[string]string{
		"not JSON":              "{",
		"no name":               strings.Replace(goodManifest, "Made Here", "", 1),
		"long name":             strings.Replace(goodManifest, "Made Here", strings.Repeat("x", 35), 1),
		"no redirect":           strings.Replace(goodManifest, "redirect_url", "redirect", 1),
		"no hook URL":           strings.Replace(goodManifest, "https://example.com/webhook", "", 1),
		"event without a right": strings.Replace(goodManifest, `"actions":"read"`, `"metadata":"read"`, 1),
	} {
		for _, path := range []string{"/settings/apps/new", "/settings/apps"} {
			if got := submit(t, sim, path, url.Values{"manifest": {m}}).Code; got != 422 {
				t.Errorf("%s at %s: %d", name, path, got)
			}
		}
	}
}
