// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/minifleet/minifleet/githubapp/githubsim"
	"github.com/minifleet/minifleet/secret"
)

// The one repository of a site, and the labels of its one pool.
const (
	owner = "octo"
	repo  = "demo"
)

func poolLabels() []string { return []string{"self-hosted", "macOS", "ARM64", "bench"} }

// site is one controller with its GitHub and its hosts, made for one figure.
type site struct {
	*bencher
	dir        string
	github     *process
	sim        githubsim.Control // of it
	controller *process
	hosts      *process // simulated ones, or a real agent
	token      secret.Text
	client     *http.Client
	*sender
	receipts *receipts
	says     sync.WaitGroup // deliveries that nobody waits for
}

// siteOf says what is particular about a site.
type siteOf struct {
	name      string
	reconcile string   // how often GitHub's lists are read; once if ""
	settings  string   // further lines of the controller's configuration
	timing    string   // further keys of that section
	pool      string   // what VMs the pool has; those of the process backend if ""
	app       string   // further keys of the section github
	github    []string // further arguments of the simulated GitHub
	limits    string   // keys of the section github that say what is kept to; nothing is if ""
}

// newSite starts GitHub and the controller, which does not ask GitHub about jobs that are
// made up here.
func newSite(ctx context.Context, b *bencher, o siteOf) (_ *site, err error) {
	s := &site{bencher: b, dir: filepath.Join(b.dir, o.name), token: secret.Generate(), client: &http.Client{Transport: &http.Transport{}}}
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	ticks, timing := o.app, o.timing
	if b.hour {
		ticks, timing = ticks+", installation_refresh: 1h", timing+", host_deadline: 3h, lease: 3h, poll: 1h, repair: 1h"
	}
	minifleet := filepath.Join(b.programs, "minifleet")
	answers := "--prompt"
	if o.limits != "" {
		answers = "--one-key"
	}
	if s.github, err = launch(ctx, s.dir, "github", []string{"github"}, nil, minifleet, append([]string{"githubsim", "--kind", answers}, o.github...)...); err != nil {
		return nil, err
	}
	s.sim = githubsim.Control{BaseURL: s.github.said["github"], Client: s.client}
	installation, err := s.sim.AddInstallation(ctx, githubsim.Installation{Account: owner, Repositories: []string{repo}})
	if err != nil {
		return nil, err
	}
	app, err := s.sim.App(ctx)
	if err != nil {
		return nil, err
	}
	for file, text := range map[string]string{
		"app.pem": app.PrivateKeyPEM, "webhook.secret": app.WebhookSecret, "admin.token": s.token.Reveal(),
		"controller.yaml": fmt.Sprintf(`database: minifleet.db
webhook: {address: "127.0.0.1:0"}
agents: {address: "127.0.0.1:0"}
admin: {address: "127.0.0.1:0", token_file: admin.token}
github: {url: %q, app_id: %d, private_key_file: app.pem, webhook_secret_file: webhook.secret, %s%s}
pools:
  - {name: bench, labels: [%s], scopes: [%s/%s], trust: {public: true, forks: true}, %s}
timing: {reconcile: %s%s}
%s
`, s.sim.BaseURL, app.ID, cmp.Or(o.limits, `mints_per_minute: 0, limits: "off"`), ticks, strings.Join(poolLabels(), ", "), owner, repo,
			cmp.Or(o.pool, "image: bench, backend: process, cpus: 1, memory_mib: 256"), cmp.Or(o.reconcile, "24h"), timing, o.settings),
	} {
		if err := os.WriteFile(filepath.Join(s.dir, file), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	doors := []string{"webhook", "agents", "admin"}
	if strings.Contains(o.app, "deliveries: pull") {
		doors = doors[1:]
	}
	if s.controller, err = launch(ctx, s.dir, "controller", doors, nil,
		minifleet, "serve", "--config", filepath.Join(s.dir, "controller.yaml")); err != nil {
		return nil, err
	}
	if s.controller.said["webhook"] == "" {
		return s, nil
	}
	s.sender, err = newSender(b.payload, s.controller.said["webhook"], app.WebhookSecret, app.ID, installation)
	return s, err
}

func (s *site) close() {
	s.hosts.stop()
	if s.receipts != nil {
		s.receipts.wait()
	}
	s.says.Wait()
	if s.sender != nil {
		s.sender.close()
	}
	s.controller.stop()
	s.github.stop()
	s.client.CloseIdleConnections()
}

// failed adds what the programs said last to an error, and keeps beside their logs what
// the controller was doing.
func (s *site) failed(err error) error {
	if err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if body, debugErr := s.debug(ctx, "goroutine?debug=2"); debugErr == nil {
		text, _ := io.ReadAll(body) // as much as there is
		body.Close()
		_ = os.WriteFile(filepath.Join(s.dir, "goroutines.txt"), text, 0o600) // a help for who looks, with -keep
	}
	for _, p := range []*process{s.controller, s.hosts} {
		if p != nil {
			err = fmt.Errorf("%w\n%s says:\n%s", err, p.name, p.tail())
		}
	}
	return err
}

// enrolment makes a token for so many hosts and returns its file.
func (s *site) enrolment(ctx context.Context, uses int) (string, error) {
	var out struct {
		Token string `json:"token"`
	}
	if err := s.ask(ctx, http.MethodPost, "enrolment-tokens", map[string]int{"uses": uses}, &out); err != nil {
		return "", err
	}
	path := filepath.Join(s.dir, "enrolment.token")
	return path, os.WriteFile(path, []byte(out.Token), 0o600)
}

// ask makes one call of the controller's API.
func (s *site) ask(ctx context.Context, method, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	if in == nil {
		body = nil
	}
	req, err := http.NewRequestWithContext(ctx, method, s.controller.said["admin"]+"/api/v1/"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+s.token.Reveal())
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := s.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode/100 != 2 {
		return errors.Join(fmt.Errorf("%s: the controller answered %s: %s", path, res.Status, text), err)
	}
	return json.Unmarshal(text, out)
}

// host is what is read of one.
type host struct {
	State string `json:"state"`
	Slots int    `json:"slots"`
	Free  int    `json:"free_slots"`
}

// allHosts lists every host.
func (s *site) allHosts(ctx context.Context) (all []host, err error) {
	for cursor := ""; ; {
		path := "hosts?limit=1000"
		if cursor != "" {
			path += "&cursor=" + url.QueryEscape(cursor)
		}
		var page struct {
			Items []host `json:"items"`
			Next  string `json:"next"`
		}
		if err := s.ask(ctx, http.MethodGet, path, nil, &page); err != nil {
			return nil, err
		}
		all = append(all, page.Items...)
		if cursor = page.Next; cursor == "" {
			return all, nil
		}
	}
}

// simulate starts a fleet of simulated hosts and waits until all are online.
func (s *site) simulate(ctx context.Context, hosts, slots int, args ...string) error {
	token, err := s.enrolment(ctx, hosts)
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	s.receipts = readReceipts(r)
	s.hosts, err = launch(ctx, s.dir, "hosts", nil, []*os.File{w}, filepath.Join(s.programs, "minifleet-agent"), append([]string{
		"simulate", "--controller", s.controller.said["agents"], "--hosts", strconv.Itoa(hosts), "--slots", strconv.Itoa(slots),
		"--enrolment-token-file", token, "--images", "bench", "--receipts", "/dev/fd/3", "--summary", "1h",
	}, args...)...)
	w.Close()
	if err != nil {
		return err
	}
	return s.failed(s.online(ctx, hosts))
}

// online waits until so many hosts have reported, and then a moment more, so that
// nothing of their coming is measured.
func (s *site) online(ctx context.Context, hosts int) error {
	return until(ctx, patience, 100*time.Millisecond, fmt.Sprintf("%d hosts are online", hosts), func() (bool, error) {
		select {
		case <-s.hosts.done:
			return false, fmt.Errorf("the hosts ended: %v", s.hosts.err)
		default:
		}
		all, err := s.allHosts(ctx)
		online := 0
		for _, h := range all {
			if h.State == "online" && h.Slots > 0 {
				online++
			}
		}
		return online == hosts, err
	})
}

// settled waits until the controller has been at rest for a second.
func (s *site) settled(ctx context.Context) error {
	before, quiet := s.controller.cpu(), 0
	return until(ctx, patience, 200*time.Millisecond, "the controller is at rest", func() (bool, error) {
		now := s.controller.cpu()
		if quiet++; now-before > 10*time.Millisecond {
			quiet = 0
		}
		before = now
		return quiet >= 5, nil
	})
}

// patience is far more than any step takes on a machine that is busy with others.
const patience = 3 * time.Minute

// until asks a question now and then.
func until(ctx context.Context, atMost, every time.Duration, what string, ask func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, atMost, fmt.Errorf("%s: not within %s", what, atMost))
	defer cancel()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		switch ok, err := ask(); {
		case err != nil && ctx.Err() == nil:
			return err
		case ok:
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// debug fetches one of the controller's own profiles.
func (s *site) debug(ctx context.Context, path string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.controller.said["admin"]+"/debug/pprof/"+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+s.token.Reveal())
	res, err := s.client.Do(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		res.Body.Close()
		return nil, fmt.Errorf("%s: the controller answered %s", path, res.Status)
	}
	return res.Body, nil
}

// goroutines counts those of the controller.
func (s *site) goroutines(ctx context.Context) (n int, err error) {
	body, err := s.debug(ctx, "goroutine?debug=1")
	if err != nil {
		return 0, err
	}
	defer body.Close()
	line, err := bufio.NewReader(body).ReadString('\n')
	if _, scanErr := fmt.Sscanf(line, "goroutine profile: total %d", &n); scanErr != nil {
		return 0, errors.Join(err, scanErr)
	}
	return n, nil
}

// profile takes a CPU profile of the controller while something is measured, if
// profiles are wanted.
func (s *site) profile(ctx context.Context, name string, seconds int) (done func() error) {
	if s.profiles == "" {
		return func() error { return nil }
	}
	result := make(chan error, 1)
	go func() {
		body, err := s.debug(ctx, fmt.Sprintf("profile?seconds=%d", seconds))
		if err != nil {
			result <- err
			return
		}
		defer body.Close()
		for _, kind := range []string{"heap", "goroutine"} {
			if body, err := s.debug(ctx, kind+"?debug=1"); err == nil {
				text, _ := io.ReadAll(body)
				os.WriteFile(filepath.Join(s.profiles, name+"."+kind), text, 0o600)
			}
		}
		f, err := os.Create(filepath.Join(s.profiles, name+".pprof"))
		if err != nil {
			result <- err
			return
		}
		_, err = io.Copy(f, body)
		result <- errors.Join(err, f.Close())
	}()
	return func() error { return <-result }
}

// receipt is a step of a VM and its time, as the simulated hosts write it.
type receipt struct {
	At     time.Time `json:"at"`
	Runner string    `json:"runner"`
	Step   string    `json:"step"`
	Name   string    `json:"name"` // of its registration
}

// receipts are what the simulated hosts and the listeners have said.
type receipts struct {
	mu      sync.Mutex // guards the rest
	all     map[string][]receipt
	changed chan struct{}
	on      func(receipt) // called with each, in their order

	ended chan struct{}
}

func readReceipts(r io.ReadCloser) *receipts {
	rc := &receipts{all: map[string][]receipt{}, changed: make(chan struct{}), on: func(receipt) {}, ended: make(chan struct{})}
	go func() {
		defer close(rc.ended)
		defer r.Close()
		for lines := json.NewDecoder(bufio.NewReader(r)); ; {
			var one receipt
			if lines.Decode(&one) != nil {
				return // the hosts have ended
			}
			rc.add(one)
		}
	}()
	return rc
}

func (rc *receipts) add(one receipt) {
	rc.mu.Lock()
	rc.all[one.Step] = append(rc.all[one.Step], one)
	close(rc.changed)
	rc.changed = make(chan struct{})
	on := rc.on
	rc.mu.Unlock()
	on(one)
}

func (rc *receipts) wait() { <-rc.ended }

// of returns the receipts of a step so far.
func (rc *receipts) of(step string) []receipt {
	rc.mu.Lock()
	defer rc.mu.Unlock()
	return rc.all[step]
}

// times waits for the n-th receipt of a step after the first `after`, and returns their times.
func (rc *receipts) times(ctx context.Context, step string, after, n int, atMost time.Duration) ([]time.Time, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, atMost, fmt.Errorf("not within %s", atMost))
	defer cancel()
	for {
		rc.mu.Lock()
		have, changed := rc.all[step], rc.changed
		rc.mu.Unlock()
		if len(have) >= after+n {
			var t []time.Time
			for _, one := range have[after : after+n] {
				t = append(t, one.At)
			}
			return t, nil
		}
		select {
		case <-changed:
		case <-rc.ended:
			return nil, fmt.Errorf("%s: %d of %d, and the hosts have ended", step, len(have)-after, n)
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: %d of %d: %w", step, len(have)-after, n, context.Cause(ctx))
		}
	}
}
