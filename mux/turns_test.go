// SPDX-License-Identifier: MIT

package mux_test

import (
	"context"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minifleet/minifleet/mux"
)

const answer = "healthy"

// slow is a channel that lets as much through as the test says, and then tells how much
// went before the answer.
type slow struct {
	net.Conn
	mu     sync.Mutex // guards the rest
	more   *sync.Cond
	room   int
	open   bool // no limit any more
	behind int  // sent since it was opened
	passed chan int
	full   chan struct{} // closed when a write waits for the first time
	filled sync.Once
}

// newSlow lets room bytes through, and the write in which they end.
func newSlow(c net.Conn, room int) *slow {
	s := &slow{Conn: c, room: room, passed: make(chan int, 1), full: make(chan struct{})}
	s.more = sync.NewCond(&s.mu)
	return s
}

func (s *slow) Write(p []byte) (int, error) {
	s.mu.Lock()
	for s.room <= 0 && !s.open {
		s.filled.Do(func() { close(s.full) })
		s.more.Wait()
	}
	s.room -= len(p)
	if string(p) == answer {
		s.passed <- s.behind
	}
	if s.open {
		s.behind += len(p)
	}
	s.mu.Unlock()
	return s.Conn.Write(p)
}

func (s *slow) letAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open = true
	s.more.Broadcast()
}

func (s *slow) Close() error {
	s.letAll()
	return s.Conn.Close()
}

// serveTransfers greets, and then answers an h with the answer, and anything else with bytes without end.
func serveTransfers(s net.Conn) {
	defer s.Close()
	if _, err := s.Write([]byte("?")); err != nil {
		return
	}
	question := make([]byte, 1)
	if _, err := io.ReadFull(s, question); err != nil {
		return
	}
	if question[0] == 'h' {
		giveAnswer(s)
		return
	}
	var err error
	for err == nil {
		_, err = s.Write(make([]byte, 1<<20))
	}
}

//go:noinline
func giveAnswer(s net.Conn) { _, _ = s.Write([]byte(answer)) }

// untilAnswerWaits returns when the answer stands in the channel's queue: nothing but the
// stack of who gives it tells.
func untilAnswerWaits(t *testing.T) {
	t.Helper()
	stacks := make([]byte, 1<<20)
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); runtime.Gosched() {
		for one := range strings.SplitSeq(string(stacks[:runtime.Stack(stacks, true)]), "\n\n") {
			head, _, _ := strings.Cut(one, "\n")
			if strings.Contains(one, "mux_test.giveAnswer(") && strings.Contains(one, "waitForSendErr(") && strings.Contains(head, "[select") {
				return
			}
		}
	}
	t.Fatal("the answer is not given")
}

// TestAnswerDuringTransfers: while transfers fill a slow channel, a short answer waits
// behind one small frame of each and no more.
func TestAnswerDuringTransfers(t *testing.T) { // not parallel: it looks at all stacks
	const transfers, frame, header = 3, 16 << 10, 12
	host, theirs := net.Pipe()
	channel := newSlow(theirs, 1<<20)
	l, err := mux.Serve(channel)
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	defer work.Wait()
	defer l.Close()
	work.Go(func() {
		for {
			s, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() { serveTransfers(s) })
		}
	})
	c := mux.NewClient(func(context.Context) (net.Conn, error) { return host, nil })
	defer c.Close()
	streams := make([]net.Conn, transfers+1)
	for i := range streams {
		streams[i] = connect(t, c)
		if _, err := io.ReadFull(streams[i], make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range streams[1:] {
		if _, err := s.Write([]byte("b")); err != nil {
			t.Fatal(err)
		}
		work.Go(func() { _, _ = io.Copy(io.Discard, s) })
	}
	<-channel.full // the transfers are well under way, and stand still
	s := streams[0]
	if _, err := s.Write([]byte("h")); err != nil {
		t.Fatal(err)
	}
	untilAnswerWaits(t)
	channel.letAll()
	got := make([]byte, len(answer))
	if _, err := io.ReadFull(s, got); err != nil || string(got) != answer {
		t.Fatalf("%q, %v", got, err)
	}
	// Before it: one frame of each transfer, its own header, and answers to the opening of
	// their windows.
	if behind, most := <-channel.passed, transfers*(frame+header)+8*header; behind > most {
		t.Errorf("the answer waited behind %d bytes: want at most %d", behind, most)
	}
}
