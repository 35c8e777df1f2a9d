// SPDX-License-Identifier: MIT

package agent_test

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/trust"
)

// world is one agent, its controller and its machines, on the test's own clock.
type world struct {
	t    *testing.T
	c    *controller
	m    *machines
	cfg  agent.Config
	net  *pipeNet
	http *http.Server
	stop context.CancelFunc
	done chan struct{}
	err  error
	wg   sync.WaitGroup
}

// inWorld runs a test in a bubble, with an agent of two slots that has been started.
func inWorld(t *testing.T, setup func(*world), test func(*world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, c: newController(t), m: newMachines(), net: newPipeNet()}
		w.c.patience = time.Hour // on a clock that costs nothing
		w.cfg = agent.Config{
			Controller: "http://127.0.0.1", Name: "mini-1", StateDir: t.TempDir(), EnrolmentToken: w.c.enrolmentToken(),
			Slots: 2, Machines: w.m, Backends: []string{"fake"}, Machine: "hardware", Version: "v1", Dial: w.net.dial,
		}
		if testing.Verbose() {
			w.cfg.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
		}
		w.http = &http.Server{Handler: w.c}
		w.wg.Go(func() { _ = w.http.Serve(w.net) })
		if setup != nil {
			setup(w)
		}
		w.start()
		defer func() {
			w.halt()
			w.http.Close()
			w.wg.Wait()
		}()
		test(w)
	})
}

func (w *world) start() {
	w.t.Helper()
	a, err := agent.New(w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	w.stop, w.done = cancel, make(chan struct{})
	done := w.done
	w.wg.Go(func() { w.err = a.Run(ctx); close(done) })
}

// halt stops the agent as SIGTERM does, and waits for it.
func (w *world) halt() {
	w.t.Helper()
	w.stop()
	<-w.done
}

func up(id string) protocol.Desire { return protocol.Desire{ID: id, Wanted: protocol.WantUp} }
func armed(id string) protocol.Desire {
	return protocol.Desire{ID: id, Wanted: protocol.WantArmed, Scope: "octo/demo"}
}
func gone(id string) protocol.Desire { return protocol.Desire{ID: id, Wanted: protocol.WantGone} }
func drained(id string) protocol.Desire {
	return protocol.Desire{ID: id, Wanted: protocol.WantGone, UnlessBusy: true}
}

// The pool's policy goes into the guest with the JIT config, and what the guest makes of it
// comes back, made fit for a report.
func TestThePolicyAndWhatCameOfIt(t *testing.T) {
	policy := &trust.Policy{Deny: []string{"octo/*"}}
	inWorld(t, func(w *world) { w.c.trust = policy }, func(w *world) {
		w.c.want(up("r1"))
		w.c.awaitObserved("r1", "standby")
		m := w.m.get(t, "r1")
		w.c.want(armed("r1"))
		m.awaitGiven(t)
		m.mu.Lock()
		given := m.policy
		m.mu.Unlock()
		if given == nil || !slices.Equal(given.Deny, policy.Deny) {
			t.Errorf("the guest was given %+v", given)
		}
		m.phase(guest.PhaseBusy)
		m.say(func(s *guest.Status) {
			s.Runner.Job = guest.JobHook{Repository: "octo/demo", Run: 7, Refused: "no " + strings.Repeat("x", 3000)}
		})
		w.c.await("r1's job is reported", func() bool { return w.c.runner("r1").JobRun == 7 })
		got := w.c.runner("r1")
		if got.JobRepository != "octo/demo" || !strings.HasPrefix(got.JobRefused, "no x") || len(got.JobRefused) > protocol.MaxText {
			t.Errorf("reported as %+v", got)
		}
		m.finish(guest.OutcomeJob, guest.ResultFailed)
		if got := w.c.awaitObserved("r1", "gone"); got.Failure != "" || got.JobRun != 7 {
			t.Errorf("gone is reported as %+v", got)
		}
	})
}

// An image with an older guest program works as before, unchecked.
func TestAnOldGuestGetsNoPolicy(t *testing.T) {
	inWorld(t, func(w *world) {
		w.c.trust = &trust.Policy{}
		w.m.setup = func(m *machine) { m.old = true }
	}, func(w *world) {
		w.c.want(up("r1"))
		w.c.awaitObserved("r1", "standby")
		m := w.m.get(t, "r1")
		w.c.want(armed("r1"))
		m.awaitGiven(t)
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.policy != nil {
			t.Errorf("it was given %+v", m.policy)
		}
	})
}

func TestOneRunnersLife(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		w.c.want(up("r1"))
		if got := w.c.awaitObserved("r1", "standby"); !got.HoldsSlot || got.HasConfig || got.Pool != "pool" {
			t.Errorf("standby is reported as %+v", got)
		}
		m := w.m.get(t, "r1")
		if w.c.minted("r1") != 0 {
			t.Error("a standby was minted")
		}
		w.c.want(armed("r1"))
		if got := w.c.awaitObserved("r1", "registering"); !got.HasConfig || got.Scope != "octo/demo" {
			t.Errorf("registering is reported as %+v", got)
		}
		m.awaitGiven(t)
		m.phase(guest.PhaseIdle)
		w.c.awaitObserved("r1", "idle")
		m.phase(guest.PhaseBusy)
		w.c.awaitObserved("r1", "busy")
		m.finish(guest.OutcomeJob, guest.ResultFailed)
		got := w.c.awaitObserved("r1", "gone")
		if got.Result != "failed" || got.Failure != "" || got.HoldsSlot {
			t.Errorf("gone is reported as %+v", got)
		}
		if !slices.Equal(m.taken(), []string{"jit-r1-1"}) || !m.isRemoved() || m.runs() {
			t.Errorf("configs %v, removed %t, running %t", m.taken(), m.isRemoved(), m.runs())
		}
		history := w.c.history("r1")
		for _, want := range []string{"standby", "registering", "idle", "busy", "gone"} {
			if !slices.Contains(history, want) {
				t.Errorf("%s was never reported: %v", want, history)
			}
		}
		w.c.forget("r1")
		w.c.await("r1 is reported no more", func() bool { return w.c.runner("r1").ID == "" })
	})
}
