// SPDX-License-Identifier: MIT

// Package mux makes many streams out of the one channel that a hypervisor has to its
// guest: a Client on the host opens them, Serve in the guest accepts them. A channel
// that breaks takes its streams with it and is dialled anew by the next one. Streams take
// turns in small frames, so that a short question is answered during a long transfer. The other
// side is never trusted: it can hold up its own streams and nothing else.
package mux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// settings are the same on both sides. There is no keepalive: a machine may be paused for
// long, and a channel tells its own end.
func settings() *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive = false
	c.StreamOpenTimeout = 0 // closes the whole session, and a paused guest answers late
	c.StreamCloseTimeout = 30 * time.Second
	c.LogOutput = io.Discard // what happened comes back as errors
	return c
}

// openLimit bounds how long a guest may take to make room for one more stream.
const openLimit = 10 * time.Second

// againAfter is the pause before another try with a guest that ends channels or takes no
// streams.
const againAfter = 100 * time.Millisecond

// Client opens streams to a guest. It is safe for concurrent use.
type Client struct {
	dial func(context.Context) (net.Conn, error)
	life context.Context //nolint:containedctx // ends with Close
	end  context.CancelCauseFunc
	turn chan struct{} // held by the one Connect that dials or opens

	mu      sync.Mutex // guards session
	session *yamux.Session
}

// NewClient returns a client of the guest that dial reaches. One call of dial is made at a
// time, when a stream is wanted and no channel is open; it waits for the guest.
func NewClient(dial func(context.Context) (net.Conn, error)) *Client {
	life, end := context.WithCancelCause(context.Background())
	return &Client{dial: dial, life: life, end: end, turn: make(chan struct{}, 1)}
}

// ErrClosed is the cause with which Connect fails after Close.
var ErrClosed = errors.New("the channel to the guest is closed")

// Connect opens a stream. It waits for the guest until ctx ends.
func (c *Client) Connect(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(c.life, func() { cancel(context.Cause(c.life)) })()
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("reach the guest: %w", context.Cause(ctx))
	}
	defer func() { <-c.turn }()
	for pause := time.Duration(0); ; pause = againAfter {
		if err := sleep(ctx, pause); err != nil {
			return nil, err
		}
		session, err := c.current(ctx)
		if err != nil {
			return nil, err
		}
		// A guest that takes no more streams blocks the call, which knows no context.
		limit := time.AfterFunc(openLimit, func() { session.Close() })
		s, err := session.OpenStream()
		limit.Stop()
		if err == nil {
			return newStream(s), nil
		}
		session.Close()
	}
}

// current returns the session, a new one if there is none that lives.
func (c *Client) current(ctx context.Context) (*yamux.Session, error) {
	c.mu.Lock()
	session := c.session
	c.mu.Unlock()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("reach the guest: %w", context.Cause(ctx))
	}
	if session != nil && !session.IsClosed() {
		return session, nil
	}
	session, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.session = session
	c.mu.Unlock()
	if c.life.Err() != nil { // Close may have come before the session was known
		session.Close()
	}
	return session, nil
}

// open dials until the other side answers as it should.
func (c *Client) open(ctx context.Context) (*yamux.Session, error) {
	for pause := time.Duration(0); ; pause = againAfter {
		if err := sleep(ctx, pause); err != nil {
			return nil, err
		}
		conn, err := c.dial(ctx)
		if err != nil {
			return nil, err
		}
		session, err := yamux.Client(newGuard(conn), settings())
		if err != nil {
			conn.Close()
			return nil, err
		}
		// A guest that accepts and hangs must hold up nobody longer than he wants to wait.
		stop := context.AfterFunc(ctx, func() { session.Close() })
		_, err = session.Ping()
		if stop() && err == nil {
			return session, nil
		}
		session.Close()
	}
}

// sleep waits for d, or fails when ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("reach the guest: %w", context.Cause(ctx))
	}
}

// Close closes the channel with all streams, and ends every Connect that waits.
func (c *Client) Close() {
	c.end(ErrClosed)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session != nil {
		c.session.Close()
	}
}

// Serve accepts the streams of one channel, in the guest. Closing the listener closes the
// channel.
func Serve(channel net.Conn) (net.Listener, error) {
	session, err := yamux.Server(channel, settings())
	if err != nil {
		return nil, err
	}
	return listener{session}, nil
}

type listener struct{ *yamux.Session }

// Accept returns the next stream; net.ErrClosed when the channel has ended.
func (l listener) Accept() (net.Conn, error) {
	s, err := l.AcceptStream()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", net.ErrClosed, err)
	}
	return newStream(s), nil
}

// frame is the most that one stream puts into the channel at a time. A stream has one
// frame under way, so a small answer waits behind at most one of each other stream,
// where yamux alone would send a whole window (256 KiB) in one.
const frame = 16 << 10

// stream closes as a connection does: yamux's own Close ends one direction only.
type stream struct {
	*yamux.Stream
	writing *sync.Mutex // held over a Write, so that the frames of two do not mix
}

func newStream(s *yamux.Stream) stream { return stream{s, new(sync.Mutex)} }

// Write sends p in frames.
func (s stream) Write(p []byte) (int, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	sent := 0
	for {
		n, err := s.Stream.Write(p[sent:min(sent+frame, len(p))])
		sent += n
		if err != nil || sent == len(p) {
			return sent, err
		}
	}
}

// CloseWrite passes the end of this direction on.
func (s stream) CloseWrite() error { return s.Stream.Close() }

// Close ends both directions: a Read that waits returns.
func (s stream) Close() error {
	err := s.Stream.Close()
	return errors.Join(err, s.SetDeadline(time.Unix(1, 0)))
}
