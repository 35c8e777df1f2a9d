// SPDX-License-Identifier: MIT

package vmtest

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/minifleet/minifleet/vm"
)

func openStartsNothing(t *testing.T, h Harness) {
	b := open(t, h, h.NewBundle(t))
	b.stop()
	b.wantTold(0)
	if len(b.writers) != 0 {
		t.Errorf("Open recorded writers %v", b.writers)
	}
}

func badBundleIsRefused(t *testing.T, h Harness) {
	b, err := tryOpen(t, h, h.BadBundle(t))
	if err == nil {
		t.Fatal("Open accepted a bundle that cannot run")
	}
	b.inst = nil
	if got := vm.ReasonOf(err, "none"); got != vm.ReasonBadConfiguration {
		t.Errorf("the error's reason is %q, want %q (%v)", got, vm.ReasonBadConfiguration, err)
	}
}

func startConnectStop(t *testing.T, h Harness) {
	b := open(t, h, h.NewBundle(t))
	b.start()
	b.ask(b.connect())
	b.wantTold(0)
	b.stop()
	b.wantTold(1)
}

func stopCanBeRepeated(t *testing.T, h Harness) {
	b := open(t, h, h.NewBundle(t))
	b.start()
	b.stop()
	b.stop()
	b.wantTold(1)
	if err := b.inst.Start(b.ctx); err == nil {
		t.Error("a stopped machine was started again")
	}
}

func stopWithOpenStreams(t *testing.T, h Harness) {
	b := open(t, h, h.NewBundle(t))
	b.start()
	used, idle := b.connect(), b.connect()
	b.ask(used)
	b.stop()
	for name, c := range map[string]net.Conn{"used": used, "idle": idle} {
		if err := c.SetReadDeadline(time.Now().Add(h.Patience)); err != nil {
			continue // closed already
		}
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the %s stream lives on after Stop: %d, %v", name, n, err)
		}
	}
}

func startGivesUp(t *testing.T, h Harness) {
	b := open(t, h, h.NewBundle(t))
	ctx, cancel := context.WithCancel(b.ctx)
	cancel()
	if err := b.inst.Start(ctx); err == nil {
		t.Error("Start succeeded with a cancelled context")
	}
	b.stop()
	b.wantTold(0)
}

func connectWaits(t *testing.T, h Harness) {
	b := open(t, h, h.NewBundle(t))
	asked := make(chan error, 1)
	go func() {
		c, err := b.inst.Connect(b.ctx)
		if err == nil {
			err = h.Ask(b.ctx, c)
			c.Close()
		}
		asked <- err
	}()
	b.start()
	if err := <-asked; err != nil {
		t.Fatal(err)
	}
}

func connectGivesUp(t *testing.T, h Harness) {
	b := open(t, h, h.NewBundle(t))
	cause := errors.New("the test's cause")
	ctx, cancel := context.WithCancelCause(b.ctx)
	time.AfterFunc(10*time.Millisecond, func() { cancel(cause) })
	if c, err := b.inst.Connect(ctx); !errors.Is(err, cause) {
		t.Errorf("Connect to a machine that was not started: %v, %v; want the context's cause", c, err)
	}
}

func connectFailsAfterEnd(t *testing.T, h Harness) {
	b := open(t, h, h.NewBundle(t))
	b.start()
	waiting := make(chan error, 8)
	for range cap(waiting) {
		go func() {
			for {
				c, err := b.inst.Connect(b.ctx)
				if err != nil {
					waiting <- err
					return
				}
				c.Close()
			}
		}()
	}
	b.ask(b.connect())
	b.stop()
	for range cap(waiting) {
		if err := <-waiting; errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Connect hung until its deadline instead of failing at the machine's end: %v", err)
		}
	}
}

func streamsAreIndependent(t *testing.T, h Harness) {
	b := open(t, h, h.NewBundle(t))
	b.start()
	rude := b.connect()
	if _, err := rude.Write([]byte("\x00no request\r\n")); err != nil {
		t.Error(err)
	}
	idle := b.connect()
	var asking sync.WaitGroup
	for range 8 {
		asking.Go(func() {
			c, err := b.inst.Connect(b.ctx)
			if err == nil {
				err = h.Ask(b.ctx, c)
				c.Close()
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	asking.Wait()
	rude.Close()
	b.ask(idle)
	b.wantTold(0)
}

func guestEnds(t *testing.T, h Harness) {
	b := open(t, h, h.NewBundle(t))
	b.start()
	if err := h.End(b.ctx, b.connect()); err != nil {
		t.Logf("the stream ended with the guest: %v", err)
	}
	select {
	case <-b.ended:
	case <-b.ctx.Done():
		t.Fatal("Ended was not called")
	}
	b.stop()
	b.wantTold(1)
	if e := b.told()[0]; e.Reason != vm.ReasonGuestEnded || e.Detail == "" {
		t.Errorf("the end was told as %+v", e)
	}
}

// writerHasLock gives up the test's own share of the lock, as if the vmm had been
// killed: whatever writes to the disk must still hold it.
func writerHasLock(t *testing.T, h Harness) {
	b := open(t, h, h.NewBundle(t))
	b.start()
	b.ask(b.connect())
	b.mu.Lock()
	writers := slices.Clone(b.writers)
	b.mu.Unlock()
	if len(writers) == 0 {
		t.Skip("this backend's machine lives in the vmm")
	}
	if _, err := vm.IdentifyProcess(writers[0]); err != nil {
		t.Errorf("the recorded writer %v: %v", writers, err)
	}
	b.lock.Close()
	if locked, err := vm.IsLocked(b.dir); !locked || err != nil {
		t.Errorf("the writer does not hold the lock (%v, %v)", locked, err)
	}
	b.stop()
	if locked, err := vm.IsLocked(b.dir); locked || err != nil {
		t.Errorf("the lock outlives the machine (%v, %v)", locked, err)
	}
}

func saveAndRestore(t *testing.T, h Harness) {
	b := open(t, h, h.NewBundle(t))
	state := t.TempDir()
	if !h.Backend.SavesState {
		if err := b.inst.Restore(b.ctx, state); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("restore: %v, want errors.ErrUnsupported", err)
		}
		b.start()
		if err := b.inst.Pause(b.ctx); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("pause: %v, want errors.ErrUnsupported", err)
		}
		if err := b.inst.Save(b.ctx, state); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("save: %v, want errors.ErrUnsupported", err)
		}
		if left, _ := filepath.Glob(filepath.Join(state, "*")); len(left) != 0 {
			t.Errorf("a refused save left %v", left)
		}
		b.ask(b.connect())
		return
	}
	b.start()
	b.ask(b.connect())
	for range 2 { // pausing what is paused does nothing
		if err := b.inst.Pause(b.ctx); err != nil {
			t.Fatalf("pause: %v", err)
		}
	}
	if err := b.inst.Save(b.ctx, state); err != nil {
		t.Fatalf("save: %v", err)
	}
	twin := h.Twin(t, b.dir)
	b.start() // goes on where it was paused
	b.ask(b.connect())
	b.stop()
	b.wantTold(1)

	r := open(t, h, twin)
	if err := r.inst.Restore(r.ctx, state); err != nil {
		t.Fatalf("restore: %v", err)
	}
	r.start()
	r.ask(r.connect())
	r.stop()
	r.wantTold(1)
}
