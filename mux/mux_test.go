// SPDX-License-Identifier: MIT

package mux_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/minifleet/minifleet/internal/leakcheck"
	"github.com/minifleet/minifleet/mux"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

// guest sends back what comes on each stream, and counts its channels.
type guest struct {
	mu       sync.Mutex // guards channels
	channels []net.Conn
	serving  sync.WaitGroup
}

func (g *guest) dial(context.Context) (net.Conn, error) {
	host, theirs := net.Pipe()
	g.mu.Lock()
	g.channels = append(g.channels, theirs)
	g.mu.Unlock()
	g.serving.Go(func() {
		l, err := mux.Serve(theirs)
		if err != nil {
			return
		}
		defer l.Close()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			g.serving.Go(func() {
				_, _ = io.Copy(c, c)
				_ = c.(interface{ CloseWrite() error }).CloseWrite()
			})
		}
	})
	return host, nil
}

func (g *guest) dialled() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.channels)
}

func start(t *testing.T) (*mux.Client, *guest) {
	t.Helper()
	g := &guest{}
	c := mux.NewClient(g.dial)
	t.Cleanup(func() {
		c.Close()
		g.serving.Wait()
	})
	return c, g
}

func connect(t *testing.T, c *mux.Client) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := c.Connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func echo(t *testing.T, s net.Conn, load []byte) {
	t.Helper()
	var sending sync.WaitGroup
	sending.Go(func() {
		_, err := s.Write(load)
		if err = errors.Join(err, s.(interface{ CloseWrite() error }).CloseWrite()); err != nil {
			t.Error(err)
		}
	})
	back, err := io.ReadAll(s)
	sending.Wait()
	if err != nil || !bytes.Equal(back, load) {
		t.Errorf("%d of %d bytes came back, %v", len(back), len(load), err)
	}
	s.Close()
}

func TestManyStreamsOneChannel(t *testing.T) {
	t.Parallel()
	c, g := start(t)
	idle := connect(t, c)
	stuck := connect(t, c) // its echo is never read
	if _, err := stuck.Write(bytes.Repeat([]byte("x"), 100<<10)); err != nil {
		t.Fatal(err)
	}
	var asking sync.WaitGroup
	for range 16 {
		asking.Go(func() { echo(t, connect(t, c), bytes.Repeat([]byte("0123456789"), 50_000)) })
	}
	asking.Wait()
	echo(t, idle, []byte("still here"))
	if n := g.dialled(); n != 1 {
		t.Errorf("%d channels were dialled", n)
	}
}

func TestBrokenChannelIsDialledAnew(t *testing.T) {
	t.Parallel()
	c, g := start(t)
	old := connect(t, c)
	g.mu.Lock()
	g.channels[0].Close()
	g.mu.Unlock()
	if n, err := old.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("a stream outlives its channel: %d, %v", n, err)
	}
	echo(t, connect(t, c), []byte("again"))
	if n := g.dialled(); n != 2 {
		t.Errorf("%d channels were dialled", n)
	}
}

// TestCloseEndsAWaitingRead: yamux's own Close would leave it waiting for the other side's.
func TestCloseEndsAWaitingRead(t *testing.T) {
	t.Parallel()
	var serving sync.WaitGroup
	defer serving.Wait()
	c := mux.NewClient(func(context.Context) (net.Conn, error) {
		host, theirs := net.Pipe()
		serving.Go(func() {
			l, err := mux.Serve(theirs)
			if err != nil {
				return
			}
			defer l.Close()
			for err == nil { // takes streams and leaves them at that
				_, err = l.Accept()
			}
		})
		return host, nil
	})
	defer c.Close()
	s := connect(t, c)
	if _, err := s.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() {
		_, err := s.Read(make([]byte, 1))
		read <- err
	}()
	s.Close()
	select {
	case err := <-read:
		if err == nil {
			t.Error("read from a closed stream")
		}
	case <-time.After(20 * time.Second): // yamux gives a half-closed stream up after 30 s
		t.Error("the read waits for ever")
	}
}

func TestConnectGivesUp(t *testing.T) {
	t.Parallel()
	cause := errors.New("the test's cause")
	for name, dial := range map[string]func(context.Context) (net.Conn, error){
		"nobody there": func(ctx context.Context) (net.Conn, error) {
			<-ctx.Done()
			return nil, context.Cause(ctx)
		},
		"mute": func(context.Context) (net.Conn, error) {
			host, theirs := net.Pipe()
			go func() {
				_, _ = io.Copy(io.Discard, theirs)
				theirs.Close()
			}()
			return host, nil
		},
		"hangs up": func(context.Context) (net.Conn, error) {
			host, theirs := net.Pipe()
			theirs.Close()
			return host, nil
		},
		"something else": func(context.Context) (net.Conn, error) {
			host, theirs := net.Pipe()
			go func() {
				_, _ = io.WriteString(theirs, "SSH-2.0-OpenSSH_9.9\r\n")
				_, _ = io.Copy(io.Discard, theirs)
				theirs.Close()
			}()
			return host, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := mux.NewClient(dial)
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(20*time.Millisecond, func() { cancel(cause) })
			if s, err := c.Connect(ctx); !errors.Is(err, cause) {
				t.Errorf("%v, %v; want the context's cause", s, err)
			}
			c.Close()
			if _, err := c.Connect(t.Context()); !errors.Is(err, mux.ErrClosed) {
				t.Errorf("after Close: %v", err)
			}
		})
	}
}

func TestCloseEndsStreams(t *testing.T) {
	t.Parallel()
	c, _ := start(t)
	s := connect(t, c)
	c.Close()
	if n, err := s.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("a stream outlives its client: %d, %v", n, err)
	}
}
