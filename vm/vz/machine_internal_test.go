// SPDX-License-Identifier: MIT

package vz

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/minifleet/minifleet/vm"
)

// opened is a machine under test and its simulated framework.
type opened struct {
	vm.Instance
	sim     *simulated
	ctx     context.Context //nolint:containedctx // a test's own
	endings chan vm.Ending
}

func openSimulated(t *testing.T, with func(*simulated)) *opened {
	t.Helper()
	mac := newSimulatedMac()
	mac.with = with
	o, err := tryOpen(t, mac, newBundle(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	o.sim = <-mac.made
	return o
}

func tryOpen(t *testing.T, mac *simulatedMac, dir string) (*opened, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	o := &opened{ctx: ctx, endings: make(chan vm.Ending, 10)}
	spec, err := vm.ReadSpec(dir)
	if err != nil {
		t.Fatal(err)
	}
	o.Instance, err = newBackend(Config{}, mac).Open(ctx, vm.OpenConfig{
		Dir: dir, Spec: spec, Log: slog.New(slog.DiscardHandler),
		Ended: func(e vm.Ending) { o.endings <- e },
	})
	if err == nil {
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if err := o.Stop(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	return o, err
}

func TestHypervisorCrashIsTold(t *testing.T) {
	o := openSimulated(t, nil)
	if err := o.Start(o.ctx); err != nil {
		t.Fatal(err)
	}
	c, err := o.Connect(o.ctx)
	if err != nil {
		t.Fatal(err)
	}
	o.sim.end(stateError)
	if e := <-o.endings; e.Reason != vm.ReasonHypervisorCrashed || e.Detail == "" {
		t.Errorf("told %+v", e)
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("a stream outlives the machine: %d, %v", n, err)
	}
	if _, err := o.Connect(o.ctx); !errors.Is(err, errEnded) {
		t.Errorf("connect: %v", err)
	}
}

// TestOneRefusalOneReason has the framework refuse each step.
func TestOneRefusalOneReason(t *testing.T) {
	refuse := func(call string, code int, text string) func(*simulated) {
		return func(s *simulated) { s.fail[call] = &nsError{Domain: vzDomain, Code: code, Text: text} }
	}
	start := func(o *opened, _ string) error { return o.Start(o.ctx) }
	restore := func(o *opened, dir string) error {
		os.WriteFile(filepath.Join(dir, fileState), []byte("saved"), 0o600)
		return o.Restore(o.ctx, dir)
	}
	for name, tt := range map[string]struct {
		with func(*simulated)
		do   func(*opened, string) error
		want vm.Reason
	}{
		"a third machine":     {refuse("start", codeLimitExceeded, "The number of virtual machines exceeds the limit."), start, vm.ReasonTwoVMLimit},
		"security error":      {refuse("start", codeSecurity, ""), start, vm.ReasonKeychainLocked},
		"state refused":       {refuse("restore", codeRestore, "invalid argument"), restore, vm.ReasonRestoreFailed},
		"locked host":         {refuse("restore", codeRestore, "Permission denied"), restore, vm.ReasonKeychainLocked},
		"not to be saved":     {func(s *simulated) { s.savesUpTo = errTest }, restore, vm.ReasonRestoreFailed},
		"no state":            {nil, func(o *opened, dir string) error { return o.Restore(o.ctx, dir) }, vm.ReasonRestoreFailed},
		"start fails somehow": {refuse("start", 3, ""), start, vm.ReasonBackendFailed},
	} {
		t.Run(name, func(t *testing.T) {
			o := openSimulated(t, tt.with)
			err := tt.do(o, t.TempDir())
			if got := vm.ReasonOf(err, "none"); got != tt.want {
				t.Errorf("reason %q, want %q (%v)", got, tt.want, err)
			}
			if !o.sim.state().over() {
				t.Errorf("the machine is in state %d", o.sim.state())
			}
		})
	}
}

// TestColdBootAfterARefusedState: the Stopped of the failed restore is read while the
// machine boots, and must not end it.
func TestColdBootAfterARefusedState(t *testing.T) {
	o := openSimulated(t, nil)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, fileState), []byte("of another host"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := o.Restore(o.ctx, dir); err == nil {
		t.Fatal("restored what is no state")
	}
	delete(o.sim.fail, "restore")
	if err := o.Start(o.ctx); err != nil {
		t.Fatal(err)
	}
	o.sim.mu.Lock()
	o.sim.changes <- stateStopped // the old news
	o.sim.mu.Unlock()
	c, err := o.Connect(o.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := say(o.ctx, c, "ask"); err != nil {
		t.Error(err)
	}
	c.Close()
	select {
	case e := <-o.endings:
		t.Errorf("the end was told: %+v", e)
	default:
	}
}

// TestStartGivenUpIsUndone: the framework's start returns after its caller has left.
func TestStartGivenUpIsUndone(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	gate := make(chan struct{})
	cause := &spoken{gate: gate} // as Start does when it has given up
	o := openSimulated(t, func(s *simulated) {
		s.block["start"], s.meets["start"] = gate, func() { cancel(cause) }
	})
	if err := o.Start(ctx); !errors.Is(err, cause) {
		t.Errorf("start: %v", err)
	}
	o.sim.mu.Lock()
	calls, now := o.sim.calls, o.sim.now
	o.sim.mu.Unlock()
	if !slices.Equal(calls, []string{"start", "stop"}) || !now.over() {
		t.Errorf("when Start had returned, the framework had been told %v and was in state %d", calls, now)
	}
	if err := o.Stop(o.ctx); err != nil {
		t.Error(err)
	}
	if len(o.endings) != 0 {
		t.Error("the end of a machine that never started was told")
	}
}

// spoken is an error that opens a gate when somebody reports it.
type spoken struct {
	once sync.Once
	gate chan struct{}
}

func (s *spoken) Error() string {
	s.once.Do(func() { close(s.gate) })
	return "the test's cause"
}

// TestStopWaitsForACallThatHangs: two calls into the framework are never made at once.
func TestStopWaitsForACallThatHangs(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	gate := make(chan struct{})
	o := openSimulated(t, func(s *simulated) { s.block["pause"], s.meets["pause"] = gate, cancel })
	if err := o.Start(o.ctx); err != nil {
		t.Fatal(err)
	}
	if err := o.Pause(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("pause: %v", err)
	}
	short, cancelShort := context.WithTimeout(o.ctx, 100*time.Millisecond)
	defer cancelShort()
	if err := o.Stop(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("stop: %v", err)
	}
	close(gate)
	if err := o.Stop(o.ctx); err != nil {
		t.Error(err)
	}
	if len(o.endings) != 1 {
		t.Errorf("the end was told %d times", len(o.endings))
	}
}

func TestFailedSaveLeavesNothing(t *testing.T) {
	for name, with := range map[string]func(*simulated){
		"refused":         func(s *simulated) { s.fail["save"] = &nsError{Domain: vzDomain, Code: codeSave} },
		"not to be saved": func(s *simulated) { s.savesUpTo = errTest },
	} {
		t.Run(name, func(t *testing.T) {
			o, dir := openSimulated(t, with), t.TempDir()
			if err := errors.Join(o.Start(o.ctx), o.Pause(o.ctx)); err != nil {
				t.Fatal(err)
			}
			if err := o.Save(o.ctx, dir); err == nil {
				t.Error("saved")
			}
			if left, _ := fs.Glob(os.DirFS(dir), "*"); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
			if err := o.Start(o.ctx); err != nil {
				t.Errorf("the machine does not go on: %v", err)
			}
		})
	}
}

// TestAbandonedSaveLeavesNothing: the framework writes the file when nobody waits any more.
func TestAbandonedSaveLeavesNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	gate := make(chan struct{})
	o, dir := openSimulated(t, func(s *simulated) { s.block["save"], s.meets["save"] = gate, cancel }), t.TempDir()
	if err := errors.Join(o.Start(o.ctx), o.Pause(o.ctx)); err != nil {
		t.Fatal(err)
	}
	if err := o.Save(ctx, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("save: %v", err)
	}
	close(gate)
	if err := o.Stop(o.ctx); err != nil { // waits for the call
		t.Fatal(err)
	}
	if left, _ := fs.Glob(os.DirFS(dir), "*"); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// TestOneConnectionForAllStreams: each connection to the guest has its price.
func TestOneConnectionForAllStreams(t *testing.T) {
	o := openSimulated(t, nil)
	if err := o.Start(o.ctx); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		c, err := o.Connect(o.ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := say(o.ctx, c, "ask"); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	o.sim.mu.Lock()
	defer o.sim.mu.Unlock()
	if len(o.sim.streams) != 1 {
		t.Errorf("%d connections were made", len(o.sim.streams))
	}
}

func TestOpenRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*simulatedMac)
		want   vm.Reason
	}{
		"not signed":          {func(m *simulatedMac) { m.is.entitlement = false }, vm.ReasonNoEntitlement},
		"inside a machine":    {func(m *simulatedMac) { m.is.hypervisor = false }, vm.ReasonBadConfiguration},
		"old macOS":           {func(m *simulatedMac) { m.is.version = Version{11, 7, 0} }, vm.ReasonBadConfiguration},
		"no framework":        {func(m *simulatedMac) { m.err = errTest }, vm.ReasonBadConfiguration},
		"refused by Validate": {func(m *simulatedMac) { m.with = func(s *simulated) { s.fail["open"] = errTest } }, vm.ReasonBadConfiguration},
		"no keychain": {func(m *simulatedMac) {
			m.with = func(s *simulated) { s.fail["open"] = &nsError{Domain: vzDomain, Code: codeSecurity} }
		}, vm.ReasonKeychainLocked},
	} {
		t.Run(name, func(t *testing.T) {
			mac := newSimulatedMac()
			tt.change(mac)
			_, err := tryOpen(t, mac, newBundle(t, nil))
			if got := vm.ReasonOf(err, "none"); got != tt.want {
				t.Errorf("reason %q, want %q (%v)", got, tt.want, err)
			}
		})
	}
}
