// SPDX-License-Identifier: MIT

package hosts_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/hosts"
	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/internal/leakcheck"
	"github.com/minifleet/minifleet/secret"
	"github.com/minifleet/minifleet/store"
	"github.com/minifleet/minifleet/trust"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

// patience bounds a wait for what is certain to come.
const patience = 30 * time.Second

// jitConfig is what must never be seen but in the answer to a mint.
const jitConfig = "eyJ-a-config-that-is-a-secret"

// github is a GitHub whose moods a test sets.
type github struct {
	mu         sync.Mutex // guards all
	registered map[string]int64
	next       int64
	calls      []string
	register   func(ctx context.Context, name string) error // before it takes effect
	answer     func(name string) error                      // after it took effect
	unregister func(fleet.RegistrationRef) error
}

func (g *github) Register(ctx context.Context, pool fleet.Pool, scope fleet.Scope, name string) (fleet.Registered, error) {
	g.mu.Lock()
	g.calls = append(g.calls, fmt.Sprintf("register %s in %s as %s of %q", name, scope, strings.Join(pool.LabelNames, ","), pool.RunnerGroup))
	before, after := g.register, g.answer
	g.mu.Unlock()
	if before != nil {
		if err := before(ctx, name); err != nil {
			return fleet.Registered{}, err
		}
	}
	g.mu.Lock()
	g.next++
	id := g.next
	g.registered[name] = id
	g.mu.Unlock()
	if after != nil {
		if err := after(name); err != nil {
			return fleet.Registered{}, err
		}
	}
	return fleet.Registered{ID: id, Config: secret.New(jitConfig + name)}, nil
}

func (g *github) Unregister(_ context.Context, ref fleet.RegistrationRef) error {
	g.mu.Lock()
	g.calls = append(g.calls, fmt.Sprintf("unregister %s (%d) in %s", ref.Name, ref.ID, ref.Scope))
	before := g.unregister
	g.mu.Unlock()
	if before != nil {
		if err := before(ref); err != nil {
			return err
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.registered, ref.Name)
	return nil
}

// mood changes how GitHub behaves from now on.
func (g *github) mood(set func(*github)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	set(g)
}

// took returns the calls since the last time, and the names that are registered.
func (g *github) took() (calls []string, registered []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	calls, g.calls = g.calls, nil
	for name := range g.registered {
		registered = append(registered, name)
	}
	return calls, registered
}

// spy is the real store with a look over its shoulder.
type spy struct {
	*store.Store
	watched chan fleet.HostID // gets a word when somebody begins to wait
	granted func() error      // asked before Granted
}

func (s *spy) HostChanged(id fleet.HostID) <-chan struct{} {
	ch := s.Store.HostChanged(id)
	select {
	case s.watched <- id:
	default:
	}
	return ch
}

func (s *spy) Granted(ctx context.Context, id fleet.RunnerID, attempt int, githubID int64) error {
	if s.granted != nil {
		if err := s.granted(); err != nil {
			return err
		}
	}
	return s.Store.Granted(ctx, id, attempt, githubID)
}

// world is a controller on loopback over a real database.
type world struct {
	*testing.T
	s        *spy
	gh       *github
	hosts    *hosts.Server
	url      string
	dir      string
	log      *buffer
	returned chan string // paths of calls whose handler has returned
	names    int
	jobs     fleet.JobID
}

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

func newWorld(t *testing.T, edit ...func(*hosts.Config)) *world {
	t.Helper()
	w := &world{T: t, dir: t.TempDir(), gh: &github{registered: map[string]int64{}}, log: &buffer{}, returned: make(chan string, 100)}
	s, err := store.Open(t.Context(), store.Config{Path: filepath.Join(w.dir, "x.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	w.s = &spy{Store: s, watched: make(chan fleet.HostID, 100)}
	var mu sync.Mutex
	c := hosts.Config{
		Store: w.s, GitHub: w.gh, Log: slog.New(slog.NewJSONHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Pools: []fleet.Pool{{
			Name: "mac", Labels: fleet.NewLabels("macOS", "arm64"), LabelNames: []string{"macOS", "ARM64"}, Scopes: []fleet.Scope{{Owner: "Acme"}},
			Image: "sonoma", Backend: "vz", CPUs: 4, MemoryMiB: 8192, RunnerGroup: "minis",
			Trust: trust.Policy{Deny: []string{"acme/secret"}},
		}},
		Name: func(site, pool string) string {
			mu.Lock()
			defer mu.Unlock()
			w.names++
			return fmt.Sprintf("mf-%s-%s-%d", site, pool, w.names)
		},
	}
	for _, e := range edit {
		e(&c)
	}
	if w.hosts, err = hosts.New(c); err != nil {
		t.Fatal(err)
	}
	r := chi.NewRouter()
	r.Use(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
			next.ServeHTTP(rw, req)
			w.returned <- req.URL.Path
		})
	})
	w.hosts.Routes(r)
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	w.url = server.URL
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	return w
}

// answer is what the controller said.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a answer) code() protocol.Code {
	var e protocol.Error
	if json.Unmarshal(a.body, &e) != nil {
		return "not an error"
	}
	return e.Code
}

func (w *world) call(ctx context.Context, method, path, credential string, body any) (answer, error) {
	var raw []byte
	switch b := body.(type) {
	case nil:
	case string:
		raw = []byte(b)
	default:
		var err error
		if raw, err = json.Marshal(b); err != nil {
			return answer{}, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, w.url+path, bytes.NewReader(raw))
	if err != nil {
		return answer{}, err
	}
	if credential != "" {
		req.Header.Set("Authorization", "Bearer "+credential)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	all, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, all}, err
}

// do calls and decodes a good answer into out.
func (w *world) do(method, path, credential string, body, out any) answer {
	w.Helper()
	a, err := w.call(w.Context(), method, path, credential, body)
	if err != nil {
		w.Fatal(err)
	}
	if a.status/100 == 2 && out != nil {
		if err := json.Unmarshal(a.body, out); err != nil {
			w.Fatalf("%s: %v: %s", path, err, a.body)
		}
	}
	if a.status/100 != 2 {
		var e protocol.Error
		if err := json.Unmarshal(a.body, &e); err != nil || e.Message == "" || e.Code == "" {
			w.Errorf("%s: %d with a body that says nothing: %s", path, a.status, a.body)
		}
	}
	if a.status == http.StatusServiceUnavailable && a.header.Get("Retry-After") == "" {
		w.Errorf("%s: 503 without Retry-After", path)
	}
	return a
}

func (w *world) refused(a answer, status int, code protocol.Code) {
	w.Helper()
	if a.status != status || a.code() != code {
		w.Errorf("got %d %s (%s), want %d %s", a.status, a.code(), a.body, status, code)
	}
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// token makes an enrolment token, as an operator would carry it to a host.
func (w *world) token(hostName string, ttl time.Duration) string {
	w.Helper()
	text, err := w.hosts.NewEnrolment(w.Context(), hostName, ttl, 1)
	w.must(err)
	token, _, err := protocol.ParseEnrolment(text)
	w.must(err)
	return token.Reveal()
}

// agent is a host's side of the protocol.
type agent struct {
	*world
	id         fleet.HostID
	credential string
	instance   string
	machine    string
	sequence   int64
}

// agent enrols a host with so many slots and says hello.
func (w *world) agent(name string, slots int) *agent {
	w.Helper()
	a := &agent{world: w, credential: secret.Generate().Reveal(), instance: "i-" + name, machine: "m-" + name}
	var out protocol.Enrolled
	got := w.do(http.MethodPost, protocol.PathEnrol, "", protocol.Enrol{
		Token: w.token("", time.Hour), CredentialHash: secret.New(a.credential).Hash(), Name: name, Machine: a.machine,
	}, &out)
	if got.status != http.StatusOK {
		w.Fatalf("enrol: %d %s", got.status, got.body)
	}
	a.id = fleet.HostID(out.Host)
	if got := w.do(http.MethodPost, protocol.PathHello, a.credential, a.hello(slots), nil); got.status != http.StatusOK {
		w.Fatalf("hello: %d %s", got.status, got.body)
	}
	return a
}

func (a *agent) hello(slots int) protocol.Hello {
	return protocol.Hello{Instance: a.instance, Machine: a.machine, Facts: facts(slots)}
}

func facts(slots int) protocol.Facts {
	return protocol.Facts{Slots: slots, Backends: []string{"vz"}, Images: []string{"sonoma"}, OS: "darwin", Arch: "arm64", AgentVersion: "1"}
}

func (a *agent) report(runners ...protocol.RunnerReport) answer {
	a.Helper()
	a.sequence++
	return a.do(http.MethodPost, protocol.PathReport, a.credential, protocol.Report{
		Instance: a.instance, Sequence: a.sequence, Facts: facts(9), Runners: runners,
	}, nil)
}

// place puts a runner on the host, as a decision would.
func (a *agent) place() fleet.RunnerID {
	a.Helper()
	done, err := a.s.Carry(a.Context(), fleet.Plan{Places: []fleet.Place{{Pool: "mac", Host: a.id, Reason: "test"}}})
	a.must(err)
	if len(done.Placed) != 1 {
		a.Fatalf("%+v", done)
	}
	return done.Placed[0]
}

// armed brings a runner as far as a grant.
func (a *agent) armed() fleet.RunnerID {
	a.Helper()
	id := a.place()
	if got := a.report(protocol.RunnerReport{ID: string(id), Observed: "standby", HoldsSlot: true, Pool: "mac"}); got.status != http.StatusNoContent {
		a.Fatalf("report: %d %s", got.status, got.body)
	}
	a.arm(id)
	return id
}

func (a *agent) arm(id fleet.RunnerID) {
	a.Helper()
	a.jobs++
	a.must(a.s.Learn(a.Context(), fleet.JobNews{Event: fleet.ToldQueued, Job: fleet.Job{ID: a.jobs, Owner: "Acme", Repo: "App", Labels: fleet.NewLabels("macos")}}))
	done, err := a.s.Carry(a.Context(), fleet.Plan{Arms: []fleet.Arm{{Runner: id, Version: a.runner(id).Version, Scope: fleet.Scope{Owner: "Acme"}, Job: a.jobs}}})
	a.must(err)
	if done.Done != 1 {
		a.Fatalf("%+v", done)
	}
}

func (w *world) runner(id fleet.RunnerID) fleet.Runner {
	w.Helper()
	r, ok, err := w.s.Runner(w.Context(), id)
	w.must(err)
	if !ok {
		w.Fatalf("no runner %s", id)
	}
	return r
}

func mintPath(id fleet.RunnerID) string {
	return strings.Replace(protocol.PathMint, "{runner}", string(id), 1)
}

func (a *agent) mint(id fleet.RunnerID) (protocol.Minted, answer) {
	a.Helper()
	var out protocol.Minted
	got := a.do(http.MethodPost, mintPath(id), a.credential, protocol.MintRequest{Instance: a.instance}, &out)
	return out, got
}

// row reads one row with another connection than the store's: what it sees is
// committed.
func (w *world) row(query string, args ...any) (out string, err error) {
	db, err := sql.Open("sqlite", filepath.Join(w.dir, "x.db"))
	if err != nil {
		return "", err
	}
	defer db.Close()
	err = db.QueryRow(query, args...).Scan(&out)
	return out, err
}

// holdsNowhere checks that no text is in the database's files or in the log.
func (w *world) holdsNowhere(texts ...string) {
	w.Helper()
	files, err := filepath.Glob(filepath.Join(w.dir, "*"))
	w.must(err)
	if len(files) < 2 {
		w.Errorf("only %q to look at", files)
	}
	for _, text := range texts {
		if text == "" {
			w.Fatal("an empty text is everywhere")
		}
		if strings.Contains(w.log.String(), text) {
			w.Errorf("the log holds %q", text)
		}
		for _, f := range files {
			raw, err := os.ReadFile(f)
			w.must(err)
			if bytes.Contains(raw, []byte(text)) {
				w.Errorf("%s holds %q", filepath.Base(f), text)
			}
		}
	}
}
