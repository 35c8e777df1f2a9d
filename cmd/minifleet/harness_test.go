// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minifleet/minifleet/githubapp/githubsim"
	"github.com/minifleet/minifleet/internal/leakcheck"
	"github.com/minifleet/minifleet/secret"
)

// patience is far more than anything here takes; it only ends a test that hangs.
const patience = 3 * time.Minute

const operatorToken = "the-operators-own-token"

func TestMain(m *testing.M) { leakcheck.Main(tidy{m}) }

// tidy closes the connections that the CLI's clients keep for the next call. The virtual day
// is at work for all of its time, and other tests mostly wait: it takes none of their places.
type tidy struct{ m *testing.M }

func (t tidy) Run() int {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		flag.Set("test.parallel", strconv.Itoa(runtime.GOMAXPROCS(0)+1)) //nolint:errcheck // a flag that there is
	}
	defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	return t.m.Run()
}

// eventually asks until the answer is yes.
func eventually(t *testing.T, what string, ask func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	over := time.NewTimer(patience)
	defer over.Stop()
	for !ask() {
		select {
		case <-tick.C:
		case <-over.C:
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

// buffer is written by one goroutine and read by another.
type buffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// nothing is an environment without variables.
func nothing(string) string { return "" }

// variables is an environment of the given names and values.
func variables(pairs ...string) func(string) string {
	return func(name string) string {
		for pair := range slices.Chunk(pairs, 2) {
			if pair[0] == name {
				return pair[1]
			}
		}
		return ""
	}
}

// appKey is one App's key for all tests: making one takes long.
var appKey = sync.OnceValue(func() secret.Text {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return secret.New(string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})))
})

// newGitHub starts a simulated GitHub with the App installed on octo.
func newGitHub(t *testing.T, opt githubsim.Options) *githubsim.Sim {
	t.Helper()
	opt.PrivateKey = appKey()
	sim, err := githubsim.New(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sim.Close(); err != nil {
			t.Errorf("close the simulated GitHub: %v", err)
		}
	})
	if err := sim.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := sim.AddInstallation(githubsim.Installation{Account: "octo", Repositories: []string{"demo", "other"}}); err != nil {
		t.Fatal(err)
	}
	return sim
}

// site is a simulated GitHub and a controller's configuration for it.
type site struct {
	t   *testing.T
	dir string
	sim *githubsim.Sim
	// What the configuration says; change it before serve.
	agents, admin, webhook string // sections
	secrets                string // lines of the section github
	timing                 string
	args                   []string // more of serve
	pools                  string
}

func newSite(t *testing.T) *site {
	t.Helper()
	return newSiteAt(t, githubsim.Options{Kind: true, KeyPool: 1})
}

func newSiteAt(t *testing.T, opt githubsim.Options) *site {
	t.Helper()
	// A locked database holds the controller up for as long as GitHub itself waits.
	opt.Timing = githubsim.Timing{DeliveryTimeout: patience}
	s := &site{t: t, dir: t.TempDir(), sim: newGitHub(t, opt)}
	s.webhook, s.agents = `{address: "127.0.0.1:0"}`, `{address: "127.0.0.1:0"}`
	s.admin = `{address: "127.0.0.1:0", token_file: admin.token}`
	s.secrets = "webhook_secret_file: webhook.secret"
	s.timing = "{repair: 1s, poll: 20s}"
	s.pools = `
  - name: mac
    labels: [self-hosted, macOS, ARM64]
    scopes: [octo/demo]
    image: sonoma
    limits: {surplus: 1s}
  - name: big
    labels: [self-hosted, macOS, ARM64, big]
    scopes: [octo/demo]
    image: sonoma
    max_runners: 1
    limits: {surplus: 1s}
`
	s.file("app.pem", s.sim.PrivateKeyPEM().Reveal())
	s.file("webhook.secret", s.sim.WebhookSecret().Reveal()+"\n")
	s.file("admin.token", operatorToken+"\n")
	return s
}

func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

func (s *site) file(name, text string) string {
	s.t.Helper()
	if err := os.WriteFile(s.path(name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return s.path(name)
}

// config writes the configuration file and returns its path.
func (s *site) config() string {
	s.t.Helper()
	return s.file("controller.yaml", fmt.Sprintf(`database: state.db
log_level: debug
webhook: %s
agents: %s
admin: %s
github:
  url: %s
  app_id: %d
  private_key_file: app.pem
  %s
timing: %s
pools: %s`, s.webhook, s.agents, s.admin, s.sim.URL(), s.sim.AppID(), s.secrets, s.timing, s.pools))
}

// served is a running `minifleet serve`.
type served struct {
	t                      *testing.T
	webhook, agents, admin string // where it listens
	log                    *buffer
	cancel                 context.CancelFunc
	ended                  chan struct{}
	err                    error // when ended is closed
}

// serve starts the controller and points GitHub's webhook at it.
func (s *site) serve() *served {
	s.t.Helper()
	c := &served{t: s.t, log: &buffer{}, ended: make(chan struct{})}
	s.start(c, map[string]*string{"webhook": &c.webhook, "agents": &c.agents, "admin": &c.admin})
	s.webhookAt(c.webhook + "/webhook")
	return c
}

// start runs the program until it has said where it listens.
func (s *site) start(c *served, said map[string]*string) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background()) // stop ends it, at the latest in a cleanup
	c.cancel = cancel
	config := s.config()
	out, in := io.Pipe()
	go func() {
		defer close(c.ended)
		c.err = run(ctx, append([]string{"serve", "--config", config}, s.args...), strings.NewReader(""), in, c.log, nothing)
		in.CloseWithError(io.EOF)
	}()
	s.t.Cleanup(func() {
		c.stop()
		if s.t.Failed() {
			s.t.Logf("the controller's log:\n%s", tail(c.log.String(), 20000))
		}
	})
	lines := bufio.NewScanner(out)
	for len(said) > 0 && lines.Scan() {
		word, rest, _ := strings.Cut(lines.Text(), " ")
		if into, ok := said[word]; ok {
			*into = rest
			delete(said, word)
		}
	}
	if len(said) > 0 {
		<-c.ended
		s.t.Fatalf("the controller ended before it was ready: %v\n%s", c.err, c.log)
	}
}

// webhookAt points GitHub's webhook at a URL.
func (s *site) webhookAt(url string) {
	s.t.Helper()
	if err := s.sim.SetWebhook(url, secret.Text{}); err != nil {
		s.t.Fatal(err)
	}
}

// stop ends the controller as SIGTERM does.
func (c *served) stop() {
	c.t.Helper()
	c.cancel()
	select {
	case <-c.ended:
		if c.err != nil {
			c.t.Errorf("the controller ended with: %v", c.err)
		}
	case <-time.After(patience):
		c.t.Errorf("the controller does not stop:\n%s", tail(c.log.String(), 5000))
	}
}

func tail(text string, n int) string { return text[max(0, len(text)-n):] }

// cli runs the program as an operator does, with the token in the environment.
func (c *served) cli(args ...string) (string, error) {
	c.t.Helper()
	var out bytes.Buffer
	err := run(c.t.Context(), slices.Concat(args, []string{"--server", c.admin}), strings.NewReader(""), &out, io.Discard,
		variables("MINIFLEET_TOKEN", operatorToken))
	return out.String(), err
}

// get is cli for what must succeed.
func (c *served) get(args ...string) string {
	c.t.Helper()
	out, err := c.cli(append([]string{"get"}, args...)...)
	if err != nil {
		c.t.Fatalf("minifleet get %s: %v", strings.Join(args, " "), err)
	}
	return out
}

// rows are the items of a listing in JSON.
type rows []map[string]any

func (c *served) list(args ...string) rows {
	c.t.Helper()
	var page struct{ Items rows }
	text := c.get(append(args, "-o", "json")...)
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber() // GitHub's ids are longer than a float is exact in print
	if err := decoder.Decode(&page); err != nil {
		c.t.Fatalf("minifleet get %s: %v in %s", strings.Join(args, " "), err, text)
	}
	return page.Items
}

// column returns one field of all rows.
func (r rows) column(field string) []string {
	out := []string{}
	for _, row := range r {
		out = append(out, fmt.Sprint(row[field]))
	}
	return out
}

// queue queues a run of octo/demo, one job for each list of labels.
func (s *site) queue(jobs ...[]string) githubsim.Run {
	s.t.Helper()
	w := githubsim.Workflow{Repo: "octo/demo", Name: "ci"}
	for i, labels := range jobs {
		w.Jobs = append(w.Jobs, githubsim.JobSpec{Name: fmt.Sprintf("job-%d", i+1), Labels: labels, Steps: []githubsim.Step{{Run: "true"}}})
	}
	r, err := s.sim.QueueRun(w)
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

// attempted waits until GitHub has made every delivery that is due, whatever the answers.
func (s *site) attempted() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	if err := s.sim.WaitDelivered(ctx); err != nil {
		s.t.Fatal(err)
	}
}

// delivered waits until every delivery that is due has been made and stored. A busy machine
// may take longer to store one than GitHub waits for: that one is made again, as an operator
// can.
func (s *site) delivered() {
	s.t.Helper()
	eventually(s.t, "the deliveries are stored", func() bool {
		s.attempted()
		last := map[string]githubsim.Delivery{}
		for _, d := range s.sim.Deliveries() {
			last[d.GUID] = d
		}
		stored := true
		for _, d := range last {
			if d.StatusCode == http.StatusServiceUnavailable {
				stored = false
				if err := s.sim.Redeliver(d.ID); err != nil {
					s.t.Fatal(err)
				}
			}
		}
		return stored
	})
}

// read returns a file of the site, "" if it is not there.
func (s *site) read(name string) string {
	b, err := os.ReadFile(s.path(name))
	if err != nil && !os.IsNotExist(err) {
		s.t.Fatal(err)
	}
	return string(b)
}
