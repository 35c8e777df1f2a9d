// SPDX-License-Identifier: MIT

package vm_test

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/vm"
	"github.com/minifleet/minifleet/vm/vmtest"
)

func TestLife(t *testing.T) {
	t.Parallel()
	vms := newVMs(t)
	spec := newSpec("life-1")
	spec.Annotations = map[string]string{"runner": "r-7"}
	dir := create(t, vms, spec)
	m := start(t, dir)
	wantLocked(t, dir, true)
	s := awaitGuest(t, m)
	if s.Phase != vm.PhaseRunning || s.Isolation != vm.IsolationNone || s.Backend != vm.BackendProcess || s.ID != "life-1" {
		t.Errorf("state %+v", s)
	}
	if s.StartedAt.IsZero() || s.RunningAt.Before(s.StartedAt) || s.GuestReadyAt.Before(s.RunningAt) {
		t.Errorf("times are missing or out of order: %+v", s)
	}
	if reason, detail := m.Final(); reason != "" || detail != "" {
		t.Errorf("Final before the end: %q, %q", reason, detail)
	}
	guest := identify(t, facts(t, m).PID)
	vmm := m.VMM()
	if err := m.Stop(within(t)); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.Done():
	default:
		t.Error("Stop returned before Done")
	}
	wantDead(t, "the guest", guest)
	wantDead(t, "the vmm", vmm)
	wantLocked(t, dir, false)
	if reason, detail := m.Final(); reason != vm.ReasonStopped || detail == "" {
		t.Errorf("final: %q, %q", reason, detail)
	}
	if s, err := m.State(t.Context(), 0, 0); err != nil || s.Phase != vm.PhaseFinal || s.Reason != vm.ReasonStopped {
		t.Errorf("state after the end: %+v, %v", s, err)
	}
	if err := m.Stop(t.Context()); err != nil {
		t.Errorf("stop again: %v", err)
	}
	var phases []vm.Phase
	states, err := vm.ReadStatus(dir)
	for _, s := range states {
		phases = append(phases, s.Phase)
	}
	want := []vm.Phase{vm.PhaseStarting, vm.PhaseRunning, vm.PhaseRunning, vm.PhaseStopping, vm.PhaseFinal}
	if diff := cmp.Diff(want, phases); diff != "" || err != nil {
		t.Errorf("phases: %v\n%s", err, diff)
	}
	if err := vm.Remove(within(t), dir); err != nil {
		t.Fatal(err)
	}
	if left := names(t, vms); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// TestSecretsStayOut checks what the vmm and the guest get of the agent's environment,
// and that the guest has what it needs.
func TestSecretsStayOut(t *testing.T) {
	t.Setenv("AGENT_TOKEN", "do-not-pass-on")
	vms := newVMs(t)
	spec := newSpec("env-1", "--extra")
	spec.Process.Env = map[string]string{"GIVEN": "yes"}
	m := start(t, create(t, vms, spec))
	awaitGuest(t, m)
	f := facts(t, m)
	root := filepath.Join(m.Dir(), vm.DirRoot)
	if f.Dir != root {
		t.Errorf("the guest runs in %s, want %s", f.Dir, root)
	}
	for _, want := range []string{"GIVEN=yes", "HOME=" + root, "TMPDIR=" + root + "/tmp"} {
		if !slices.Contains(f.Environment, want) {
			t.Errorf("the guest has no %s: %v", want, f.Environment)
		}
	}
	if !slices.Contains(f.Args, "--exit-with-stdin") || !slices.Contains(f.Args, "--extra") {
		t.Errorf("the guest's arguments: %v", f.Args)
	}
	for name, pid := range map[string]int{"vmm": m.VMM().PID, "guest": f.PID} {
		env, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
		if err != nil {
			t.Skip("no /proc here: ", err)
		}
		if strings.Contains(string(env), "do-not-pass-on") {
			t.Errorf("the %s has the agent's secret", name)
		}
	}
	for _, name := range []string{vm.FileVMMSocket, vm.FileGuestSocket, vm.FileSpec, vm.FileStatus, vm.FileVMMLog} {
		if info, err := os.Stat(filepath.Join(m.Dir(), name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want 0600", name, info.Mode(), err)
		}
	}
	if info, err := os.Stat(m.Dir()); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("bundle: %v, %v; want 0700", info.Mode(), err)
	}
	log, err := os.ReadFile(filepath.Join(m.Dir(), vm.FileVMMLog))
	if err != nil || !strings.Contains(string(log), "NO ISOLATION") {
		t.Errorf("the vmm's log does not warn: %v\n%s", err, log)
	}
}

func TestStateWaits(t *testing.T) {
	t.Parallel()
	m := start(t, create(t, newVMs(t), newSpec("state-1")))
	s := awaitGuest(t, m)
	for name, after := range map[string]int64{"lower": s.Revision - 1, "higher": s.Revision + 1000} {
		got, err := m.State(within(t), after, patience)
		if err != nil || got.Revision != s.Revision {
			t.Errorf("a %s revision: %+v, %v; want an answer at once", name, got, err)
		}
	}
	if got, err := m.State(within(t), s.Revision, time.Millisecond); err != nil || got.Revision != s.Revision {
		t.Errorf("after the wait: %+v, %v; want the same state", got, err)
	}
	cause := errors.New("the test's cause")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(5*time.Millisecond, func() { cancel(cause) })
	if _, err := m.State(ctx, s.Revision, patience); !errors.Is(err, cause) {
		t.Errorf("a cancelled query: %v", err)
	}
	changed := make(chan vm.State)
	go func() {
		got, err := m.State(context.Background(), s.Revision, patience)
		if err != nil {
			t.Error(err)
		}
		changed <- got
	}()
	c, err := m.DialGuest(within(t))
	if err != nil {
		t.Fatal(err)
	}
	vmtest.Call(within(t), c, "POST", "/exit?code=3", "") // the guest ends instead of answering
	if got := <-changed; got.Revision <= s.Revision {
		t.Errorf("a query that waited got %+v", got)
	}
	awaitDone(t, m)
	if reason, detail := m.Final(); reason != vm.ReasonGuestEnded || !strings.Contains(detail, "exit status 3") {
		t.Errorf("final: %q, %q", reason, detail)
	}
}

func TestAdoptAfterTheAgentDied(t *testing.T) {
	t.Parallel()
	vms := newVMs(t)
	spec := newSpec("adopt-1")
	spec.Annotations = map[string]string{"runner": "r-7"}
	dir := create(t, vms, spec)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	agent := exec.CommandContext(t.Context(), self, "start-and-die", dir, vmmProgram)
	out, err := agent.CombinedOutput()
	if state, ok := errors.AsType[*exec.ExitError](err); !ok || state.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the agent was to be killed: %v\n%s", err, out)
	}
	found, err := vm.Scan(within(t), vms)
	if err != nil || len(found) != 1 || found[0].Condition != vm.Running || found[0].Spec.Annotations["runner"] != "r-7" {
		t.Fatalf("scan: %+v, %v", found, err)
	}
	m, err := vm.Adopt(within(t), dir)
	if err != nil {
		t.Fatal(err)
	}
	own(t, m)
	if diff := cmp.Diff(spec, m.Spec()); diff != "" {
		t.Error(diff)
	}
	awaitGuest(t, m)
	guest := identify(t, facts(t, m).PID)
	if err := m.Stop(within(t)); err != nil {
		t.Fatal(err)
	}
	wantDead(t, "the guest", guest)
	if reason, _ := m.Final(); reason != vm.ReasonStopped {
		t.Errorf("reason %q", reason)
	}
}

// TestAdoptAfterTheAgentDiedDuringTheStart has the agent die before the vmm can tell it
// that it is ready. The machine boots all the same.
func TestAdoptAfterTheAgentDiedDuringTheStart(t *testing.T) {
	t.Parallel()
	dir := create(t, newVMs(t), newSpec("adopt-2"))
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	vmm := exec.CommandContext(t.Context(), vmmProgram, "run", "--bundle", dir, "--ready-fd", "3")
	vmm.ExtraFiles = []*os.File{w}
	err = vmm.Start()
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- vmm.Wait() }()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	var m *vm.Machine
	for ctx := within(t); m == nil; {
		select {
		case <-tick.C:
		case err := <-ended:
			t.Fatalf("the vmm ended: %v", err)
		case <-ctx.Done():
			t.Fatal("there is no machine to adopt")
		}
		if m, err = vm.Adopt(ctx, dir); err != nil && !errors.Is(err, vm.ErrNotRunning) {
			t.Fatal(err)
		}
	}
	own(t, m)
	awaitGuest(t, m)
	if err := m.Stop(within(t)); err != nil {
		t.Fatal(err)
	}
	<-ended // without its status, if the machine took that
	if reason, detail := m.Final(); reason != vm.ReasonStopped {
		t.Errorf("final: %q, %q", reason, detail)
	}
}

// TestDetachAndAdopt has one process let go of its own machine and take it up again; in
// the end no zombie of it may be left, which TestMain checks.
func TestDetachAndAdopt(t *testing.T) {
	t.Parallel()
	dir := create(t, newVMs(t), newSpec("detach-1"))
	m, err := vm.Start(within(t), dir, vmmProgram)
	if err != nil {
		t.Fatal(err)
	}
	m.Detach()
	select {
	case <-m.Done():
		t.Fatal("Done after Detach")
	default:
	}
	again, err := vm.Adopt(within(t), dir)
	if err != nil {
		t.Fatal(err)
	}
	own(t, again)
	awaitGuest(t, again)
}

func TestAdoptWhatDoesNotRun(t *testing.T) {
	t.Parallel()
	dir := create(t, newVMs(t), newSpec("adopt-2"))
	if _, err := vm.Adopt(within(t), dir); !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("adopt: %v", err)
	}
}

func TestSignalEndsTheMachine(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{"guest ready": nil, "guest silent": {"--deaf"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := start(t, create(t, newVMs(t), newSpec("term-1", args...)))
			await(t, m, "running", func(s vm.State) bool { return s.Phase == vm.PhaseRunning })
			signalTo(t, m.VMM(), syscall.SIGTERM)
			awaitDone(t, m)
			if reason, detail := m.Final(); reason != vm.ReasonStopped || !strings.Contains(detail, "signal") {
				t.Errorf("final: %q, %q", reason, detail)
			}
		})
	}
}

func TestStopWhileItBoots(t *testing.T) {
	t.Parallel()
	spec := newSpec("boot-1")
	spec.Process.BootDelay = time.Hour
	m := start(t, create(t, newVMs(t), spec))
	ctx := within(t)
	stream, err := m.DialGuest(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if err := m.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Read(make([]byte, 1)); err == nil {
		t.Error("the stream lives on")
	}
	if reason, _ := m.Final(); reason != vm.ReasonStopped {
		t.Errorf("reason %q", reason)
	}
}

func TestStreamWaitsForTheGuest(t *testing.T) {
	t.Parallel()
	spec := newSpec("boot-2")
	spec.Process.BootDelay = 100 * time.Millisecond
	m := start(t, create(t, newVMs(t), spec))
	if f := facts(t, m); f.PID == 0 {
		t.Error("no facts")
	}
}

func TestMaximumLife(t *testing.T) {
	t.Parallel()
	spec := newSpec("max-1")
	spec.MaxLife = 200 * time.Millisecond
	m := start(t, create(t, newVMs(t), spec))
	awaitDone(t, m)
	if reason, detail := m.Final(); reason != vm.ReasonMaxLife || !strings.Contains(detail, "200ms") {
		t.Errorf("final: %q, %q", reason, detail)
	}
}

func TestBadConfigurationIsTold(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		change func(*vm.Spec)
		want   string
	}{
		"no such runner folder": {func(s *vm.Spec) { s.Process.RunnerDir = "no/where" }, "no/where"},
		"no such guest program": {func(s *vm.Spec) { s.Process.GuestProgram = "/no/guest" }, "/no/guest"},
		"guest is a folder":     {func(s *vm.Spec) { s.Process.GuestProgram = "/tmp" }, "executable"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			spec := newSpec("bad-1")
			tt.change(&spec)
			m := start(t, create(t, newVMs(t), spec))
			awaitDone(t, m)
			if reason, detail := m.Final(); reason != vm.ReasonBadConfiguration || !strings.Contains(detail, tt.want) {
				t.Errorf("final: %q, %q", reason, detail)
			}
		})
	}
}

func TestOptionsThatTheBackendRefuses(t *testing.T) {
	t.Parallel()
	spec := newSpec("bad-2")
	spec.Backend, spec.Process = vm.BackendQEMU, nil
	m := start(t, create(t, newVMs(t), spec))
	awaitDone(t, m)
	if reason, detail := m.Final(); reason != vm.ReasonBadConfiguration || detail == "" {
		t.Errorf("final: %q, %q", reason, detail)
	}
}

func TestStartFails(t *testing.T) {
	t.Parallel()
	script := func(t *testing.T, text string) string {
		path := filepath.Join(t.TempDir(), "vmm")
		// A child that another test forks meanwhile would have the file open for writing until
		// its exec, and nobody could run it.
		syscall.ForkLock.RLock()
		defer syscall.ForkLock.RUnlock()
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, tt := range map[string]struct {
		program func(*testing.T) string
		want    string
	}{
		"relative path":   {func(*testing.T) string { return "minifleet-vmm" }, "absolute"},
		"no such program": {func(*testing.T) string { return "/no/minifleet-vmm" }, "/no/minifleet-vmm"},
		"ends at once":    {func(t *testing.T) string { return script(t, "echo the disk is on fire >&2; exit 3") }, "exit status 3; its log ends with: the disk is on fire"},
		"ends silently":   {func(t *testing.T) string { return script(t, "exit 3") }, "exit status 3"},
		"never ready":     {func(t *testing.T) string { return script(t, "exec sleep 100000") }, "not ready in time"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := create(t, newVMs(t), newSpec("start-1"))
			ctx := within(t)
			if name == "never ready" {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, 100*time.Millisecond)
				defer cancel()
			}
			_, err := vm.Start(ctx, dir, tt.program(t))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("start: %v; want it to say %q", err, tt.want)
			}
			wantLocked(t, dir, false)
		})
	}
}

func TestTalkativeGuest(t *testing.T) {
	t.Parallel()
	m := start(t, create(t, newVMs(t), newSpec("talk-1", "--talkative")))
	awaitGuest(t, m)
	console := filepath.Join(m.Dir(), vm.FileConsole)
	ctx := within(t)
	for {
		b, err := os.ReadFile(console)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b[max(0, len(b)-200):]), "limit is reached") {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("the console has %d bytes and no limit", len(b))
		}
		facts(t, m) // the guest goes on answering meanwhile
	}
	before, err := os.Stat(console)
	if err != nil {
		t.Fatal(err)
	}
	facts(t, m)
	if err := m.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(console); err != nil || after.Size() != before.Size() {
		t.Errorf("the console grew beyond its limit: %v, %v", after.Size(), err)
	}
}

func TestStreamPassesHalfCloses(t *testing.T) {
	t.Parallel()
	m := start(t, create(t, newVMs(t), newSpec("half-1")))
	c, err := m.DialGuest(within(t))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// A request whose end is the end of the sender's direction.
	if _, err := io.WriteString(c, "POST /echo HTTP/1.1\r\nHost: g\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello"); err != nil {
		t.Fatal(err)
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil || !strings.HasSuffix(string(b), "hello") {
		t.Errorf("answer %q, %v", b, err)
	}
}
