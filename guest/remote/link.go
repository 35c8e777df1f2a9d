// SPDX-License-Identifier: MIT

package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
)

// What a guest may take for its answers. One that takes longer loses the connection, and
// with it everything that it kept open or unanswered there.
const (
	keepAliveEvery = 15 * time.Second
	keepAliveWait  = 15 * time.Second
	openTime       = 10 * time.Second // to open a stream
	closeTime      = 10 * time.Second // to confirm the end of one
	stopTime       = time.Second      // for writers to meet the end
)

// What is kept of a command's output.
const (
	maxOutput     = 8 << 10
	maxComplaints = 2 << 10
)

// link is one SSH connection that is logged in.
type link struct {
	client *ssh.Client
	conn   *wire  // below client: closing it ends everything at once, whatever the guest does
	socket string // minifleet-guest's, once it is known
	done   chan struct{}
	work   sync.WaitGroup

	mu    sync.Mutex
	ended bool // no work begins any more; guarded by mu
}

func newLink(client *ssh.Client, conn *wire) *link {
	conn.serve(client)
	l := &link{client: client, conn: conn, done: make(chan struct{})}
	l.work.Go(func() {
		l.client.Wait() //nolint:errcheck // why it ended, the next connection shows
		l.close()
		close(l.done)
	})
	l.work.Go(l.keepAlive)
	return l
}

// close ends the connection. It can be repeated.
func (l *link) close() { l.conn.Close() }

// end closes the connection and waits until nothing of it is left.
func (l *link) end() {
	l.close()
	l.mu.Lock()
	l.ended = true
	l.mu.Unlock()
	l.work.Wait()
}

// begin does work beside, unless the connection has ended.
func (l *link) begin(work func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.ended {
		l.work.Go(work)
	}
	return !l.ended
}

var errEnded = errors.New("the SSH connection has ended")

// dead reports whether the connection has ended.
func (l *link) dead() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

// keepAlive finds out about a connection that broke without a word.
func (l *link) keepAlive() {
	every := time.NewTicker(keepAliveEvery)
	defer every.Stop()
	for {
		select {
		case <-l.done:
			return
		case <-every.C:
		}
		limit := time.AfterFunc(keepAliveWait, l.close)
		_, _, err := l.client.SendRequest("keepalive@openssh.com", true, nil)
		limit.Stop()
		if err != nil {
			l.close()
			return
		}
	}
}

// wire tells the client of the end of its connection in an order that x/crypto does not keep
// by itself: that nothing can be written any more comes before that nothing is read. It ends
// the streams that it knows of as soon as nothing is read, and forgets one that is being
// opened just then: whoever opens it waits for ever, unless writing has failed before
// (v0.58.0, ssh/handshake.go: readLoop stops writers last, and writePacket does not return
// the error that it meets, but the one of before; ssh/mux.go: openChannel after dropAll).
type wire struct {
	net.Conn
	over   atomic.Bool
	client atomic.Pointer[ssh.Client] // nil until it is logged in
}

func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if err != nil {
		w.over.Store(true)
		w.stopWriters()
	}
	return n, err
}

// serve says whose writers are to be stopped.
func (w *wire) serve(c *ssh.Client) {
	w.client.Store(c)
	if w.over.Load() {
		w.stopWriters()
	}
}

// stopWriters closes the connection and has the client meet that in writing.
func (w *wire) stopWriters() {
	w.Close()
	c := w.client.Load()
	if c == nil {
		return
	}
	met := make(chan struct{})
	go func() {
		c.SendRequest("over@minifleet", false, nil) //nolint:errcheck // it fails, or the one before it has
		close(met)
	}()
	// In a key exchange it may wait until that fails, by the end that is told after this.
	limit := time.NewTimer(stopTime)
	defer limit.Stop()
	select {
	case <-met:
	case <-limit.C:
	}
}

// opening has x/crypto open something, and waits for it no longer than the connection lasts:
// a guest that breaks the protocol, instead of the connection, can still have it forgotten.
func opening[T io.Closer](ctx context.Context, l *link, open func() (T, error)) (T, error) {
	type result struct {
		opened T
		err    error
	}
	results := make(chan result)
	go func() { // nobody waits for its end
		opened, err := open()
		select {
		case results <- result{opened, err}:
			return
		case <-ctx.Done():
		case <-l.done:
		}
		if err == nil {
			opened.Close()
		}
	}()
	var none T
	select {
	case r := <-results:
		return r.opened, r.err
	case <-ctx.Done():
		return none, context.Cause(ctx)
	case <-l.done:
		return none, errEnded
	}
}

// open opens a stream to the guest's socket.
func (l *link) open(ctx context.Context) (net.Conn, error) {
	conn, err := opening(ctx, l, func() (net.Conn, error) {
		limit := time.AfterFunc(openTime, l.close)
		defer limit.Stop()
		conn, err := l.client.Dial("unix", l.socket)
		if err != nil {
			return nil, err
		}
		return &stream{Conn: conn, link: l, reader: make(chan struct{}, 1)}, nil
	})
	return conn, refusal(err)
}

// refusal makes the guest's words printable.
func refusal(err error) error {
	if r, ok := errors.AsType[*ssh.OpenChannelError](err); ok {
		return fmt.Errorf("its sshd refuses a stream to the socket: %w", &ssh.OpenChannelError{Reason: r.Reason, Message: clean(r.Message, 200)})
	}
	return err
}

// isRefusal reports whether err is the guest's answer, and the connection in order.
func isRefusal(err error) bool {
	_, ok := errors.AsType[*ssh.OpenChannelError](err)
	return ok
}

// stream is one stream to the guest's socket.
type stream struct {
	net.Conn
	link   *link
	reader chan struct{} // has room for the one that reads
	closed atomic.Bool
}

func (s *stream) Read(p []byte) (int, error) {
	// Of two readers x/crypto tells but one of the end (v0.58.0, ssh/buffer.go).
	s.reader <- struct{}{}
	n, err := s.Conn.Read(p)
	<-s.reader
	if s.closed.Load() {
		return 0, net.ErrClosed
	}
	return n, err
}

// CloseWrite ends what is sent, and leaves the other direction open.
func (s *stream) CloseWrite() error {
	if c, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Close does not wait for the guest. What it still sends is thrown away until it has
// confirmed the end, without which the stream would be kept for ever.
func (s *stream) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	s.link.begin(func() {
		limit := time.AfterFunc(closeTime, s.link.close)
		defer limit.Stop()
		s.Conn.Close()
		s.reader <- struct{}{}
		io.Copy(io.Discard, s.Conn) //nolint:errcheck // an error is an end too
		<-s.reader
	})
	return nil
}

// command is a script for the guest's /bin/sh, with arguments.
type command struct {
	script string
	args   []string
	input  io.Reader
}

// exitError is a command that ended with another code than 0.
type exitError struct {
	code       int
	complaints string
}

func (e *exitError) Error() string {
	if e.complaints == "" {
		return fmt.Sprintf("a command in the guest ended with code %d", e.code)
	}
	return fmt.Sprintf("a command in the guest ended with code %d: %s", e.code, e.complaints)
}

// run runs a command and returns the beginning of its output. If ctx ends before, the
// connection does.
func (l *link) run(ctx context.Context, c command) ([]byte, error) {
	stop := context.AfterFunc(ctx, l.close)
	defer stop()
	out, err := l.runUnbounded(ctx, c)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return out, err
}

func (l *link) runUnbounded(ctx context.Context, c command) ([]byte, error) {
	session, err := opening(ctx, l, l.client.NewSession)
	if err != nil {
		return nil, refusal(err)
	}
	defer session.Close()
	out, complaints := &head{most: maxOutput}, &head{most: maxComplaints}
	session.Stdin, session.Stdout, session.Stderr = c.input, out, complaints
	words := []string{"exec", "/bin/sh", "-c", quote(c.script), "sh"}
	for _, a := range c.args {
		words = append(words, quote(a))
	}
	err = session.Run(strings.Join(words, " "))
	if e, ok := errors.AsType[*ssh.ExitError](err); ok {
		return out.Bytes(), &exitError{code: e.ExitStatus(), complaints: clean(complaints.String(), 300)}
	}
	if _, ok := errors.AsType[*ssh.ExitMissingError](err); ok {
		return nil, errors.New("the connection ended before the command")
	}
	return out.Bytes(), err
}

// quote makes one word of text, for every common login shell.
func quote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// head keeps the beginning of what is written to it.
type head struct {
	bytes.Buffer
	most int
}

func (h *head) Write(p []byte) (int, error) {
	h.Buffer.Write(p[:min(len(p), max(0, h.most-h.Len()))])
	return len(p), nil
}
