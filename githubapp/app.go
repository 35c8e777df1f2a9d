// SPDX-License-Identifier: MIT

package githubapp

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bradleyfalzon/ghinstallation/v2"
	"github.com/google/go-github/v62/github"

	"github.com/minifleet/minifleet/secret"
)

// DefaultBaseURL is the API of github.com.
const DefaultBaseURL = "https://api.github.com"

// Config is what an App needs. AppID and PrivateKey have no default.
type Config struct {
	AppID      int64
	PrivateKey secret.Text // PEM of an RSA key, PKCS #1 as GitHub hands it out or PKCS #8

	// BaseURL is where the API is: "" is DefaultBaseURL, an Enterprise Server has
	// it at https://HOST/api/v3. Plain http is taken for loopback only.
	BaseURL string

	Transport   http.RoundTripper // nil: an own one; another's is not closed by Close
	UserAgent   string            // "": minifleet
	CallTimeout time.Duration     // for each request with its answer; 0: 30 s
	MintTimeout time.Duration     // for a registration; 0: 60 s
	Log         *slog.Logger      // nil: discard
	Now         func() time.Time  // nil: time.Now
	Limits      Limits            // "": LimitsAuto
	// Registrations is shared by several Apps of one server. nil: an own one
	Registrations *Registrations
	Changed       func()     // called when GitHub is lost or reached again; must not block. nil: nobody
	Observe       func(Call) // called after each request; must not block. nil: nobody
}

// Limits says whether GitHub's rate limits hold.
type Limits string

// The limits.
const (
	// LimitsAuto paces calls at GitHub itself, and elsewhere once an answer tells of a limit.
	LimitsAuto Limits = "auto"
	// LimitsOff paces nothing: for an Enterprise Server whose limits are off. What an
	// answer asks for is still done.
	LimitsOff Limits = "off"
)

// Validate returns all that is wrong with the configuration.
func (c Config) Validate() error {
	var errs []error
	if c.AppID <= 0 {
		errs = append(errs, fmt.Errorf("GitHub App id %d: set the id that the App's settings page shows", c.AppID))
	}
	if c.PrivateKey.Empty() {
		errs = append(errs, errors.New("no private key: generate one in the GitHub App's settings and give its PEM file"))
	} else if _, err := newSigner(c.PrivateKey, time.Now); err != nil {
		errs = append(errs, err)
	}
	if _, err := baseURL(c.BaseURL); err != nil {
		errs = append(errs, err)
	}
	if c.Limits != "" && c.Limits != LimitsAuto && c.Limits != LimitsOff {
		errs = append(errs, fmt.Errorf("limits %q: want %s or %s", c.Limits, LimitsAuto, LimitsOff))
	}
	if c.CallTimeout < 0 || c.MintTimeout < 0 {
		errs = append(errs, errors.New("timeouts must not be negative"))
	}
	return errors.Join(errs...)
}

// App is a GitHub App's view of GitHub. Its methods are safe for concurrent use.
type App struct {
	id          int64
	base        string // without a slash at the end
	signer      ghinstallation.Signer
	userAgent   string
	callTimeout time.Duration
	mintTimeout time.Duration
	log         *slog.Logger
	now         func() time.Time
	observe     func(Call)

	wire     http.RoundTripper
	owned    *http.Transport // nil if the transport is another's
	limits   Limits
	changed  func()
	gate     gate
	version  atomic.Pointer[string] // of the Enterprise Server; nil: it has not said
	rates    rates
	clock    clock
	answers  answers
	self     *github.Client // signed in as the App itself
	lookups  keyedLock
	grouping keyedLock

	mu      sync.Mutex
	clients map[int64]*installation
	scopes  map[string]scopeEntry // by key of the scope
	groups  map[string]groupEntry // by organization and name
	places  places
}

// New returns an App. It does not call GitHub.
func New(c Config) (*App, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	base, err := baseURL(c.BaseURL)
	if err != nil {
		return nil, err
	}
	a := &App{
		id: c.AppID, base: base, userAgent: cmp.Or(c.UserAgent, "minifleet"),
		callTimeout: cmp.Or(c.CallTimeout, 30*time.Second), mintTimeout: cmp.Or(c.MintTimeout, time.Minute),
		log: c.Log, now: c.Now, observe: c.Observe, wire: c.Transport,
		limits: cmp.Or(c.Limits, LimitsAuto), changed: c.Changed,
		clients: map[int64]*installation{}, scopes: map[string]scopeEntry{}, groups: map[string]groupEntry{},
	}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	if a.now == nil {
		a.now = time.Now
	}
	if a.observe == nil {
		a.observe = func(Call) {}
	}
	if a.changed == nil {
		a.changed = func() {}
	}
	a.gate = gate{
		app: a, paced: a.limits == LimitsAuto && atGitHub(base), registrations: cmp.Or(c.Registrations, &Registrations{}), lanes: map[int64]*lane{},
	}
	if a.wire == nil {
		a.owned = &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			ForceAttemptHTTP2:   true,
			MaxIdleConnsPerHost: maxConcurrent,
			IdleConnTimeout:     90 * time.Second,
			TLSHandshakeTimeout: 10 * time.Second,
		}
		a.wire = a.owned
	}
	if a.signer, err = newSigner(c.PrivateKey, a.githubTime); err != nil {
		return nil, err
	}
	tr, err := a.appTransport(0)
	if err != nil {
		return nil, err
	}
	a.self, err = a.client(tr, 0)
	return a, err
}

// githubTime is the time on GitHub's clock, as far as its answers have told.
func (a *App) githubTime() time.Time { return a.now().Add(a.clock.off()) }

// Close closes idle connections. Calls under way go on.
func (a *App) Close() {
	a.gate.close()
	if a.owned != nil {
		a.owned.CloseIdleConnections()
	}
}

// appTransport signs requests as the App. Requests count for the installation, or
// for the App itself if that is 0.
func (a *App) appTransport(installationID int64) (*ghinstallation.AppsTransport, error) {
	inner := &transport{app: a, installation: installationID}
	tr, err := ghinstallation.NewAppsTransportWithOptions(inner, a.id, ghinstallation.WithSigner(a.signer))
	if err != nil {
		return nil, fmt.Errorf("sign in as App %d: %w", a.id, err)
	}
	tr.BaseURL = a.base
	return tr, nil
}

// client returns a client that sends through tr, as an installation or, if that is 0, as
// the App itself.
func (a *App) client(tr http.RoundTripper, installationID int64) (*github.Client, error) {
	metered := &meter{next: tr, answers: &a.answers, installation: installationID}
	c := github.NewClient(&http.Client{Transport: metered, CheckRedirect: sameHost})
	u, err := url.Parse(a.base + "/") // a relative path keeps the base's only after a slash
	if err != nil {
		return nil, fmt.Errorf("base URL %s: %w", a.base, err)
	}
	c.BaseURL, c.UserAgent = u, a.userAgent
	return c, nil
}

// sameHost follows a redirect, of a renamed repository for instance, only where
// the credentials belong: the transport would sign a request to anywhere.
func sameHost(req *http.Request, via []*http.Request) error {
	first := via[0].URL
	if req.URL.Host != first.Host || req.URL.Scheme != first.Scheme || len(via) >= 5 {
		return http.ErrUseLastResponse
	}
	return nil
}

func loopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
