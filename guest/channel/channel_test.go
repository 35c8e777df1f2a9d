// SPDX-License-Identifier: MIT

package channel

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/internal/leakcheck"
	"github.com/minifleet/minifleet/mux"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

// patience is how long a test waits for what must happen; nothing waits for it unless
// it fails.
const patience = 60 * time.Second

var quiet = slog.New(slog.DiscardHandler)

// reflect answers each stream of l with what comes on it, until l is closed.
func reflect(t *testing.T, l net.Listener) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		for {
			s, err := l.Accept()
			if err != nil {
				done <- err
				return
			}
			go func() {
				_, _ = io.Copy(s, s)
				s.Close()
			}()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

// exchange opens a stream and has a few bytes sent back on it.
func exchange(t *testing.T, c *mux.Client) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := c.Connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	load := bytes.Repeat([]byte("0123456789"), 100)
	s.SetDeadline(time.Now().Add(patience))
	if _, err := s.Write(load); err != nil {
		t.Fatal(err)
	}
	back := make([]byte, len(load))
	if _, err := io.ReadFull(s, back); err != nil || !bytes.Equal(load, back) {
		t.Fatalf("%q came back, %v", back, err)
	}
	return s
}

func TestNewChannelReplacesTheOld(t *testing.T) {
	t.Parallel()
	l := newListener(addr{"test", "1"}, quiet)
	channels := make(chan net.Conn)
	l.work.Go(func() {
		l.follow(func() (net.Conn, error) {
			select {
			case c := <-channels:
				return c, nil
			case <-l.life.Done():
				return nil, net.ErrClosed
			}
		})
	})
	reflect(t, l)
	dial := func(context.Context) (net.Conn, error) {
		host, theirs := net.Pipe()
		channels <- theirs
		return host, nil
	}
	first := mux.NewClient(dial)
	defer first.Close()
	old := exchange(t, first)
	second := mux.NewClient(dial)
	defer second.Close()
	exchange(t, second)
	if n, err := old.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("a stream of the channel before lives on: %d, %v", n, err)
	}
	exchange(t, second)
}

func TestErrorEndsTheListener(t *testing.T) {
	t.Parallel()
	l := newListener(addr{"test", "1"}, quiet)
	cause := errors.New("the test's cause")
	l.work.Go(func() { l.follow(func() (net.Conn, error) { return nil, cause }) })
	if _, err := l.Accept(); !errors.Is(err, cause) || !strings.Contains(err.Error(), "test:1") {
		t.Errorf("Accept: %v", err)
	}
	l.Close()
}

func TestOnlyTheHostIsAdmitted(t *testing.T) {
	t.Parallel()
	var fds [2]int
	if err := unix.Pipe(fds[:]); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	for name, tt := range map[string]struct {
		peer unix.Sockaddr
		want string
	}{
		"the host":           {&unix.SockaddrVM{CID: 2, Port: 5000}, ""},
		"the guest itself":   {&unix.SockaddrVM{CID: 3, Port: 1023}, "CID 3"},
		"the local loopback": {&unix.SockaddrVM{CID: 1, Port: 1023}, "CID 1"},
		"the hypervisor":     {&unix.SockaddrVM{CID: 0, Port: 1023}, "CID 0"},
		"something else":     {&unix.SockaddrInet4{}, "SockaddrInet4"},
	} {
		err := admit(fds[0], tt.peer)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if flags, err := unix.FcntlInt(uintptr(fds[0]), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("the host's connection blocks: %#x, %v", flags, err)
	}
}
