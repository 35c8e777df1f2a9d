// SPDX-License-Identifier: MIT

package api_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/admin/api"
	"github.com/minifleet/minifleet/secret"
)

func TestConnectRefusesBadServers(t *testing.T) {
	t.Parallel()
	token := secret.New("the-operators-token")
	for name, c := range map[string]struct {
		server, want string
		token        secret.Text
	}{
		"empty":            {"", "want a URL", token},
		"no scheme":        {"minifleet.example.com", "want a URL", token},
		"host and port":    {"127.0.0.1:8080", "want a URL", token},
		"another scheme":   {"ftp://minifleet.example.com", "want a URL", token},
		"no host":          {"https:///path", "want a URL", token},
		"in the clear":     {"http://minifleet.example.com", "in the clear", token},
		"in the clear, IP": {"http://10.0.0.5:8080", "in the clear", token},
		"a liar":           {"http://127.0.0.1.example.com", "in the clear", token},
		"with a password":  {"https://me:hunter2@minifleet.example.com", "no user", token},
		"with a query":     {"https://minifleet.example.com?x=1", "no user, query", token},
		"without a token":  {"https://minifleet.example.com", "token is empty", secret.Text{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := api.Connect(c.server, c.token, nil)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got error %v, want one with %q", err, c.want)
			}
			if strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), token.Reveal()) {
				t.Errorf("the error shows a secret: %v", err)
			}
		})
	}
	for _, server := range []string{"https://minifleet.example.com/", "http://localhost:1", "http://127.9.9.9", "http://[::1]:80"} {
		if _, err := api.Connect(server, token, nil); err != nil {
			t.Errorf("%s is refused: %v", server, err)
		}
	}
}

func TestConnectSendsTheTokenToNobodyElse(t *testing.T) {
	t.Parallel()
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("the redirection was followed")
	}))
	t.Cleanup(elsewhere.Close)
	got := make(chan string, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got <- r.Method + " " + r.URL.RequestURI() + " " + r.Header.Get("Authorization")
		http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
	}))
	t.Cleanup(server.Close)
	client, err := api.Connect(server.URL, secret.New("t0ken"), server.Client())
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.ListJobs(t.Context(), &api.ListJobsParams{State: &[]api.JobState{"queued", "waiting"}, Repository: new("acme/app")})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	if want, got := "GET /api/v1/jobs?state=queued,waiting&repository=acme%2Fapp Bearer t0ken", <-got; got != want {
		t.Errorf("the request was %q, want %q", got, want)
	}
	if resp.StatusCode != http.StatusTemporaryRedirect {
		t.Errorf("status %d, want the redirection itself", resp.StatusCode)
	}
}
