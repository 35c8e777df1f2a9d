// SPDX-License-Identifier: MIT

//go:build linux

package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// A disk that takes long to come to rest is no reason to give up on a pause half way: the
// machine would halt after that, and nobody would know.
func TestPauseWaitsForTheDisk(t *testing.T) {
	t.Parallel()
	ours, theirs, err := socketPair("qmp")
	if err != nil {
		t.Fatal(err)
	}
	qemu, err := unixConn(theirs)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := unixConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	var answers sync.WaitGroup
	answers.Go(func() {
		for lines := bufio.NewScanner(qemu); lines.Scan(); {
			var q struct{ ID uint64 }
			if err := json.Unmarshal(lines.Bytes(), &q); err != nil {
				t.Error(err)
			}
			late := time.NewTimer(callLimit + 200*time.Millisecond)
			<-late.C
			fmt.Fprintf(qemu, `{"return":{},"id":%d}`+"\n", q.ID)
		}
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
	conn.Close()
	qemu.Close()
	answers.Wait()
	<-m.qemu.qmp.done
}

// A save that is called off while QEMU has not yet answered that it begins is ended as well: a
// copy that went on would halt the machine in the end.
func TestSaveThatIsCalledOffAsItBegins(t *testing.T) {
	t.Parallel()
	ours, theirs, err := socketPair("qmp")
	if err != nil {
		t.Fatal(err)
	}
	qemu, err := unixConn(theirs)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := unixConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var said []string
	var answers sync.WaitGroup
	answers.Go(func() {
		late := ""
		for lines := bufio.NewScanner(qemu); lines.Scan(); {
			var q struct {
				Execute string
				ID      uint64
			}
			if err := json.Unmarshal(lines.Bytes(), &q); err != nil {
				t.Error(err)
			}
			said = append(said, q.Execute)
			answer := fmt.Sprintf(`{"return":{},"id":%d}`+"\n", q.ID)
			switch q.Execute {
			case "migrate":
				late = answer
				cancel()
				continue
			case "migrate_cancel":
				answer = late + answer + `{"event":"MIGRATION","data":{"status":"cancelled"}}` + "\n"
			}
			fmt.Fprint(qemu, answer)
		}
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
	conn.Close()
	qemu.Close()
	answers.Wait()
	<-r.qmp.done
	if !slices.Contains(said, "migrate_cancel") {
		t.Errorf("QEMU was told %q, and not to end it", said)
	}
}
