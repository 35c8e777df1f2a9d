// SPDX-License-Identifier: MIT

//go:build linux

package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The limits of a conversation with QEMU. It answers from its main loop, in which nothing
// waits for the guest, but stop and cont for what the guest has under way on the disk.
const (
	callLimit       = 5 * time.Second
	greetingLimit   = 30 * time.Second // a program of many libraries, from a disk that others use
	maxMessageBytes = 1 << 20
)

// message is one line that QEMU says: its greeting, an answer or an event.
type message struct {
	Greeting json.RawMessage `json:"QMP"`
	ID       *uint64         `json:"id"`
	Return   json.RawMessage `json:"return"`
	Error    *qmpError       `json:"error"`
	Event    string          `json:"event"`
	Data     json.RawMessage `json:"data"`
}

// qmpError is QEMU's refusal of a command.
type qmpError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *qmpError) Error() string { return fmt.Sprintf("QEMU refuses: %.400q", e.Desc) }

// parseMessage reads one line and tells the kinds apart.
func parseMessage(b []byte) (message, error) {
	if len(b) > maxMessageBytes {
		return message{}, fmt.Errorf("a message has %d bytes", len(b))
	}
	var m message
	if err := json.Unmarshal(b, &m); err != nil {
		return message{}, fmt.Errorf("a message is not understood: %.200q", err.Error())
	}
	kinds := 0
	for _, is := range []bool{m.Greeting != nil, m.Return != nil, m.Error != nil, m.Event != ""} {
		if is {
			kinds++
		}
	}
	if kinds != 1 {
		return message{}, errors.New("a message is neither greeting nor answer nor event")
	}
	return m, nil
}

// monitor is the one client of one QEMU's QMP. When the connection ends, which it does with
// QEMU, every call fails.
type monitor struct {
	conn *net.UnixConn
	hear func(message) // gets every event, in order; must not block
	done chan struct{} // closed when nothing is heard any more

	mu      sync.Mutex // guards what follows, and writing
	last    uint64
	waiting map[uint64]chan message // nil at the end
	err     error
}

// newMonitor talks over conn, which it closes at the end.
func newMonitor(conn *net.UnixConn, hear func(message)) *monitor {
	q := &monitor{conn: conn, hear: hear, done: make(chan struct{}), waiting: map[uint64]chan message{}}
	// The greeting is waited for like an answer: the first, with the number 0.
	q.waiting[0] = make(chan message, 1)
	go q.listen()
	return q
}

// greet waits for the greeting and begins the conversation.
func (q *monitor) greet(ctx context.Context) error {
	q.mu.Lock()
	w := q.waiting[0]
	q.mu.Unlock()
	if w != nil {
		ctx, cancel := within(ctx, greetingLimit, "QEMU's greeting")
		defer cancel()
		if _, err := q.await(ctx, 0, w); err != nil {
			return fmt.Errorf("greeting: %w", err)
		}
	}
	return q.call(ctx, "qmp_capabilities", nil, nil)
}

func limited(ctx context.Context, what string) (context.Context, context.CancelFunc) {
	return within(ctx, callLimit, what)
}

func within(ctx context.Context, limit time.Duration, what string) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("%s did not come within %v", what, limit))
}

func (q *monitor) listen() {
	defer close(q.done)
	lines := bufio.NewScanner(q.conn)
	lines.Buffer(nil, maxMessageBytes)
	var err error
	for err == nil && lines.Scan() {
		var m message
		if m, err = parseMessage(lines.Bytes()); err != nil {
			break
		}
		switch {
		case m.Event != "":
			q.hear(m)
		case m.Greeting != nil:
			q.deliver(0, m)
		case m.ID != nil && *m.ID != 0:
			q.deliver(*m.ID, m)
		}
	}
	if err == nil {
		err = lines.Err()
	}
	if err == nil {
		err = io.EOF
	}
	q.conn.Close()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.err = fmt.Errorf("the conversation with QEMU has ended: %w", err)
	for _, w := range q.waiting {
		close(w)
	}
	q.waiting = nil
}

func (q *monitor) deliver(id uint64, m message) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if w, ok := q.waiting[id]; ok {
		delete(q.waiting, id)
		w <- m // has room for the one answer
	}
}

// call makes one call, with a file to hand over if the command takes one. It fails after
// callLimit at the latest.
func (q *monitor) call(ctx context.Context, command string, arguments, result any, files ...int) error {
	ctx, cancel := limited(ctx, "QEMU's answer to "+command)
	defer cancel()
	return q.patiently(ctx, command, arguments, result, files...)
}

// patiently is call for as long as ctx lasts, which has a deadline.
func (q *monitor) patiently(ctx context.Context, command string, arguments, result any, files ...int) error {
	answer, err := q.exchange(ctx, command, arguments, files)
	if err == nil && result != nil {
		err = json.Unmarshal(answer.Return, result)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	return nil
}

func (q *monitor) exchange(ctx context.Context, command string, arguments any, files []int) (message, error) {
	type request struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}
	w := make(chan message, 1)
	q.mu.Lock()
	if q.waiting == nil {
		defer q.mu.Unlock()
		return message{}, q.err
	}
	q.last++
	id := q.last
	b, err := json.Marshal(request{command, arguments, id})
	if err == nil {
		var rights []byte
		if len(files) > 0 {
			rights = unix.UnixRights(files...)
		}
		deadline, _ := ctx.Deadline()
		_ = q.conn.SetWriteDeadline(deadline)
		_, _, err = q.conn.WriteMsgUnix(slices.Concat(b, []byte("\n")), rights, nil)
	}
	if err == nil {
		q.waiting[id] = w
	}
	q.mu.Unlock()
	if err != nil {
		return message{}, err
	}
	return q.await(ctx, id, w)
}

func (q *monitor) await(ctx context.Context, id uint64, w chan message) (message, error) {
	select {
	case m, ok := <-w:
		if !ok {
			q.mu.Lock()
			defer q.mu.Unlock()
			return message{}, q.err
		}
		if m.Error != nil {
			return message{}, m.Error
		}
		return m, nil
	case <-ctx.Done():
		q.mu.Lock()
		defer q.mu.Unlock()
		delete(q.waiting, id)
		return message{}, context.Cause(ctx)
	}
}
