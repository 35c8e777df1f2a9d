// SPDX-License-Identifier: MIT

package agent_test

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/secret"
)

func TestLostAnswersChangeNothing(t *testing.T) {
	inWorld(t, func(w *world) {
		seen := map[string]int{}
		w.c.unkind = func(path string) unkindness {
			seen[path]++
			// Every second request is carried out and its answer lost; every third is late.
			return unkindness{drop: seen[path]%2 == 1, delay: time.Duration(seen[path]%3/2) * 3 * time.Second}
		}
	}, func(w *world) {
		w.c.want(armed("r1"))
		w.c.awaitObserved("r1", "registering")
		m := w.m.get(t, "r1")
		m.awaitGiven(t)
		m.phase(guest.PhaseBusy)
		w.c.awaitObserved("r1", "busy")
		m.finish(guest.OutcomeJob, guest.ResultSucceeded)
		w.c.awaitObserved("r1", "gone")
		w.c.forget("r1")
		w.c.await("r1 is reported no more", func() bool { return w.c.runner("r1").ID == "" })
		if hosts, enrols := w.c.enrolled(); hosts != 1 || enrols < 2 {
			t.Errorf("%d hosts by %d enrolments: the repetition must be the same request", hosts, enrols)
		}
		if w.c.minted("r1") != 2 || len(m.taken()) != 1 || m.taken()[0] != "jit-r1-2" {
			t.Errorf("%d configs minted, the guest got %v", w.c.minted("r1"), m.taken())
		}
	})
}

func TestMintAnswers(t *testing.T) {
	refuse := func(status int, code protocol.Code, after time.Duration) func(string) (int, protocol.Error, time.Duration) {
		return func(string) (int, protocol.Error, time.Duration) {
			return status, protocol.Error{Code: code, Message: "not now"}, after
		}
	}
	for name, tc := range map[string]struct {
		answer      func(string) (int, protocol.Error, time.Duration)
		least, most int // requests within five minutes
		newer       bool
	}{
		"no grant":            {refuse(409, protocol.CodeNoGrant, 0), 1, 1, false},
		"no grant, new word":  {refuse(409, protocol.CodeNoGrant, 0), 2, 2, true},
		"runner busy":         {refuse(409, protocol.CodeRunnerBusy, 0), 1, 1, true},
		"later":               {refuse(503, protocol.CodeLater, time.Minute), 4, 6, false},
		"unavailable":         {refuse(503, protocol.CodeUnavailable, 0), 8, 100, false},
		"refused":             {refuse(502, protocol.CodeRefused, 0), 2, 3, false},
		"unknown runner":      {refuse(404, protocol.CodeNoSuchRunner, 0), 1, 1, false},
		"an unknown failure":  {refuse(500, "", 0), 8, 100, false},
		"a proxy in between":  {refuse(418, "teapot", 0), 8, 100, false},
		"the wrong host":      {refuse(403, protocol.CodeWrongHost, 0), 1, 1, false},
		"later, all at once":  {refuse(503, protocol.CodeLater, 0), 8, 100, false},
		"internal, much load": {refuse(500, protocol.CodeInternalFailed, 0), 8, 100, false},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) { w.c.onMint = tc.answer }, func(w *world) {
				w.c.want(armed("r1"))
				w.c.awaitObserved("r1", "standby")
				w.pass(time.Minute)
				if tc.newer {
					w.c.want(armed("r1"))
				}
				w.pass(4 * time.Minute)
				path := "/agent/v1/runners/r1/mint"
				if n := w.c.calls(path); n < tc.least || n > tc.most {
					t.Errorf("asked %d times: want %d to %d", n, tc.least, tc.most)
				}
				if got := w.c.awaitObserved("r1", "standby"); got.HasConfig || !w.m.get(t, "r1").running {
					t.Errorf("reported as %+v", got)
				}
			})
		})
	}
}

func TestAConfigWhoseDeliveryIsNotConfirmed(t *testing.T) {
	t.Run("arrived", func(t *testing.T) {
		inWorld(t, func(w *world) { w.m.setup = func(m *machine) { m.runLost = true } }, func(w *world) {
			w.c.want(armed("r1"))
			w.c.awaitObserved("r1", "registering")
			m := w.m.get(t, "r1")
			m.awaitGiven(t)
			m.phase(guest.PhaseIdle)
			w.c.awaitObserved("r1", "idle")
			if w.c.minted("r1") != 1 || len(m.taken()) != 1 {
				t.Errorf("%d minted, %d given", w.c.minted("r1"), len(m.taken()))
			}
		})
	})
	t.Run("did not arrive", func(t *testing.T) {
		inWorld(t, func(w *world) { w.m.setup = func(m *machine) { m.runErr = errors.New("connection reset") } }, func(w *world) {
			w.c.want(armed("r1"))
			w.c.await("a second mint", func() bool { return w.c.mintedBy["r1"] >= 2 })
			m := w.m.get(t, "r1")
			m.change(func() { m.runErr = nil })
			w.c.await("another config", func() bool { m.mu.Lock(); defer m.mu.Unlock(); return len(m.configs) == 1 })
			w.c.await("given", func() bool { return w.c.runner("r1").HasConfig })
		})
	})
	t.Run("is refused", func(t *testing.T) {
		inWorld(t, func(w *world) {
			w.m.setup = func(m *machine) { m.runErr = &guest.ResponseError{Code: 400, Message: "no config at all"} }
		}, func(w *world) {
			w.c.want(armed("r1"))
			if got := w.c.awaitObserved("r1", "gone"); !strings.Contains(got.Failure, "no config at all") {
				t.Errorf("reported as %+v", got)
			}
		})
	})
}

func TestAConfigThatComesTooLateIsDropped(t *testing.T) {
	inWorld(t, func(w *world) {
		w.c.unkind = func(path string) unkindness {
			if strings.HasSuffix(path, "/mint") {
				return unkindness{late: 10 * time.Second}
			}
			return unkindness{}
		}
	}, func(w *world) {
		w.c.want(armed("r1"))
		w.c.awaitObserved("r1", "standby")
		w.pass(time.Second)
		if w.c.minted("r1") != 1 {
			t.Fatal("the mint was not carried out")
		}
		w.c.want(gone("r1"))
		w.c.awaitObserved("r1", "gone")
		w.pass(time.Minute)
		if m := w.m.get(t, "r1"); len(m.taken()) > 0 {
			t.Error("a VM that had to go was given a secret")
		}
	})
}

func TestTheLease(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		w.cfg.Slots = 2
		w.c.want(armed("given"))
		w.c.awaitObserved("given", "registering")
		given := w.m.get(t, "given")
		given.awaitGiven(t)
		given.phase(guest.PhaseIdle)
		w.c.want(up("standby"))
		w.c.awaitObserved("standby", "standby")
		standby := w.m.get(t, "standby")
		w.net.cutOff(true)
		w.pass(119 * time.Second)
		if !standby.runs() {
			t.Fatal("a standby was ended before twice the lease")
		}
		w.pass(80 * time.Second)
		if standby.runs() {
			t.Error("a standby outlives three times the lease")
		}
		w.pass(2 * time.Hour)
		if !given.runs() {
			t.Error("a VM with a JIT config was ended by the lease")
		}
		w.net.cutOff(false)
		if got := w.c.awaitObserved("standby", "gone"); !strings.Contains(got.Failure, "lease") {
			t.Errorf("reported as %+v", got)
		}
		w.c.awaitObserved("given", "idle")
		w.c.want(up("later"))
		w.c.awaitObserved("later", "standby")
	})
}

func TestTheLeaseOfABootingVM(t *testing.T) {
	inWorld(t, func(w *world) { w.m.setup = func(m *machine) { m.answers = false } }, func(w *world) {
		w.c.want(up("r1"))
		w.c.awaitObserved("r1", "booting")
		m := w.m.get(t, "r1")
		w.net.cutOff(true)
		w.pass(55 * time.Second)
		if !m.runs() {
			t.Fatal("it was ended before its lease")
		}
		w.pass(10 * time.Second)
		if m.runs() {
			t.Error("it outlives its lease")
		}
	})
}

func TestAfterASleepTheControllerIsAskedFirst(t *testing.T) {
	var mu sync.Mutex
	slept := time.Duration(0)
	inWorld(t, func(w *world) {
		w.cfg.Wall = func() time.Time {
			mu.Lock()
			defer mu.Unlock()
			return time.Now().Add(slept).Round(0)
		}
	}, func(w *world) {
		w.c.want(up("r1"))
		w.c.awaitObserved("r1", "standby")
		m := w.m.get(t, "r1")
		w.net.cutOff(true)
		w.pass(100 * time.Second) // nearly twice the lease
		mu.Lock()
		slept = 8 * time.Hour
		mu.Unlock()
		w.pass(100 * time.Second)
		if !m.runs() {
			t.Error("a standby was ended without asking the controller after a sleep")
		}
		w.net.cutOff(false)
		w.pass(time.Minute)
		// A call that waits on a connection from before a sleep is given up at once. This
		// one has just begun, and would go on for another 18 seconds at least.
		w.c.want(up("r1"))
		w.pass(time.Second)
		before := w.c.calls(protocol.PathDesired)
		mu.Lock()
		slept *= 2
		mu.Unlock()
		w.pass(3 * time.Second)
		if after := w.c.calls(protocol.PathDesired); after <= before {
			t.Error("the controller was not asked after a sleep")
		}
	})
}

func TestAnotherAgentTakesOver(t *testing.T) {
	for name, code := range map[string]protocol.Code{"superseded": protocol.CodeSuperseded, "other machine": protocol.CodeOtherMachine} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, nil, func(w *world) {
				w.c.want(up("r1"))
				w.c.awaitObserved("r1", "standby")
				w.c.change(func() {
					w.c.unkind = func(string) unkindness { return unkindness{refuse: code, status: 409} }
					w.c.revision++
				})
				<-w.done
				if w.err == nil || !strings.Contains(w.err.Error(), string(code)) {
					t.Errorf("the agent ended with %v", w.err)
				}
				if m := w.m.get(t, "r1"); !m.runs() {
					t.Error("it took its VM with it")
				}
			})
		})
	}
}

func TestEnrolmentThatCannotWork(t *testing.T) {
	for name, tc := range map[string]struct {
		token secret.Text
		want  string
	}{
		"no token":      {secret.Text{}, "enrolment_token is missing"},
		"not a token":   {secret.New("hunter2"), "enrolment token: one begins with mfe1."},
		"unknown token": {protocol.FormatEnrolment(secret.New("hunter2"), ""), "make a new enrolment token"},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) { w.cfg.EnrolmentToken = tc.token }, func(w *world) {
				<-w.done
				if w.err == nil || !strings.Contains(w.err.Error(), tc.want) || strings.Contains(w.err.Error(), "hunter2") {
					t.Errorf("the agent ended with %v", w.err)
				}
			})
		})
	}
}

func TestARemovedHost(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		m := toStandby(w)
		w.c.change(func() { clear(w.c.hosts); w.c.revision++ })
		w.pass(time.Hour) // it goes on asking, slowly, and lets the lease work
		if m.runs() {
			t.Error("a standby of a removed host runs on")
		}
		if n := w.c.calls(protocol.PathDesired); n > 200 {
			t.Errorf("%d calls in an hour", n)
		}
		w.halt()
		w.start()
		<-w.done
		if w.err == nil || !strings.Contains(w.err.Error(), "enrol it anew") {
			t.Errorf("the next agent ended with %v", w.err)
		}
	})
}

func TestAStoppedAgentLeavesItsVMs(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		w.c.want(up("r1"))
		w.c.awaitObserved("r1", "standby")
		w.m.setup = func(m *machine) { m.answers = false }
		w.c.want(up("r2"))
		w.c.awaitObserved("r2", "booting")
		began := time.Now()
		w.halt()
		if d := time.Since(began); d > time.Second || w.err != nil {
			t.Errorf("it took %s and ended with %v", d, w.err)
		}
		for _, id := range []string{"r1", "r2"} {
			if m := w.m.get(t, id); !m.runs() || m.released != 1 || m.stops != 0 {
				t.Errorf("%s: running %t, released %d times, stopped %d times", id, m.runs(), m.released, m.stops)
			}
		}
	})
}

func TestFailures(t *testing.T) {
	outcome := func(o guest.Outcome) func(*world) {
		return func(w *world) { toPhase(guest.PhaseIdle)(w).finish(o, "") }
	}
	for name, tc := range map[string]struct {
		setup func(*world)
		act   func(*world)
		want  []string // in the failure; none means that there is no failure
	}{
		"clone":            {func(w *world) { w.m.create = func(agent.Order) error { return errors.New("volume is full") } }, nil, []string{"prepare", "volume is full"}},
		"start":            {func(w *world) { w.m.setup = func(m *machine) { m.startErr = errors.New("no hypervisor") } }, nil, []string{"start", "no hypervisor"}},
		"boot":             {func(w *world) { w.m.setup = func(m *machine) { m.answers = false } }, func(w *world) { w.pass(5 * time.Minute) }, []string{"did not answer within 5m0s"}},
		"VM dies":          {nil, func(w *world) { toStandby(w).die("it burnt") }, []string{"ended by itself", "it burnt"}},
		"VM dies busy":     {nil, func(w *world) { toPhase(guest.PhaseBusy)(w).die("it burnt") }, []string{"it burnt"}},
		"guest lost":       {nil, func(w *world) { m := toStandby(w); m.change(func() { m.answers = false }) }, []string{"stopped answering"}},
		"no job":           {nil, outcome(guest.OutcomeNoJob), []string{"without a job", "so it says"}},
		"refused":          {nil, outcome(guest.OutcomeRefused), []string{"refused", "so it says"}},
		"conflict":         {nil, outcome(guest.OutcomeConflict), []string{"conflict"}},
		"bad config":       {nil, outcome(guest.OutcomeBadConfig), []string{"bad_config"}},
		"crashed":          {nil, outcome(guest.OutcomeCrashed), []string{"crashed"}},
		"unstartable":      {nil, outcome(guest.OutcomeUnstartable), []string{"unstartable"}},
		"ended from in it": {nil, outcome(guest.OutcomeEnded), []string{"from inside"}},
		"guest restarted": {nil, func(w *world) {
			m := toPhase(guest.PhaseIdle)(w)
			m.say(func(s *guest.Status) {
				*s = guest.Status{Protocol: 1, Instance: strings.Repeat("b", 32), Phase: guest.PhaseReady}
			})
		}, []string{"started anew"}},
		"guest restarted as it was given": {func(w *world) { w.m.setup = func(m *machine) { m.dies = true } }, func(w *world) { w.c.want(armed("r1")); w.m.get(t, "r1").awaitGiven(t) }, []string{"started anew"}},
		"drained meanwhile": {nil, func(w *world) {
			m := toPhase(guest.PhaseBusy)(w)
			w.c.want(drained("r1"))
			w.pass(time.Second)
			m.finish(guest.OutcomeNoJob, "")
		}, nil},
		"dies while it goes": {nil, func(w *world) {
			m := toPhase(guest.PhaseBusy)(w)
			m.change(func() { m.ignores = true })
			w.c.want(gone("r1"))
			w.pass(time.Second)
			m.die("it burnt")
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, tc.setup, func(w *world) {
				if tc.act != nil {
					w.c.want(up("r1"))
					tc.act(w)
				}
				w.c.want(up("r1"))
				if name == "drained meanwhile" || name == "dies while it goes" {
					w.c.want(gone("r1"))
				}
				got := w.c.awaitObserved("r1", "gone")
				for _, want := range tc.want {
					if !strings.Contains(got.Failure, want) {
						t.Errorf("failure %q lacks %q", got.Failure, want)
					}
				}
				if tc.want == nil && got.Failure != "" {
					t.Errorf("failure %q", got.Failure)
				}
				if got.HoldsSlot {
					t.Error("it still holds a slot")
				}
				if tc.want != nil {
					if _, err := os.Stat(filepath.Join(w.cfg.StateDir, "failures", "r1", "failure.json")); err != nil {
						t.Errorf("no diagnostics: %v", err)
					}
				}
				w.c.want(up("r2")) // the host goes on
				w.m.mu.Lock()
				w.m.create, w.m.setup = nil, nil
				w.m.mu.Unlock()
				w.c.want(up("r3"))
				w.c.awaitObserved("r3", "standby")
			})
		})
	}
}

func TestTheNewestFailuresAreKept(t *testing.T) {
	inWorld(t, func(w *world) {
		w.cfg.KeepFailures = 2
		w.m.create = func(agent.Order) error { return errors.New("broken") }
	}, func(w *world) {
		for _, id := range []string{"r1", "r2", "r3", "r4"} {
			w.c.want(up(id))
			w.c.awaitObserved(id, "gone")
		}
		kept, err := os.ReadDir(filepath.Join(w.cfg.StateDir, "failures"))
		if err != nil || len(kept) != 2 {
			t.Errorf("%d are kept: %v", len(kept), err)
		}
	})
}

func TestAStateFolderThatCannotBeWrittenAnyMore(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		w.c.want(up("r1"))
		w.c.awaitObserved("r1", "standby")
		// What a read-only volume does, also where tests run as root: the folder of
		// records cannot be written to.
		folder := filepath.Join(w.cfg.StateDir, "runners")
		if err := os.Rename(folder, folder+".away"); err != nil {
			t.Fatal(err)
		}
		w.c.want(up("r2"))
		if got := w.c.awaitObserved("r2", "gone"); !strings.Contains(got.Failure, "state folder") {
			t.Errorf("reported as %+v", got)
		}
		w.c.await("the host is degraded", func() bool {
			return strings.Contains(w.c.reports[len(w.c.reports)-1].Facts.Degraded, "state folder")
		})
		w.c.awaitObserved("r1", "standby") // what runs runs on
		if err := os.Rename(folder+".away", folder); err != nil {
			t.Fatal(err)
		}
		w.c.want(up("r3"))
		w.c.awaitObserved("r3", "standby")
		w.c.await("the host is well", func() bool { return w.c.reports[len(w.c.reports)-1].Facts.Degraded == "" })
	})
}

func TestAHostileGuestCannotFloodTheController(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		m := toPhase(guest.PhaseBusy)(w)
		before := w.c.calls(protocol.PathReport)
		stop := make(chan struct{})
		var flood sync.WaitGroup
		flood.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
					m.phase([]guest.Phase{guest.PhaseIdle, guest.PhaseBusy, guest.PhaseStarting}[i%3])
				}
			}
		})
		w.pass(time.Minute)
		close(stop)
		flood.Wait()
		if n := w.c.calls(protocol.PathReport) - before; n > 10 {
			t.Errorf("%d reports within a minute", n)
		}
		m.mu.Lock()
		if m.asks > 400 {
			t.Errorf("the guest was asked %d times within a minute", m.asks)
		}
		m.mu.Unlock()
		w.c.awaitObserved("r1", "busy") // a job is never taken back
	})
}

func TestChangesDuringAReportMakeOneMore(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		m := toPhase(guest.PhaseIdle)(w)
		w.c.change(func() {
			w.c.unkind = func(path string) unkindness {
				if path == protocol.PathReport {
					return unkindness{delay: 10 * time.Second}
				}
				return unkindness{}
			}
		})
		before := w.c.calls(protocol.PathReport)
		m.phase(guest.PhaseBusy)
		w.pass(time.Second)
		w.c.want(gone("other-1"))
		w.c.want(gone("other-2"))
		w.c.want(gone("other-3"))
		w.pass(21 * time.Second)
		if n := w.c.calls(protocol.PathReport) - before; n != 2 {
			t.Errorf("%d reports: want the one under way and one more", n)
		}
		w.c.awaitObserved("other-3", "gone")
	})
}

// A controller that begins anew acts on nothing that it has not heard since, so an
// agent tells it all once it is back.
func TestAfterAnOutageTheControllerHearsAll(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		w.c.want(up("r1"))
		w.c.awaitObserved("r1", "standby")
		w.c.change(func() {
			w.c.unkind = func(path string) unkindness {
				if path == protocol.PathDesired {
					return unkindness{refuse: protocol.CodeUnavailable, status: 503}
				}
				return unkindness{}
			}
		})
		w.c.forget("nobody") // ends the call that waits; from now on they fail
		w.pass(10 * time.Second)
		before := w.c.calls(protocol.PathReport)
		w.c.change(func() { w.c.unkind = nil })
		w.pass(20 * time.Second)
		if n := w.c.calls(protocol.PathReport) - before; n != 1 {
			t.Errorf("%d reports after the outage, want 1", n)
		}
	})
}

func TestNoLogShowsASecret(t *testing.T) {
	var log lockedBuffer
	inWorld(t, func(w *world) {
		w.cfg.Log = slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		n := 0
		w.c.unkind = func(path string) unkindness {
			if n++; strings.HasSuffix(path, "/mint") && n%2 == 0 {
				return unkindness{replace: "jit-as-a-string-and-not-an-object"}
			}
			return unkindness{}
		}
	}, func(w *world) {
		m := toPhase(guest.PhaseBusy)(w)
		m.finish(guest.OutcomeCrashed, "")
		w.c.awaitObserved("r1", "gone")
		credential, err := os.ReadFile(filepath.Join(w.cfg.StateDir, "credential"))
		if err != nil {
			t.Fatal(err)
		}
		for what, text := range map[string]string{
			"JIT config": "jit-", "credential": strings.TrimSpace(string(credential)), "enrolment token": w.cfg.EnrolmentToken.Reveal(),
		} {
			if strings.Contains(log.String(), text) {
				t.Errorf("the log shows the %s", what)
			}
		}
		if !strings.Contains(log.String(), "runner moves") {
			t.Error("nothing was logged at all")
		}
	})
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
