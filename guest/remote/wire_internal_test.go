// SPDX-License-Identifier: MIT

package remote

import (
	"errors"
	"io"
	"net"
	"testing"
)

// A peer that has said its last word takes words for a while: they must not be lost.
func TestNothingIsWrittenAfterTheEnd(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ours, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	theirs, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	w := &wire{Conn: ours}
	if _, err := w.Write([]byte("before")); err != nil {
		t.Fatal(err)
	}
	if err := theirs.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatalf("read: %v", err)
	}
	if _, err := w.Write([]byte("after")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("written after the end: %v", err)
	}
}
