// SPDX-License-Identifier: MIT

package agent_test

import (
	"testing"
	"testing/synctest"

	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/hosts/protocol"
)

// slotOf returns the number that a VM was ordered with.
func (m *machines) slotOf(t *testing.T, id string) int {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, o := range m.creates {
		if o.ID == id {
			return o.Slot
		}
	}
	t.Fatalf("%s was not ordered", id)
	return 0
}

func mac(id string) protocol.Desire {
	return protocol.Desire{ID: id, Wanted: protocol.WantUp, Image: "macos-26"}
}

// macOS runs two macOS guests at once; others fill the rest of the slots.
func TestTwoMacGuestsAtMost(t *testing.T) {
	inWorld(t, func(w *world) { w.cfg.Slots = 4 }, func(w *world) {
		w.c.want(mac("m1"))
		w.c.awaitObserved("m1", "standby")
		w.c.want(mac("m2"))
		w.c.awaitObserved("m2", "standby")
		w.c.want(mac("m3"))
		w.c.want(up("l1"))
		w.c.awaitObserved("l1", "standby") // though m3 was first
		synctest.Wait()
		if w.m.has("m3") {
			t.Fatal("there is a third macOS guest")
		}
		w.c.want(gone("l1")) // a slot becomes free, but no place for a macOS guest
		w.c.awaitObserved("l1", "gone")
		synctest.Wait()
		if w.m.has("m3") {
			t.Fatal("there is a third macOS guest after a Linux one has ended")
		}
		w.c.want(gone("m1"))
		w.c.awaitObserved("m3", "standby")
		if got := w.m.slotOf(t, "m3"); got != 1 {
			t.Errorf("m3 is in slot %d: want 1, the lowest that is free", got)
		}
	})
}

// One that is not wanted any more before there was a place leaves the others theirs.
func TestAMacGuestThatIsCalledOffWhileItWaits(t *testing.T) {
	inWorld(t, func(w *world) { w.cfg.Slots = 4 }, func(w *world) {
		for _, id := range []string{"m1", "m2", "m3", "m4"} {
			w.c.want(mac(id))
			if id < "m3" {
				w.c.awaitObserved(id, "standby")
			}
		}
		synctest.Wait()
		w.c.want(gone("m3"))
		w.c.awaitObserved("m3", "gone")
		w.c.want(gone("m2"))
		w.c.awaitObserved("m4", "standby")
		if n := w.m.made(); n != 3 {
			t.Errorf("%d VMs were made: want m1, m2 and m4", n)
		}
	})
}

func TestAdoptedVMsKeepTheNumbersOfTheirSlots(t *testing.T) {
	inWorld(t, func(w *world) {
		w.cfg.Slots = 3
		for id, f := range map[string]agent.Found{
			"second": {Slot: 2, Mac: true}, "beyond": {Slot: 7}, "twice": {Slot: 2, Mac: true}, "older": {},
		} {
			m := w.m.machine(id)
			m.run()
			m.phase(guest.PhaseReady)
			f.ID, f.Pool, f.Running, f.Machine = id, "pool", true, m
			w.m.found = append(w.m.found, f)
			w.c.want(up(id))
		}
	}, func(w *world) {
		w.c.awaitObserved("second", "standby")
		w.c.awaitObserved("twice", "standby")
		w.c.want(up("new"))
		w.c.want(mac("mac"))
		synctest.Wait()
		if w.m.has("new") || w.m.has("mac") {
			t.Fatal("a VM was made though more run than there are slots")
		}
		w.c.want(gone("beyond"))
		w.c.awaitObserved("beyond", "gone")
		w.c.want(gone("older"))
		w.c.awaitObserved("new", "standby")
		if got := w.m.slotOf(t, "new"); got != 1 {
			t.Errorf("the new VM is in slot %d: want 1, since 2 is taken and 3 the last that is free", got)
		}
		w.c.want(gone("new"))
		w.c.awaitObserved("new", "gone")
		synctest.Wait()
		if w.m.has("mac") {
			t.Error("a third macOS guest was let in beside two that were adopted")
		}
		w.c.want(gone("second"))
		w.c.awaitObserved("mac", "standby")
		if got := w.m.slotOf(t, "mac"); got != 1 {
			t.Errorf("the macOS guest is in slot %d: want 1", got)
		}
	})
}
