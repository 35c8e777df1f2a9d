// SPDX-License-Identifier: MIT

package assemble

import (
	"context"
	"sync"

	"golang.org/x/sync/semaphore"
)

// Memory bounds the bytes of chunks that jobs hold at once.
type Memory struct {
	size int64
	free *semaphore.Weighted
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

func (m *Memory) give(bytes int64) { m.free.Release(bytes) }

// buffers are slices of one size that are used again.
type buffers struct {
	size int64
	pool sync.Pool
}

func newBuffers(size int64) *buffers {
	b := &buffers{size: size}
	b.pool.New = func() any { s := make([]byte, size); return &s }
	return b
}

func (b *buffers) get() *[]byte  { return b.pool.Get().(*[]byte) } //nolint:forcetypeassert // nothing else is put there
func (b *buffers) put(s *[]byte) { b.pool.Put(s) }
