// SPDX-License-Identifier: MIT

package agent_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/hosts/protocol"
)

// gated makes a VM whose guest is silent and whose end waits to be let through.
func gated(stop, remove chan struct{}) func(*machine) {
	return func(m *machine) {
		m.answers, m.stopGate, m.removeGate = false, stop, remove
		m.took = agent.Took{Image: 250 * time.Microsecond, Clone: 1500 * time.Microsecond, Restore: time.Second}
	}
}

func TestStepsAreMeasured(t *testing.T) {
	t.Parallel()
	var stop, remove chan struct{}
	inWorld(t, func(w *world) {
		stop, remove = make(chan struct{}), make(chan struct{}) // of the bubble, as its clock is
		w.m.setup = gated(stop, remove)
	}, func(w *world) {
		w.c.want(protocol.Desire{ID: "r-1", Wanted: protocol.WantArmed, Scope: "acme"})
		got := w.c.awaitObserved("r-1", "booting")
		if want := (protocol.StepTimes{Image: 250, Clone: 1500}); got.Took != want {
			t.Errorf("booting: %+v", got.Took)
		}
		m := w.m.get(t, "r-1")
		w.pass(5 * time.Second)
		m.change(func() { m.answers = true })
		m.awaitGiven(t)
		w.pass(2 * time.Second)
		m.phase(guest.PhaseIdle)
		w.c.awaitObserved("r-1", "idle")
		w.pass(3 * time.Second)
		m.phase(guest.PhaseBusy)
		got = w.c.awaitObserved("r-1", "busy")
		want := protocol.StepTimes{Image: 250, Clone: 1500, Restore: 1e6, Boot: 4e6, Listener: 2e6, Job: 3e6}
		if diff := cmp.Diff(want, got.Took); diff != "" {
			t.Errorf("busy (-want +got):\n%s", diff)
		}
		w.pass(time.Minute)
		m.finish(guest.OutcomeJob, guest.ResultSucceeded)
		w.c.awaitObserved("r-1", "finished")
		w.pass(200 * time.Millisecond)
		close(stop)
		w.c.awaitObserved("r-1", "destroying")
		w.pass(700 * time.Millisecond)
		close(remove)
		got = w.c.awaitObserved("r-1", "gone")
		want.Stop, want.Delete = 200e3, 700e3
		if diff := cmp.Diff(want, got.Took); diff != "" {
			t.Errorf("gone (-want +got):\n%s", diff)
		}
	})
}

// A listener that restarts itself is measured as it came up first, and a VM that was
// adopted has no boot that anybody saw.
func TestStepsAreMeasuredOnce(t *testing.T) {
	t.Parallel()
	inWorld(t, nil, func(w *world) {
		w.c.want(protocol.Desire{ID: "r-1", Wanted: protocol.WantArmed, Scope: "acme"})
		m := w.m.get(t, "r-1")
		m.awaitGiven(t)
		w.pass(time.Second)
		m.phase(guest.PhaseIdle)
		first := w.c.awaitObserved("r-1", "idle").Took
		if first.Listener != 1e6 || first.Boot == 0 {
			t.Errorf("%+v", first)
		}
		m.phase(guest.PhaseStarting)
		w.c.awaitObserved("r-1", "registering")
		w.pass(time.Minute)
		m.phase(guest.PhaseIdle)
		if again := w.c.awaitObserved("r-1", "idle").Took; again != first {
			t.Errorf("again %+v, first %+v", again, first)
		}
		w.halt()
		w.m.change(func() { w.m.found = []agent.Found{{ID: "r-1", Pool: "pool", Running: true, Machine: m}} })
		w.start()
		m.phase(guest.PhaseBusy)
		if adopted := w.c.awaitObserved("r-1", "busy").Took; adopted != (protocol.StepTimes{}) {
			t.Errorf("measured of an adopted VM: %+v", adopted)
		}
	})
}
