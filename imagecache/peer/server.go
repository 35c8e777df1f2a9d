// SPDX-License-Identifier: MIT

package peer

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/imagecache/peer/token"
	"github.com/minifleet/minifleet/secret"
)

const (
	piece        = 256 << 10 // of a chunk, between two looks at the rate
	pieceTime    = 5 * time.Second
	maxConns     = 64  // to this host
	maxVisits    = 16  // of one host, at once
	visitsSecond = 300 // of one host
)

// visitor is a host that takes chunks.
type visitor struct {
	rate *rate.Limiter
	now  int
}

// Listener is where other hosts get in. Make it with Listen.
type Listener struct {
	net.Listener
	gate  *gate
	log   *slog.Logger
	slots chan struct{}

	mu      sync.Mutex // guards refused
	refused map[netip.Addr]bool
}

// Listen listens at IP:PORT or INTERFACE:PORT, for hosts of that interface's network and
// of the networks that are allowed besides. It refuses an address that guests could reach.
func Listen(ctx context.Context, address string, allow []netip.Prefix, log *slog.Logger) (*Listener, error) {
	return listen(ctx, gateConfig{address: address, allow: allow}, log)
}

func listen(ctx context.Context, cfg gateConfig, log *slog.Logger) (*Listener, error) {
	g, err := newGate(cfg)
	if err != nil {
		return nil, err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", g.bound.String())
	if err != nil {
		return nil, err
	}
	return &Listener{Listener: l, gate: g, log: log, slots: make(chan struct{}, maxConns), refused: map[netip.Addr]bool{}}, nil
}

// Stands reports, as an error, that the address is not this host's any more, or that guests
// are on it now.
func (l *Listener) Stands() error { return l.gate.stands() }

// Accept returns the next connection that may be one of a host's. Others are closed
// before a byte of theirs is read.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if err := l.admit(c.RemoteAddr()); err != nil {
			c.Close()
			continue
		}
		select {
		case l.slots <- struct{}{}:
			return &conn{Conn: c, release: sync.OnceFunc(func() { <-l.slots })}, nil
		default: // all are taken: whoever it is has the bucket
			c.Close()
		}
	}
}

func (l *Listener) admit(remote net.Addr) error {
	tcp, ok := remote.(*net.TCPAddr)
	if !ok {
		return errStranger
	}
	source := tcp.AddrPort().Addr()
	err := l.gate.admit(source)
	if err == nil {
		return nil
	}
	l.mu.Lock()
	known := l.refused[source]
	if len(l.refused) < 1000 {
		l.refused[source] = true
	}
	l.mu.Unlock()
	if !known {
		l.log.Warn("a connection to the listener for other hosts is refused", slog.String("source", source.String()), slog.Any("error", err))
	}
	return err
}

// conn gives its place back.
type conn struct {
	net.Conn
	release func()
}

func (c *conn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// Serve gives chunks to other hosts until ctx ends.
func (x *Exchange) Serve(ctx context.Context, l net.Listener) error {
	var work sync.WaitGroup
	defer work.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	server := &http.Server{
		Handler:        x.Handler(),
		MaxHeaderBytes: maxHeader, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute,
		ErrorLog:     log.New(io.Discard, "", 0), // what strangers send is no news
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
		BaseContext:  func(net.Listener) context.Context { return ctx },
	}
	work.Go(func() {
		<-ctx.Done()
		server.Close()
	})
	err := server.Serve(tls.NewListener(l, &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{x.cfg.Identity.Certificate},
		ClientAuth: tls.RequireAnyClientCert, // whose it is, the token says
	}))
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Handler answers GET /chunks/SHA256.
func (x *Exchange) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := http.NewResponseController(w)
		_ = out.SetWriteDeadline(time.Now().Add(pieceTime)) // that of an earlier answer is over
		if status, err := x.answer(w, r); err != nil {
			_ = out.SetWriteDeadline(time.Now().Add(pieceTime)) // it may have taken long
			http.Error(w, err.Error(), status)
		}
	})
}

func (x *Exchange) answer(w http.ResponseWriter, r *http.Request) (int, error) {
	name, ok := strings.CutPrefix(r.URL.Path, pathChunks)
	if r.Method != http.MethodGet || !ok {
		return http.StatusMethodNotAllowed, errors.New("there are chunks here, to be got")
	}
	claims, err := x.check(r)
	if err != nil {
		return http.StatusUnauthorized, err
	}
	var sum manifest.Sum
	if raw, err := hex.DecodeString(name); err != nil || len(raw) != len(sum) {
		return http.StatusBadRequest, errors.New("a chunk's name is its SHA-256 in hex")
	} else {
		copy(sum[:], raw)
	}
	if !x.enter(claims.Host) {
		return http.StatusTooManyRequests, errors.New("too many questions at once")
	}
	defer x.leave(claims.Host)
	if r.URL.Query().Has(queryWait) {
		x.pullsToo(claims.Pin)
	}
	mine := &share{of: x.given}
	defer mine.release()
	content, status, err := x.find(w, r, sum, mine)
	if err != nil {
		return status, err
	}
	x.send(w, r, content)
	return 0, nil
}

// check reads who asks. A token counts only over a connection that was opened with the
// key that it names.
func (x *Exchange) check(r *http.Request) (token.Claims, error) {
	x.mu.Lock()
	terms := x.terms
	x.mu.Unlock()
	text, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok || r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return token.Claims{}, errors.New("a token is missing")
	}
	c, err := token.Verify(secret.New(text), terms.Keys, x.cfg.Wall())
	switch {
	case err != nil:
		return c, err
	case c.Site != terms.Site:
		return c, errors.New("the token is of another site")
	case c.Group != x.cfg.Group:
		return c, errors.New("the token is of another group of hosts")
	case c.Pin != pinOf(r.TLS.PeerCertificates[0]):
		return c, errors.New("the token is of another host")
	}
	return c, nil
}

func (x *Exchange) enter(host string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	v := x.visits[host]
	if v == nil {
		if len(x.visits) >= 10*maxPeers {
			clear(x.visits) // hosts that are long gone; who is here is counted anew
		}
		v = &visitor{rate: rate.NewLimiter(visitsSecond, visitsSecond)}
		x.visits[host] = v
	}
	if v.now >= maxVisits || !v.rate.Allow() {
		return false
	}
	v.now++
	return true
}

func (x *Exchange) leave(host string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if v := x.visits[host]; v != nil && v.now > 0 {
		v.now--
	}
}

// String names the listener's address, for people and for peers.
func (l *Listener) String() string { return fmt.Sprint(l.Addr()) }
