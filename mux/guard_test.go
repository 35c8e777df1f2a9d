// SPDX-License-Identifier: MIT

package mux_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/minifleet/minifleet/mux"
)

// header is a frame's header as yamux has it.
func header(kind byte, flags uint16, stream, length uint32) []byte {
	b := []byte{0, kind}
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint32(b, stream)
	return binary.BigEndian.AppendUint32(b, length)
}

const (
	data, windowUpdate, ping, goAway = 0, 1, 2, 3
	syn, ack                         = 1, 2
)

// A guest that does more than answer loses its channel: nothing of what it sends is kept.
func TestGuestOnlyAnswers(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		frame []byte
		ends  bool
	}{
		"a stream of the guest's":        {header(windowUpdate, syn, 2, 0), true},
		"a stream with data":             {append(header(data, syn, 2, 1), 'x'), true},
		"a stream with a host's number":  {header(windowUpdate, syn|ack, 1, 0), true},
		"a ping":                         {header(ping, syn, 0, 7), true},
		"a farewell":                     {header(goAway, 0, 0, 0), true},
		"something else":                 {header(9, 0, 0, 0), true},
		"an answer to no ping":           {header(ping, ack, 0, 7), false},
		"data that nobody asked for":     {append(header(data, 0, 99, 3), "abc"...), false},
		"a data frame's load like a SYN": {append(header(data, 0, 99, 12), header(ping, syn, 0, 1)...), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host, guest := net.Pipe()
			c := mux.NewClient(func(context.Context) (net.Conn, error) { return host, nil })
			defer c.Close()
			var serving sync.WaitGroup
			defer serving.Wait()
			defer guest.Close()
			connected := make(chan struct{})
			serving.Go(func() {
				answerPing(t, guest)
				serving.Go(func() { io.Copy(io.Discard, guest) }) //nolint:errcheck // ends with the pipe
				<-connected
				_, _ = guest.Write(tt.frame)
				_, _ = guest.Write(append(header(data, 0, 1, 1), 'y')) // fails where the channel has ended
			})
			s := connect(t, c)
			close(connected)
			b := make([]byte, 1)
			n, err := s.Read(b)
			if ended := n == 0 && err != nil; ended != tt.ends {
				t.Errorf("read %q, %v; the channel ends: %v", b[:n], err, tt.ends)
			}
		})
	}
}

// answerPing answers the ping with which a channel begins, and swallows the opening of a stream.
func answerPing(t *testing.T, guest net.Conn) {
	t.Helper()
	b := make([]byte, 12)
	if _, err := io.ReadFull(guest, b); err != nil {
		t.Error(err)
	}
	if want := header(ping, syn, 0, 0); !bytes.Equal(b, want) {
		t.Errorf("the channel begins with %x, want %x", b, want)
	}
	if _, err := guest.Write(header(ping, ack, 0, 0)); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(guest, b); err != nil || b[1] != windowUpdate {
		t.Errorf("no stream was opened: %x, %v", b, err)
	}
}

// breaking is a channel that breaks when a stream is opened on it.
type breaking struct {
	net.Conn
	writes int
}

func (b *breaking) Write(p []byte) (int, error) {
	if b.writes++; b.writes > 1 { // the ping came first
		return 0, net.ErrClosed
	}
	return b.Conn.Write(p)
}

// A guest whose channels break at once is tried again at leisure.
func TestChannelsThatBreak(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 450*time.Millisecond)
	defer cancel()
	dialled := 0
	c := mux.NewClient(func(context.Context) (net.Conn, error) {
		if dialled++; dialled > 100 {
			cancel()
		}
		host, guest := net.Pipe()
		go func() {
			if _, err := io.ReadFull(guest, make([]byte, 12)); err == nil {
				_, _ = guest.Write(header(ping, ack, 0, 0))
			}
		}()
		return &breaking{Conn: host}, nil
	})
	defer c.Close()
	if _, err := c.Connect(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Connect: %v", err)
	}
	if dialled > 10 { // a pause of 100 ms before each but the first
		t.Errorf("dialled %d times", dialled)
	}
}
