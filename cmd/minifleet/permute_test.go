// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/autoscaler"
	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/reconcile"
	"github.com/minifleet/minifleet/secret"
	"github.com/minifleet/minifleet/store"
	"github.com/minifleet/minifleet/webhook"
)

// life is the whole of what GitHub has to tell of one job.
type life struct {
	name       string
	id         int64
	attempt    int
	labels     []string
	runner     string   // that GitHub gave it to, "" if none
	told       []string // the actions of its deliveries, in order
	conclusion string   // "" while it is not over
}

// The pools overlap: big serves whatever mac serves. Three runners listen when a
// scenario begins, r1 and r3 of mac and r2 of big, so that GitHub can have given each
// job away before any delivery of it arrives.
func scenarios() map[string][]life {
	return map[string][]life{
		"two jobs": {
			{"a", 101, 1, []string{"macos"}, "r1", []string{"queued", "in_progress", "completed"}, "success"},
			{"b", 102, 1, []string{"macos", "big"}, "r2", []string{"queued", "in_progress", "completed"}, "failure"},
		},
		"a runner of the larger pool takes the job of the smaller": {
			{"a", 101, 1, []string{"macos"}, "r2", []string{"queued", "in_progress", "completed"}, "success"},
			{"b", 102, 1, []string{"macos"}, "r1", []string{"queued", "in_progress", "completed"}, "success"},
		},
		"a job, its re-run, and one cancelled before its start": {
			{"a", 101, 1, []string{"macos"}, "r1", []string{"queued", "in_progress", "completed"}, "failure"},
			{"a again", 103, 2, []string{"macos"}, "r3", []string{"queued", "in_progress", "completed"}, "success"},
			{"c", 104, 1, []string{"macos", "big"}, "", []string{"queued", "completed"}, "cancelled"},
		},
		"a job that runs, a re-run that waits, one cancelled": {
			{"a", 101, 1, []string{"macos"}, "r1", []string{"queued", "in_progress"}, ""},
			{"b again", 105, 2, []string{"macos", "big"}, "", []string{"queued"}, ""},
			{"c", 104, 1, []string{"macos"}, "", []string{"queued", "completed"}, "cancelled"},
		},
	}
}

// status is what GitHub says of the job when all is told.
func (l life) status() string { return l.told[len(l.told)-1] }

// payload is a delivery of the job.
func (l life) payload(action string) []byte {
	job := map[string]any{
		"id": l.id, "run_id": 7, "run_attempt": l.attempt, "status": action, "conclusion": nil, "name": l.name, "workflow_name": "ci",
		"html_url": fmt.Sprintf("https://github.test/octo/demo/actions/runs/7/job/%d", l.id), "created_at": "2026-03-01T12:00:00Z",
		"started_at": "2026-03-01T12:00:00Z", "labels": l.labels, "runner_id": nil, "runner_name": nil,
	}
	if action == "completed" {
		job["conclusion"], job["runner_id"], job["runner_name"] = l.conclusion, 0, "" // as GitHub has it of one that never started
	}
	if action != "queued" && l.runner != "" {
		job["runner_id"], job["runner_name"] = registrationID(l.runner), registrationName(l.runner)
	}
	b, err := json.Marshal(map[string]any{
		"action": action, "workflow_job": job, "repository": map[string]any{"full_name": "octo/demo"}, "installation": map[string]any{"id": 5},
	})
	if err != nil {
		panic(err)
	}
	return b
}

func registrationName(runner string) string { return "site-" + runner }

func registrationID(runner string) int64 { return 1000 + int64(runner[1]-'0') }

// news is GitHub's answer about the job.
func (l life) news(asked time.Time) fleet.JobNews {
	e, _ := fleet.Seen(fleet.JobState(l.status()))
	n := fleet.JobNews{Event: e, Asked: asked, Job: fleet.Job{
		ID: fleet.JobID(l.id), RunID: 7, RunAttempt: l.attempt, InstallationID: 5, Owner: "octo", Repo: "demo", Workflow: "ci", Name: l.name,
		Labels: fleet.NewLabels(l.labels...), Conclusion: l.conclusion, URL: fmt.Sprintf("https://github.test/octo/demo/actions/runs/7/job/%d", l.id),
		CreatedAt: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
	}}
	if l.runner != "" {
		n.Job.RunnerName, n.Job.RunnerID = registrationName(l.runner), registrationID(l.runner)
	}
	return n
}

// truth is GitHub when everything of a scenario has happened.
type truth []life

func (g truth) ActiveJobs(context.Context, fleet.Scope) ([]fleet.JobNews, error) {
	var out []fleet.JobNews
	for _, l := range g {
		if l.status() != "completed" {
			out = append(out, l.news(time.Now()))
		}
	}
	return out, nil
}

func (g truth) Job(_ context.Context, _ fleet.Scope, id fleet.JobID) (fleet.JobNews, bool, error) {
	for _, l := range g {
		if l.id == int64(id) {
			return l.news(time.Now()), true, nil
		}
	}
	return fleet.JobNews{}, false, nil
}

func (g truth) Covered(context.Context, fleet.Scope) ([]fleet.Scope, error) { return nil, nil }

func (g truth) Registrations(context.Context, fleet.Scope) ([]fleet.Listed, error) { return nil, nil }

func (g truth) Registration(context.Context, fleet.Scope, int64) (fleet.Listed, bool, error) {
	return fleet.Listed{}, true, nil
}

func (g truth) Unregister(context.Context, fleet.RegistrationRef) error { return nil }

// permuteSecret and permuteApp are the App's.
const (
	permuteSecret = "the secret of the permutations"
	permuteApp    = 4242
)

// bench is a webhook over HTTP and a database, which can be put back to its base: one
// host with three listening runners.
type bench struct {
	t     *testing.T
	store *store.Store
	path  string // of the database; beside it lies the base
	hooks *webhook.Handler
	door  atomic.Pointer[chi.Mux] // of the newest hooks
	url   string
	pools []fleet.Pool
	host  fleet.HostID

	sequence, posted int64
	names            map[fleet.RunnerID]string // short ones
	said             map[fleet.RunnerID]fleet.RunnerReport
	actions          []string
	baseNames        map[fleet.RunnerID]string
	baseSaid         map[fleet.RunnerID]fleet.RunnerReport
}

// quickDir is a folder in memory where there is one: no disk is tested here.
func quickDir(t *testing.T) string {
	t.Helper()
	if runtime.GOOS == "linux" {
		if dir, err := os.MkdirTemp("/dev/shm", "mf"); err == nil {
			t.Cleanup(func() { os.RemoveAll(dir) })
			return dir
		}
	}
	return t.TempDir()
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, names: map[fleet.RunnerID]string{}, said: map[fleet.RunnerID]fleet.RunnerReport{}}
	// No limit runs out while the machine is busy with other tests.
	long := fleet.Limits{Surplus: time.Hour, Unnamed: time.Hour, Assignment: time.Hour, Arming: time.Hour, Ending: time.Hour, Placed: time.Hour}
	pool := func(name string, labels ...string) fleet.Pool {
		return fleet.Pool{
			Name: name, Labels: fleet.NewLabels(labels...), LabelNames: labels, Scopes: []fleet.Scope{{Owner: "octo", Repo: "demo"}}, Image: "sonoma", Limits: long,
		}
	}
	b.pools = []fleet.Pool{pool("mac", "macos"), pool("big", "macos", "big")}
	b.path = filepath.Join(quickDir(t), "state.db")
	b.open()
	t.Cleanup(func() { b.store.Close() })
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { b.door.Load().ServeHTTP(w, r) }))
	t.Cleanup(server.Close)
	b.url = server.URL + "/webhook"
	b.base()
	if _, err := store.Backup(t.Context(), b.path, b.path+".base"); err != nil {
		t.Fatal(err)
	}
	b.baseNames, b.baseSaid = maps.Clone(b.names), maps.Clone(b.said)
	return b
}

func (b *bench) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// open opens the database, and puts the webhook in front of it.
func (b *bench) open() {
	b.t.Helper()
	var err error
	b.store, err = store.Open(b.t.Context(), store.Config{Path: b.path})
	b.must(err)
	b.hooks, err = webhook.New(webhook.Config{
		Secrets: []secret.Text{secret.New(permuteSecret)}, AppID: permuteApp, Store: b.store,
		Serves: func(owner, repo string) bool { return owner == "octo" && repo == "demo" },
	})
	b.must(err)
	router := chi.NewRouter()
	b.hooks.Routes(router)
	b.door.Store(router)
}

// base brings three runners as far as listening, for jobs that are then cancelled.
func (b *bench) base() {
	b.t.Helper()
	ctx := b.t.Context()
	b.must(b.store.AddEnrolment(ctx, fleet.Enrolment{TokenHash: "t", ExpiresAt: time.Now().Add(time.Hour)}, 1))
	h, err := b.store.Enrol(ctx, "t", "c", "mini", "m")
	b.must(err)
	b.host = h.ID
	b.must(b.store.Hello(ctx, h.ID, "agent", "m", b.facts(), time.Hour))
	for i, labels := range [][]string{{"macos"}, {"macos", "big"}, {"macos"}} {
		l := life{name: "before", id: int64(11 + i), attempt: 1, labels: labels, conclusion: "cancelled"}
		b.post(l, "queued")
		b.decide()
		b.boot(fmt.Sprintf("r%d", i+1))
	}
	for i := range 3 {
		b.post(life{name: "before", id: int64(11 + i), attempt: 1, labels: []string{"macos"}, conclusion: "cancelled"}, "completed")
	}
	b.decide()
}

func (b *bench) facts() fleet.HostFacts {
	return fleet.HostFacts{Slots: 8, Images: []string{"sonoma"}}
}

// boot lets the one runner that has no name yet come up and listen, as its agent would.
func (b *bench) boot(name string) {
	b.t.Helper()
	ctx := b.t.Context()
	var id fleet.RunnerID
	list, _, err := b.store.ListRunners(ctx, fleet.RunnerQuery{})
	b.must(err)
	for _, r := range list {
		if b.names[r.ID] == "" {
			id = r.ID
		}
	}
	if id == "" {
		b.t.Fatalf("no runner was placed to become %s", name)
	}
	b.names[id] = name
	b.report(id, fleet.RunnerReport{Observed: fleet.ObservedStandby, HoldsSlot: true})
	b.decide()
	m, err := b.store.BeginMint(ctx, b.host, id, registrationName(name))
	b.must(err)
	b.must(b.store.Granted(ctx, id, m.Attempt, registrationID(name)))
	b.report(id, fleet.RunnerReport{Observed: fleet.ObservedIdle, HoldsSlot: true, HasConfig: true})
}

// reset puts the database back to the base.
func (b *bench) reset() {
	b.t.Helper()
	b.must(b.store.Close())
	base, err := os.ReadFile(b.path + ".base")
	b.must(err)
	b.must(os.WriteFile(b.path, base, 0o600))
	b.open()
	b.names, b.said, b.actions = maps.Clone(b.baseNames), maps.Clone(b.baseSaid), nil
}

// post delivers over HTTP, under a new GUID. What a busy machine does not store in GitHub's
// time is delivered again.
func (b *bench) post(l life, action string) {
	b.t.Helper()
	b.posted++
	eventually(b.t, action+" of "+l.name+" is stored", func() bool { return b.postOnce(l, action) != http.StatusServiceUnavailable })
}

func (b *bench) postOnce(l life, action string) (status int) {
	b.t.Helper()
	body := l.payload(action)
	req, err := http.NewRequestWithContext(b.t.Context(), http.MethodPost, b.url, bytes.NewReader(body))
	b.must(err)
	for name, value := range map[string]string{
		"Content-Type": "application/json", "X-GitHub-Delivery": fmt.Sprintf("guid-%d", b.posted), "X-GitHub-Event": "workflow_job", "X-Hub-Signature-256": sign(permuteSecret, body),
		"X-GitHub-Hook-Installation-Target-Type": "integration", "X-GitHub-Hook-Installation-Target-ID": fmt.Sprint(permuteApp),
	} {
		req.Header.Set(name, value)
	}
	res, err := http.DefaultClient.Do(req)
	b.must(err)
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	b.must(err)
	if res.StatusCode != http.StatusServiceUnavailable && (res.StatusCode != http.StatusAccepted || !bytes.Contains(text, []byte(`"processed"`))) {
		b.t.Fatalf("%s of %s: %s %s", action, l.name, res.Status, text)
	}
	return res.StatusCode
}

// decide decides and records until there is nothing more to do, as the loop does, and
// notes what was done.
func (b *bench) decide() {
	b.t.Helper()
	ctx := b.t.Context()
	for range 10 {
		state, err := b.store.State(ctx)
		b.must(err)
		plan := autoscaler.Decide(autoscaler.Snapshot{
			Now: time.Now(), State: state, Pools: b.pools, Rules: autoscaler.Rules{HostDeadline: time.Hour}, Fresh: autoscaler.Fresh{Demand: true, Hosts: true},
		})
		if plan.Empty() {
			return
		}
		done, err := b.store.Carry(ctx, plan)
		b.must(err)
		if done.Void > 0 {
			b.t.Fatalf("%d actions of a plan are void, and nobody else works: %+v", done.Void, plan)
		}
		for _, p := range plan.Places {
			b.actions = append(b.actions, "place "+p.Pool)
		}
		for _, a := range plan.Arms {
			b.actions = append(b.actions, fmt.Sprintf("arm %s for %s", b.names[a.Runner], a.Scope))
		}
		for _, a := range plan.Disarms {
			b.actions = append(b.actions, "disarm "+b.names[a.Runner])
		}
		for _, a := range plan.Retires {
			b.actions = append(b.actions, fmt.Sprintf("retire %s, drain %t, failure %t", b.names[a.Runner], a.Drain, a.Failure))
		}
		for _, d := range done.Deletes {
			b.actions = append(b.actions, "delete "+b.names[d.Runner])
			b.must(b.store.RegistrationDeleted(ctx, d.Runner, d.Attempt))
		}
	}
	b.t.Fatal("ten decisions, and there is still something to do")
}

// report has the agent say something new of one runner.
func (b *bench) report(id fleet.RunnerID, r fleet.RunnerReport) {
	b.t.Helper()
	r.ID = id
	b.said[id] = r
	b.sequence++
	all := fleet.HostReport{Instance: "agent", Sequence: b.sequence, Facts: b.facts()}
	for _, r := range b.said {
		all.Runners = append(all.Runners, r)
	}
	b.must(b.store.Report(b.t.Context(), b.host, all, time.Hour))
}

func (b *bench) called(name string) fleet.RunnerID {
	for id, have := range b.names {
		if have == name {
			return id
		}
	}
	b.t.Fatalf("no runner %s", name)
	return ""
}

// consult has GitHub's own lists read once.
func (b *bench) consult(all []life) {
	b.t.Helper()
	ctx, enough := context.WithCancel(b.t.Context())
	defer enough()
	r := reconcile.New(reconcile.Config{
		Store: b.store, GitHub: truth(all), Learn: b.hooks.Learn, Pools: b.pools, Ours: func(string) bool { return false },
		Every: time.Hour, HostDeadline: time.Hour, Wake: enough,
	})
	b.must(r.Run(ctx))
	if !r.Fresh() {
		b.t.Fatal("GitHub's lists were not read")
	}
}

// step is a delivery on its way.
type step struct {
	life   int
	action string
}

// play puts the base back and delivers steps one by one, each followed by a decision.
func (b *bench) play(all []life, steps []step) {
	b.t.Helper()
	b.reset()
	for _, s := range steps {
		b.post(all[s.life], s.action)
		b.decide()
	}
}

// finish has the lists consulted if they may have something to add, lets the guests
// end their jobs, and sends one more job, which no runner of the base waits for if one
// of them had a job of big. It returns what was done and what is known at the end.
func (b *bench) finish(all []life, consult bool) string {
	b.t.Helper()
	if consult {
		b.consult(all)
		b.decide()
	}
	for _, o := range []fleet.Observed{fleet.ObservedBusy, fleet.ObservedFinished, fleet.ObservedGone} {
		for _, l := range all {
			if l.runner == "" || o != fleet.ObservedBusy && l.status() != "completed" {
				continue
			}
			r := fleet.RunnerReport{Observed: o, HoldsSlot: o != fleet.ObservedGone, HasConfig: true}
			if o != fleet.ObservedBusy {
				r.Result = "succeeded"
			}
			b.report(b.called(l.runner), r)
		}
		b.decide()
	}
	b.post(life{name: "more", id: 900, attempt: 1, labels: []string{"macos", "big"}}, "queued")
	b.decide()
	if slices.Contains(b.actions, "place big") {
		b.boot("r9")
	}
	return b.summary()
}

// summary writes down what was done, in no order, and what is known.
func (b *bench) summary() string {
	b.t.Helper()
	var out []string
	jobs, _, err := b.store.ListJobs(b.t.Context(), fleet.JobQuery{})
	b.must(err)
	for _, j := range jobs {
		out = append(out, fmt.Sprintf("job %d %s of %s, attempt %d, labels %s: %s %q on %q", j.ID, j.Name, j.Repository(), j.RunAttempt, j.Labels, j.State, j.Conclusion, j.RunnerName))
	}
	runners, _, err := b.store.ListRunners(b.t.Context(), fleet.RunnerQuery{All: true})
	b.must(err)
	for _, r := range runners {
		out = append(out, fmt.Sprintf("runner %s of %s: %s, wanted %s, registration %q of attempt %d, job %d, done %t, result %q, failure %q",
			b.names[r.ID], r.Pool, r.Phase(), r.Wanted, r.Registration, r.Attempt, r.Job, r.JobDone, r.Result, r.Failure))
	}
	state, err := b.store.State(b.t.Context())
	b.must(err)
	out = append(out, fmt.Sprintf("pools %v, host failures %d", state.Pools, state.Hosts[0].Failures))
	for i, j := range state.Jobs {
		out = append(out, fmt.Sprintf("waits as number %d: %d", i, j.ID))
	}
	out = append(out, b.actions...)
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// orders calls f with every order of every subset.
func orders[T any](of []T, f func([]T)) {
	taken := make([]bool, len(of))
	var order []T
	var grow func()
	grow = func() {
		f(order)
		for i, v := range of {
			if !taken[i] {
				taken[i] = true
				order = append(order, v)
				grow()
				order = order[:len(order)-1]
				taken[i] = false
			}
		}
	}
	grow()
}

// point is a state that some deliveries lead to, and where each further one leads.
type point struct {
	path []step // one way here
	next map[step]string
}

// explore finds every state that deliveries, in any order and any number, lead to from
// the base. What happens next depends on nothing but the state, so that each of its
// deliveries has to be made only once.
func (b *bench) explore(all []life, deliveries []step) (points map[string]*point, base string) {
	b.t.Helper()
	b.play(all, nil)
	base = b.summary()
	points = map[string]*point{base: {next: map[step]string{}}}
	for todo := []string{base}; len(todo) > 0; todo = todo[1:] {
		here := points[todo[0]]
		at := "" // where the database is
		for _, s := range deliveries {
			if at != todo[0] {
				b.play(all, here.path)
			}
			b.post(all[s.life], s.action)
			b.decide()
			at = b.summary()
			here.next[s] = at
			if points[at] == nil {
				points[at] = &point{path: append(slices.Clone(here.path), s), next: map[step]string{}}
				todo = append(todo, at)
			}
		}
	}
	return points, base
}

// silent names the jobs that are over and of which no delivery arrived: the books
// cannot know of them, and need not.
func silent(all []life, told []step) string {
	out := ""
	for i, l := range all {
		if l.status() == "completed" && !slices.ContainsFunc(told, func(s step) bool { return s.life == i }) {
			out += l.name + ";"
		}
	}
	return out
}

// Every order of every subset of the deliveries, with every repetition, each over HTTP
// into SQLite with a decision after it, leads to the same actions and the same end as
// their own order, once GitHub's lists were read where a delivery was left out.
func TestEveryOrderOfDeliveries(t *testing.T) {
	t.Parallel()
	for name, all := range scenarios() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			var whole []step
			for i, l := range all {
				for _, action := range l.told {
					whole = append(whole, step{life: i, action: action})
				}
			}
			want := map[string]string{} // by the jobs never told of
			inOrder := func(quiet string) string {
				if want[quiet] == "" {
					b.play(all, slices.DeleteFunc(slices.Clone(whole), func(s step) bool { return strings.Contains(quiet, all[s.life].name+";") }))
					want[quiet] = b.finish(all, quiet != "")
				}
				return want[quiet]
			}
			points, base := b.explore(all, whole)
			ends := map[string]bool{} // of points where all was told
			sequences := 0
			orders(whole, func(order []step) {
				sequences++
				at := base
				for _, s := range order {
					at = points[at].next[s]
				}
				ends[at] = ends[at] || len(order) == len(whole)
			})
			for at, p := range points {
				for _, consult := range []bool{true, false} {
					if !consult && !ends[at] {
						continue
					}
					if diff := cmp.Diff(inOrder(silent(all, p.path)), again(b, all, p.path, consult)); diff != "" {
						t.Errorf("%v, lists consulted: %t (-in order +this):\n%s", p.path, consult, diff)
					}
				}
			}
			t.Logf("%d sequences, with any repetitions, through %d states; in order:\n%s", sequences, len(points), want[""])
		})
	}
}

// again plays a path to its end.
func again(b *bench, all []life, path []step, consult bool) string {
	b.t.Helper()
	b.play(all, path)
	return b.finish(all, consult)
}
