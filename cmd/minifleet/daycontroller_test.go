// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"github.com/minifleet/minifleet/program"
	"github.com/minifleet/minifleet/secret"
)

// Where the parties of a virtual day are reached.
const (
	dayHook   = "127.0.0.1:8080"
	dayAgents = "127.0.0.1:8443"
	dayAdmin  = "127.0.0.1:8090"
	dayGitHub = "127.0.0.1:9000"
)

// dayLife is a controller from its start to its end.
type dayLife struct {
	plug *plug
	stop context.CancelFunc
	over chan struct{}
}

// dayConfig is the controller's configuration.
func (d *day) dayConfig(standby int) string {
	return fmt.Sprintf(`database: state.db
webhook: {address: %q}
agents: {address: %q}
admin: {address: %q, token: %q}
github:
  url: http://%s
  app_id: %d
  private_key_file: app.pem
  webhook_secret_file: webhook.secret
keep_payloads: 6h
pools:
  - name: mac
    labels: [self-hosted, macOS, ARM64]
    scopes: [octo, acme, kim/app]
    image: sonoma
    standby: %d
  - name: big
    labels: [self-hosted, macOS, ARM64, big]
    scopes: [octo]
    image: sonoma
    max_runners: 4
`, dayHook, dayAgents, dayAdmin, operatorToken, dayGitHub, d.sim.AppID(), standby)
}

// begin starts a controller on the database in the folder of the moment.
func (d *day) begin() {
	for name, text := range map[string]string{
		"controller.yaml": d.dayConfig(d.standby), "app.pem": d.sim.PrivateKeyPEM().Reveal(), "webhook.secret": d.sim.WebhookSecret().Reveal(),
	} {
		d.must(os.WriteFile(filepath.Join(d.home, name), []byte(text), 0o600))
	}
	cfg, err := loadSettings(filepath.Join(d.home, "controller.yaml"), nothing)
	d.must(err)
	l := &dayLife{plug: d.wires.plug(), over: make(chan struct{})}
	way := &far{day: d, rng: rand.New(rand.NewPCG(d.seed, uint64(d.lives))), Transport: http.Transport{DialContext: l.plug.dial}}
	ctx, cancel := context.WithCancel(context.Background())
	l.stop = cancel
	log := d.log.With("life", d.lives)
	ctl, err := newController(ctx, cfg, d.home, network{listen: l.plug.listen, github: way}, log)
	d.must(err)
	d.lives++
	d.life = l
	go func() {
		defer close(l.over)
		defer way.CloseIdleConnections()
		stop := program.Stop{Within: stopWithin, Log: log}
		err := stop.Run(ctx, func(ctx context.Context, parts *program.Parts) error {
			err := ctl.run(ctx, parts)
			return errors.Join(err, ctl.close())
		})
		if err != nil && !l.pulled() {
			d.broken("the controller ended with: %v", err)
		}
	}()
}

func (l *dayLife) pulled() bool {
	l.plug.mu.Lock()
	defer l.plug.mu.Unlock()
	return l.plug.pulled
}

// end ends the controller as SIGTERM does.
func (d *day) end() {
	d.life.stop()
	<-d.life.over
}

// crash ends it in the middle of everything: what is on the disk now is all that the next
// one finds, and what it says from now on nobody hears.
func (d *day) crash() {
	synctest.Wait() // nobody writes now
	next := filepath.Join(d.dir, fmt.Sprintf("life-%d", d.lives))
	d.must(os.Mkdir(next, 0o700))
	entries, err := os.ReadDir(d.home)
	d.must(err)
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), "-shm") {
			continue // SQLite makes it anew, as after a power cut
		}
		raw, err := os.ReadFile(filepath.Join(d.home, e.Name()))
		d.must(err)
		d.must(os.WriteFile(filepath.Join(next, e.Name()), raw, 0o600))
	}
	d.life.plug.pull()
	d.end()
	d.must(os.RemoveAll(d.home))
	d.home = next
}

// far is the way to GitHub: it takes time, and counts who goes it.
type far struct {
	http.Transport
	day *day

	mu  sync.Mutex // guards rng
	rng *rand.Rand
}

func (f *far) RoundTrip(r *http.Request) (*http.Response, error) {
	f.mu.Lock()
	took := between(f.rng, 20*time.Millisecond, 120*time.Millisecond)
	f.mu.Unlock()
	f.day.count("calls "+kindOf(r), 1)
	if !pauseFor(r.Context(), took) {
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, context.Cause(r.Context())
	}
	resp, err := f.Transport.RoundTrip(r)
	if err == nil && resp.StatusCode >= 400 {
		f.day.count(fmt.Sprintf("answers %d", resp.StatusCode), 1)
	}
	return resp, err
}

// kindOf names a call without what is different in each.
func kindOf(r *http.Request) string {
	var out []string
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	for i, p := range parts {
		switch {
		case strings.ContainsAny(p[:min(len(p), 1)], "0123456789"):
			p = "ID"
		case i > 0 && (parts[0] == "repos" || parts[0] == "orgs") && i <= map[string]int{"repos": 2, "orgs": 1}[parts[0]]:
			continue
		}
		out = append(out, p)
	}
	return r.Method + " " + strings.Join(out, "/")
}

// ask calls the controller's API.
func (d *day) ask(method, path string, body string, into any) error {
	req, err := http.NewRequest(method, "http://"+dayAdmin+"/api/v1/"+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+operatorToken)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := d.operator.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %s", method, path, res.Status)
	}
	return json.NewDecoder(res.Body).Decode(into)
}

// all reads a list of the controller's API to its end.
func all[T any](d *day, what string, query url.Values) (list []T, err error) {
	query.Set("limit", "1000")
	for {
		var page struct {
			Items []T    `json:"items"`
			Next  string `json:"next"`
		}
		if err := d.ask(http.MethodGet, what+"?"+query.Encode(), "", &page); err != nil {
			return nil, err
		}
		list = append(list, page.Items...)
		if page.Next == "" {
			return list, nil
		}
		query.Set("cursor", page.Next)
	}
}

// hostToken makes an enrolment token.
func (d *day) hostToken(name string) secret.Text {
	var out struct {
		Token string `json:"token"`
	}
	d.must(d.ask(http.MethodPost, "enrolment-tokens", fmt.Sprintf(`{"host_name":%q}`, name), &out))
	return secret.New(out.Token)
}
