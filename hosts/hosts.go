// SPDX-License-Identifier: MIT

// Package hosts is the controller's side of the agent protocol: enrolment, hello,
// desired, report and mint. It checks who speaks, translates between the wire and
// the domain, and walks the mint flow; what is wanted of a host is decided
// elsewhere, and what a host does with it is package agent's affair.
package hosts

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/secret"
)

// Store is the durable state as the protocol needs it.
type Store interface {
	Site() string
	Epoch() int64
	AddEnrolment(ctx context.Context, e fleet.Enrolment, uses int) error
	Enrol(ctx context.Context, tokenHash, credentialHash, name, machine string) (fleet.Host, error)
	HostByCredential(ctx context.Context, hash string) (fleet.Host, error)
	Hello(ctx context.Context, id fleet.HostID, instance, machine string, facts fleet.HostFacts, live time.Duration) error
	Heard(ctx context.Context, id fleet.HostID, instance string, live time.Duration) error
	Desired(ctx context.Context, id fleet.HostID) (fleet.Desired, error)
	HostChanged(id fleet.HostID) <-chan struct{}
	Report(ctx context.Context, id fleet.HostID, r fleet.HostReport, live time.Duration) error
	Runner(ctx context.Context, id fleet.RunnerID) (fleet.Runner, bool, error)
	BeginMint(ctx context.Context, host fleet.HostID, id fleet.RunnerID, name string) (fleet.Mint, error)
	Granted(ctx context.Context, id fleet.RunnerID, attempt int, githubID int64) error
	MintRefused(ctx context.Context, id fleet.RunnerID, attempt int, why string, lasts bool) error
	RegistrationDeleted(ctx context.Context, id fleet.RunnerID, attempt int) error
	DeleteVetoed(ctx context.Context, id fleet.RunnerID, attempt int, retry time.Time) error
}

// GitHub makes and deletes registrations. Its errors are those of package fleet:
// after ErrNameTaken, ErrRefused, ErrLater and *RateLimited there is certainly no
// registration, after any other there may be one.
type GitHub interface {
	Register(ctx context.Context, pool fleet.Pool, scope fleet.Scope, name string) (fleet.Registered, error)
	Unregister(ctx context.Context, ref fleet.RegistrationRef) error
}

// Config wires a Server.
type Config struct {
	Store  Store
	GitHub GitHub
	Pools  []fleet.Pool
	// Name makes a runner's name at GitHub, new and random at each call.
	Name func(site, pool string) string
	// Held returns an error, a *fleet.RateLimited, where no registration would be asked for
	// now: then none is begun. nil: never
	Held func(fleet.Scope) error
	// Poll is how long an agent is asked to leave a desired call open. 0 means 20 s.
	Poll time.Duration
	// Live is how long a silent host still counts as live. 0 means one minute.
	Live time.Duration
	// Lease is how long an agent keeps clean VMs without any answer. 0 means 10 min.
	Lease time.Duration
	// EndGrace is how long a listener may take to end by itself. 0 means 30 s.
	EndGrace time.Duration
	// Reported is called after each report that is stored; must not block. nil: nobody
	Reported func(fleet.HostID)
	// CertificatePin goes into enrolment tokens: hex SHA-256 of the public key of the
	// certificate that agents meet, "" where the public PKI vouches for it.
	CertificatePin string
	// PeerKey signs the tokens with which hosts take chunks of images from each other, see
	// LoadPeerKey. Nil has them know nothing of each other.
	PeerKey ed25519.PrivateKey
	Log     *slog.Logger
}

// Server answers agents.
type Server struct {
	c       Config
	pools   map[string]fleet.Pool
	minting inFlight
	peers   directory
}

// New checks the configuration and returns a server for Routes.
func New(c Config) (*Server, error) {
	if c.Store == nil || c.GitHub == nil || c.Name == nil {
		return nil, errors.New("hosts: store, GitHub and name are required")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Reported == nil {
		c.Reported = func(fleet.HostID) {}
	}
	for d, def := range map[*time.Duration]time.Duration{
		&c.Poll: 20 * time.Second, &c.Live: time.Minute, &c.Lease: 10 * time.Minute, &c.EndGrace: 30 * time.Second,
	} {
		if *d == 0 {
			*d = def
		}
	}
	c.Poll = min(c.Poll, protocol.MaxWait)
	s := &Server{c: c, pools: map[string]fleet.Pool{}, peers: directory{hosts: map[fleet.HostID]peerFacts{}}}
	for _, p := range c.Pools {
		s.pools[p.Name] = p
	}
	return s, nil
}

// Routes mounts the protocol.
func (s *Server) Routes(r chi.Router) {
	r.Post(protocol.PathEnrol, s.enrol)
	r.Post(protocol.PathHello, s.asHost(s.hello))
	r.Get(protocol.PathDesired, s.asHost(s.desired))
	r.Post(protocol.PathReport, s.asHost(s.report))
	r.Post(protocol.PathMint, s.asHost(s.mint))
}

// NewEnrolment makes a token with which so many hosts can join within ttl; an empty
// name lets them choose their own. The token is shown once and stored hashed.
func (s *Server) NewEnrolment(ctx context.Context, hostName string, ttl time.Duration, uses int) (secret.Text, error) {
	token := secret.Generate()
	e := fleet.Enrolment{TokenHash: token.Hash(), HostName: hostName, ExpiresAt: time.Now().Add(ttl)}
	if err := s.c.Store.AddEnrolment(ctx, e, uses); err != nil {
		return secret.Text{}, err
	}
	crashpoint.Reached(crashpoint.EnrolmentStored)
	return protocol.FormatEnrolment(token, s.c.CertificatePin), nil
}
