// SPDX-License-Identifier: MIT

// Package channel is the guest's end of the one channel that a hypervisor has to its
// guest: a listener over a vsock port or over a virtio-serial port, whose connections
// are the streams that the host opens on it (package mux). A channel that ends is
// waited for anew, and one that comes while another is open replaces it: the host has
// one at a time. The package knows nothing of what is said on the streams.
package channel

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/minifleet/minifleet/mux"
)

// listener accepts the streams of one channel after the other.
type listener struct {
	address addr
	log     *slog.Logger
	streams chan net.Conn
	life    context.Context         //nolint:containedctx // ends with Close
	end     context.CancelCauseFunc // its cause is what Accept returns
	work    sync.WaitGroup
}

func newListener(address addr, log *slog.Logger) *listener {
	life, end := context.WithCancelCause(context.Background())
	return &listener{address: address, log: log, streams: make(chan net.Conn), life: life, end: end}
}

// follow serves every channel that next returns, each until the one after it, and ends
// with the first error of next.
func (l *listener) follow(next func() (net.Conn, error)) {
	replace := func() {}
	defer func() { replace() }()
	for {
		conn, err := next()
		if err != nil {
			l.end(fmt.Errorf("channel %s: %w", l.address, err))
			return
		}
		replace()
		life, end := context.WithCancel(l.life)
		replace = end
		l.work.Go(func() {
			defer end()
			l.serve(life, conn)
		})
	}
}

// serve passes the streams of one channel on, until it ends or life does.
func (l *listener) serve(life context.Context, conn net.Conn) {
	session, err := mux.Serve(conn)
	if err != nil { // of our own settings
		conn.Close()
		l.end(err)
		return
	}
	l.log.Info("host opened the channel", slog.String("channel", l.address.String()))
	defer l.log.Info("channel to the host ended", slog.String("channel", l.address.String()))
	defer session.Close()
	defer context.AfterFunc(life, func() { session.Close() })()
	for {
		s, err := session.Accept()
		if err != nil {
			return
		}
		select {
		case l.streams <- s:
		case <-life.Done():
			s.Close()
			return
		}
	}
}

// Accept returns the next stream of whatever channel is open.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case s := <-l.streams:
		return s, nil
	case <-l.life.Done():
		return nil, context.Cause(l.life)
	}
}

// Close closes the channel with its streams and waits for none to come.
func (l *listener) Close() error {
	l.end(net.ErrClosed)
	l.work.Wait()
	return nil
}

func (l *listener) Addr() net.Addr { return l.address }

// sleep waits for d and reports true, or false at once when the listener is closed.
func (l *listener) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-l.life.Done():
		return false
	}
}

// addr names a channel as the command line does: network, colon, port.
type addr struct{ network, port string }

func (a addr) Network() string { return a.network }
func (a addr) String() string  { return a.network + ":" + a.port }

// fileConn is a connection over a descriptor that package net does not know.
type fileConn struct {
	*os.File
	address addr
}

func (c fileConn) LocalAddr() net.Addr  { return c.address }
func (c fileConn) RemoteAddr() net.Addr { return c.address }
