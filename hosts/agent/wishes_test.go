// SPDX-License-Identifier: MIT

package agent_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/hosts/protocol"
)

func TestAbsenceDestroysNothing(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		w.c.want(up("r1"))
		w.c.awaitObserved("r1", "standby")
		w.c.forget("r1")
		w.pass(time.Hour)
		if got := w.c.awaitObserved("r1", "standby"); !got.HoldsSlot {
			t.Errorf("reported as %+v", got)
		}
		if m := w.m.get(t, "r1"); !m.runs() {
			t.Error("the VM was ended")
		}
	})
}

func TestGoneOfAnUnknownRunnerIsReportedAtOnce(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		w.c.want(gone("r1"))
		if got := w.c.awaitObserved("r1", "gone"); got.Failure != "" || got.Pool != "pool" {
			t.Errorf("reported as %+v", got)
		}
		if w.m.made() > 0 {
			t.Error("a VM was made")
		}
		w.c.forget("r1")
		w.c.await("r1 is reported no more", func() bool { return w.c.runner("r1").ID == "" })
	})
}

func TestWishesThatCannotBeUnderstood(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		w.c.want(up("r1"))
		w.c.awaitObserved("r1", "standby")
		w.c.want(protocol.Desire{ID: "r1", Wanted: "hibernated"})
		w.c.want(protocol.Desire{ID: "r2", Wanted: "hibernated"})
		w.c.want(up("../../etc"))
		w.c.want(up("r3"))
		w.c.awaitObserved("r3", "standby")
		if got := w.c.awaitObserved("r2", "gone"); !strings.Contains(got.Failure, "hibernated") {
			t.Errorf("the refusal %q does not name the wish", got.Failure)
		}
		w.c.awaitObserved("r1", "standby") // keeps what it has
		if got := w.c.newest("../../etc"); got.ID != "" || w.m.has("../../etc") {
			t.Errorf("an impossible id was taken: %+v", got)
		}
	})
}

func TestAnIdLivesOnce(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		w.c.want(up("r1"))
		w.c.awaitObserved("r1", "standby")
		w.m.get(t, "r1").die("power cut")
		w.c.awaitObserved("r1", "gone")
		w.c.want(armed("r1"))
		w.pass(time.Minute)
		w.c.awaitObserved("r1", "gone")

		w.halt()
		w.start() // not even another agent revives it
		w.c.want(up("r1"))
		w.c.want(up("r2"))
		w.c.awaitObserved("r2", "standby")
		if got := w.c.awaitObserved("r1", "gone"); !strings.Contains(got.Failure, "power cut") {
			t.Errorf("after a restart r1 is reported as %+v", got)
		}
		if n := w.m.made(); n != 2 {
			t.Errorf("%d VMs were made: want r1 once and r2", n)
		}

		w.c.forget("r1")
		w.c.await("r1 is reported no more", func() bool { return w.c.runner("r1").ID == "" })
		w.halt()
		w.start()
		w.c.want(up("r3"))
		w.c.await("a report of the third agent", func() bool { return w.c.runner("r3").ID != "" })
		if w.c.newest("r1").ID != "" {
			t.Error("the tombstone outlives the controller's interest in it")
		}
	})
}

func TestOlderRevisionsAreNotObeyed(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		w.c.want(up("r1"))
		w.c.awaitObserved("r1", "standby")
		old := protocol.Desired{Site: "site-1", Epoch: 1, Revision: 1, Runners: []protocol.Desire{gone("r1"), up("r9")}}
		w.c.change(func() {
			w.c.unkind = func(path string) unkindness {
				if path == protocol.PathDesired {
					return unkindness{replace: old}
				}
				return unkindness{}
			}
			w.c.revision++
		})
		w.pass(time.Minute)
		w.c.awaitObserved("r1", "standby")
		if w.m.has("r9") {
			t.Error("a wish of the past was fulfilled")
		}
		if n := w.c.calls(protocol.PathDesired); n > 100 {
			t.Errorf("%d calls within a minute: no pause between refused answers", n)
		}
		w.c.change(func() { w.c.unkind = nil })
		w.c.want(gone("r1"))
		w.c.awaitObserved("r1", "gone")
	})
}

func TestForeignControllersAreNotObeyed(t *testing.T) {
	for name, change := range map[string]func(*controller){
		"another site":   func(c *controller) { c.site = "site-2" },
		"an older epoch": func(c *controller) { c.epoch = 4 },
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) { w.c.epoch = 5 }, func(w *world) {
				w.c.want(up("r1"))
				w.c.awaitObserved("r1", "standby")
				w.c.change(func() { change(w.c) })
				w.c.want(gone("r1"))
				w.c.want(up("r2"))
				w.pass(20 * time.Second)
				if m := w.m.get(t, "r1"); !m.runs() || w.m.has("r2") {
					t.Error("a foreign controller was obeyed")
				}
				w.halt() // and it is still foreign to the next agent
				w.start()
				w.pass(20 * time.Second)
				if w.m.has("r2") {
					t.Error("a foreign controller was obeyed after a restart")
				}
			})
		})
	}
}

func TestANewEpochStartsItsOwnRevisions(t *testing.T) {
	inWorld(t, func(w *world) { w.c.revision = 1000 }, func(w *world) {
		w.c.want(up("r1"))
		w.c.awaitObserved("r1", "standby")
		w.c.change(func() { w.c.epoch, w.c.revision = 2, 3 })
		w.c.want(up("r2"))
		w.c.awaitObserved("r2", "standby")
	})
}

func TestSlotsHoldWhateverIsWanted(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		gate := make(chan struct{})
		w.m.setup = func(m *machine) { m.stopGate = gate }
		for _, id := range []string{"r1", "r2", "r3", "r4"} {
			w.c.want(up(id))
		}
		w.c.await("two standbys", func() bool { return len(w.standbys()) == 2 })
		w.pass(time.Minute)
		if n := w.m.made(); n != 2 {
			t.Errorf("%d VMs were made with two slots", n)
		}
		w.c.mu.Lock()
		first := w.standbys()
		w.c.mu.Unlock()
		w.c.want(gone(first[0]))
		w.pass(time.Minute) // it is slow to stop, and holds its slot until then
		if got := w.c.awaitObserved(first[0], "destroying"); !got.HoldsSlot || w.m.made() != 2 {
			t.Errorf("reported as %+v, %d VMs were made", got, w.m.made())
		}
		began := time.Now()
		close(gate)
		w.c.await("two standbys again", func() bool { return len(w.standbys()) == 2 })
		if d := time.Since(began); d > time.Second {
			t.Errorf("the replacement began %s after the slot was free", d)
		}
		if w.m.most > 2 {
			t.Errorf("%d VMs ran at once", w.m.most)
		}
		// A runner that waits for a slot and is wanted no more leaves no trace.
		waiting := ""
		for _, id := range []string{"r1", "r2", "r3", "r4"} {
			if !w.m.has(id) {
				waiting = id
			}
		}
		w.c.want(gone(waiting))
		if got := w.c.awaitObserved(waiting, "gone"); got.Failure != "" || w.m.has(waiting) {
			t.Errorf("reported as %+v", got)
		}
	})
}

func TestTheSlotIsFreeBeforeTheFilesAreDeleted(t *testing.T) {
	inWorld(t, func(w *world) { w.cfg.Slots = 1 }, func(w *world) {
		gate := make(chan struct{})
		w.m.setup = func(m *machine) {
			if m.id == "r1" {
				m.removeGate = gate
			}
		}
		w.c.want(up("r1"))
		w.c.awaitObserved("r1", "standby")
		w.c.want(gone("r1"))
		w.c.want(up("r2"))
		w.c.awaitObserved("r2", "standby")
		if got := w.c.awaitObserved("r1", "destroying"); got.HoldsSlot {
			t.Errorf("reported as %+v", got)
		}
		close(gate)
		w.c.awaitObserved("r1", "gone")
	})
}

func TestVMsThatAnEarlierAgentLeft(t *testing.T) {
	var running, busy, orphan, over *machine
	inWorld(t, func(w *world) {
		running, busy, orphan, over = w.m.machine("standby"), w.m.machine("busy"), w.m.machine("orphan"), w.m.machine("over")
		for _, m := range []*machine{running, busy, orphan} {
			m.run()
		}
		busy.guest.HasConfig, busy.guest.Phase = true, guest.PhaseBusy
		w.m.found = []agent.Found{
			{ID: "standby", Pool: "p", Running: true, Machine: running},
			{ID: "busy", Pool: "p", Running: true, Machine: busy},
			{ID: "orphan", Pool: "p", Running: true, Orphan: true, Machine: orphan},
			{ID: "over", Pool: "../p\n", Ending: "vmm_died: killed", Machine: over},
		}
	}, func(w *world) {
		w.c.awaitObserved("standby", "standby")
		if got := w.c.awaitObserved("busy", "busy"); !got.HasConfig || !got.HoldsSlot || got.Pool != "p" {
			t.Errorf("the adopted job is reported as %+v", got)
		}
		if got := w.c.awaitObserved("orphan", "gone"); !strings.Contains(got.Failure, "minifleet-vmm") || orphan.runs() || !orphan.isRemoved() {
			t.Errorf("the orphan is reported as %+v", got)
		}
		if got := w.c.awaitObserved("over", "gone"); !strings.Contains(got.Failure, "killed") || !over.isRemoved() || got.Pool != "unknown" {
			t.Errorf("the ended VM is reported as %+v", got)
		}
		w.pass(time.Minute)
		if !running.runs() || !busy.runs() {
			t.Error("a VM that the controller has not spoken of was ended")
		}
		busy.finish(guest.OutcomeJob, guest.ResultSucceeded)
		if got := w.c.awaitObserved("busy", "gone"); got.Result != "succeeded" {
			t.Errorf("reported as %+v", got)
		}
		w.c.want(armed("standby")) // it serves like any other
		w.c.awaitObserved("standby", "registering")
	})
}

func TestARunnerThatIsGivenIsNotGivenAgainAfterARestart(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		w.c.want(armed("r1"))
		w.c.awaitObserved("r1", "registering")
		m := w.m.get(t, "r1")
		m.awaitGiven(t)
		w.halt()
		if !m.runs() || m.released != 1 {
			t.Fatalf("after the agent's end: running %t, released %d times", m.runs(), m.released)
		}
		m.change(func() { m.answers = false })
		w.m.found = []agent.Found{{ID: "r1", Running: true, Machine: m}}
		w.start()
		// Its guest says nothing: the agent's own books say that it may hold a secret.
		w.pass(time.Hour)
		got := w.c.awaitObserved("r1", "registering")
		if !got.HasConfig || got.Pool != "pool" || got.Scope != "octo/demo" || !m.runs() {
			t.Errorf("reported as %+v, running %t", got, m.runs())
		}
		if w.c.minted("r1") != 1 {
			t.Errorf("%d configs were minted", w.c.minted("r1"))
		}
		m.change(func() { m.answers = true })
		m.phase(guest.PhaseBusy)
		w.c.awaitObserved("r1", "busy")
	})
}

func TestAConfigThatWasNotedAndNeverDeliveredIsMintedAnew(t *testing.T) {
	inWorld(t, func(w *world) {
		m := w.m.machine("r1")
		m.run()
		w.m.found = []agent.Found{{ID: "r1", Pool: "p", Running: true, Machine: m}}
		folder := filepath.Join(w.cfg.StateDir, "runners")
		if err := os.MkdirAll(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		note := `{"desire":{"id":"r1","wanted":"armed","scope":"octo/demo","pool":"p"},"given":true}`
		if err := os.WriteFile(filepath.Join(folder, "r1.json"), []byte(note), 0o600); err != nil {
			t.Fatal(err)
		}
	}, func(w *world) {
		m := w.m.get(t, "r1")
		w.c.want(armed("r1"))
		m.awaitGiven(t)
		m.phase(guest.PhaseIdle)
		if got := w.c.awaitObserved("r1", "idle"); !got.HasConfig || w.c.minted("r1") != 1 {
			t.Errorf("reported as %+v after %d mints", got, w.c.minted("r1"))
		}
	})
}

// A guest program that was started anew while no agent looked has forgotten its config:
// its VM may have run a job, and is no standby.
func TestAGuestThatForgotItsConfigWhileNoAgentLooked(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		w.c.want(armed("r1"))
		w.c.awaitObserved("r1", "registering")
		m := w.m.get(t, "r1")
		m.awaitGiven(t)
		w.halt()
		m.change(func() {
			m.guest = guest.Status{Protocol: 1, Instance: strings.Repeat("b", 32), Revision: 1, Phase: guest.PhaseReady}
		})
		w.m.found = []agent.Found{{ID: "r1", Running: true, Machine: m}}
		w.start()
		if got := w.c.awaitObserved("r1", "gone"); !strings.Contains(got.Failure, "started anew") || w.c.minted("r1") != 1 {
			t.Errorf("reported as %+v after %d mints", got, w.c.minted("r1"))
		}
	})
}

func TestGoneByHowFarTheRunnerIs(t *testing.T) {
	for name, tc := range map[string]struct {
		prepare func(*world) *machine // brings r1 to where gone reaches it
		want    protocol.Desire
		ends    int // how often the guest is told to end
		stays   bool
	}{
		"standby":        {toStandby, gone("r1"), 0, false},
		"standby drains": {toStandby, drained("r1"), 0, false},
		"idle":           {toPhase(guest.PhaseIdle), gone("r1"), 1, false},
		"idle drains":    {toPhase(guest.PhaseIdle), drained("r1"), 1, false},
		"busy":           {toPhase(guest.PhaseBusy), gone("r1"), 1, false},
		"busy drains":    {toPhase(guest.PhaseBusy), drained("r1"), 0, true},
		"silent drains":  {toSilence, drained("r1"), 0, true},
		"booting": {func(w *world) *machine {
			w.m.setup = func(m *machine) { m.answers = false }
			w.c.want(up("r1"))
			w.c.awaitObserved("r1", "booting")
			return w.m.get(t, "r1")
		}, gone("r1"), 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, nil, func(w *world) {
				m := tc.prepare(w)
				w.c.want(tc.want)
				w.pass(10 * time.Minute)
				if tc.stays {
					if !m.runs() || m.told() != 0 {
						t.Fatalf("running %t, told to end %d times", m.runs(), m.told())
					}
					m.say(func(s *guest.Status) {
						m.answers = true
						s.Phase, s.Runner.Outcome, s.Runner.Result = guest.PhaseFinished, guest.OutcomeJob, guest.ResultSucceeded
					})
				}
				if got := w.c.awaitObserved("r1", "gone"); got.Failure != "" {
					t.Errorf("reported as %+v", got)
				}
				if m.told() != tc.ends || m.runs() || !m.isRemoved() {
					t.Errorf("told to end %d times (want %d), running %t, removed %t", m.told(), tc.ends, m.runs(), m.isRemoved())
				}
			})
		})
	}
}

func toStandby(w *world) *machine {
	w.c.want(up("r1"))
	w.c.awaitObserved("r1", "standby")
	return w.m.get(w.t, "r1")
}

func toPhase(p guest.Phase) func(*world) *machine {
	return func(w *world) *machine {
		w.c.want(armed("r1"))
		w.c.awaitObserved("r1", "registering")
		m := w.m.get(w.t, "r1")
		m.awaitGiven(w.t)
		m.phase(p)
		w.c.awaitObserved("r1", string(p))
		return m
	}
}

func toSilence(w *world) *machine {
	m := toPhase(guest.PhaseIdle)(w)
	m.change(func() { m.answers = false })
	return m
}

func TestGoneDuringPreparation(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		begun, blocked := make(chan struct{}), make(chan struct{})
		w.m.create = func(agent.Order) error { close(begun); <-blocked; return errors.New("called off") }
		w.c.want(up("r1"))
		<-begun
		w.c.want(gone("r1"))
		synctest.Wait()
		close(blocked)
		if got := w.c.awaitObserved("r1", "gone"); got.Failure != "" {
			t.Errorf("a runner that was called off is reported as %+v", got)
		}
	})
}

func TestAGuestThatDoesNotEndIsStoppedAfterItsGrace(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		m := toPhase(guest.PhaseBusy)(w)
		m.change(func() { m.ignores = true })
		going := gone("r1")
		going.EndGraceSeconds = 40
		began := time.Now()
		w.c.want(going)
		w.c.awaitObserved("r1", "gone")
		if d := time.Since(began); d < 40*time.Second || d > 50*time.Second {
			t.Errorf("it was stopped after %s", d)
		}
		if m.grace != 40*time.Second || m.told() != 1 {
			t.Errorf("grace %s, told %d times", m.grace, m.told())
		}
	})
}

func TestAVetoedDrainGoesOn(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		m := toPhase(guest.PhaseBusy)(w)
		w.c.want(drained("r1"))
		w.pass(time.Minute)
		w.c.want(armed("r1"))
		w.pass(time.Minute)
		m.finish(guest.OutcomeJob, guest.ResultFailed)
		if got := w.c.awaitObserved("r1", "gone"); got.Result != "failed" || got.Failure != "" || m.told() != 0 {
			t.Errorf("reported as %+v, told to end %d times", got, m.told())
		}
	})
}

// TestADrainThatWasTakenBack: its listener was told to end and went on, GitHub said
// that it runs a job, and the next drain must ask the guest anew.
func TestADrainThatWasTakenBack(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		m := toPhase(guest.PhaseIdle)(w)
		m.change(func() { m.ignores = true })
		w.c.want(drained("r1"))
		w.pass(time.Second)
		if m.told() != 1 {
			t.Fatalf("an idle listener was told to end %d times", m.told())
		}
		w.c.want(armed("r1"))
		m.phase(guest.PhaseBusy)
		w.c.awaitObserved("r1", "busy")
		w.pass(10 * time.Minute)
		w.c.want(drained("r1"))
		w.pass(10 * time.Minute)
		if !m.runs() {
			t.Fatal("the VM was stopped under its job")
		}
		m.finish(guest.OutcomeJob, guest.ResultSucceeded)
		if got := w.c.awaitObserved("r1", "gone"); got.Result != "succeeded" || got.Failure != "" {
			t.Errorf("reported as %+v", got)
		}
	})
}

// standbys returns which runners are reported so. The caller holds the controller's mu.
func (w *world) standbys() []string {
	var out []string
	if n := len(w.c.reports); n > 0 {
		for _, r := range w.c.reports[n-1].Runners {
			if r.Observed == "standby" {
				out = append(out, r.ID)
			}
		}
	}
	slices.Sort(out)
	return out
}

// pass lets the test's own clock run.
func (w *world) pass(d time.Duration) {
	time.Sleep(d) // in a bubble this takes no time
	synctest.Wait()
}
