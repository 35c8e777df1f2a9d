// SPDX-License-Identifier: MIT

package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// How patient the way to a guest is.
const (
	firstTry   = 400 * time.Millisecond // for sshd's first byte; see await
	shortPause = 10 * time.Millisecond  // after a try that nobody answered
	refusedFor = 100 * time.Millisecond // after one that was refused
	unknownFor = 250 * time.Millisecond // while the guest has no address
	loginTime  = 30 * time.Second       // from sshd's first byte to the end of the login
	dialTime   = 20 * time.Second       // of one call of Dial; the way in goes on meanwhile
	restTime   = 2 * time.Second        // after a way in that failed: sshd punishes haste
)

// Config says which guest to reach, and how. All but Network and Log is required.
type Config struct {
	// Address finds the address and port of the guest's sshd. It is asked anew for each
	// try, and fails while the guest has none.
	Address func(ctx context.Context) (string, error)
	// Credentials are the user of the image.
	Credentials Credentials
	// HostKeys keeps the images' host keys, Image is the digest of this guest's.
	HostKeys HostKeys
	Image    string
	// Programs has a minifleet-guest for the guest's system.
	Programs Programs
	// RunnerDir is the runner's folder in the guest; a relative one is in the user's folder.
	RunnerDir string
	// Network opens the connection. Nil means TCP.
	Network func(ctx context.Context, network, address string) (net.Conn, error)
	// Log receives what happens. Nil means nowhere.
	Log *slog.Logger
}

// Guest is one guest that is reached over SSH. Its methods may be called at the same time.
type Guest struct {
	cfg     Config
	log     *slog.Logger
	methods []ssh.AuthMethod
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	work    sync.WaitGroup

	mu     sync.Mutex // guards the rest
	link   *link      // nil if there is none, and then
	under  *attempt   // the way in that is under way
	failed error      // or why the last one failed
	rest   time.Time  // and until when none is begun
}

// attempt is a way in that several calls of Dial wait for.
type attempt struct {
	done chan struct{} // closed when link and err are set
	link *link
	err  error
	last error // the trouble so far, guarded by Guest.mu
}

// New returns a guest that nobody has connected to yet, or what is wrong with cfg.
func New(cfg Config) (*Guest, error) {
	methods, err := cfg.Credentials.methods()
	if err != nil {
		return nil, err
	}
	if err := checkImage(cfg.Image); err != nil {
		return nil, err
	}
	if cfg.Address == nil || cfg.HostKeys.Dir == "" || cfg.Programs.Dir == "" || cfg.RunnerDir == "" {
		return nil, errors.New("a guest over SSH needs a way to its address, folders of host keys and programs, and its runner's folder")
	}
	if cfg.Network == nil {
		cfg.Network = (&net.Dialer{}).DialContext
	}
	g := &Guest{cfg: cfg, log: cmp.Or(cfg.Log, slog.New(slog.DiscardHandler)), methods: methods}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	return g, nil
}

// Close ends the connection, and with it all streams. What runs in the guest goes on.
func (g *Guest) Close() {
	g.mu.Lock()
	g.cancel() // no work begins after it
	g.mu.Unlock()
	g.work.Wait()
}

// ErrClosed says that the guest was let go.
var ErrClosed = errors.New("the way to the guest was closed")

// Dial opens a stream to the guest program, over a connection that is made where there is
// none. It waits for a guest that boots; after 20 s it returns an *Error that says in which
// step it is, and the way in goes on, so that a later call is quicker.
func (g *Guest) Dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	for again := false; ; again = true {
		l, err := g.connected(ctx)
		if err != nil {
			return nil, err
		}
		conn, err := l.open(ctx)
		if err == nil {
			return conn, nil
		}
		// A connection that has broken since it was last used is made anew, once.
		if ctx.Err() != nil || isRefusal(err) {
			return nil, at(StepReach, err)
		}
		g.drop(l)
		if again {
			return nil, at(StepReach, err)
		}
	}
}

// drop ends and forgets a connection over which nothing gets through.
func (g *Guest) drop(l *link) {
	l.close()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.link == l {
		g.link = nil
	}
}

// connected returns the connection, and makes it where there is none.
func (g *Guest) connected(ctx context.Context) (*link, error) {
	a, l, err := g.approach()
	if a == nil {
		return l, err
	}
	select {
	case <-a.done:
		return a.link, a.err
	case <-ctx.Done():
		g.mu.Lock()
		defer g.mu.Unlock()
		if a.last == nil {
			return nil, context.Cause(ctx)
		}
		return nil, a.last
	}
}

// approach returns the way in that is under way, beginning it if need be; or the
// connection; or why none is made.
func (g *Guest) approach() (*attempt, *link, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.ctx.Err() != nil:
		return nil, nil, ErrClosed
	case g.link != nil && !g.link.dead():
		return nil, g.link, nil
	case g.under != nil:
		return g.under, nil, nil
	case time.Now().Before(g.rest):
		return nil, nil, g.failed
	}
	a := &attempt{done: make(chan struct{})}
	g.link, g.under = nil, a
	g.work.Go(func() {
		a.link, a.err = g.enter(g.ctx, a)
		g.mu.Lock()
		g.link, g.under = a.link, nil
		if a.err != nil {
			g.failed, g.rest = a.err, time.Now().Add(restTime)
		}
		g.mu.Unlock()
		close(a.done)
		if a.link != nil {
			select {
			case <-g.ctx.Done():
			case <-a.link.done:
			}
			a.link.end()
		}
	})
	return a, nil, nil
}

// note keeps the trouble of a way in that goes on.
func (g *Guest) note(a *attempt, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	a.last = err
}

// enter goes the whole way in.
func (g *Guest) enter(ctx context.Context, a *attempt) (*link, error) {
	conn, err := g.await(ctx, a)
	if err != nil {
		return nil, err
	}
	g.note(a, at(StepLogin, errors.New("it is under way")))
	l, err := g.login(ctx, conn)
	if err != nil {
		return nil, err
	}
	g.note(a, at(StepStart, errors.New("it is under way")))
	if err := g.settle(ctx, l); err != nil {
		l.end()
		return nil, err
	}
	g.log.Info("a guest is reached over SSH", slog.String("address", conn.RemoteAddr().String()))
	return l, nil
}

// await returns a connection on which the guest's sshd has begun to speak. What lies
// before a guest may take connections long before it boots, and lose what it sends: so the
// tries come one at a time, and each gets longer the longer it takes.
func (g *Guest) await(ctx context.Context, a *attempt) (net.Conn, error) {
	for began := time.Now(); ; {
		conn, err := g.try(ctx, max(firstTry, time.Since(began)/4))
		if err == nil {
			return conn, nil
		}
		g.note(a, err)
		pause := refusedFor
		var timeout net.Error
		switch e, _ := errors.AsType[*Error](err); {
		case e != nil && e.Step == StepAddress:
			pause = unknownFor
		case errors.As(err, &timeout) && timeout.Timeout():
			pause = shortPause
		}
		if !sleep(ctx, pause) {
			return nil, ErrClosed
		}
	}
}

// try connects and waits for the first byte.
func (g *Guest) try(ctx context.Context, limit time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	address, err := g.cfg.Address(ctx)
	if err != nil {
		return nil, at(StepAddress, err)
	}
	conn, err := g.cfg.Network(ctx, "tcp", address)
	if err != nil {
		return nil, at(StepConnect, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) }) //nolint:errcheck // it fails only on what is closed
	first := make([]byte, 1)
	if _, err = conn.Read(first); err == nil && !stop() {
		err = context.Cause(ctx)
	}
	stop()
	if err != nil {
		conn.Close()
		return nil, at(StepConnect, fmt.Errorf("%s takes the connection, but no sshd speaks yet: %w", address, err))
	}
	return &begun{Conn: conn, first: first}, nil
}

// login logs in, and pins the host key of an image that is new here.
func (g *Guest) login(ctx context.Context, conn net.Conn) (*link, error) {
	known, err := g.cfg.HostKeys.known(g.cfg.Image)
	if err != nil {
		return nil, errors.Join(at(StepHostKey, err), conn.Close())
	}
	var shown ssh.PublicKey
	var refused error
	conf := &ssh.ClientConfig{
		User: g.cfg.Credentials.User, Auth: g.methods, HostKeyAlgorithms: algorithms(known),
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			shown, refused = key, g.cfg.HostKeys.check(g.cfg.Image, key)
			return refused
		},
	}
	ctx, cancel := context.WithTimeoutCause(ctx, loginTime, fmt.Errorf("it is not done within %s", loginTime))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	below := &wire{Conn: conn}
	sc, channels, requests, err := ssh.NewClientConn(below, "", conf)
	if !stop() && err == nil {
		err = sc.Close()
	}
	switch {
	case ctx.Err() != nil:
		err = at(StepLogin, context.Cause(ctx))
	case refused != nil:
		err = at(StepHostKey, refused)
	case err != nil && known != nil && isNegotiation(err):
		err = at(StepHostKey, fmt.Errorf("the guest does not prove the host key %s %s that clones of this image are known by: %s", known.Type(), ssh.FingerprintSHA256(known), clean(err.Error(), 300)))
	case err != nil:
		err = at(StepLogin, fmt.Errorf("as %s: %s", g.cfg.Credentials.User, clean(err.Error(), 300)))
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	l := newLink(ssh.NewClient(sc, channels, requests), below)
	if known == nil {
		if err := g.cfg.HostKeys.pin(g.cfg.Image, shown); err != nil {
			l.end()
			return nil, at(StepHostKey, err)
		}
		g.log.Info("the host key of an image was pinned", slog.String("image", g.cfg.Image), slog.String("key", shown.Type()+" "+ssh.FingerprintSHA256(shown)))
	}
	return l, nil
}

// isNegotiation reports whether both sides have nothing in common, above all no type of host
// key where only the known one will do.
func isNegotiation(err error) bool {
	_, ok := errors.AsType[*ssh.AlgorithmNegotiationError](err)
	return ok
}

// begun is a connection whose first bytes have been read.
type begun struct {
	net.Conn
	first []byte
}

func (b *begun) Read(p []byte) (int, error) {
	if len(b.first) > 0 {
		n := copy(p, b.first)
		b.first = b.first[n:]
		return n, nil
	}
	return b.Conn.Read(p)
}
