// SPDX-License-Identifier: MIT

package agent_test

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/secret"
	"github.com/minifleet/minifleet/trust"
)

// controller is a controller for tests: it speaks the protocol and nothing else, and
// can be unkind.
type controller struct {
	t        *testing.T
	patience time.Duration

	mu       sync.Mutex // guards the rest
	changed  chan struct{}
	site     string
	epoch    int64
	revision int64
	lease    int
	wants    map[string]protocol.Desire
	words    protocol.Desired  // images and peers in it are told too
	hosts    map[string]string // credential hash -> host id
	enrols   []protocol.Enrol
	token    string
	hellos   []protocol.Hello
	reports  []protocol.Report
	mintedBy map[string]int // how many configs each runner got
	configOf func(runner string, n int) string
	trust    *trust.Policy // goes with each config
	onMint   func(runner string) (int, protocol.Error, time.Duration)
	// unkind is asked before every answer: what it returns happens to it.
	unkind func(path string) unkindness
	asked  map[string]int // by path
}

// unkindness is what happens to an answer.
type unkindness struct {
	drop    bool          // the request is carried out and its answer lost
	delay   time.Duration // before it is carried out
	late    time.Duration // between that and the answer
	refuse  protocol.Code
	status  int
	replace any // sent instead
}

func newController(t *testing.T) *controller {
	return &controller{
		t: t, patience: time.Minute, changed: make(chan struct{}), site: "site-1", epoch: 1, revision: 1, lease: 60,
		wants: map[string]protocol.Desire{}, hosts: map[string]string{}, token: "join",
		mintedBy: map[string]int{}, asked: map[string]int{},
	}
}

func (c *controller) enrolmentToken() secret.Text {
	return protocol.FormatEnrolment(secret.New(c.token), "")
}

// change does something under the lock and wakes everybody.
func (c *controller) change(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *controller) want(d protocol.Desire) {
	if d.Pool == "" {
		d.Pool = "pool"
	}
	if d.Image == "" {
		d.Image = "image"
	}
	c.change(func() { c.wants[d.ID] = d; c.revision++ })
}

func (c *controller) forget(id string) {
	c.change(func() { delete(c.wants, id); c.revision++ })
}

// await returns when cond holds, which it asks under the lock after every change.
func (c *controller) await(what string, cond func() bool) {
	c.t.Helper()
	deadline := time.NewTimer(c.patience)
	defer deadline.Stop()
	for {
		c.mu.Lock()
		ok, changed := cond(), c.changed
		c.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-deadline.C:
			c.mu.Lock()
			defer c.mu.Unlock()
			last, _ := json.MarshalIndent(c.reports[max(0, len(c.reports)-1):], "", " ")
			c.t.Fatalf("not within %s: %s; last report: %s", c.patience, what, last)
		}
	}
}

func (c *controller) calls(path string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked[path]
}

func (c *controller) minted(runner string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mintedBy[runner]
}

func (c *controller) enrolled() (hosts, requests int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.hosts), len(c.enrols)
}

// runner returns the newest report of one runner. The caller holds mu.
func (c *controller) runner(id string) protocol.RunnerReport {
	if len(c.reports) == 0 {
		return protocol.RunnerReport{}
	}
	for _, r := range c.reports[len(c.reports)-1].Runners {
		if r.ID == id {
			return r
		}
	}
	return protocol.RunnerReport{}
}

// newest is runner for callers without the lock.
func (c *controller) newest(id string) protocol.RunnerReport {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.runner(id)
}

func (c *controller) awaitObserved(id, observed string) protocol.RunnerReport {
	c.t.Helper()
	var got protocol.RunnerReport
	c.await(id+" "+observed, func() bool { got = c.runner(id); return got.Observed == observed })
	return got
}

// history returns the observations of one runner in order, without repetition.
func (c *controller) history(id string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for _, rep := range c.reports {
		for _, r := range rep.Runners {
			if r.ID == id {
				out = append(out, r.Observed)
			}
		}
	}
	return slices.Compact(out)
}

func (c *controller) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var u unkindness
	c.mu.Lock()
	c.asked[r.URL.Path]++
	if c.unkind != nil {
		u = c.unkind(r.URL.Path)
	}
	c.mu.Unlock()
	raw, err := io.ReadAll(io.LimitReader(r.Body, protocol.MaxBody)) // only then is a hang-up noticed
	if err != nil {
		return
	}
	if !pause(r.Context(), u.delay) {
		return
	}
	if u.refuse != "" {
		answer(w, u.status, protocol.Error{Message: "unkind", Code: u.refuse})
		return
	}
	status, body := c.serve(r, raw)
	if !pause(r.Context(), u.late) {
		return
	}
	if u.drop {
		panic(http.ErrAbortHandler)
	}
	if u.replace != nil {
		body = u.replace
	}
	if later, ok := body.(retryLater); ok {
		w.Header().Set("Retry-After", strconv.Itoa(int(later.after.Seconds())))
		body = later.err
	}
	answer(w, status, body)
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

type retryLater struct {
	err   protocol.Error
	after time.Duration
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if status != http.StatusNoContent {
		_ = json.NewEncoder(w).Encode(body)
	}
}

func (c *controller) serve(r *http.Request, raw []byte) (int, any) {
	if r.URL.Path == protocol.PathEnrol {
		return c.enrol(raw)
	}
	hash := secret.New(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")).Hash()
	c.mu.Lock()
	host := c.hosts[hash]
	c.mu.Unlock()
	if host == "" {
		return 401, protocol.Error{Code: protocol.CodeCredential, Message: "unknown host"}
	}
	switch {
	case r.URL.Path == protocol.PathHello:
		return c.hello(raw, host)
	case r.URL.Path == protocol.PathDesired:
		return c.desired(r)
	case r.URL.Path == protocol.PathReport:
		return c.report(raw)
	case strings.HasSuffix(r.URL.Path, "/mint"):
		return c.mint(strings.Split(r.URL.Path, "/")[4])
	}
	return 404, protocol.Error{Code: protocol.CodeMethod}
}

func (c *controller) enrol(raw []byte) (int, any) {
	var in protocol.Enrol
	if json.Unmarshal(raw, &in) != nil || in.Token != c.token || len(in.CredentialHash) != 64 {
		return 401, protocol.Error{Code: protocol.CodeToken, Message: "unknown token"}
	}
	host := "host-" + in.Name
	c.change(func() { c.hosts[in.CredentialHash] = host; c.enrols = append(c.enrols, in) })
	return 200, protocol.Enrolled{Host: host, Name: in.Name, Site: c.site}
}

func (c *controller) hello(raw []byte, host string) (int, any) {
	var in protocol.Hello
	if json.Unmarshal(raw, &in) != nil || in.Instance == "" {
		return 400, protocol.Error{Code: protocol.CodeBadRequest}
	}
	c.change(func() { c.hellos = append(c.hellos, in) })
	c.mu.Lock()
	defer c.mu.Unlock()
	return 200, protocol.Welcome{Site: c.site, Epoch: c.epoch, Host: host, Name: host, PollSeconds: 20, LeaseSeconds: c.lease}
}

// superseded is asked under mu.
func (c *controller) superseded(instance string) bool {
	return len(c.hellos) == 0 || c.hellos[len(c.hellos)-1].Instance != instance
}

func (c *controller) desired(r *http.Request) (int, any) {
	q := r.URL.Query()
	revision, err1 := strconv.ParseInt(q.Get("revision"), 10, 64)
	wait, err2 := strconv.Atoi(q.Get("wait"))
	if err := errors.Join(err1, err2); err != nil {
		return 400, protocol.Error{Code: protocol.CodeBadRequest, Message: err.Error()}
	}
	t := time.NewTimer(time.Duration(wait) * time.Second)
	defer t.Stop()
	for {
		c.mu.Lock()
		if c.superseded(q.Get("instance")) {
			c.mu.Unlock()
			return 409, protocol.Error{Code: protocol.CodeSuperseded, Message: "another instance"}
		}
		d := protocol.Desired{Site: c.site, Epoch: c.epoch, Revision: c.revision, Runners: slices.Collect(maps.Values(c.wants))}
		d.Images, d.Peers, d.PeerToken, d.PeerKey = c.words.Images, c.words.Peers, c.words.PeerToken, c.words.PeerKey
		changed := c.changed
		c.mu.Unlock()
		if d.Revision != revision {
			return 200, d
		}
		select {
		case <-changed:
		case <-t.C:
			return 200, d
		case <-r.Context().Done():
			return 500, protocol.Error{}
		}
	}
}

func (c *controller) report(raw []byte) (int, any) {
	var in protocol.Report
	if err := json.Unmarshal(raw, &in); err != nil {
		return 400, protocol.Error{Code: protocol.CodeBadRequest}
	}
	c.mu.Lock()
	superseded := c.superseded(in.Instance)
	if n := len(c.reports); n > 0 && c.reports[n-1].Instance == in.Instance && c.reports[n-1].Sequence >= in.Sequence {
		c.t.Errorf("sequence %d follows %d", in.Sequence, c.reports[n-1].Sequence)
	}
	c.mu.Unlock()
	if superseded {
		return 409, protocol.Error{Code: protocol.CodeSuperseded}
	}
	c.change(func() { c.reports = append(c.reports, in) })
	return 204, nil
}

func (c *controller) mint(runner string) (int, any) {
	c.mu.Lock()
	onMint, want := c.onMint, c.wants[runner]
	c.mu.Unlock()
	if onMint != nil {
		if status, e, after := onMint(runner); status != 200 {
			return status, retryLater{e, after}
		}
	}
	if want.Wanted != protocol.WantArmed {
		return 409, protocol.Error{Code: protocol.CodeNoGrant, Message: "not armed"}
	}
	n := 0
	c.change(func() { c.mintedBy[runner]++; n = c.mintedBy[runner] })
	config := "jit-" + runner + "-" + strconv.Itoa(n)
	if c.configOf != nil {
		config = c.configOf(runner, n)
	}
	return 200, protocol.Minted{Name: runner + "-" + strconv.Itoa(n), JITConfig: config, Trust: c.trust}
}

// pipeNet is a network in memory, so that real HTTP runs on a test's own clock.
type pipeNet struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once

	mu   sync.Mutex // guards the rest
	cut  bool
	open []net.Conn
}

// cutOff pulls the plug, or puts it back in.
func (p *pipeNet) cutOff(cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = cut
	if cut {
		for _, c := range p.open {
			c.Close()
		}
		p.open = nil
	}
}

func newPipeNet() *pipeNet { return &pipeNet{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipeNet) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipeNet) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipeNet) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }

func (p *pipeNet) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	p.mu.Lock()
	if p.cut {
		p.mu.Unlock()
		return nil, errors.New("network is unreachable")
	}
	ours, theirs := net.Pipe()
	p.open = append(p.open, ours, theirs)
	p.mu.Unlock()
	select {
	case p.conns <- theirs:
		return ours, nil
	case <-p.done:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// machines is a host without VMs: a test decides what they do.
type machines struct {
	mu      sync.Mutex // guards the rest
	changed chan struct{}
	found   []agent.Found
	byID    map[string]*machine
	running int
	most    int // that ran at once
	images  []string
	create  func(agent.Order) error
	setup   func(*machine) // of a new machine
	creates []agent.Order

	leftovers int // what EndLeftovers finds
	cleared   int // its calls
}

func newMachines() *machines {
	return &machines{changed: make(chan struct{}), byID: map[string]*machine{}, images: []string{"image"}}
}

func (m *machines) change(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *machines) Scan(context.Context) ([]agent.Found, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.found, nil
}

func (m *machines) Images(context.Context) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.images), nil
}

// IsMac goes by the image's name.
func (m *machines) IsMac(_ context.Context, image string) (bool, error) {
	return strings.HasPrefix(image, "macos"), nil
}

func (m *machines) EndLeftovers(context.Context) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cleared++
	return m.leftovers, nil
}

func (m *machines) Create(ctx context.Context, o agent.Order, progress func(string)) (agent.Machine, error) {
	m.mu.Lock()
	create := m.create
	m.creates = append(m.creates, o)
	m.mu.Unlock()
	progress("cloning")
	if create != nil {
		if err := create(o); err != nil {
			return nil, err
		}
	}
	mc := m.machine(o.ID)
	return mc, ctx.Err()
}

// machine makes one.
func (m *machines) machine(id string) *machine {
	mc := &machine{host: m, id: id, changed: make(chan struct{}), guest: guest.Status{
		Protocol: 1, Instance: strings.Repeat("a", 32), Revision: 1, Phase: guest.PhaseReady,
	}, answers: true, ended: make(chan struct{})}
	m.mu.Lock()
	setup := m.setup
	m.mu.Unlock()
	if setup != nil {
		setup(mc)
	}
	m.change(func() { m.byID[id] = mc })
	return mc
}

func (m *machines) has(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.byID[id] != nil
}

// made returns how many VMs were ordered.
func (m *machines) made() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.creates)
}

// get waits for a machine to exist.
func (m *machines) get(t *testing.T, id string) *machine {
	t.Helper()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	for {
		m.mu.Lock()
		mc, changed := m.byID[id], m.changed
		m.mu.Unlock()
		if mc != nil {
			return mc
		}
		select {
		case <-changed:
		case <-deadline.C:
			t.Fatalf("no machine %s within a minute", id)
		}
	}
}

// machine is one VM that never was.
type machine struct {
	host *machines
	id   string
	took agent.Took

	mu           sync.Mutex // guards the rest
	changed      chan struct{}
	guest        guest.Status
	answers      bool // the guest does
	configs      []string
	old          bool          // its guest program knows no policies
	policy       *trust.Policy // that came with the last of them
	runErr       error         // what Run answers
	runLost      bool          // Run works and says that it did not
	dies         bool          // the guest program dies of Run, and is started anew without a config
	grace        time.Duration // of the last End
	asks         int           // calls of Status
	ends         int
	ignores      bool // End
	startErr     error
	stopGate     chan struct{} // Stop waits for it
	removeGate   chan struct{} // Remove waits for it
	healths      int           // calls of Health
	sessionAfter int           // so many of them the session is ready
	installs     []string
	installGate  chan struct{} // InstallRunner waits for it
	installErr   error
	stops        int
	running      bool
	removed      bool
	released     int
	ended        chan struct{}
	why          string
}

func (m *machine) change(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *machine) runs() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.running
}

func (m *machine) isRemoved() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.removed
}

// told returns how often the guest was told to end.
func (m *machine) told() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ends
}

// taken returns the configs that the guest got.
func (m *machine) taken() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.configs)
}

// awaitGiven returns when the guest has a config.
func (m *machine) awaitGiven(t *testing.T) {
	t.Helper()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	for {
		m.mu.Lock()
		given, changed := len(m.configs) > 0, m.changed
		m.mu.Unlock()
		if given {
			return
		}
		select {
		case <-changed:
		case <-deadline.C:
			t.Fatal("the guest got no config within a minute")
		}
	}
}

// say moves the guest.
func (m *machine) say(f func(*guest.Status)) {
	m.change(func() { f(&m.guest); m.guest.Revision++ })
}

func (m *machine) phase(p guest.Phase) { m.say(func(s *guest.Status) { s.Phase = p }) }

func (m *machine) finish(o guest.Outcome, r guest.Result) {
	m.say(func(s *guest.Status) {
		s.Phase, s.Runner.Outcome, s.Runner.Result, s.Runner.Reason = guest.PhaseFinished, o, r, "so it says"
	})
}

func (m *machine) Start(context.Context) error {
	m.mu.Lock()
	err := m.startErr
	m.mu.Unlock()
	if err != nil {
		return err
	}
	m.run()
	return nil
}

func (m *machine) run() {
	m.change(func() { m.running = true })
	m.host.change(func() { m.host.running++; m.host.most = max(m.host.most, m.host.running) })
}

// die ends the VM without anybody's order.
func (m *machine) die(why string) {
	m.mu.Lock()
	was := m.running
	m.mu.Unlock()
	if !was {
		return
	}
	m.change(func() { m.running, m.why = false, why; close(m.ended) })
	m.host.change(func() { m.host.running-- })
}

func (m *machine) Took() agent.Took { return m.took }

func (m *machine) Guest() agent.Guest { return m }

func (m *machine) Wait(ctx context.Context) (string, error) {
	select {
	case <-m.ended:
		return m.why, nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

func (m *machine) Stop(ctx context.Context) error {
	m.mu.Lock()
	gate := m.stopGate
	m.stops++
	m.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	m.die("stopped")
	return nil
}

func (m *machine) Keep(string) error { return nil }

func (m *machine) Remove(ctx context.Context) error {
	m.mu.Lock()
	gate := m.removeGate
	m.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	m.change(func() { m.removed = true })
	return nil
}

func (m *machine) Release() { m.change(func() { m.released++ }) }

func (m *machine) Status(ctx context.Context, after uint64, wait time.Duration) (guest.Status, error) {
	t := time.NewTimer(wait)
	defer t.Stop()
	timeout := wait == 0
	m.mu.Lock()
	m.asks++
	m.mu.Unlock()
	for {
		m.mu.Lock()
		s, changed, answers, running := m.guest, m.changed, m.answers, m.running
		m.mu.Unlock()
		if !running {
			return guest.Status{}, errors.New("connection refused")
		}
		if answers && (timeout || after == 0 || s.Revision != after) {
			return s, nil
		}
		select {
		case <-changed:
		case <-t.C:
			timeout = true
		case <-ctx.Done():
			return guest.Status{}, ctx.Err()
		}
	}
}

func (m *machine) Health(context.Context) (guest.Health, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.healths++
	return guest.Health{Protocol: 1, SessionReady: m.healths > m.sessionAfter, JobHook: !m.old}, nil
}

func (m *machine) InstallRunner(ctx context.Context, size int64, digest []byte, r io.Reader) error {
	b, err := io.ReadAll(io.LimitReader(r, size))
	if err != nil {
		return err
	}
	m.mu.Lock()
	gate := m.installGate
	m.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	m.change(func() { m.installs = append(m.installs, hex.EncodeToString(digest)+" "+string(b)) })
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.installErr
}

func (m *machine) Run(_ context.Context, jit secret.Text, _ map[string]string, policy *trust.Policy) error {
	m.mu.Lock()
	runErr, has, lost, dies := m.runErr, m.guest.HasConfig, m.runLost, m.dies
	m.mu.Unlock()
	if dies {
		m.say(func(s *guest.Status) {
			*s = guest.Status{Protocol: 1, Instance: strings.Repeat("b", 32), Phase: guest.PhaseReady}
			m.configs = append(m.configs, jit.Reveal())
		})
		return errors.New("connection reset")
	}
	if runErr != nil {
		return runErr
	}
	if has {
		return guest.ErrHasConfig
	}
	m.say(func(s *guest.Status) {
		s.HasConfig, s.Phase = true, guest.PhaseStarting
		m.configs, m.policy = append(m.configs, jit.Reveal()), policy
	})
	if lost {
		return errors.New("connection reset")
	}
	return nil
}

func (m *machine) End(_ context.Context, grace time.Duration) error {
	m.mu.Lock()
	ignores := m.ignores
	m.ends++
	m.grace = grace
	m.mu.Unlock()
	if !ignores {
		m.finish(guest.OutcomeEnded, "")
	}
	return nil
}

func (m *machine) Tail(context.Context) (string, error) { return "last words of " + m.id, nil }

func (m *machine) Diag(_ context.Context, w io.Writer) error {
	_, err := fmt.Fprint(w, "a tar")
	return err
}

// newTestLog logs into w, and calls warned for each warning and worse.
func newTestLog(w io.Writer, warned func()) *slog.Logger {
	return slog.New(watchedLog{slog.NewTextHandler(w, nil), warned})
}

type watchedLog struct {
	slog.Handler
	warned func()
}

func (l watchedLog) Handle(ctx context.Context, r slog.Record) error {
	err := l.Handler.Handle(ctx, r)
	if r.Level >= slog.LevelWarn {
		l.warned()
	}
	return err
}
