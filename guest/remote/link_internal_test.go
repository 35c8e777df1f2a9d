// SPDX-License-Identifier: MIT

package remote

import (
	"crypto/ed25519"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"
)

// early does something as soon as the end of a connection is read, before anybody is told.
type early struct {
	*wire
	once sync.Once
	do   func()
}

func (e *early) Read(p []byte) (int, error) {
	n, err := e.wire.Read(p)
	if err != nil {
		e.once.Do(e.do)
	}
	return n, err
}

// A stream that is opened while a connection ends is either known by then or cannot be
// asked for: it is not forgotten.
func TestWritersStopBeforeReaders(t *testing.T) {
	t.Parallel()
	for name, late := range map[string]bool{"while it serves": false, "before it serves": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ours, theirs := pair(t)
			var work sync.WaitGroup
			defer work.Wait()
			in := make(chan *ssh.ServerConn, 1)
			work.Go(func() { serveOnce(t, theirs, in) })

			w := &wire{Conn: ours}
			e := &early{wire: w}
			opened := make(chan error, 1)
			ready := make(chan *ssh.Client, 1)
			ended := make(chan struct{})
			e.do = func() {
				close(ended)
				c := <-ready
				_, _, err := c.OpenChannel("anything", nil)
				opened <- err
			}
			sc, channels, requests, err := ssh.NewClientConn(e, "", &ssh.ClientConfig{User: "runner", HostKeyCallback: ssh.InsecureIgnoreHostKey()})
			if err != nil {
				t.Fatal(err)
			}
			client := ssh.NewClient(sc, channels, requests)
			if !late {
				w.serve(client)
				ready <- client
			}
			(<-in).Close()
			if late {
				<-ended
				w.serve(client)
				ready <- client
			}
			select {
			case err := <-opened:
				if err == nil {
					t.Error("a channel was opened over a connection that has ended")
				}
			case <-time.After(30 * time.Second):
				t.Fatal("a channel that is asked for over a connection that has ended is waited for")
			}
			client.Wait() //nolint:errcheck // however it ended
		})
	}
}

func pair(t *testing.T) (ours, theirs net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if ours, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close() })
	if theirs, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return ours, theirs
}

// serveOnce is an sshd that lets anybody in and opens nothing.
func serveOnce(t *testing.T, conn net.Conn, in chan<- *ssh.ServerConn) {
	defer conn.Close()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Error(err)
		return
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Error(err)
		return
	}
	config := &ssh.ServerConfig{NoClientAuth: true}
	config.AddHostKey(signer)
	sc, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		t.Error(err)
		return
	}
	in <- sc
	var work sync.WaitGroup
	work.Go(func() { ssh.DiscardRequests(requests) })
	for n := range channels {
		n.Reject(ssh.Prohibited, "") //nolint:errcheck // the client may be gone
	}
	work.Wait()
}

// What x/crypto never answers is waited for no longer than the connection lasts, and closed
// if it comes after all.
func TestOpeningEndsWithTheConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := &link{done: make(chan struct{})}
		answer := make(chan io.Closer)
		failed := make(chan error)
		go func() {
			_, err := opening(t.Context(), l, func() (io.Closer, error) { return <-answer, nil })
			failed <- err
		}()
		synctest.Wait()
		close(l.done)
		if err := <-failed; !errors.Is(err, errEnded) {
			t.Errorf("it fails with %v", err)
		}
		l.work.Wait()
		ours, theirs := net.Pipe()
		answer <- ours
		if _, err := theirs.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("what was opened too late is still open: %v", err)
		}
		theirs.Close()
	})
}
