// SPDX-License-Identifier: MIT

package agent_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/vm"
)

var errThirdMac = vm.WithReason(vm.ReasonTwoVMLimit, errors.New("the number of virtual machines exceeds the limit"))

// refuseMacs has the next n VMs not start, as macOS does where two of its guests run.
func (m *machines) refuseMacs(n int) {
	m.setup = func(mc *machine) {
		if n > 0 {
			n--
			mc.startErr = errThirdMac
		}
	}
}

func (c *controller) degraded() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reports[len(c.reports)-1].Facts.Degraded
}

func TestAMacGuestThatIsRefusedIsTriedOnceMore(t *testing.T) {
	var first *machine
	inWorld(t, func(w *world) {
		w.m.refuseMacs(1)
		refuse := w.m.setup
		w.m.setup = func(mc *machine) {
			refuse(mc)
			if first == nil {
				first = mc
			}
		}
	}, func(w *world) {
		w.c.want(mac("m1"))
		w.c.awaitObserved("m1", "standby")
		synctest.Wait()
		if got := w.c.degraded(); got != "" {
			t.Errorf("the host says of itself: %s", got)
		}
		if w.m.cleared != 1 || w.m.made() != 2 {
			t.Errorf("leftovers were looked for %d times, and %d VMs were made: want 1 and 2", w.m.cleared, w.m.made())
		}
		if !first.isRemoved() || first.stops == 0 || first.released == 0 {
			t.Error("the VM that did not start was not cleared away")
		}
		if w.m.creates[0].Slot != w.m.creates[1].Slot {
			t.Error("the second VM has another slot")
		}
	})
}

func TestMacGuestsAreKeptOutAfterARefusal(t *testing.T) {
	inWorld(t, func(w *world) { w.m.refuseMacs(2) }, func(w *world) {
		w.c.want(mac("m1"))
		got := w.c.awaitObserved("m1", "gone")
		if !strings.Contains(got.Failure, "exceeds the limit") || got.HoldsSlot {
			t.Errorf("reported as %+v", got)
		}
		synctest.Wait()
		if got := w.c.degraded(); !strings.Contains(got, "macOS refused a macOS guest") {
			t.Errorf("the host says of itself: %q", got)
		}
		w.c.want(mac("m2"))
		w.c.awaitObserved("m2", "standby")
		began := time.Now()
		w.c.want(mac("m3"))
		synctest.Wait()
		if w.m.has("m3") {
			t.Fatal("a second macOS guest was made right after one was refused")
		}
		w.c.awaitObserved("m3", "standby")
		if waited := time.Since(began).Round(time.Minute); waited != 15*time.Minute {
			t.Errorf("it was tried after %s", waited)
		}
		w.c.await("the host is well", func() bool { return w.c.reports[len(w.c.reports)-1].Facts.Degraded == "" })
	})
}

// A success alone does not tell that a second one would work.
func TestAHostStaysDegradedUntilTwoMacGuestsRun(t *testing.T) {
	inWorld(t, func(w *world) { w.m.refuseMacs(2) }, func(w *world) {
		w.c.want(mac("m1"))
		w.c.awaitObserved("m1", "gone")
		w.pass(20 * time.Minute)
		w.c.want(mac("m2"))
		w.c.awaitObserved("m2", "standby")
		synctest.Wait()
		if w.c.degraded() == "" {
			t.Error("one that runs proves that two can")
		}
		w.c.want(mac("m3"))
		w.c.awaitObserved("m3", "standby")
		synctest.Wait()
		if got := w.c.degraded(); got != "" {
			t.Errorf("two run, and the host says: %s", got)
		}
	})
}

// A vmm that ends with a last word gives it on, with what to do about it.
func TestAFinalReasonAtTheStart(t *testing.T) {
	t.Parallel()
	h := newHost(t, vm.BackendVZ)
	h.write("vmm", `#!/bin/sh
echo '{"revision":1,"time":"2026-11-22T00:00:00Z","id":"r1","phase":"final","reason":"two_vm_limit","detail":"code 6"}' > "$3/status.jsonl"
exit 1
`)
	m, err := h.vms().Create(t.Context(), agent.Order{ID: "r1", Slot: 1, Mac: true, Image: "tahoe"}, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Release()
	err = m.Start(t.Context())
	if vm.ReasonOf(err, "") != vm.ReasonTwoVMLimit || !strings.Contains(err.Error(), "code 6") || !strings.Contains(err.Error(), vm.ReasonTwoVMLimit.Sentence()) {
		t.Errorf("it does not start: %v", err)
	}
	if err := errors.Join(m.Stop(t.Context()), m.Remove(t.Context())); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(h.cfg.Dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
