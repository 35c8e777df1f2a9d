// SPDX-License-Identifier: MIT

package assemble

import (
	"context"
	"errors"
	"testing"
)

func TestMemory(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	m := NewMemory(4 * mib)
	end, other := m.begin(), m.begin()
	held, err := m.take(t.Context(), 100*mib)
	if err != nil || held != 4*mib {
		t.Fatalf("one that wants more than all got %d, %v", held, err)
	}
	cause := errors.New("the test's cause")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if _, err := m.Hold(ctx, 1); !errors.Is(err, cause) {
		t.Errorf("beyond all: %v", err)
	}
	// A chunk's content and what is stored of it take turns in a buffer.
	a := m.Buffer(mib)
	m.Reuse(a)
	b := m.Buffer(mib + mib/256 + 129)
	if &a[:1][0] != &b[:1][0] || len(b) != mib+mib/256+129 {
		t.Errorf("%d bytes in another buffer", len(b))
	}
	m.Reuse(b)
	if c := m.Buffer(2 * mib); &c[0] == &b[0] || len(c) != 2*mib {
		t.Error("a larger one in the same buffer")
	}
	for range 10 {
		m.Reuse(make([]byte, mib))
	}
	if m.idle > 4*mib {
		t.Errorf("%d bytes are kept", m.idle)
	}
	m.give(held)
	end()
	if m.idle == 0 {
		t.Error("nothing is kept for the other job")
	}
	other()
	if m.idle != 0 || len(m.spare) != 0 {
		t.Errorf("%d bytes are kept for nobody", m.idle)
	}
	m.Reuse(b)
	if m.idle != 0 {
		t.Error("a buffer is kept for nobody")
	}
}
