// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/internal/leakcheck"
	"github.com/minifleet/minifleet/secret"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

const patience = 60 * time.Second

// The tests are not parallel: on Linux the program takes every child of its
// process that it did not start for an orphan.

type running struct {
	socket string
	stdin  *io.PipeWriter
	cancel context.CancelFunc
	done   chan error
	client *guest.Client
}

func start(t *testing.T, script string, more ...string) *running {
	t.Helper()
	runner := t.TempDir()
	if err := os.Mkdir(filepath.Join(runner, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/bin/sh", filepath.Join(runner, "bin", "Runner.Listener")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(runner, "run"), []byte(script), 0o644); err != nil {
		t.Fatal(err)
	}
	p := &running{socket: socketPath(t), done: make(chan error, 1)}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	p.cancel = cancel
	stdin, w := io.Pipe()
	p.stdin = w
	args := append([]string{"--listen=unix:" + p.socket, "--runner-dir=" + runner}, more...)
	go func() { p.done <- run(ctx, args, stdin, io.Discard, io.Discard, os.Environ()) }()
	p.client = guest.NewClient(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", p.socket)
	})
	t.Cleanup(func() {
		p.client.Close()
		cancel()
		w.Close()
		p.wait(t)
	})
	deadline, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	for {
		_, err := p.client.Health(deadline)
		if err == nil {
			return p
		}
		select {
		case err := <-p.done:
			t.Fatalf("program ended: %v", err)
		case <-deadline.Done():
			t.Fatal(err)
		default:
		}
	}
}

func (p *running) wait(t *testing.T) {
	t.Helper()
	select {
	case err := <-p.done:
		p.done <- err
		if err != nil {
			t.Errorf("program: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the program does not end")
	}
}

func (p *running) untilPhase(t *testing.T, want guest.Phase) guest.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var after uint64
	for {
		s, err := p.client.Status(ctx, after, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if s.Phase == want {
			return s
		}
		after = s.Revision
	}
}

func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "mf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "guest.sock")
}

func TestJobThroughTheProgram(t *testing.T) {
	p := start(t, `echo "Listening for Jobs"
echo "Running job: $NAME"
echo "Job x completed with result: Succeeded"
exit 0`, "--env=NAME=a=b;c,d")
	info, err := os.Stat(p.socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v; want mode 0600", info.Mode(), err)
	}
	if err := p.client.Run(t.Context(), secret.New("abc"), nil, nil); err != nil {
		t.Fatal(err)
	}
	if s := p.untilPhase(t, guest.PhaseFinished); s.Runner.Result != guest.ResultSucceeded {
		t.Errorf("result %q: %s", s.Runner.Result, s.Runner.Reason)
	}
	if tail, err := p.client.Tail(t.Context()); err != nil || !strings.Contains(tail, "Running job: a=b;c,d\n") {
		t.Errorf("tail %q, %v", tail, err)
	}
	if err := p.client.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.wait(t)
	if _, err := os.Lstat(p.socket); err == nil {
		t.Error("the socket is left behind")
	}
}

func TestEndsWithStdin(t *testing.T) {
	p := start(t, "trap '' TERM\necho Listening for Jobs\nsleep 100000", "--exit-with-stdin", "--stop-grace=1ms")
	if err := p.client.Run(t.Context(), secret.New("abc"), nil, nil); err != nil {
		t.Fatal(err)
	}
	p.untilPhase(t, guest.PhaseIdle)
	p.stdin.Close()
	p.wait(t)
}

func TestKeepsRunningWithoutStdin(t *testing.T) {
	p := start(t, "exit 0")
	p.stdin.Close()
	if _, err := p.client.Health(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestSocketPath(t *testing.T) {
	t.Run("stale socket is replaced", func(t *testing.T) {
		path := socketPath(t)
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		l.Close()
		again, err := listen(t.Context(), "unix:"+path, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		again.Close()
	})
	t.Run("socket in use is not", func(t *testing.T) {
		path := socketPath(t)
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if _, err := listen(t.Context(), "unix:"+path, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "another program") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("file is not", func(t *testing.T) {
		path := socketPath(t)
		if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := listen(t.Context(), "unix:"+path, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "not a socket") {
			t.Errorf("error %v", err)
		}
		if b, _ := os.ReadFile(path); string(b) != "precious" {
			t.Error("the file is gone")
		}
	})
	for _, bad := range []string{"", "unix:", "vsock:", "serial:", "tcp:127.0.0.1:80", "/run/guest.sock"} {
		t.Run("refuses "+bad, func(t *testing.T) {
			if _, err := listen(t.Context(), bad, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "unix:") {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestCommandLine(t *testing.T) {
	tests := []struct {
		name string
		args []string
		out  string // on stdout
		err  string
	}{
		{"help", []string{"--help"}, "--stop-grace=5s", ""},
		{"version", []string{"--version"}, "devel", ""},
		{"nothing", nil, "", "--listen"},
		{"unknown flag", []string{"--listne=x"}, "", "--help"},
		{"argument too many", []string{"--listen=unix:/tmp/x", "--runner-dir=/x", "extra"}, "", "unexpected argument"},
		{"no such address", []string{"--listen=x", "--runner-dir=/x"}, "", "unix:"},
		{"no such port", []string{"--listen=vsock:x", "--runner-dir=/x"}, "", "not a number"},
		{"serial port with no name", []string{"--listen=serial:../x", "--runner-dir=/x"}, "", "serial port"},
		{"reserved variable", []string{"--listen=unix:/tmp/x", "--runner-dir=/x", "--env=ACTIONS_RUNNER_INPUT_TOKEN=x"}, "", "ACTIONS_RUNNER_INPUT_TOKEN"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var stdout bytes.Buffer
			err := run(t.Context(), tt.args, strings.NewReader(""), &stdout, io.Discard, nil)
			if !strings.Contains(stdout.String(), tt.out) {
				t.Errorf("stdout %q does not say %q", &stdout, tt.out)
			}
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
		})
	}
}
