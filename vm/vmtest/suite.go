// SPDX-License-Identifier: MIT

package vmtest

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/minifleet/minifleet/vm"
)

// Harness connects the suite with one backend.
type Harness struct {
	Backend vm.Backend
	// NewBundle makes a bundle whose guest boots and answers. The suite removes it.
	NewBundle func(t *testing.T) (dir string)
	// BadBundle makes a bundle that Open has to refuse because of its content.
	BadBundle func(t *testing.T) (dir string)
	// Ask checks over one stream that the guest answers. It leaves the stream open.
	Ask func(ctx context.Context, stream net.Conn) error
	// End has the guest end by itself, over one stream; the stream may break.
	End func(ctx context.Context, stream net.Conn) error
	// Twin makes a bundle with clones of the disks of dir, whose machine is paused, for a
	// machine that is restored. Needed if the backend saves state.
	Twin func(t *testing.T, dir string) string
	// Patience bounds each wait; 0 means a minute.
	Patience time.Duration
}

// Run runs the suite. The tests run one after the other, since a backend may take its
// process for its own: nothing else may start processes meanwhile.
func Run(t *testing.T, h Harness) {
	if h.Patience <= 0 {
		h.Patience = time.Minute
	}
	for _, tt := range []struct {
		name string
		test func(*testing.T, Harness)
	}{
		{"open starts nothing", openStartsNothing},
		{"a bundle that cannot run is refused with the reason", badBundleIsRefused},
		{"start, connect, stop", startConnectStop},
		{"stop can be repeated", stopCanBeRepeated},
		{"stop ends with open streams", stopWithOpenStreams},
		{"start gives up with its context", startGivesUp},
		{"connect waits for a machine that starts later", connectWaits},
		{"connect gives up with its context", connectGivesUp},
		{"connect fails after the end", connectFailsAfterEnd},
		{"streams are independent", streamsAreIndependent},
		{"a guest that ends by itself is told", guestEnds},
		{"a writer inherits the lock and is recorded", writerHasLock},
		{"save and restore", saveAndRestore},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.test(t, h) })
	}
}

// bench is one opened machine under test.
type bench struct {
	t    *testing.T
	h    Harness
	dir  string
	ctx  context.Context //nolint:containedctx // a test's own
	inst vm.Instance
	lock *vm.Lock

	mu      sync.Mutex // guards endings and writers
	endings []vm.Ending
	writers []int
	ended   chan struct{}
}

func open(t *testing.T, h Harness, dir string) *bench {
	t.Helper()
	b, err := tryOpen(t, h, dir)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return b
}

func tryOpen(t *testing.T, h Harness, dir string) (*bench, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), h.Patience)
	t.Cleanup(cancel)
	spec, err := vm.ReadSpec(dir)
	if err != nil {
		t.Fatal(err)
	}
	lock, err := vm.AcquireLock(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, h: h, dir: dir, ctx: ctx, lock: lock, ended: make(chan struct{})}
	t.Cleanup(func() { b.clear() })
	b.inst, err = h.Backend.Open(ctx, vm.OpenConfig{
		Dir: dir, Spec: spec, Lock: lock.File(),
		RecordWriter: func(pid int) error {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.writers = append(b.writers, pid)
			return nil
		},
		Publish: func(vm.Facts) {},
		Ended: func(e vm.Ending) {
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.endings = append(b.endings, e); len(b.endings) == 1 {
				close(b.ended)
			}
		},
		Log: slog.New(slog.DiscardHandler),
	})
	return b, err
}

// clear checks what must hold after every test: the machine stops, and no writer is
// left, or it would still hold the lock.
func (b *bench) clear() {
	ctx, cancel := context.WithTimeout(context.Background(), b.h.Patience)
	defer cancel()
	if b.inst != nil {
		if err := b.inst.Stop(ctx); err != nil {
			b.t.Errorf("stop at the end: %v", err)
		}
	}
	b.lock.Close()
	if locked, err := vm.IsLocked(b.dir); locked || err != nil {
		b.t.Errorf("after the end of the machine a process still holds the lock (%v, %v)", locked, err)
	}
	if err := vm.Remove(ctx, b.dir); err != nil {
		b.t.Error(err)
	}
}

func (b *bench) start() {
	b.t.Helper()
	if err := b.inst.Start(b.ctx); err != nil {
		b.t.Fatalf("start: %v", err)
	}
}

func (b *bench) stop() {
	b.t.Helper()
	if err := b.inst.Stop(b.ctx); err != nil {
		b.t.Fatalf("stop: %v", err)
	}
}

func (b *bench) connect() net.Conn {
	b.t.Helper()
	c, err := b.inst.Connect(b.ctx)
	if err != nil {
		b.t.Fatalf("connect: %v", err)
	}
	b.t.Cleanup(func() { c.Close() })
	return c
}

func (b *bench) ask(c net.Conn) {
	b.t.Helper()
	if err := b.h.Ask(b.ctx, c); err != nil {
		b.t.Fatalf("ask the guest: %v", err)
	}
}

// endings returns how often and how the end was told.
func (b *bench) told() []vm.Ending {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]vm.Ending(nil), b.endings...)
}

func (b *bench) wantTold(times int) {
	b.t.Helper()
	if got := b.told(); len(got) != times {
		b.t.Fatalf("Ended was called %d times (%+v), want %d", len(got), got, times)
	}
}
