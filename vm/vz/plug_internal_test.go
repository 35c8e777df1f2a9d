// SPDX-License-Identifier: MIT

package vz

import (
	"io"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// bindings does what vz v3.7.1 does with a connection: it returns a duplicate and closes
// the descriptor, whose number the framework's object closes again when freed is called.
// Between the opening of the one and of the other something else may happen.
func bindings(t *testing.T, between func()) (conn net.Conn, number int, freed func()) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	between()
	// The guest's end is in another process, and keeps no number here from being the highest.
	guest, err := unix.FcntlInt(uintptr(pair[1]), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(pair[1])
	other := os.NewFile(uintptr(guest), "guest")
	t.Cleanup(func() { other.Close() })
	f := os.NewFile(uintptr(pair[0]), "")
	if conn, err = net.FileConn(f); err != nil {
		t.Fatal(err)
	}
	f.Close()
	t.Cleanup(func() { conn.Close() })
	return conn, pair[0], func() { unix.Close(pair[0]) }
}

// bystanders are files that have nothing to do with the connection.
func bystanders(t *testing.T, n int) []*os.File {
	t.Helper()
	var all []*os.File
	for range n {
		f, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		all = append(all, f)
	}
	return all
}

// TestTheTrapIsReal shows what fill is for: without it a bystander is closed.
func TestTheTrapIsReal(t *testing.T) {
	_, number, freed := bindings(t, func() {})
	files := bystanders(t, 40)
	freed()
	for _, f := range files {
		if int(f.Fd()) == number {
			if _, err := f.WriteString("x"); err == nil {
				t.Error("the bystander's file survived the close of its number")
			}
			return
		}
	}
	t.Error("no bystander was given the number, so the test shows nothing")
}

// TestLateCloseHitsAPlaceholder closes late, after every number of connections, with
// files opened and closed all around.
func TestLateCloseHitsAPlaceholder(t *testing.T) {
	var p plug
	if err := p.fill(); err != nil {
		t.Fatal(err)
	}
	first, late := p.top, []func(){}
	for range 20 {
		before := bystanders(t, 3)
		conn, number, freed := bindings(t, func() {})
		before[1].Close() // a hole below
		if err := p.fill(); err != nil {
			t.Fatal(err)
		}
		if !p.mine[number] {
			t.Fatalf("number %d has no placeholder", number)
		}
		files := bystanders(t, 50)
		for _, f := range files {
			if int(f.Fd()) == number {
				t.Fatalf("a file was given the number %d", number)
			}
		}
		late = append(late, freed)
		if len(late) == 3 { // some objects live longer than others
			for _, close := range late {
				close()
			}
			late = nil
		}
		for _, f := range files {
			if _, err := f.WriteString("still mine"); err != nil {
				t.Errorf("a bystander was closed: %v", err)
			}
			f.Close()
		}
		if _, err := conn.Write([]byte("still open")); err != nil {
			t.Errorf("the connection was closed: %v", err)
		}
	}
	if grown := p.top - first; grown > 20*2*plugMargin {
		t.Errorf("20 connections took %d descriptors", grown)
	}
}

// TestNumberAboveAllInUse: what was open below the connection's number is closed before
// the number is plugged, and its duplicate has a lower one.
func TestNumberAboveAllInUse(t *testing.T) {
	var p plug
	if err := p.fill(); err != nil {
		t.Fatal(err)
	}
	below := bystanders(t, 10)
	conn, number, freed := bindings(t, func() {
		for _, f := range below {
			f.Close()
		}
	})
	if err := p.fill(); err != nil {
		t.Fatal(err)
	}
	if !p.mine[number] {
		t.Fatalf("number %d has no placeholder: they reach up to %d", number, p.top)
	}
	freed()
	if _, err := conn.Write([]byte("still open")); err != nil {
		t.Error(err)
	}
}

// TestPlaceholdersDoNotGrow: a fill without need takes almost nothing.
func TestPlaceholdersDoNotGrow(t *testing.T) {
	var p plug
	for range 3 {
		if err := p.fill(); err != nil {
			t.Fatal(err)
		}
	}
	top := p.top
	if err := p.fill(); err != nil || p.top != top {
		t.Errorf("top is %d and was %d, %v", p.top, top, err)
	}
	f, err := os.Open(os.DevNull) // the placeholders leave room above
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.ReadAll(f); err != nil {
		t.Error(err)
	}
}
