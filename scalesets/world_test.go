// SPDX-License-Identifier: MIT

package scalesets_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/githubapp"
	"github.com/minifleet/minifleet/githubapp/githubsim"
	"github.com/minifleet/minifleet/githubapp/standin"
	"github.com/minifleet/minifleet/internal/leakcheck"
	"github.com/minifleet/minifleet/scalesets"
	"github.com/minifleet/minifleet/secret"
	"github.com/minifleet/minifleet/store"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

// patience is far more than anything here takes; it only ends a test that hangs.
const patience = 2 * time.Minute

// appKey is one App key for all tests, because making one takes long.
var appKey = sync.OnceValue(func() secret.Text {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return secret.New(string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})))
})

// macs is a pool with a scale set in the group Macs of the organization octo.
func macs() fleet.Pool {
	return fleet.Pool{
		Name: "macs", ScaleSet: "big macs", Labels: fleet.NewLabels("Mac-Set", "M4"), LabelNames: []string{"Mac-Set", "M4"},
		Scopes: []fleet.Scope{{Owner: "octo"}}, RunnerGroup: "Macs", MaxRunners: 3, Image: "sonoma",
	}
}

// world is a simulated GitHub, the App, a database and what reads the queues.
type world struct {
	*testing.T
	ctx   context.Context
	sim   *githubsim.Sim
	app   *githubapp.App
	store *store.Store
	kept  scalesets.Store // the same, unless a test has it otherwise
	pools []fleet.Pool
	sets  *scalesets.Sets
	every time.Duration // without a message, until GitHub is asked for its count
	wire  http.RoundTripper
	odd   atomic.Int32 // messages that were passed over
	calls sync.Map     // of scalesets.Call without the time, that were observed
	log   *journal
	stop  func()
}

func newWorld(t *testing.T, opt githubsim.Options) *world {
	t.Helper()
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	w := &world{T: t, ctx: ctx, pools: []fleet.Pool{macs()}, every: time.Hour, log: &journal{news: make(chan struct{})}, stop: func() {}}
	opt.Kind, opt.Prompt, opt.PrivateKey = true, true, appKey()
	var err error
	w.sim, err = githubsim.New(opt)
	w.must(err)
	w.must(w.sim.Start())
	t.Cleanup(func() { w.check(w.sim.Close()) })
	_, err = w.sim.AddInstallation(githubsim.Installation{Account: "octo", Repositories: []string{"demo", "other"}})
	w.must(err)
	_, err = w.sim.AddRunnerGroup("octo", "Macs", false, "demo")
	w.must(err)
	w.app, err = githubapp.New(githubapp.Config{AppID: w.sim.AppID(), PrivateKey: w.sim.PrivateKeyPEM(), BaseURL: w.sim.URL()})
	w.must(err)
	t.Cleanup(w.app.Close)
	w.store, err = store.Open(ctx, store.Config{Path: filepath.Join(t.TempDir(), "state.db")})
	w.must(err)
	t.Cleanup(func() { w.check(w.store.Close()) })
	w.kept = w.store
	t.Cleanup(func() {
		w.stop()
		if t.Failed() {
			t.Logf("the log:\n%s", w.log)
		}
	})
	w.host("mini-1", 2)
	return w
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) check(err error) {
	if err != nil {
		w.Error(err)
	}
}

// RegistrationToken and RunJobs are the App's.
func (w *world) RegistrationToken(ctx context.Context, scope fleet.Scope) (secret.Text, error) {
	return w.app.RegistrationToken(ctx, scope)
}

func (w *world) RunJobs(ctx context.Context, repo fleet.Scope, run int64) ([]fleet.JobNews, error) {
	return w.app.RunJobs(ctx, repo, run)
}

// host is one that was just heard of.
func (w *world) host(name string, slots int) {
	w.Helper()
	w.must(w.store.AddEnrolment(w.ctx, fleet.Enrolment{TokenHash: "token-" + name, ExpiresAt: time.Now().Add(time.Hour)}, 1))
	h, err := w.store.Enrol(w.ctx, "token-"+name, "credential-"+name, name, "machine-"+name)
	w.must(err)
	facts := fleet.HostFacts{Slots: slots, Backends: []string{"process"}, Images: []string{"sonoma"}, OS: "darwin", Arch: "arm64", AgentVersion: "1"}
	w.must(w.store.Hello(w.ctx, h.ID, "agent-1", "machine-"+name, facts, time.Minute))
	w.must(w.store.Report(w.ctx, h.ID, fleet.HostReport{Instance: "agent-1", Sequence: 1, Facts: facts}, time.Minute))
}

// run reads the queues until stop.
func (w *world) run() {
	w.Helper()
	w.make()
	w.start()
}

// make makes what reads the queues, which calls nobody before start.
func (w *world) make() {
	w.Helper()
	var err error
	w.sets, err = scalesets.New(scalesets.Config{
		Store: w.kept, GitHub: w, Pools: w.pools, WebURL: w.sim.URL(), Owner: "minifleet-test", Every: w.every, Absence: time.Hour,
		Transport: w.wire, PassedOver: func(string) { w.odd.Add(1) },
		Observe: func(c scalesets.Call) {
			if c.Took <= 0 {
				w.Errorf("%+v", c)
			}
			c.Took = 0
			w.calls.Store(c, true)
		},
		HostDeadline: time.Hour, Retry: 10 * time.Millisecond, Log: slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	w.must(err)
}

func (w *world) start() {
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.ctx))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.check(w.sets.Run(ctx))
	}()
	w.stop = sync.OnceFunc(func() {
		cancel()
		<-ended
	})
}

// queue queues a run with one job for each name and returns their ids at GitHub.
func (w *world) queue(names ...string) []int64 {
	w.Helper()
	flow := githubsim.Workflow{Repo: "octo/demo", Event: "pull_request"}
	for _, n := range names {
		flow.Jobs = append(flow.Jobs, githubsim.JobSpec{Name: n, Labels: []string{"mac-set"}, Steps: []githubsim.Step{{Run: "true"}}})
	}
	r, err := w.sim.QueueRun(flow)
	w.must(err)
	return r.JobIDs
}

// books are all jobs in the books as "name state conclusion", oldest first.
func (w *world) books() []string {
	w.Helper()
	jobs, _, err := w.store.ListJobs(w.ctx, fleet.JobQuery{})
	w.must(err)
	out := []string{}
	for _, j := range slices.Backward(jobs) {
		name := j.Name
		if j.Nameless() {
			name = "?"
		}
		out = append(out, strings.TrimSpace(fmt.Sprintf("%s %s %s", name, j.State, j.Conclusion)))
	}
	return out
}

// untilBooks waits until the books hold these jobs.
func (w *world) untilBooks(want ...string) {
	w.Helper()
	for {
		changed := w.store.Changed()
		got := w.books()
		if slices.Equal(got, want) {
			return
		}
		select {
		case <-changed:
		case <-w.ctx.Done():
			w.Fatalf("the books hold %q, want %q", got, want)
		}
	}
}

// untilSet waits until the one scale set at GitHub is as wanted.
func (w *world) untilSet(what string, ok func(githubsim.ScaleSet) bool) githubsim.ScaleSet {
	w.Helper()
	for at := uint64(0); ; {
		var err error
		sets := w.sim.ScaleSets()
		if len(sets) == 1 && ok(sets[0]) {
			return sets[0]
		}
		if at, err = w.sim.Wait(w.ctx, at); err != nil {
			w.Fatalf("%s: %v: %+v", what, err, sets)
		}
	}
}

// reads waits until the set's queue is read with so much room.
func (w *world) reads(room int) githubsim.ScaleSet {
	w.Helper()
	return w.untilSet(fmt.Sprintf("its queue is read with room for %d", room), func(s githubsim.ScaleSet) bool {
		return s.Session == "minifleet-test" && s.Capacity == room
	})
}

// work registers a runner and lets it do one job.
func (w *world) work(name string) fleet.Registered {
	w.Helper()
	r, err := w.sets.Register(w.ctx, "macs", name)
	w.must(err)
	w.must(githubapp.CheckConfig(r.Config.Reveal(), name))
	code := standin.Run(w.ctx, standin.Options{Dir: w.TempDir(), Getenv: func(k string) string {
		if k == "ACTIONS_RUNNER_INPUT_JITCONFIG" {
			return r.Config.Reveal()
		}
		return ""
	}})
	if code != 0 {
		w.Errorf("runner %s ended with %d", name, code)
	}
	return r
}

// journal is a log that can be waited for.
type journal struct {
	mu   sync.Mutex // guards both
	text bytes.Buffer
	news chan struct{}
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	close(j.news)
	j.news = make(chan struct{})
	return j.text.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// logged counts how often the log holds a text.
func (w *world) logged(text string) int { return strings.Count(w.log.String(), text) }

// untilLog waits until the log holds a text so many times.
func (w *world) untilLog(text string, times int) {
	w.Helper()
	for {
		w.log.mu.Lock()
		news := w.log.news
		w.log.mu.Unlock()
		n := w.logged(text)
		if n >= times {
			return
		}
		select {
		case <-news:
		case <-w.ctx.Done():
			w.Fatalf("the log holds %q %d times, want %d", text, n, times)
		}
	}
}
