// SPDX-License-Identifier: MIT

package setup_test

import (
	"context"
	"fmt"
	"html"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/githubapp/githubsim"
	"github.com/minifleet/minifleet/githubapp/setup"
	"github.com/minifleet/minifleet/internal/leakcheck"
	"github.com/minifleet/minifleet/secret"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

// patience is far more than anything here takes; it only ends a test that hangs.
const patience = 2 * time.Minute

// appKey is made once for all simulated GitHubs.
var appKey = sync.OnceValue(func() secret.Text {
	sim, err := githubsim.New(githubsim.Options{Kind: true, KeyPool: 1})
	if err != nil {
		panic(err)
	}
	defer sim.Close()
	return sim.PrivateKeyPEM()
})

func newSim(t *testing.T, opt githubsim.Options) *githubsim.Sim {
	t.Helper()
	opt.Kind, opt.KeyPool, opt.Prompt, opt.PrivateKey = true, 1, true, appKey()
	sim, err := githubsim.New(opt)
	if err != nil {
		t.Fatal(err)
	}
	if err := sim.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sim.Close(); err != nil {
			t.Error(err)
		}
	})
	return sim
}

// browser is a person's: it follows no redirect by itself, so that each is seen.
func browser() *http.Client {
	return &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// astray is a browser where no name resolves: what a machine's own resolver says of one that
// does not exist is up to its network.
func astray() *http.Client {
	c := browser()
	c.Transport = &http.Transport{DisableKeepAlives: true, DialContext: func(_ context.Context, _, address string) (net.Conn, error) {
		host, _, _ := net.SplitHostPort(address)
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}}
	return c
}

// visit makes a request and returns status, body and where it leads.
func visit(t *testing.T, req *http.Request) (int, string, string) {
	t.Helper()
	resp, err := browser().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body), resp.Header.Get("Location")
}

func get(t *testing.T, url string) (int, string, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return visit(t, req)
}

var (
	formAction = regexp.MustCompile(`<form method="post" action="([^"]*)"`)
	formInput  = regexp.MustCompile(`name="([^"]*)" value="([^"]*)"`)
)

// press sends the one form of a page, as its button does.
func press(t *testing.T, at, page string) (int, string, string) {
	t.Helper()
	action := formAction.FindStringSubmatch(page)
	if action == nil {
		t.Fatalf("no form on %s: %s", at, page)
	}
	base, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	to, err := base.Parse(html.UnescapeString(action[1]))
	if err != nil {
		t.Fatal(err)
	}
	form := url.Values{}
	for _, in := range formInput.FindAllStringSubmatch(page, -1) {
		form.Set(html.UnescapeString(in[1]), html.UnescapeString(in[2]))
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, to.String(), strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return visit(t, req)
}

// toGitHub goes from the local page through GitHub's and returns where GitHub sends
// the browser back to.
func toGitHub(t *testing.T, sim *githubsim.Sim, page string) string {
	t.Helper()
	status, body, _ := get(t, page)
	if status != http.StatusOK {
		t.Fatalf("%s answered %d: %s", page, status, body)
	}
	status, body, _ = press(t, page, body)
	if status != http.StatusOK {
		t.Fatalf("GitHub's page answered %d: %s", status, body)
	}
	status, body, back := press(t, sim.URL(), body)
	if status != http.StatusFound {
		t.Fatalf("GitHub answered %d: %s", status, body)
	}
	return back
}

// making is a Create under way.
type making struct {
	t    *testing.T
	sim  *githubsim.Sim
	stop context.CancelFunc
	said chan string // what was said, one by one
	page string
	done chan struct{}
	made setup.Created
	err  error
}

// create begins to make an App and returns when the page to open was said.
func create(t *testing.T, sim *githubsim.Sim, change func(*setup.Creation)) *making {
	t.Helper()
	server, err := setup.ParseServer(sim.URL())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), patience)
	m := &making{t: t, sim: sim, stop: stop, said: make(chan string, 1000), done: make(chan struct{})}
	c := setup.Creation{
		Wish: setup.Wish{Server: server, Org: "acme", Scopes: []fleet.Scope{{Owner: "acme"}}, Name: "minifleet-acme", Hook: "https://minifleet.acme.example/webhook"},
		Dir:  t.TempDir(), Listen: "127.0.0.1:0", Client: browser(), UserAgent: "test", Pause: time.Millisecond, Log: slog.New(slog.DiscardHandler),
		Say: func(format string, args ...any) { m.said <- fmt.Sprintf(format, args...) },
	}
	if change != nil {
		change(&c)
	}
	go func() {
		defer close(m.done)
		m.made, m.err = setup.Create(ctx, c)
	}()
	t.Cleanup(func() {
		stop()
		<-m.done
		if m.made.App != nil {
			m.made.App.Close()
		}
	})
	m.page = strings.TrimSpace(m.hear("http://"))
	m.page = m.page[strings.Index(m.page, "http://"):]
	return m
}

// hear waits until something is said that contains the words.
func (m *making) hear(words string) string {
	m.t.Helper()
	for {
		select {
		case text := <-m.said:
			if strings.Contains(text, words) {
				return text
			}
		case <-m.done:
			m.t.Fatalf("it ended before it said %q: %v", words, m.err)
		}
	}
}

func (m *making) wait() (setup.Created, error) {
	<-m.done
	return m.made, m.err
}
