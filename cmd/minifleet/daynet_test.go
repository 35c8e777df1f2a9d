// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"net"
	"sync"
)

// wires are a network in memory: who waits for it is durably blocked, so that a virtual
// clock goes on.
type wires struct {
	mu    sync.Mutex // guards doors
	doors map[string]*wireDoor
}

// plug is one party's end of the wires.
type plug struct {
	wires *wires

	mu     sync.Mutex // guards the rest
	pulled bool
	open   map[*wire]bool
}

func (w *wires) plug() *plug { return &plug{wires: w, open: map[*wire]bool{}} }

// pull breaks every connection of a party, and it gets no other until push.
func (p *plug) pull() {
	p.mu.Lock()
	p.pulled = true
	open := p.open
	p.open = map[*wire]bool{}
	p.mu.Unlock()
	for c := range open {
		c.Close()
	}
}

func (p *plug) push() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pulled = false
}

// add notes a connection, unless the party has none.
func (p *plug) add(c *wire) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.pulled {
		p.open[c] = true
	}
	return !p.pulled
}

func (p *plug) remove(c *wire) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, c)
}

// wire is one end of a connection.
type wire struct {
	net.Conn
	owner *plug
}

func (c *wire) Close() error {
	c.owner.remove(c)
	return c.Conn.Close()
}

func (p *plug) dial(ctx context.Context, network, address string) (net.Conn, error) {
	fail := func(why error) (net.Conn, error) { return nil, &net.OpError{Op: "dial", Net: network, Err: why} }
	p.wires.mu.Lock()
	door := p.wires.doors[address]
	p.wires.mu.Unlock()
	if door == nil {
		return fail(errors.New("connection refused"))
	}
	a, b := net.Pipe()
	here, there := &wire{a, p}, &wire{b, door.owner}
	if !p.add(here) || !door.owner.add(there) {
		here.Close()
		there.Close()
		return fail(errors.New("network is unreachable"))
	}
	err := net.ErrClosed
	select {
	case door.conns <- there:
		return here, nil
	case <-door.done:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	here.Close()
	there.Close()
	return fail(err)
}

// wireDoor is a listener.
type wireDoor struct {
	owner   *plug
	address string
	conns   chan net.Conn
	done    chan struct{}
	once    sync.Once
}

func (p *plug) listen(_ context.Context, _, address string) (net.Listener, error) {
	p.wires.mu.Lock()
	defer p.wires.mu.Unlock()
	if p.wires.doors == nil {
		p.wires.doors = map[string]*wireDoor{}
	}
	if p.wires.doors[address] != nil {
		return nil, errors.New("address in use: " + address)
	}
	d := &wireDoor{owner: p, address: address, conns: make(chan net.Conn), done: make(chan struct{})}
	p.wires.doors[address] = d
	return d, nil
}

func (d *wireDoor) Accept() (net.Conn, error) {
	select {
	case c := <-d.conns:
		return c, nil
	case <-d.done:
		return nil, net.ErrClosed
	}
}

func (d *wireDoor) Close() error {
	d.once.Do(func() {
		close(d.done)
		d.owner.wires.mu.Lock()
		defer d.owner.wires.mu.Unlock()
		if d.owner.wires.doors[d.address] == d {
			delete(d.owner.wires.doors, d.address)
		}
	})
	return nil
}

func (d *wireDoor) Addr() net.Addr { return wireAddr(d.address) }

type wireAddr string

func (wireAddr) Network() string  { return "tcp" }
func (a wireAddr) String() string { return string(a) }
