// SPDX-License-Identifier: MIT

//go:build linux

package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// question is a command to QEMU.
type question struct {
	Execute string
	ID      uint64
}

// done is QEMU's answer to what succeeds.
func (q question) done() string { return fmt.Sprintf(`{"return":{},"id":%d}`+"\n", q.ID) }

// answering returns a connection to a QEMU that says no more than answer does; end ends it.
func answering(t *testing.T, answer func(question) string) (conn *net.UnixConn, end func()) {
	t.Helper()
	ours, theirs, err := socketPair("qmp")
	if err != nil {
		t.Fatal(err)
	}
	qemu, err := unixConn(theirs)
	if err != nil {
		t.Fatal(err)
	}
	if conn, err = unixConn(ours); err != nil {
		t.Fatal(err)
	}
	var answers sync.WaitGroup
	answers.Go(func() {
		for lines := bufio.NewScanner(qemu); lines.Scan(); {
			var q question
			if err := json.Unmarshal(lines.Bytes(), &q); err != nil {
				t.Error(err)
			}
			fmt.Fprint(qemu, answer(q))
		}
	})
	return conn, func() {
		conn.Close()
		qemu.Close()
		answers.Wait()
	}
}

// A disk that takes long to come to rest is no reason to give up on a pause half way: the
// machine would halt after that, and nobody would know.
func TestPauseWaitsForTheDisk(t *testing.T) {
	t.Parallel()
	conn, end := answering(t, func(q question) string {
		late := time.NewTimer(callLimit + 200*time.Millisecond)
		<-late.C
		return q.done()
	})
	m := &machine{
		running: true, stopped: make(chan struct{}), done: make(chan struct{}),
		qemu: &process{gone: make(chan struct{}), qmp: newMonitor(conn, func(message) {})},
	}
	if err := m.Pause(t.Context()); err != nil || !m.paused {
		t.Errorf("paused %t, %v", m.paused, err)
	}
	if err := m.Start(t.Context()); err != nil || m.paused {
		t.Errorf("paused %t, %v", m.paused, err)
	}
	end()
	<-m.qemu.qmp.done
}

// A save that is called off while QEMU has not yet answered that it begins is ended as well: a
// copy that went on would halt the machine in the end.
func TestSaveThatIsCalledOffAsItBegins(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	var said []string
	begins := ""
	conn, end := answering(t, func(q question) string {
		said = append(said, q.Execute)
		switch q.Execute {
		case "migrate":
			begins = q.done()
			cancel()
			return ""
		case "migrate_cancel":
			return begins + q.done() + `{"event":"MIGRATION","data":{"status":"cancelled"}}` + "\n"
		}
		return q.done()
	})
	r := &process{gone: make(chan struct{}), migration: make(chan string, 16)}
	r.qmp = newMonitor(conn, r.hear)
	f, err := os.Create(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := r.save(ctx, f); !errors.Is(err, context.Canceled) {
		t.Errorf("save: %v", err)
	}
	end()
	<-r.qmp.done
	if !slices.Contains(said, "migrate_cancel") {
		t.Errorf("QEMU was told %q, and not to end it", said)
	}
}
