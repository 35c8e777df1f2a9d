// SPDX-License-Identifier: MIT

//go:build linux

package qemu_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/internal/freeze"
	"github.com/minifleet/minifleet/vm"
	"github.com/minifleet/minifleet/vm/options"
	"github.com/minifleet/minifleet/vm/qemu"
	"github.com/minifleet/minifleet/vm/vmtest"
)

// machine is one opened machine under test.
type machine struct {
	vm.Instance
	t     *testing.T
	ctx   context.Context //nolint:containedctx // a test's own
	dir   string
	lock  *vm.Lock
	ended chan vm.Ending
	halts chan struct{} // closed when the backend says so

	mu     sync.Mutex // guards what follows
	told   vm.Facts
	writer int
}

func open(t *testing.T, dir string) *machine {
	t.Helper()
	return openWith(t, dir, backend(t))
}

func openWith(t *testing.T, dir string, b vm.Backend) *machine {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	spec, err := vm.ReadSpec(dir)
	if err != nil {
		t.Fatal(err)
	}
	lock, err := vm.AcquireLock(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, ctx: ctx, dir: dir, lock: lock, ended: make(chan vm.Ending, 2), halts: make(chan struct{})}
	m.Instance, err = b.Open(ctx, vm.OpenConfig{
		Dir: dir, Spec: spec, Lock: lock.File(), Log: slog.New(slog.NewTextHandler(io.MultiWriter(t.Output(), &said{what: []byte(tellsHalt), then: m.halts}), nil)),
		RecordWriter: func(pid int) error {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.writer = pid
			id, err := vm.IdentifyProcess(pid)
			if err != nil {
				return err
			}
			return vm.WriteIdentity(dir, vm.FileWriter, id)
		},
		Publish: func(f vm.Facts) {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.told = f
		},
		Ended: func(e vm.Ending) { m.ended <- e },
	})
	if err != nil {
		lock.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := m.Stop(ctx); err != nil {
			t.Error(err)
		}
		lock.Close()
	})
	return m
}

// said closes a channel at the first line of a log that has the words.
type said struct {
	what []byte
	then chan struct{}
	once sync.Once
}

func (s *said) Write(line []byte) (int, error) {
	if bytes.Contains(line, s.what) {
		s.once.Do(func() { close(s.then) })
	}
	return len(line), nil
}

func start(t *testing.T, dir string) *machine {
	t.Helper()
	return startWith(t, dir, backend(t))
}

func startWith(t *testing.T, dir string, b vm.Backend) *machine {
	t.Helper()
	m := openWith(t, dir, b)
	if err := m.Start(m.ctx); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *machine) facts() vm.Facts {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.told
}

func (m *machine) pid() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.writer
}

// call makes one request of the guest.
func (m *machine) call(method, path, body string) string {
	m.t.Helper()
	text, err := m.try(method, path, body)
	if err != nil {
		m.t.Errorf("%s %s: %v", method, path, err)
	}
	return text
}

func (m *machine) try(method, path, body string) (string, error) {
	c, err := m.Connect(m.ctx)
	if err != nil {
		return "", err
	}
	return vmtest.Call(m.ctx, c, method, path, body)
}

func (m *machine) awaitEnd() vm.Ending {
	m.t.Helper()
	select {
	case e := <-m.ended:
		return e
	case <-m.ctx.Done():
		m.t.Fatal("the end was not told")
		return vm.Ending{}
	}
}

func TestReasons(t *testing.T) {
	testImage(t)
	for name, tt := range map[string]struct {
		end    func(m *machine)
		reason vm.Reason
		detail string
	}{
		"power off":   {func(m *machine) { m.try("POST", "/off", "") }, vm.ReasonGuestEnded, "shut down"},
		"restart":     {func(m *machine) { m.try("POST", "/restart", "") }, vm.ReasonGuestEnded, "restarted"},
		"panic":       {func(m *machine) { m.try("POST", "/panic", "") }, vm.ReasonGuestEnded, "panicked"},
		"QEMU killed": {func(m *machine) { unix.Kill(m.pid(), unix.SIGKILL) }, vm.ReasonHypervisorCrashed, "signal: killed"},
		"QEMU aborts": {func(m *machine) { unix.Kill(m.pid(), unix.SIGABRT) }, vm.ReasonHypervisorCrashed, "signal: aborted"},
		"QEMU told":   {func(m *machine) { unix.Kill(m.pid(), unix.SIGTERM) }, vm.ReasonHypervisorCrashed, "host-signal"},
	} {
		t.Run(name, func(t *testing.T) {
			m := start(t, bundle(t, nil))
			m.call("GET", "/v1/health", "")
			tt.end(m)
			if e := m.awaitEnd(); e.Reason != tt.reason || !strings.Contains(e.Detail, tt.detail) {
				t.Errorf("told %+v, want %s with %q", e, tt.reason, tt.detail)
			}
			if _, err := m.Connect(m.ctx); err == nil || m.ctx.Err() != nil {
				t.Errorf("a stream to a machine that ended: %v", err)
			}
		})
	}
}

// TestHangingQEMU: a QEMU that answers nothing is ended all the same, and soon.
func TestHangingQEMU(t *testing.T) {
	m := start(t, bundle(t, nil))
	m.call("GET", "/v1/health", "")
	if err := freeze.Process(m.pid()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeoutCause(m.ctx, 100*time.Millisecond, errors.New("the test's cause"))
	defer cancel()
	if err := m.Pause(ctx); err == nil || !strings.Contains(err.Error(), "the test's cause") {
		t.Errorf("pause: %v", err)
	}
	ctx, cancel = context.WithTimeout(m.ctx, time.Minute)
	defer cancel()
	if err := m.Stop(ctx); err != nil {
		t.Errorf("stop: %v", err)
	}
	m.awaitEnd()
}

// TestWriterOfADeadVMM: QEMU holds the lock as long as it lives, and EndWriter ends it.
func TestWriterOfADeadVMM(t *testing.T) {
	m := start(t, bundle(t, nil))
	m.call("GET", "/v1/health", "")
	m.lock.Close() // as the vmm's death does
	if locked, err := vm.IsLocked(m.dir); !locked || err != nil {
		t.Fatalf("QEMU does not hold the lock: %v, %v", locked, err)
	}
	if err := vm.EndWriter(m.ctx, m.dir); err != nil {
		t.Fatal(err)
	}
	if e := m.awaitEnd(); e.Reason != vm.ReasonHypervisorCrashed {
		t.Errorf("told %+v", e)
	}
	if locked, err := vm.IsLocked(m.dir); locked || err != nil {
		t.Errorf("the lock outlives QEMU: %v, %v", locked, err)
	}
}

// TestConsole: what the guest prints is kept.
func TestConsole(t *testing.T) {
	m := start(t, bundle(t, nil))
	m.call("POST", "/print", "a line of the guest's\n")
	if err := m.Stop(m.ctx); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(m.dir, vm.FileConsole))
	if err != nil || !strings.Contains(string(b), "a line of the guest's") {
		t.Errorf("console: %.1000q, %v", b, err)
	}
}

// TestReconnects: connections that end while the guest is busy spoil none that follow.
func TestReconnects(t *testing.T) {
	m := start(t, bundle(t, nil))
	for range 5 {
		ctx, cancel := context.WithCancel(m.ctx)
		c, err := m.Connect(ctx)
		if err != nil {
			t.Fatal(err)
		}
		c.Write([]byte(strings.Repeat("x", 100_000)))
		c.Close()
		cancel()
		m.call("GET", "/v1/health", "")
	}
}

// TestSavedMachineGoesOn: memory survives, twice from one state, and a state that is no
// state is refused with its reason and leaves a machine that boots.
func TestSavedMachineGoesOn(t *testing.T) {
	m := start(t, bundle(t, nil))
	if got := m.call("POST", "/count", ""); got != "1" {
		t.Fatalf("count %s", got)
	}
	if err := m.Pause(m.ctx); err != nil {
		t.Fatal(err)
	}
	state := t.TempDir()
	gone, cancel := context.WithCancel(m.ctx)
	cancel()
	if err := m.Save(gone, state); err == nil {
		t.Error("saved for nobody")
	}
	if left, _ := os.ReadDir(state); len(left) != 0 {
		t.Errorf("a save that failed leaves %v", left)
	}
	if err := m.Save(m.ctx, state); err != nil {
		t.Fatal(err)
	}
	one := twin(t, m.dir)
	if err := m.Start(m.ctx); err != nil {
		t.Fatal(err)
	}
	if got := m.call("POST", "/count", ""); got != "2" {
		t.Errorf("count %s after the save", got)
	}
	if err := m.Stop(m.ctx); err != nil {
		t.Fatal(err)
	}
	r := open(t, one)
	if err := r.Restore(r.ctx, state); err != nil {
		t.Fatal(err)
	}
	if err := r.Start(r.ctx); err != nil {
		t.Fatal(err)
	}
	if got := r.call("POST", "/count", ""); got != "2" {
		t.Errorf("count %s after the restore", got)
	}
	if err := r.Stop(r.ctx); err != nil {
		t.Fatal(err)
	}

	file := filepath.Join(state, "state.qemu")
	if err := os.Truncate(file, 1<<20); err != nil {
		t.Fatal(err)
	}
	cold := open(t, twin(t, one))
	if err := cold.Restore(cold.ctx, state); vm.ReasonOf(err, "") != vm.ReasonRestoreFailed {
		t.Errorf("half a state: %v", err)
	} else {
		t.Log(err)
	}
	if err := cold.Start(cold.ctx); err != nil {
		t.Fatal(err)
	}
	if got := cold.call("POST", "/count", ""); got != "1" {
		t.Errorf("count %s after a cold boot", got)
	}
}

func TestRefusedBundles(t *testing.T) {
	testImage(t)
	for name, tt := range map[string]struct {
		spoil func(dir string) error
		want  string
	}{
		"no disk":         {func(dir string) error { return os.Remove(filepath.Join(dir, options.FileDisk)) }, "lacks a file"},
		"kernel is empty": {func(dir string) error { return os.Truncate(filepath.Join(dir, options.FileKernel), 0) }, "is empty"},
		"no EFI variables": {func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, options.FileKernel)), os.WriteFile(filepath.Join(dir, options.FileNVRAM), []byte("x"), 0o600))
		}, "no variables of OVMF"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := bundle(t, nil)
			if err := tt.spoil(dir); err != nil {
				t.Fatal(err)
			}
			spec, err := vm.ReadSpec(dir)
			if err != nil {
				t.Fatal(err)
			}
			_, err = backend(t).Open(t.Context(), vm.OpenConfig{Dir: dir, Spec: spec, Log: slog.New(slog.DiscardHandler)})
			if vm.ReasonOf(err, "") != vm.ReasonBadConfiguration || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// TestRealGuest boots the image as it is, with the product's own guest program in it. Whoever
// waits for an answer of it when it dies learns that, and the next one is answered by the
// program that was started anew.
func TestRealGuest(t *testing.T) {
	m := start(t, create(t, testImage(t), options.QEMU{
		Identity: options.Identity{MAC: "02:00:00:00:00:08"}, Network: options.NetworkIsolated, Accelerator: "tcg",
	}))
	first := m.call("GET", "/v1/health", "")
	for range 2 { // the second time by a connection that is not the machine's first
		out, err := m.try("POST", "/v1/exec", `{"argv": ["sh", "-c", "kill -KILL $(pidof minifleet-guest); sleep 300"], "timeout_seconds": 600}`)
		if err == nil || m.ctx.Err() != nil {
			t.Fatalf("a guest program that died has answered, or is waited for: %q, %v", out, err)
		}
		next := m.call("GET", "/v1/health", "")
		if next == first {
			t.Errorf("%s answers after its death", first)
		}
		first = next
	}
}

// TestDurable: a guest whose disk is to last is asked to shut down, and one that does not
// listen is powered off all the same.
func TestDurable(t *testing.T) {
	qemu.LongButton(t)
	for name, tt := range map[string]struct {
		make   func(o options.QEMU) string
		limit  time.Duration // of which the guest has half
		reason vm.Reason
	}{
		"a guest that obeys": {func(o options.QEMU) string { return create(t, testImage(t), o) }, patience, vm.ReasonGuestEnded},
		"one that does not": {func(options.QEMU) string {
			return bundle(t, func(o *options.QEMU) { o.Durable = true })
		}, 20 * time.Second, vm.ReasonHypervisorCrashed},
	} {
		t.Run(name, func(t *testing.T) {
			m := start(t, tt.make(options.QEMU{
				Identity: options.Identity{MAC: "02:00:00:00:00:09"}, Network: options.NetworkIsolated, Accelerator: "tcg", Durable: true,
			}))
			m.call("GET", "/v1/health", "")
			ctx, cancel := context.WithTimeout(t.Context(), tt.limit)
			defer cancel()
			if err := m.Stop(ctx); err != nil {
				t.Fatal(err)
			}
			if e := <-m.ended; e.Reason != tt.reason {
				t.Errorf("it ended with %+v, want %s", e, tt.reason)
			}
		})
	}
}
