// SPDX-License-Identifier: MIT

package emulator

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// piece is how much goes over a limited line in one go: connections take turns.
const piece = 64 << 10

// line carries bytes to all clients, so many in a second.
type line struct {
	sent *atomic.Int64

	mu     sync.Mutex // guards both
	second int64      // bytes in one; 0 is no limit
	free   time.Time  // when what was taken on is over
}

func newLine(bytesPerSecond int64, sent *atomic.Int64) *line {
	return &line{second: bytesPerSecond, sent: sent}
}

func (l *line) limit(bytesPerSecond int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.second, l.free = bytesPerSecond, time.Time{}
}

// slack is for how long a line that was idle may be faster: less than that no timer tells.
const slack = 2 * time.Millisecond

// turn waits until so many bytes may go. It reports whether there is a limit at all.
func (l *line) turn(n int) bool {
	l.mu.Lock()
	if l.second == 0 {
		l.mu.Unlock()
		return false
	}
	now := time.Now()
	if earliest := now.Add(-slack); l.free.Before(earliest) {
		l.free = earliest
	}
	l.free = l.free.Add(time.Duration(float64(n) / float64(l.second) * float64(time.Second)))
	wait := l.free.Sub(now)
	l.mu.Unlock()
	if wait > 0 {
		time.Sleep(wait)
	}
	return true
}

func (l *line) limits() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.second != 0
}

// limited is a listener whose connections share a line.
type limited struct {
	net.Listener
	line *line
}

func (l limited) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return conn{c, l.line}, nil
}

type conn struct {
	net.Conn
	line *line
}

func (c conn) Write(b []byte) (n int, err error) {
	for len(b) > n && err == nil {
		part := b[n:]
		if c.line.limits() {
			part = part[:min(len(part), piece)]
			c.line.turn(len(part))
		}
		c.line.sent.Add(int64(len(part))) // before the client can have it
		var wrote int
		wrote, err = c.Conn.Write(part)
		n += wrote
		c.line.sent.Add(int64(wrote - len(part)))
	}
	return n, err
}
