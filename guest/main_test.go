// SPDX-License-Identifier: MIT

package guest_test

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/internal/leakcheck"
	"github.com/minifleet/minifleet/secret"
	"github.com/minifleet/minifleet/trust"
)

// TestMain lets the runner's hook start this program, as it starts the guest program.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == guest.JobStartedCommand {
		if err := guest.JobStarted(os.Args[2:], os.Getenv, os.Stdout); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	leakcheck.Main(m)
}

// patience is how long a test waits for what must happen. It is no
// measurement: nothing waits for it unless it fails.
const patience = 60 * time.Second

const jit = "eyJqaXQiOiJjb25maWcifQ=="

// host is the outside of one guest: what an agent has.
type host struct {
	policy *trust.Policy // goes with the JIT config
	t      *testing.T
	dir    string // the runner's folder
	client *guest.Client
	dial   func(context.Context) (net.Conn, error)
	log    *logBuffer
	served chan error // what Serve returned
	cancel context.CancelFunc
}

// startGuest serves a guest whose listener is a shell script: the "run" that
// the listener gets as argument names it.
func startGuest(t *testing.T, script string, change ...func(*guest.Config)) *host {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/bin/sh", filepath.Join(dir, "bin", "Runner.Listener")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "run"), []byte(script), 0o644); err != nil {
		t.Fatal(err)
	}
	return startGuestIn(t, dir, change...)
}

func startGuestIn(t *testing.T, dir string, change ...func(*guest.Config)) *host {
	t.Helper()
	h := &host{t: t, dir: dir, log: &logBuffer{}, served: make(chan error, 1)}
	cfg := guest.Config{
		RunnerDir:     dir,
		Environ:       os.Environ(),
		RelaunchDelay: time.Millisecond,
		StopGrace:     patience,
		Log:           slog.New(slog.NewTextHandler(h.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, f := range change {
		f(&cfg)
	}
	agent, err := guest.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	sockets, err := os.MkdirTemp("", "mf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(sockets) })
	path := filepath.Join(sockets, "guest.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	h.cancel = cancel
	go func() { h.served <- agent.Serve(ctx, l) }()
	h.dial = func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	h.client = guest.NewClient(h.dial)
	t.Cleanup(func() {
		h.client.Close()
		cancel()
		if err := h.wait(); err != nil {
			t.Errorf("Serve: %v", err)
		}
		if strings.Contains(h.log.String(), jit) {
			t.Error("the JIT config is in the log")
		}
	})
	return h
}

// wait returns what Serve returned.
func (h *host) wait() error {
	select {
	case err := <-h.served:
		h.served <- err
		return err
	case <-time.After(patience):
		h.t.Fatal("Serve does not return")
		return nil
	}
}

func (h *host) ctx() context.Context {
	ctx, cancel := context.WithTimeout(h.t.Context(), patience)
	h.t.Cleanup(cancel)
	return ctx
}

func (h *host) run(env map[string]string) {
	h.t.Helper()
	if err := h.client.Run(h.ctx(), secret.New(jit), env, h.policy); err != nil {
		h.t.Fatal(err)
	}
}

// until follows the status until it is as wanted.
func (h *host) until(what string, wanted func(guest.Status) bool) guest.Status {
	h.t.Helper()
	ctx := h.ctx()
	var after uint64
	for {
		s, err := h.client.Status(ctx, after, time.Minute)
		if err != nil {
			tail, _ := h.client.Tail(h.t.Context())
			h.t.Fatalf("waiting for %s: %v\noutput: %q\nlog:\n%s", what, err, tail, h.log)
		}
		if wanted(s) {
			return s
		}
		after = s.Revision
	}
}

func (h *host) untilPhase(p guest.Phase) guest.Status {
	h.t.Helper()
	return h.until(string(p), func(s guest.Status) bool {
		if s.Phase == guest.PhaseFinished && p != guest.PhaseFinished {
			h.t.Fatalf("finished instead of %s: %+v", p, s.Runner)
		}
		return s.Phase == p
	})
}

// witness is a pipe in the runner's folder. Scripts open it for writing and
// leave it open: it ends when the last process that inherited it has.
func (h *host) witness() (ended func()) {
	h.t.Helper()
	path := filepath.Join(h.dir, "witness")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		h.t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { f.Close() })
	return func() {
		h.t.Helper()
		f.SetReadDeadline(time.Now().Add(patience))
		var b [64]byte
		for {
			n, err := f.Read(b[:])
			if err != nil || n == 0 {
				if os.IsTimeout(err) {
					h.t.Fatal("a process of the runner still lives")
				}
				return
			}
		}
	}
}

// logBuffer collects a log that several goroutines write.
type logBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
