// SPDX-License-Identifier: MIT

package assemble

import (
	"context"
	"sync"

	"golang.org/x/sync/semaphore"
)

// Memory bounds the bytes of chunks that jobs hold at once, and keeps what they held them
// in for the next chunks: what is made anew each time stays until the garbage is collected,
// and that is as much again.
type Memory struct {
	size int64
	free *semaphore.Weighted

	mu    sync.Mutex         // guards the rest
	jobs  int                // at work
	spare map[int64][][]byte // by their capacity
	idle  int64              // bytes of spare
}

// NewMemory returns a bound of so many bytes.
func NewMemory(bytes int64) *Memory {
	return &Memory{size: bytes, free: semaphore.NewWeighted(bytes)}
}

// take waits for bytes and returns how many it took: one who wants more than all gets all.
func (m *Memory) take(ctx context.Context, bytes int64) (int64, error) {
	bytes = min(bytes, m.size)
	if m.free.Acquire(ctx, bytes) != nil {
		return 0, context.Cause(ctx)
	}
	return bytes, nil
}

// Hold waits for bytes, for something else than a job, until release is called. Nothing that
// a job waits for may wait for it.
func (m *Memory) Hold(ctx context.Context, bytes int64) (release func(), err error) {
	held, err := m.take(ctx, bytes)
	if err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() { m.give(held) }), nil
}

func (m *Memory) give(bytes int64) { m.free.Release(bytes) }

// begin has buffers kept until end is called: between two chunks of a slow job, too, but not
// while there is none.
func (m *Memory) begin() (end func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.jobs++
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.jobs--; m.jobs == 0 {
			m.spare, m.idle = nil, 0
		}
	}
}

// Buffer returns a slice of size bytes, whose content may be anything. Whoever holds memory
// for it and needs it no more gives it back with Reuse.
func (m *Memory) Buffer(size int64) []byte {
	room := roomFor(size)
	m.mu.Lock()
	defer m.mu.Unlock()
	if of := m.spare[room]; len(of) > 0 {
		b := of[len(of)-1]
		m.spare[room], m.idle = of[:len(of)-1], m.idle-room
		return b[:size]
	}
	return make([]byte, size, room)
}

// Reuse takes back what Buffer gave out.
func (m *Memory) Reuse(b []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	room := int64(cap(b))
	if m.jobs == 0 || m.idle+room > m.size {
		return
	}
	if m.spare == nil {
		m.spare = map[int64][][]byte{}
	}
	m.spare[room], m.idle = append(m.spare[room], b), m.idle+room
}

// roomFor returns how large a buffer is made for size bytes: a power of two and a little
// more, so that a chunk's content and what is stored of it can take turns in one.
func roomFor(size int64) int64 {
	power := int64(1) << 12
	for power+power>>6 < size {
		power <<= 1
	}
	return power + power>>6
}
