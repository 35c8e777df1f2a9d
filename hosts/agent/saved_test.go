// SPDX-License-Identifier: MIT

package agent_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/vm"
)

// savers makes VMs that have to do with saved states.
type savers struct {
	*machines

	mu   sync.Mutex // guards the rest
	made []*saver
	each func(n int, s *saver) // sets up the nth VM, from 0 on, before it is known
}

func (s *savers) Create(ctx context.Context, o agent.Order, progress func(string)) (agent.Machine, error) {
	m, err := s.machines.Create(ctx, o, progress)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	vm := &saver{machine: m.(*machine)}
	if s.each != nil {
		s.each(len(s.made), vm)
	}
	s.made = append(s.made, vm)
	return vm, nil
}

func (s *savers) nth(n int) *saver {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.made[n]
}

func (s *savers) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.made)
}

// saver is a VM, and its guest, that notes what happens to it.
type saver struct {
	*machine
	restored, lacking bool
	clockErr, saveErr error
	saveGate          chan struct{} // Save waits for it
	startFails        string        // the VM ends right after its start, and why

	mu     sync.Mutex // guards the rest
	events []string
}

func (s *saver) note(event string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, event)
}

func (s *saver) had() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.events, ", ")
}

func (s *saver) Start(ctx context.Context) error {
	err := s.machine.Start(ctx)
	if s.startFails != "" {
		s.die(s.startFails)
	}
	return err
}

func (s *saver) Guest() agent.Guest { return s }
func (s *saver) Restored() bool     { return s.restored }
func (s *saver) Lacking() bool      { return s.lacking }
func (s *saver) Continued()         { s.note("continued") }
func (s *saver) Unfit(why string)   { s.note("unfit: " + why) }

func (s *saver) SetClock(_ context.Context, now time.Time) error {
	if d := time.Since(now); d < 0 || d > time.Second {
		s.note("wrong time")
	}
	s.note("clock")
	return s.clockErr
}

func (s *saver) Save(ctx context.Context, ready func(context.Context) error) error {
	if err := ready(ctx); err != nil {
		return err
	}
	if len(s.taken()) > 0 {
		s.note("A SECRET WAS SAVED")
	}
	s.note("save")
	if s.saveGate != nil {
		select {
		case <-s.saveGate:
		case <-ctx.Done():
			s.note("called off")
			return ctx.Err()
		}
	}
	return s.saveErr
}

// inSavingWorld is inWorld with VMs that have to do with saved states.
func inSavingWorld(t *testing.T, each func(n int, s *saver), test func(w *world, s *savers)) {
	t.Helper()
	var s *savers
	inWorld(t, func(w *world) {
		s = &savers{machines: w.m, each: each}
		w.cfg.Machines = s
	}, func(w *world) { test(w, s) })
}

// A VM that has booted is saved once, before anything of a job can be in it, even where a
// job waits for it already.
func TestSavedBeforeAnySecret(t *testing.T) {
	inSavingWorld(t, func(_ int, s *saver) { s.lacking, s.saveGate = true, make(chan struct{}) }, func(w *world, s *savers) {
		w.c.want(armed("r1"))
		w.c.await("the VM is being saved", func() bool { return w.m.has("r1") && s.nth(0).had() == "clock, save" })
		time.Sleep(time.Minute)
		if w.c.minted("r1") != 0 || slices.Contains(w.c.history("r1"), "standby") {
			t.Errorf("%d mints while the VM is saved; %v", w.c.minted("r1"), w.c.history("r1"))
		}
		close(s.nth(0).saveGate)
		w.c.awaitObserved("r1", "registering")
		s.nth(0).awaitGiven(t)
		if got := s.nth(0).had(); got != "clock, save" {
			t.Errorf("%s", got)
		}
	})
}

func TestSaveThatFailsCostsNothing(t *testing.T) {
	for name, each := range map[string]func(int, *saver){
		"save":  func(_ int, s *saver) { s.lacking, s.saveErr = true, errors.New("no room") },
		"clock": func(_ int, s *saver) { s.lacking, s.clockErr = true, errors.New("not mine") },
	} {
		t.Run(name, func(t *testing.T) {
			inSavingWorld(t, each, func(w *world, s *savers) {
				w.c.want(up("r1"))
				w.c.awaitObserved("r1", "standby")
				if w.m.made() != 1 || (name == "clock") != (s.nth(0).had() == "clock") {
					t.Errorf("%d VMs; %s", w.m.made(), s.nth(0).had())
				}
			})
		})
	}
}

func TestRestored(t *testing.T) {
	inSavingWorld(t, func(_ int, s *saver) { s.restored, s.lacking = true, true }, func(w *world, s *savers) {
		w.c.want(armed("r1"))
		w.c.awaitObserved("r1", "registering")
		if got := s.nth(0).had(); got != "clock, continued" {
			t.Errorf("%s", got)
		}
	})
}

// Whatever is wrong with a restored VM, the same runner gets one that boots, in its slot.
func TestRestoreThatFailsBootsCold(t *testing.T) {
	for name, tt := range map[string]struct {
		fail func(*saver)
		want string
	}{
		"refused":       {func(s *saver) { s.startFails = "restore_failed: another macOS" }, "restore_failed: another macOS"},
		"silent":        {func(s *saver) { s.answers = false }, "did not answer within 1m"},
		"no clock":      {func(s *saver) { s.clockErr = errors.New("not mine") }, "not mine"},
		"with a secret": {func(s *saver) { s.guest.HasConfig = true }, "never be kept"},
		"with a job":    {func(s *saver) { s.guest.Phase = guest.PhaseBusy }, "never be kept"},
	} {
		t.Run(name, func(t *testing.T) {
			inSavingWorld(t, func(n int, s *saver) {
				if n == 0 {
					s.restored = true
					tt.fail(s)
				} else {
					s.lacking = true
				}
			}, func(w *world, s *savers) {
				w.c.want(up("r1"))
				got := w.c.awaitObserved("r1", "standby")
				if got.Failure != "" || !got.HoldsSlot {
					t.Errorf("standby is reported as %+v", got)
				}
				old, cold := s.nth(0), s.nth(1)
				if had := old.had(); !strings.Contains(had, "unfit: ") || !strings.Contains(had, tt.want) {
					t.Errorf("the restored one: %s, want %q", had, tt.want)
				}
				if !old.isRemoved() || old.runs() || old.released != 1 || cold.had() != "clock, save" || !cold.runs() {
					t.Errorf("removed %t, runs %t; the cold one: %s", old.isRemoved(), old.runs(), cold.had())
				}
				w.m.mu.Lock()
				orders := slices.Clone(w.m.creates)
				w.m.mu.Unlock()
				if len(orders) != 2 || orders[0].Cold || !orders[1].Cold || orders[0].Slot != orders[1].Slot {
					t.Errorf("orders %+v", orders)
				}
				w.c.want(up("r1"))
				w.c.want(up("r2")) // the other slot is free
				w.c.awaitObserved("r2", "standby")
			})
		})
	}
}

func TestColdBootThatFailsToo(t *testing.T) {
	inSavingWorld(t, func(n int, s *saver) {
		s.restored, s.startFails = true, "restore_failed"
		if n > 0 {
			s.restored, s.startFails = false, ""
			s.startErr = errors.New("no memory")
		}
	}, func(w *world, _ *savers) {
		w.c.want(up("r1"))
		if got := w.c.awaitObserved("r1", "gone"); !strings.Contains(got.Failure, "no memory") || got.HoldsSlot {
			t.Errorf("gone is reported as %+v", got)
		}
	})
}

func TestNotWantedWhileAStateIsAtStake(t *testing.T) {
	for name, tt := range map[string]struct {
		each func(int, *saver)
		want string
	}{
		"saved":    {func(_ int, s *saver) { s.lacking, s.saveGate = true, make(chan struct{}) }, "clock, save, called off"},
		"restored": {func(_ int, s *saver) { s.restored, s.answers = true, false }, "continued"},
	} {
		t.Run(name, func(t *testing.T) {
			inSavingWorld(t, tt.each, func(w *world, s *savers) {
				w.c.want(up("r1"))
				w.c.await("it runs", func() bool { return w.m.has("r1") && s.nth(0).runs() })
				time.Sleep(time.Second)
				w.c.want(gone("r1"))
				if got := w.c.awaitObserved("r1", "gone"); got.Failure != "" {
					t.Errorf("gone is reported as %+v", got)
				}
				if got := s.nth(0).had(); got != tt.want || w.m.made() != 1 {
					t.Errorf("%s, %d VMs", got, w.m.made())
				}
			})
		})
	}
}

// What it waits for in vain is said, and it is waited for once.
func TestGuestToBeSavedHasNoSession(t *testing.T) {
	inSavingWorld(t, func(_ int, s *saver) { s.lacking, s.sessionAfter = true, 1<<30 }, func(w *world, s *savers) {
		began := time.Now()
		w.c.want(up("r1"))
		w.c.patience = 20 * time.Minute
		got := w.c.awaitObserved("r1", "gone")
		if took := time.Since(began); !strings.Contains(got.Failure, "have the image log its user in") || took > 6*time.Minute {
			t.Errorf("after %v: %+v", took, got)
		}
		if had := s.nth(0).had(); had != "" {
			t.Error(had)
		}
	})
}

func TestVMToBeSavedEndsBeforeItsSession(t *testing.T) {
	inSavingWorld(t, func(_ int, s *saver) { s.lacking, s.sessionAfter = true, 1<<30 }, func(w *world, s *savers) {
		w.c.want(up("r1"))
		w.c.await("the session is waited for", func() bool { return strings.Contains(w.c.runner("r1").Progress, "session") })
		began := time.Now()
		s.nth(0).die("panic")
		if got := w.c.awaitObserved("r1", "gone"); !strings.Contains(got.Failure, "panic") || time.Since(began) > 10*time.Second {
			t.Errorf("after %v: %+v", time.Since(began), got)
		}
	})
}

// macOS may refuse the VM that is to take the place of one that was not restored: the old
// one's process can outlive it.
func TestColdBootThatMacOSRefuses(t *testing.T) {
	for name, each := range map[string]func(n int, s *saver){
		"after the start": func(n int, s *saver) { s.restored = n == 0; s.answers = n > 0 },
		"at the start": func(n int, s *saver) {
			if s.restored = n == 0; n == 0 {
				s.startErr = vm.WithReason(vm.ReasonRestoreFailed, errors.New("another macOS"))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			inSavingWorld(t, func(n int, s *saver) {
				if each(n, s); n == 1 {
					s.startErr = errThirdMac
				}
			}, func(w *world, s *savers) {
				w.c.patience = 5 * time.Minute
				w.c.want(mac("m1"))
				if got := w.c.awaitObserved("m1", "standby"); got.Failure != "" || w.m.made() != 3 || w.m.cleared != 1 {
					t.Errorf("%d VMs, %d looks for leftovers: %+v", w.m.made(), w.m.cleared, got)
				}
				if s.nth(2).had() != "" || !s.nth(2).runs() {
					t.Error(s.nth(2).had())
				}
			})
		})
	}
}

func TestGuestToBeSavedNeverAnswers(t *testing.T) {
	inSavingWorld(t, func(_ int, s *saver) { s.lacking, s.answers = true, false }, func(w *world, s *savers) {
		began := time.Now()
		w.c.want(up("r1"))
		got := w.c.awaitObserved("r1", "gone")
		if took := time.Since(began); !strings.Contains(got.Failure, "did not answer within 5m0s") || took > 6*time.Minute {
			t.Errorf("after %v: %+v", took, got)
		}
		if had := s.nth(0).had(); had != "" {
			t.Error(had)
		}
	})
}

// The VM of an earlier agent may have been restored, and not been told the time.
func TestRestoredVMOfAnEarlierAgent(t *testing.T) {
	inSavingWorld(t, func(_ int, s *saver) { s.restored = true }, func(w *world, s *savers) {
		w.c.want(up("r1"))
		w.c.want(up("r2"))
		w.c.awaitObserved("r1", "standby")
		w.c.awaitObserved("r2", "standby")
		w.c.want(armed("r2"))
		w.c.awaitObserved("r2", "registering")
		s.adopt(w, func() {})
		for _, vm := range s.made {
			want := "clock, continued"
			if vm.id == "r1" {
				want += ", clock, continued"
			}
			w.c.await(vm.id+" is told", func() bool { return vm.had() == want })
		}
		if got := w.c.newest("r1"); got.Observed != "standby" && got.Observed != protocol.WantUp && got.Failure != "" {
			t.Errorf("%+v", got)
		}
	})
}

// adopt ends the agent and starts another one, that finds the VMs.
func (s *savers) adopt(w *world, before func()) {
	w.halt()
	s.machines.mu.Lock()
	s.found = nil
	for _, vm := range s.made {
		s.found = append(s.found, agent.Found{ID: vm.id, Pool: "pool", Slot: len(s.found) + 1, Running: true, Machine: vm})
	}
	s.machines.mu.Unlock()
	before()
	w.start()
}

// An earlier agent that could not write, on a full volume, has no note of the config that it
// handed over. The guest has it, and its job is not to end for that.
func TestRestoredVMThatWasArmedUnnoticed(t *testing.T) {
	inSavingWorld(t, func(_ int, s *saver) { s.restored = true }, func(w *world, s *savers) {
		w.c.want(up("r1"))
		w.c.awaitObserved("r1", "standby")
		s.adopt(w, func() {
			s.nth(0).say(func(g *guest.Status) { g.HasConfig, g.Phase = true, guest.PhaseBusy })
		})
		if got := w.c.awaitObserved("r1", "busy"); !got.HasConfig || w.m.made() != 1 || !s.nth(0).runs() {
			t.Errorf("%d VMs: %+v", w.m.made(), got)
		}
	})
}

// What an earlier agent put into a VM is not in the one that takes its place.
func TestPinnedRunnerOfAVMThatIsReplaced(t *testing.T) {
	inSavingWorld(t, func(n int, s *saver) { s.restored = n == 0 }, func(w *world, s *savers) {
		d := pin(t, "r1", "a runner")
		w.c.want(d)
		w.c.awaitObserved("r1", "standby")
		s.adopt(w, func() { s.nth(0).clockErr = errors.New("not mine") })
		// That r1 stands by was said of the VM before, too.
		w.c.await("another VM's guest has the runner", func() bool {
			return s.count() == 2 && slices.Equal(s.nth(1).installed(), []string{d.Runner.SHA256 + " a runner"})
		})
		w.c.awaitObserved("r1", "standby")
	})
}
