// SPDX-License-Identifier: MIT

//go:build linux

package qemu

import (
	"bufio"
	"encoding/json"
	"fmt"
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
