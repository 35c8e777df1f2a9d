// SPDX-License-Identifier: MIT

package webhook_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/internal/leakcheck"
	"github.com/minifleet/minifleet/secret"
	"github.com/minifleet/minifleet/trust"
	"github.com/minifleet/minifleet/webhook"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

const (
	appID        = 31337
	installation = 4242
	key          = "a secret of the webhook"
)

var start = time.Date(2026, 11, 21, 9, 0, 4, 0, time.UTC)

// memory is a store that is no kinder than a real one: all or nothing, unique by
// GUID, and down when told.
type memory struct {
	mu         sync.Mutex
	down       error
	installed  map[int64]bool // nil: never loaded
	deliveries map[string]fleet.Delivery
	times      map[string]int
	jobs       map[fleet.JobID]fleet.Job
	runs       map[int64]fleet.Run
	last       fleet.Ingest
	ingests    int
}

func newMemory() *memory {
	return &memory{
		installed:  map[int64]bool{installation: true},
		deliveries: map[string]fleet.Delivery{}, times: map[string]int{},
		jobs: map[fleet.JobID]fleet.Job{}, runs: map[int64]fleet.Run{},
	}
}

func (m *memory) Ingest(ctx context.Context, in fleet.Ingest) (fleet.Ingested, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := errors.Join(m.down, ctx.Err()); err != nil {
		return fleet.Ingested{}, err
	}
	m.ingests++
	if in.Delivery.GUID == "" {
		m.last = in
		for _, n := range in.Answers {
			m.jobs[n.Job.ID] = m.jobs[n.Job.ID].Learn(n, n.Asked)
		}
		return fleet.Ingested{Changed: len(in.Answers) > 0 || in.Run != nil}, nil
	}
	d := in.Delivery
	m.times[d.GUID]++
	if old, ok := m.deliveries[d.GUID]; ok && old.Status != fleet.DeliveryFailed {
		return fleet.Ingested{Duplicate: true}, nil
	}
	d.Payload = bytes.Clone(d.Payload)
	m.deliveries[d.GUID] = d
	m.last = in
	var changed bool
	if in.Job != nil {
		old := m.jobs[in.Job.Job.ID]
		next := old.Learn(*in.Job, d.ReceivedAt)
		changed = next.State != old.State
		m.jobs[next.ID] = next
	}
	if in.Run != nil {
		changed = m.runs[in.Run.ID] != *in.Run
		m.runs[in.Run.ID] = *in.Run
	}
	if in.Installation != nil {
		on := !in.Installation.Deleted && !in.Installation.Suspended
		changed = m.installed[in.Installation.ID] != on
		m.installed[in.Installation.ID] = on
	}
	return fleet.Ingested{Changed: changed}, nil
}

func (m *memory) KnownInstallation(_ context.Context, id int64) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.installed == nil || m.installed[id], m.down
}

func (m *memory) set(f func(*memory)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f(m)
}

// rig is a webhook behind a real HTTP server.
type rig struct {
	store *memory
	hooks *webhook.Handler
	url   string
	wakes chan struct{}
	log   *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newRig(t *testing.T, change ...func(*webhook.Config)) *rig {
	t.Helper()
	r := &rig{store: newMemory(), wakes: make(chan struct{}, 1000), log: &lockedBuffer{}}
	config := webhook.Config{
		Secrets: []secret.Text{secret.New(key)}, AppID: appID, Store: r.store,
		Wake:   func() { r.wakes <- struct{}{} },
		Serves: func(owner, _ string) bool { return strings.EqualFold(owner, "acme") },
		Log:    slog.New(slog.NewJSONHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Now:    func() time.Time { return start },
	}
	for _, f := range change {
		f(&config)
	}
	h, err := webhook.New(config)
	if err != nil {
		t.Fatal(err)
	}
	r.hooks = h
	router := chi.NewRouter()
	h.Routes(router)
	server := httptest.NewServer(router)
	t.Cleanup(server.Close)
	r.url = server.URL + "/webhook"
	return r
}

func sign(key string, body []byte) string {
	mac := hmac.New(sha256.New, []byte(key))
	mac.Write(body)
	return "sha256=" + hex.EncodeToString(mac.Sum(nil))
}

func fixture(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// request is a delivery as GitHub sends it.
func request(t testing.TB, url, event, guid string, body []byte) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{
		"Content-Type": "application/json", "User-Agent": "GitHub-Hookshot/7fe2f5a",
		"X-GitHub-Event": event, "X-GitHub-Delivery": guid, "X-GitHub-Hook-ID": "71",
		"X-GitHub-Hook-Installation-Target-Type": "integration", "X-GitHub-Hook-Installation-Target-ID": "31337",
		"X-Hub-Signature-256": sign(key, body),
	} {
		req.Header.Set(k, v)
	}
	return req
}

type reply struct {
	code   int
	header http.Header
	text   string
	Status fleet.DeliveryStatus
	Reason string
	Dup    bool `json:"duplicate"`
	Error  string
}

func send(t testing.TB, req *http.Request) reply {
	t.Helper()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	out := reply{code: resp.StatusCode, header: resp.Header, text: string(b)}
	_ = json.Unmarshal(b, &out) // 405 has no body
	http.DefaultClient.CloseIdleConnections()
	return out
}

const guid = "5f7a1c30-c6b9-11f0-8a3e-0242ac120002"

func TestEventsAreStoredAsWhatTheySay(t *testing.T) {
	created := time.Date(2026, 11, 21, 9, 0, 3, 0, time.UTC)
	job := func(change func(*fleet.Job)) fleet.Job {
		j := fleet.Job{
			ID: 58110023901, RunID: 20331188472, RunAttempt: 1, InstallationID: installation,
			Owner: "acme", Repo: "rockets", Workflow: "build", Name: "test (macos, 15)",
			Labels: fleet.Labels{"arm64", "macos", "self-hosted"}, Visibility: trust.Private,
			URL:       "https://github.com/acme/rockets/actions/runs/20331188472/job/58110023901",
			CreatedAt: created,
		}
		change(&j)
		return j
	}
	ran := func(j *fleet.Job) { j.RunnerName, j.RunnerID = "s7k2-mac-4hq0zr81c2mta", 359 }
	plain := func(*fleet.Job) {}
	run := fleet.Run{
		ID: 20331188472, Attempt: 1, Repository: "acme/rockets", Event: "push",
		HeadRepository: "acme/rockets", Visibility: trust.Private, Actor: "marta", TriggeringActor: "marta", Status: "queued",
	}
	forked := run
	forked.Event, forked.HeadRepository, forked.Fork, forked.Actor, forked.TriggeringActor = "pull_request", "eve/rockets", true, "eve", "eve"
	forked.Status, forked.Conclusion = "completed", "action_required"

	for _, c := range []struct {
		fixture, event string
		job            *fleet.JobNews
		run            *fleet.Run
		inst           *fleet.Installation
	}{
		{fixture: "job_queued", job: &fleet.JobNews{Event: fleet.ToldQueued, Job: job(plain)}},
		{fixture: "job_queued_waiting", job: &fleet.JobNews{Event: fleet.ToldWaiting, Job: job(plain)}},
		{fixture: "job_waiting", job: &fleet.JobNews{Event: fleet.ToldWaiting, Job: job(plain)}},
		{fixture: "job_in_progress", job: &fleet.JobNews{Event: fleet.ToldInProgress, Job: job(ran)}},
		{fixture: "job_in_progress_status_queued", job: &fleet.JobNews{Event: fleet.ToldInProgress, Job: job(ran)}},
		{fixture: "job_completed", job: &fleet.JobNews{Event: fleet.ToldCompleted, Job: job(func(j *fleet.Job) { ran(j); j.Conclusion = "success" })}},
		{fixture: "job_cancelled_unassigned", job: &fleet.JobNews{Event: fleet.ToldCompleted, Job: job(func(j *fleet.Job) { j.Conclusion = "cancelled" })}},
		{fixture: "job_skipped_no_labels", job: &fleet.JobNews{Event: fleet.ToldCompleted, Job: job(func(j *fleet.Job) { j.Conclusion, j.Labels = "skipped", fleet.Labels{} })}},
		{fixture: "run_requested", event: "workflow_run", run: &run},
		{fixture: "run_fork_awaits_approval", event: "workflow_run", run: &forked},
		{fixture: "installation_created", event: "installation", inst: &fleet.Installation{ID: 4242, Account: "acme"}},
		{fixture: "installation_suspend", event: "installation", inst: &fleet.Installation{ID: 4242, Account: "acme", Suspended: true}},
		{fixture: "installation_deleted", event: "installation", inst: &fleet.Installation{ID: 4242, Account: "acme", Deleted: true}},
		{fixture: "installation_repositories_added", event: "installation_repositories", inst: &fleet.Installation{ID: 4242, Account: "acme"}},
		{fixture: "ping", event: "ping"},
	} {
		t.Run(c.fixture, func(t *testing.T) {
			if c.event == "" {
				c.event = "workflow_job"
			}
			r := newRig(t)
			body := fixture(t, c.fixture)
			got := send(t, request(t, r.url, c.event, guid, body))
			if got.code != http.StatusAccepted || got.Status != fleet.DeliveryProcessed {
				t.Fatalf("answer %d %s", got.code, got.text)
			}
			in := r.store.last
			if !sameJSON(t, in.Job, c.job) || !sameJSON(t, in.Run, c.run) || !sameJSON(t, in.Installation, c.inst) {
				t.Errorf("stored job %+v, run %+v, installation %+v", in.Job, in.Run, in.Installation)
			}
			d := in.Delivery
			if d.GUID != guid || d.Event != c.event || !d.ReceivedAt.Equal(start) || !bytes.Equal(d.Payload, body) {
				t.Errorf("stored delivery %s %s at %s with %d bytes", d.GUID, d.Event, d.ReceivedAt, len(d.Payload))
			}
			if c.job != nil && (d.Repository != "acme/rockets" || d.InstallationID != installation) {
				t.Errorf("delivery of %q, installation %d", d.Repository, d.InstallationID)
			}
		})
	}
}

func sameJSON(t *testing.T, a, b any) bool {
	t.Helper()
	x, err := json.Marshal(a)
	y, err2 := json.Marshal(b)
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	return bytes.Equal(x, y)
}

func TestUnauthenticIsRefusedAndNotStored(t *testing.T) {
	body := fixture(t, "job_queued")
	sha1Only := func(r *http.Request) {
		r.Header.Del("X-Hub-Signature-256")
		r.Header.Set("X-Hub-Signature", "sha1=0000000000000000000000000000000000000000")
	}
	for name, change := range map[string]func(*http.Request){
		"no signature":   func(r *http.Request) { r.Header.Del("X-Hub-Signature-256") },
		"sha1 only":      sha1Only,
		"wrong key":      func(r *http.Request) { r.Header.Set("X-Hub-Signature-256", sign("guess", body)) },
		"empty key":      func(r *http.Request) { r.Header.Set("X-Hub-Signature-256", sign("", body)) },
		"two signatures": func(r *http.Request) { r.Header.Add("X-Hub-Signature-256", sign(key, body)) },
		"no prefix": func(r *http.Request) {
			r.Header.Set("X-Hub-Signature-256", strings.TrimPrefix(sign(key, body), "sha256="))
		},
		"sha1 prefix":        func(r *http.Request) { r.Header.Set("X-Hub-Signature-256", "sha1="+sign(key, body)[7:]) },
		"short":              func(r *http.Request) { r.Header.Set("X-Hub-Signature-256", sign(key, body)[:69]) },
		"too long":           func(r *http.Request) { r.Header.Set("X-Hub-Signature-256", sign(key, body)+"00") },
		"not hex":            func(r *http.Request) { r.Header.Set("X-Hub-Signature-256", "sha256="+strings.Repeat("zz", 32)) },
		"another body":       func(r *http.Request) { r.Header.Set("X-Hub-Signature-256", sign(key, append(body, ' '))) },
		"and not a delivery": func(r *http.Request) { sha1Only(r); r.Header.Del("X-GitHub-Delivery") },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			req := request(t, r.url, "workflow_job", guid, body)
			change(req)
			if got := send(t, req); got.code != http.StatusUnauthorized || got.Error == "" {
				t.Errorf("answer %d %s", got.code, got.text)
			}
			if r.store.ingests != 0 || len(r.wakes) != 0 {
				t.Error("something was stored")
			}
			if expected := sign(key, body)[7:]; strings.Contains(r.log.String(), expected) {
				t.Error("the log holds the expected signature")
			}
		})
	}
}

func TestRotationAcceptsEitherSecret(t *testing.T) {
	r := newRig(t, func(c *webhook.Config) { c.Secrets = []secret.Text{secret.New("old"), secret.New("new")} })
	body := fixture(t, "job_queued")
	for _, c := range []struct {
		key  string
		code int
	}{{"old", 202}, {"new", 202}, {"older", 401}} {
		req := request(t, r.url, "workflow_job", "guid-"+c.key, body)
		req.Header.Set("X-Hub-Signature-256", sign(c.key, body))
		if got := send(t, req); got.code != c.code {
			t.Errorf("%s secret: %d, want %d", c.key, got.code, c.code)
		}
	}
}

func TestNewRefusesBadConfiguration(t *testing.T) {
	good := webhook.Config{Secrets: []secret.Text{secret.New("s")}, AppID: 1, Store: newMemory()}
	if _, err := webhook.New(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*webhook.Config){
		"no secret":     func(c *webhook.Config) { c.Secrets = nil },
		"empty secret":  func(c *webhook.Config) { c.Secrets = []secret.Text{secret.New("s"), {}} },
		"three secrets": func(c *webhook.Config) { c.Secrets = slices.Repeat(c.Secrets, 3) },
		"no app":        func(c *webhook.Config) { c.AppID = 0 },
		"no store":      func(c *webhook.Config) { c.Store = nil },
	} {
		c := good
		change(&c)
		if _, err := webhook.New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestAuthenticIsAcceptedWhateverItSays(t *testing.T) {
	queued := string(fixture(t, "job_queued"))
	with := func(old, replacement string) string {
		if !strings.Contains(queued, old) {
			t.Fatalf("the fixture has no %s", old)
		}
		return strings.ReplaceAll(queued, old, replacement)
	}
	const ignored, failed = fleet.DeliveryIgnored, fleet.DeliveryFailed
	for _, c := range []struct {
		name, event, body string
		header            map[string]string
		status            fleet.DeliveryStatus
		reason            string
	}{
		{name: "unknown event", event: "star", body: `{"action":"created","repository":{"full_name":"acme/rockets"}}`, status: ignored, reason: "event star"},
		{name: "unknown event, not JSON", event: "star", body: `?`, status: ignored, reason: "event star"},
		{name: "unknown action of a job", body: with(`"action": "queued"`, `"action": "rerouted"`), status: ignored, reason: "rerouted"},
		{name: "unknown action of a run", event: "workflow_run", body: `{"action":"dreamt"}`, status: ignored, reason: "dreamt"},
		{name: "unknown action of an installation", event: "installation", body: `{"action":"painted","installation":{"id":1}}`, status: ignored, reason: "painted"},
		{name: "queued and already running", body: with(`"status": "queued"`, `"status": "in_progress"`), status: ignored, reason: "in_progress"},
		{name: "foreign repository", body: with("acme/rockets", "other/rockets"), status: ignored, reason: "foreign repository"},
		{name: "another target type", header: map[string]string{"X-GitHub-Hook-Installation-Target-Type": "repository"}, body: queued, status: ignored, reason: "target type"},
		{name: "another App", header: map[string]string{"X-GitHub-Hook-Installation-Target-ID": "31338"}, body: queued, status: ignored, reason: "App 31338"},
		{name: "installation of another App", event: "installation", body: strings.Replace(string(fixture(t, "installation_created")), "31337", "99", 1), status: ignored, reason: "App 99"},
		{name: "unknown installation", body: with(`"id": 4242`, `"id": 4243`), status: failed, reason: "unknown installation 4243"},
		{name: "truncated", body: queued[:len(queued)/2], status: failed, reason: "JSON"},
		{name: "empty", body: "", status: failed, reason: "JSON"},
		{name: "trailing bytes", body: queued + "}", status: failed, reason: "JSON"},
		{name: "an array", body: "[]", status: failed, reason: "JSON"},
		{name: "null", body: "null", status: failed, reason: "workflow_job"},
		{name: "no job", body: `{"action":"queued","installation":{"id":4242},"repository":{"full_name":"acme/rockets"}}`, status: failed, reason: "no workflow_job"},
		{name: "no run", event: "workflow_run", body: `{"action":"requested","installation":{"id":4242},"repository":{"full_name":"acme/rockets"}}`, status: failed, reason: "no workflow_run"},
		{name: "no installation", body: with(`"installation"`, `"establishment"`), status: failed, reason: "no installation"},
		{name: "no repository", body: with(`"repository": {`, `"depository": {`), status: failed, reason: "no repository"},
		{name: "repository with a path", body: with(`"acme/rockets"`, `"acme/../x"`), status: failed, reason: "full name"},
		{name: "repository without an owner", body: with(`"acme/rockets"`, `"rockets"`), status: failed, reason: "full name"},
		{name: "id zero", body: with(`"id": 58110023901`, `"id": 0`), status: failed, reason: "workflow_job.id"},
		{name: "id not a number", body: with(`"id": 58110023901`, `"id": "58110023901"`), status: failed, reason: "workflow_job"},
		{name: "id too large", body: with(`"id": 58110023901`, `"id": 99999999999999999999`), status: failed, reason: "workflow_job"},
		{name: "negative run", body: with(`"run_id": 20331188472`, `"run_id": -1`), status: failed, reason: "workflow_job.run_id"},
		{name: "unknown status", body: with(`"status": "queued"`, `"status": "pondering"`), status: failed, reason: "pondering"},
		{name: "created at no time", body: with(`"2026-11-21T09:00:03Z"`, `"yesterday"`), status: failed, reason: "created_at"},
		{name: "too many labels", body: with(`"ARM64"`, `"ARM64"`+strings.Repeat(`,"x"`, 98)), status: failed, reason: "101 labels"},
		{name: "label too long", body: with(`"ARM64"`, `"`+strings.Repeat("x", 257)+`"`), status: failed, reason: "257 bytes"},
		{name: "no content type", header: map[string]string{"Content-Type": ""}, body: queued, status: failed, reason: "content type"},
		{name: "wrong content type", header: map[string]string{"Content-Type": "text/plain"}, body: queued, status: failed, reason: "content type"},
		{name: "form without payload", header: map[string]string{"Content-Type": "application/x-www-form-urlencoded"}, body: "load=1", status: failed, reason: "0 fields"},
		{name: "form with two", header: map[string]string{"Content-Type": "application/x-www-form-urlencoded"}, body: "payload={}&payload={}", status: failed, reason: "2 fields"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			if c.event == "" {
				c.event = "workflow_job"
			}
			req := request(t, r.url, c.event, guid, []byte(c.body))
			for k, v := range c.header {
				req.Header.Set(k, v)
			}
			got := send(t, req)
			if got.code != http.StatusAccepted || got.Status != c.status || !strings.Contains(got.Reason, c.reason) {
				t.Errorf("answer %d %s, want %s because of %q", got.code, got.text, c.status, c.reason)
			}
			in := r.store.last
			if in.Delivery.Status != c.status || in.Delivery.Reason != got.Reason || !bytes.Equal(in.Delivery.Payload, []byte(c.body)) {
				t.Errorf("stored as %s (%s)", in.Delivery.Status, in.Delivery.Reason)
			}
			if in.Job != nil || in.Run != nil || in.Installation != nil || len(r.wakes) != 0 {
				t.Error("it has changed something")
			}
		})
	}
}

func TestSignedWithoutEnvelopeIsNotADelivery(t *testing.T) {
	for name, change := range map[string]func(http.Header){
		"no guid":         func(h http.Header) { h.Del("X-GitHub-Delivery") },
		"two guids":       func(h http.Header) { h.Add("X-GitHub-Delivery", "x") },
		"guid of symbols": func(h http.Header) { h.Set("X-GitHub-Delivery", "a;drop") },
		"endless guid":    func(h http.Header) { h.Set("X-GitHub-Delivery", strings.Repeat("a", 65)) },
		"no event":        func(h http.Header) { h.Del("X-GitHub-Event") },
		"event of spaces": func(h http.Header) { h.Set("X-GitHub-Event", "work flow") },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			req := request(t, r.url, "workflow_job", guid, fixture(t, "job_queued"))
			change(req.Header)
			if got := send(t, req); got.code != http.StatusBadRequest || r.store.ingests != 0 {
				t.Errorf("answer %d %s, %d stored", got.code, got.text, r.store.ingests)
			}
		})
	}
}

func TestFormPayload(t *testing.T) {
	r := newRig(t)
	escaped := strings.NewReplacer("%", "%25", "&", "%26", "+", "%2B", "\n", "%0A", ";", "%3B").Replace(string(fixture(t, "job_queued")))
	body := []byte("payload=" + escaped)
	req := request(t, r.url, "workflow_job", guid, body)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if got := send(t, req); got.Status != fleet.DeliveryProcessed || r.store.last.Job == nil {
		t.Errorf("answer %d %s", got.code, got.text)
	}
}

func TestRedelivery(t *testing.T) {
	r := newRig(t)
	body := fixture(t, "job_queued")
	for i := range 3 {
		got := send(t, request(t, r.url, "workflow_job", guid, body))
		if got.code != http.StatusAccepted || got.Dup != (i > 0) {
			t.Errorf("time %d: %d %s", i, got.code, got.text)
		}
	}
	if len(r.wakes) != 1 {
		t.Errorf("woke %d times for one change", len(r.wakes))
	}
}

func TestFailedIsProcessedAgain(t *testing.T) {
	r := newRig(t)
	r.store.set(func(m *memory) { m.installed = map[int64]bool{} })
	body := fixture(t, "job_queued")
	if got := send(t, request(t, r.url, "workflow_job", guid, body)); got.Status != fleet.DeliveryFailed {
		t.Fatalf("unknown installation: %s", got.text)
	}
	send(t, request(t, r.url, "installation", "created-guid", fixture(t, "installation_created")))
	if got := send(t, request(t, r.url, "workflow_job", guid, body)); got.Status != fleet.DeliveryProcessed || got.Dup {
		t.Fatalf("redelivered: %s", got.text)
	}
	if j := r.store.jobs[58110023901]; j.State != fleet.JobQueued {
		t.Errorf("job is %q", j.State)
	}
}

// between is a store in which something happens after a delivery was judged and before it is
// stored.
type between struct {
	*memory
	happens func()
}

func (b between) Ingest(ctx context.Context, in fleet.Ingest) (fleet.Ingested, error) {
	if in.Job != nil || in.Delivery.Status == fleet.DeliveryFailed {
		b.happens()
	}
	return b.memory.Ingest(ctx, in)
}

// The news of an installation comes between the look for it and the storing of a delivery
// that failed for the lack of it: who takes such deliveries again has found none yet.
func TestInstallationMadeKnownMeanwhile(t *testing.T) {
	var store between
	r := newRig(t, func(c *webhook.Config) {
		store = between{newMemory(), sync.OnceFunc(func() {
			store.set(func(m *memory) { m.installed = map[int64]bool{installation: true} })
		})}
		store.installed = map[int64]bool{}
		c.Store = store
	})
	got := send(t, request(t, r.url, "workflow_job", guid, fixture(t, "job_queued")))
	if got.Status != fleet.DeliveryProcessed || got.Dup || store.jobs[58110023901].State != fleet.JobQueued || store.deliveries[guid].Status != fleet.DeliveryProcessed {
		t.Errorf("answer %s, job %+v", got.text, store.jobs[58110023901])
	}
}

func TestUnloadedInstallationsLoseNothing(t *testing.T) {
	r := newRig(t)
	r.store.set(func(m *memory) { m.installed = nil })
	if got := send(t, request(t, r.url, "workflow_job", guid, fixture(t, "job_queued"))); got.Status != fleet.DeliveryProcessed {
		t.Errorf("answer %s", got.text)
	}
}

func TestLateEventsInAnyOrder(t *testing.T) {
	r := newRig(t)
	for i, name := range []string{"job_completed", "job_queued", "job_in_progress", "job_waiting"} {
		if got := send(t, request(t, r.url, "workflow_job", "guid-"+string(rune('a'+i)), fixture(t, name))); got.code != http.StatusAccepted {
			t.Errorf("%s: %d %s", name, got.code, got.text)
		}
	}
	if j := r.store.jobs[58110023901]; j.State != fleet.JobCompleted || len(r.wakes) != 1 {
		t.Errorf("job is %q after %d wakes", j.State, len(r.wakes))
	}
}

func TestStoreDown(t *testing.T) {
	r := newRig(t)
	body := fixture(t, "job_queued")
	r.store.set(func(m *memory) { m.down = errors.New("disk full at /secret/place") })
	got := send(t, request(t, r.url, "workflow_job", guid, body))
	if got.code != http.StatusServiceUnavailable || got.header.Get("Retry-After") == "" || len(r.wakes) != 0 {
		t.Errorf("answer %d %s, %d wakes", got.code, got.text, len(r.wakes))
	}
	if strings.Contains(got.text, "disk full") {
		t.Error("the answer shows the store's error")
	}
	if !strings.Contains(r.log.String(), "disk full") {
		t.Error("the log does not show the store's error")
	}
	r.store.set(func(m *memory) { m.down = nil })
	if got := send(t, request(t, r.url, "workflow_job", guid, body)); got.Status != fleet.DeliveryProcessed {
		t.Errorf("after the store came back: %s", got.text)
	}
}

func TestOtherMethods(t *testing.T) {
	r := newRig(t)
	for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodDelete, http.MethodHead} {
		req := request(t, r.url, "workflow_job", guid, nil)
		req.Method = method
		if got := send(t, req); got.code != http.StatusMethodNotAllowed || got.header.Get("Allow") != http.MethodPost {
			t.Errorf("%s: %d, Allow %q", method, got.code, got.header.Get("Allow"))
		}
	}
}

func TestHostileStringsAreCleaned(t *testing.T) {
	r := newRig(t)
	body := bytes.Replace(fixture(t, "job_queued"), []byte(`"test (macos, 15)"`), []byte(`"a\u0000b\u001b[2J`+strings.Repeat("é", 400)+`"`), 1)
	body = bytes.Replace(body, []byte(`"https://github.com/acme/rockets/actions/runs/20331188472/job/58110023901"`), []byte(`"javascript:alert(1)"`), 1)
	send(t, request(t, r.url, "workflow_job", guid, body))
	if r.store.last.Job == nil {
		t.Fatal("not processed")
	}
	j := r.store.last.Job.Job
	if strings.ContainsAny(j.Name, "\x00\x1b") || len(j.Name) > 512 || !strings.HasPrefix(j.Name, "a b [2Jéé") || j.URL != "" {
		t.Errorf("name %q (%d bytes), url %q", j.Name, len(j.Name), j.URL)
	}
}

func TestDeletedHeadRepositoryCountsAsForeign(t *testing.T) {
	r := newRig(t)
	var p map[string]any
	if err := json.Unmarshal(fixture(t, "run_requested"), &p); err != nil {
		t.Fatal(err)
	}
	p["workflow_run"].(map[string]any)["head_repository"] = nil
	body, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	send(t, request(t, r.url, "workflow_run", guid, body))
	if run := r.store.last.Run; run == nil || !run.Fork || run.HeadRepository != "" {
		t.Errorf("run %+v", run)
	}
}

func TestWhoCanReadTheRepository(t *testing.T) {
	for was, want := range map[string]trust.Visibility{`"private": true`: trust.Private, `"private": false`: trust.Public, `"sparse": 1`: trust.Unknown} {
		for event, name := range map[string]string{"workflow_job": "job_queued", "workflow_run": "run_requested"} {
			r := newRig(t)
			body := bytes.ReplaceAll(fixture(t, name), []byte(`"private": true`), []byte(was))
			send(t, request(t, r.url, event, guid, body))
			if in := r.store.last; in.Job != nil && in.Job.Job.Visibility != want || in.Run != nil && in.Run.Visibility != want || in.Job == nil && in.Run == nil {
				t.Errorf("%s of %s: %+v", was, event, in)
			}
		}
	}
}

// What GitHub answered about a run enters as a delivery's news does, and wakes who decides.
func TestLearnRun(t *testing.T) {
	r := newRig(t)
	run := fleet.Run{ID: 7, Attempt: 1, Repository: "acme/rockets", Event: "push"}
	if err := r.hooks.LearnRun(t.Context(), run); err != nil {
		t.Fatal(err)
	}
	if in := r.store.last; in.Run == nil || *in.Run != run || in.Delivery.GUID != "" || len(r.wakes) != 1 {
		t.Errorf("%+v, %d wakes", in, len(r.wakes))
	}
	r.store.set(func(m *memory) { m.down = errors.New("disk full") })
	if err := r.hooks.LearnRun(t.Context(), run); err == nil || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("a store that is down: %v", err)
	}
}

func TestPulledDeliveryTakesTheSamePath(t *testing.T) {
	store := newMemory()
	h, err := webhook.New(webhook.Config{Secrets: []secret.Text{secret.New(key)}, AppID: appID, Store: store})
	if err != nil {
		t.Fatal(err)
	}
	env := webhook.Envelope{GUID: guid, Event: "workflow_job", TargetType: "integration", TargetID: appID, Payload: fixture(t, "job_queued")}
	if out, err := h.Take(t.Context(), env); err != nil || out.Status != fleet.DeliveryProcessed || out.Duplicate {
		t.Fatalf("%+v, %v", out, err)
	}
	if out, err := h.Take(t.Context(), env); err != nil || !out.Duplicate {
		t.Errorf("again: %+v, %v", out, err)
	}
	env.GUID = ""
	if _, err := h.Take(t.Context(), env); !errors.Is(err, webhook.ErrEnvelope) {
		t.Errorf("without a GUID: %v", err)
	}
}

// What GitHub answered enters by the transaction of a delivery, and is none.
func TestLearn(t *testing.T) {
	store := newMemory()
	woken := 0
	h, err := webhook.New(webhook.Config{
		Secrets: []secret.Text{secret.New(key)}, AppID: appID, Store: store, Wake: func() { woken++ },
		Serves: func(owner, _ string) bool { return strings.EqualFold(owner, "acme") },
	})
	if err != nil {
		t.Fatal(err)
	}
	answer := fleet.JobNews{Event: fleet.SeenQueued, Asked: start, Job: fleet.Job{ID: 1, RunID: 2, Owner: "acme", Repo: "rockets"}}
	for name, c := range map[string]struct {
		repo    fleet.Scope
		answers []fleet.JobNews
		ingests int
	}{
		"a repository that no pool serves": {fleet.Scope{Owner: "other", Repo: "rockets"}, []fleet.JobNews{answer}, 0},
		"nothing":                          {fleet.Scope{Owner: "acme", Repo: "rockets"}, nil, 0},
		"an answer":                        {fleet.Scope{Owner: "acme", Repo: "rockets"}, []fleet.JobNews{answer}, 1},
	} {
		store.set(func(m *memory) { m.ingests = 0 })
		if err := h.Learn(t.Context(), c.repo, c.answers); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if store.ingests != c.ingests {
			t.Errorf("%s: stored %d times", name, store.ingests)
		}
	}
	if woken != 1 || len(store.jobs) != 1 || len(store.last.Answers) != 1 || store.last.Delivery.GUID != "" || store.last.Job != nil {
		t.Errorf("woken %d times, jobs %v, stored %+v", woken, store.jobs, store.last)
	}
	store.set(func(m *memory) { m.down = errors.New("disk full") })
	if err := h.Learn(t.Context(), fleet.Scope{Owner: "acme", Repo: "rockets"}, []fleet.JobNews{answer}); err == nil || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("a store that is down: %v", err)
	}
}

// Jobs of a scale set are told by its queue: what deliveries and lists say of them is passed
// over, but for the end of one that the books have from before.
func TestJobsOfScaleSets(t *testing.T) {
	store := newMemory()
	h, err := webhook.New(webhook.Config{
		Secrets: []secret.Text{secret.New(key)}, AppID: appID, Store: store,
		Claimed: func(j fleet.Job) (string, bool) { return "macs", len(j.Labels) > 0 },
	})
	if err != nil {
		t.Fatal(err)
	}
	env := webhook.Envelope{GUID: guid, Event: "workflow_job", TargetType: "integration", TargetID: appID, Payload: fixture(t, "job_queued")}
	out, err := h.Take(t.Context(), env)
	if err != nil || out.Status != fleet.DeliveryIgnored || !strings.Contains(out.Reason, "scale set of pool macs") || len(store.jobs) != 0 {
		t.Errorf("a delivery: %+v, %v, jobs %v", out, err, store.jobs)
	}
	answer := func(id fleet.JobID, e fleet.JobEvent, labels ...string) fleet.JobNews {
		return fleet.JobNews{Event: e, Asked: start, Job: fleet.Job{ID: id, RunID: 2, Owner: "acme", Repo: "rockets", Labels: labels}}
	}
	given := []fleet.JobNews{answer(1, fleet.SeenQueued, "x"), answer(2, fleet.SeenQueued), answer(3, fleet.SeenCompleted, "x"), answer(4, fleet.SeenInProgress, "x")}
	if err := h.Learn(t.Context(), fleet.Scope{Owner: "acme", Repo: "rockets"}, given); err != nil {
		t.Fatal(err)
	}
	if got := store.last.Answers; len(got) != 2 || got[0].Job.ID != 2 || got[1].Job.ID != 3 || given[1].Job.ID != 2 {
		t.Errorf("learnt %+v", got)
	}
}
