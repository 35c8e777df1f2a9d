// SPDX-License-Identifier: MIT

package githubsim

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/minifleet/minifleet/secret"
)

// Sim is one simulated GitHub. Make it with New, and Close it.
type Sim struct {
	opt     Options
	timing  Timing
	clock   clock
	log     *slog.Logger
	rng     *random
	keys    *keyPool
	timers  *timers
	hooks   *hookEngine
	faults  *faults
	limits  *limits
	appKey  *rsa.PublicKey
	appPEM  secret.Text
	handler http.Handler

	ctx  context.Context // ends when the Sim closes
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu       sync.Mutex // guards everything below
	closed   bool
	baseURL  string
	server   *http.Server
	nextID   int64
	changes  uint64
	changed  chan struct{} // closed and replaced at every change
	accounts map[string]*account
	repos    map[string]*repository
	installs []*installation
	tokens   map[string]*accessToken
	usedJWTs map[[32]byte]*usedJWT
	runners  []*runner
	runs     []*run
	jobs     []*job
	requests []Request
	app      identity
	grants   map[string]grant // by code of the manifest flow

	runnerTokens map[string]runnerToken // those of their OAuth exchanges
	jobTokens    map[string]*job

	sets      []*scaleSet
	setTokens map[string]setAccess
}

// New makes a Sim and starts what works in the background. It listens nowhere
// until Start; Handler can be served in any other way.
func New(opt Options) (*Sim, error) {
	if err := opt.Validate(); err != nil {
		return nil, fmt.Errorf("simulated github: %w", err)
	}
	opt = opt.withDefaults()
	key, pemText, err := appKey(opt.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("simulated github: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	s := &Sim{
		opt: opt, timing: opt.Timing, clock: clock{opt.Ahead}, log: opt.Log, rng: newRandom(opt.Seed), keys: newKeyPool(opt.KeyPool, opt.OneKey || opt.Prompt), timers: newTimers(),
		appKey: key, appPEM: pemText, ctx: ctx, stop: stop, baseURL: strings.TrimSuffix(opt.BaseURL, "/"),
		nextID: 100, changed: make(chan struct{}), accounts: map[string]*account{}, repos: map[string]*repository{},
		tokens: map[string]*accessToken{}, usedJWTs: map[[32]byte]*usedJWT{}, grants: map[string]grant{},
		app:          identity{slug: opt.AppSlug, name: opt.AppSlug, owner: "minifleet", permissions: defaultPermissions(), events: []string{"workflow_job", "workflow_run"}},
		runnerTokens: map[string]runnerToken{}, jobTokens: map[string]*job{}, setTokens: map[string]setAccess{},
	}
	s.faults = &faults{rng: s.rng, rate: opt.FaultRate}
	s.limits = newLimits(opt.Prompt || opt.Enterprise != "")
	s.limits.clock = s.clock
	s.limits.silent = opt.Enterprise != ""
	s.hooks = newHookEngine(s)
	for _, f := range opt.Faults {
		s.faults.add(f)
	}
	s.handler = s.clock.date(s.routes())
	s.wg.Go(func() { s.keys.fill(ctx) })
	s.wg.Go(func() { s.timers.run(ctx) })
	s.wg.Go(func() { s.hooks.run(ctx) })
	return s, nil
}

// appKey reads the App's key, or makes one.
func appKey(given secret.Text) (*rsa.PublicKey, secret.Text, error) {
	if given.Empty() {
		key, err := rsa.GenerateKey(rand.Reader, keyBits)
		if err != nil {
			return nil, secret.Text{}, fmt.Errorf("generate the app key: %w", err)
		}
		block := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
		return &key.PublicKey, secret.New(string(block)), nil
	}
	block, _ := pem.Decode([]byte(given.Reveal()))
	if block == nil {
		return nil, secret.Text{}, errors.New("app key: not a PEM block; give the file that GitHub offers for download")
	}
	if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return &key.PublicKey, given, nil
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, secret.Text{}, errors.New("app key: neither a PKCS #1 nor a PKCS #8 private key")
	}
	key, ok := parsed.(*rsa.PrivateKey)
	if !ok {
		return nil, secret.Text{}, fmt.Errorf("app key: a %T; GitHub Apps have RSA keys", parsed)
	}
	return &key.PublicKey, given, nil
}

// Start listens on Options.Listen and serves until Close. If a webhook URL is
// set, GitHub's ping follows.
func (s *Sim) Start() error {
	ln, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", s.opt.Listen)
	if err != nil {
		return fmt.Errorf("simulated github: %w", err)
	}
	srv := &http.Server{Handler: s.handler, ReadHeaderTimeout: 10 * time.Second}
	s.mu.Lock()
	if s.closed || s.server != nil {
		s.mu.Unlock()
		return errors.Join(errors.New("simulated github: already started or closed"), ln.Close())
	}
	s.server = srv
	if s.baseURL == "" {
		s.baseURL = "http://" + ln.Addr().String()
	}
	s.wg.Go(func() {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("simulated github stopped serving", "error", err)
		}
	})
	s.mu.Unlock()
	if s.opt.WebhookURL != "" {
		s.ping()
	}
	return nil
}

// Close ends every poll, delivery and timer, and returns when all its goroutines have ended.
func (s *Sim) Close() error {
	s.mu.Lock()
	s.closed = true
	srv := s.server
	s.mu.Unlock()
	s.hooks.shut()
	s.stop()
	var err error
	if srv != nil {
		ctx, cancel := context.WithTimeoutCause(context.Background(), 5*time.Second, errors.New("requests of clients still open"))
		defer cancel()
		if srv.Shutdown(ctx) != nil {
			err = srv.Close() // a client keeps a connection open on which it says nothing
		}
	}
	s.wg.Wait()
	s.hooks.close()
	return err
}

// Handler serves all of the Sim: REST (at / and at /api/v3/), the Actions
// service, and the control API under /_sim/.
func (s *Sim) Handler() http.Handler { return s.handler }

// URL is the Sim's base URL, empty before Start unless one was set.
func (s *Sim) URL() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.baseURL
}

// SetBaseURL tells a Sim whose Handler is served by someone else how clients reach it.
func (s *Sim) SetBaseURL(u string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.baseURL = strings.TrimSuffix(u, "/")
}

// AppID is the App's id, the issuer of its JWTs.
func (s *Sim) AppID() int64 { return s.opt.AppID }

// PrivateKeyPEM is the App's private key, as GitHub offers it for download.
func (s *Sim) PrivateKeyPEM() secret.Text { return s.appPEM }

// WebhookSecret is what deliveries are signed with.
func (s *Sim) WebhookSecret() secret.Text { return s.hooks.secretNow() }

// change wakes everyone who waits for one. The caller holds mu.
func (s *Sim) change() {
	s.changes++
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Sim) newID() int64 {
	s.nextID++
	return s.nextID
}

// Ids far apart by kind, as on github.com, so that a mix-up cannot go unseen.
const (
	runIDs      = 9_000_000_000
	jobIDs      = 25_000_000_000
	deliveryIDs = 480_000_000_000
)

// base is the URL that clients know the Sim by. The caller holds mu.
func (s *Sim) base(r *http.Request) string {
	if s.baseURL != "" {
		return s.baseURL
	}
	if r != nil {
		return "http://" + r.Host
	}
	return "http://127.0.0.1"
}

// runnerBase is the URL that runners know the Sim by. The caller holds mu.
func (s *Sim) runnerBase(r *http.Request) string {
	if s.opt.RunnerURL != "" {
		return strings.TrimSuffix(s.opt.RunnerURL, "/")
	}
	return s.base(r)
}

// later runs fn under mu once d has passed, unless the Sim is closed by then.
func (s *Sim) later(d time.Duration, fn func()) {
	s.timers.after(d, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		fn()
	})
}

// await blocks until ok says yes, asked at every change. look runs under mu
// before it, and ok itself does not, so that it may ask the Sim.
func (s *Sim) await(ctx context.Context, what string, look func(), ok func() bool) error {
	for {
		s.mu.Lock()
		look()
		changed := s.changed
		s.mu.Unlock()
		if ok() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, context.Cause(ctx))
		case <-s.ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, ErrClosed)
		}
	}
}

// ErrClosed says that the Sim was closed while a caller waited.
var ErrClosed = errors.New("simulated github is closed")
