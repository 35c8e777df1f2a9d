// SPDX-License-Identifier: MIT

package agent_test

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/hosts/protocol"
)

// pin returns a wish for a runner whose pool pins an archive that lies on the host.
func pin(t *testing.T, id, content string) protocol.Desire {
	t.Helper()
	path := filepath.Join(t.TempDir(), "runner.tar.gz")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(content))
	return protocol.Desire{ID: id, Wanted: protocol.WantUp, Runner: protocol.RunnerArchive{URL: "file://" + path, SHA256: hex.EncodeToString(sum[:])}}
}

func (m *machine) installed() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.installs)
}

func TestThePinnedRunnerIsInTheGuestBeforeItIsAStandby(t *testing.T) {
	t.Parallel()
	inWorld(t, nil, func(w *world) {
		d := pin(t, "r-1", "a runner")
		gate := make(chan struct{})
		w.m.change(func() { w.m.setup = func(m *machine) { m.installGate = gate } })
		w.c.want(d)
		w.c.await("the step shown", func() bool { return strings.Contains(w.c.runner("r-1").Progress, "pool's runner into the guest") })
		w.pass(2 * time.Second)
		if got := w.c.newest("r-1"); got.Observed != "booting" {
			t.Errorf("reported %+v before it has its runner", got)
		}
		close(gate)
		got := w.c.awaitObserved("r-1", "standby")
		if got.Progress != "" || got.Took.Install != 2e6 {
			t.Errorf("%+v", got)
		}
		m := w.m.get(t, "r-1")
		once := []string{d.Runner.SHA256 + " a runner"}
		if got := m.installed(); !slices.Equal(got, once) {
			t.Errorf("the guest got %q", got)
		}
		// Neither a restart of the agent nor its arming gives it the runner again.
		w.halt()
		w.m.change(func() { w.m.found = []agent.Found{{ID: "r-1", Pool: "pool", Running: true, Machine: m}} })
		w.start()
		d.Wanted, d.Scope = protocol.WantArmed, "acme"
		w.c.want(d)
		m.awaitGiven(t)
		if got := m.installed(); !slices.Equal(got, once) {
			t.Errorf("the guest got %q in the end", got)
		}
	})
}

func TestAnImagesOwnRunnerIsLeftAlone(t *testing.T) {
	t.Parallel()
	inWorld(t, nil, func(w *world) {
		w.c.want(protocol.Desire{ID: "r-1", Wanted: protocol.WantUp})
		w.c.awaitObserved("r-1", "standby")
		if got := w.m.get(t, "r-1").installed(); len(got) != 0 {
			t.Errorf("the guest got %q", got)
		}
	})
}

func TestAPinnedRunnerThatCannotBeHad(t *testing.T) {
	t.Parallel()
	inWorld(t, nil, func(w *world) {
		d := pin(t, "r-1", "a runner")
		d.Runner.SHA256 = strings.Repeat("0", 64)
		w.c.want(d)
		got := w.c.awaitObserved("r-1", "gone")
		if !strings.Contains(got.Failure, "the runner that pool pool pins") || !strings.Contains(got.Failure, "SHA-256 is another") {
			t.Errorf("failure %q", got.Failure)
		}
		if w.m.made() != 0 {
			t.Error("a VM was made for it")
		}
	})
}

func TestAPinnedRunnerThatTheGuestRefuses(t *testing.T) {
	t.Parallel()
	inWorld(t, nil, func(w *world) {
		w.m.change(func() {
			w.m.setup = func(m *machine) { m.installErr = &guest.ResponseError{Code: 500, Message: "no room"} }
		})
		w.c.want(pin(t, "r-1", "a runner"))
		got := w.c.awaitObserved("r-1", "gone")
		if !strings.Contains(got.Failure, "put the pool's runner into the guest: ") || !strings.Contains(got.Failure, "no room") {
			t.Errorf("failure %q", got.Failure)
		}
		if !w.m.get(t, "r-1").isRemoved() || w.m.get(t, "r-1").runs() || slices.Contains(w.c.history("r-1"), "standby") {
			t.Errorf("history %v", w.c.history("r-1"))
		}
	})
}

// A runner that is wanted no more while its guest is made ready goes at once.
func TestMakingReadyIsCalledOff(t *testing.T) {
	t.Parallel()
	inWorld(t, nil, func(w *world) {
		gate := make(chan struct{}) // never opened
		w.m.change(func() { w.m.setup = func(m *machine) { m.installGate = gate } })
		d := pin(t, "r-1", "a runner")
		w.c.want(d)
		w.c.await("the step shown", func() bool { return w.c.runner("r-1").Progress != "" })
		d.Wanted = protocol.WantGone
		w.c.want(d)
		if got := w.c.awaitObserved("r-1", "gone"); got.Failure != "" {
			t.Errorf("failure %q", got.Failure)
		}
	})
}

func TestTheSessionIsWaitedFor(t *testing.T) {
	t.Parallel()
	inWorld(t, nil, func(w *world) {
		w.m.change(func() { w.m.setup = func(m *machine) { m.sessionAfter = 6 } })
		w.c.want(protocol.Desire{ID: "r-1", Wanted: protocol.WantUp})
		w.c.await("the wait shown", func() bool { return strings.Contains(w.c.runner("r-1").Progress, "session") })
		if got := w.c.awaitObserved("r-1", "standby"); got.Took.Session != 3e6 || got.Progress != "" {
			t.Errorf("%+v", got)
		}
	})
}

func TestASessionThatNeverComes(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		w.cfg.BootTimeout = time.Minute
		w.m.setup = func(m *machine) { m.sessionAfter = 1 << 30 }
	}, func(w *world) {
		w.c.want(protocol.Desire{ID: "r-1", Wanted: protocol.WantUp})
		if got := w.c.awaitObserved("r-1", "gone"); !strings.Contains(got.Failure, "log its user in") {
			t.Errorf("failure %q", got.Failure)
		}
	})
}
