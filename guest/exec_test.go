// SPDX-License-Identifier: MIT

package guest_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/guest"
)

func shell(script string) guest.ExecRequest {
	return guest.ExecRequest{Argv: []string{"/bin/sh", "-c", script}, Timeout: patience}
}

func TestExec(t *testing.T) {
	t.Parallel()
	h := startGuest(t, officialBusy+waitForever)
	dir := t.TempDir()
	tests := []struct {
		name     string
		request  guest.ExecRequest
		code     int
		out, err string
	}{
		{"both outputs and a code", shell("echo out; echo err >&2; exit 7"), 7, "out\n", "err\n"},
		{"input", guest.ExecRequest{Argv: []string{"cat"}, Stdin: []byte("in\x00put")}, 0, "in\x00put", ""},
		{"input that is not read", guest.ExecRequest{Argv: []string{"true"}, Stdin: make([]byte, 128<<10)}, 0, "", ""},
		{"environment and folder", guest.ExecRequest{Argv: []string{"/bin/sh", "-c", `echo "$A"; pwd`}, Env: map[string]string{"A": "b c"}, Dir: dir}, 0, "b c\n" + dir + "\n", ""},
		{"much output", shell("head -c 1000000 /dev/zero"), 0, strings.Repeat("\x00", 1000000), ""},
	}
	run := func(t *testing.T) {
		for _, tt := range tests {
			var stdout, stderr bytes.Buffer
			code, err := h.client.Exec(h.ctx(), tt.request, &stdout, &stderr)
			if err != nil || code != tt.code || stdout.String() != tt.out || stderr.String() != tt.err {
				t.Errorf("%s: %d, %v, %.80q, %.80q", tt.name, code, err, &stdout, &stderr)
			}
		}
	}
	t.Run("before the runner", run)
	h.run(nil)
	h.untilPhase(guest.PhaseBusy)
	t.Run("during its job", run)
	if s := h.untilPhase(guest.PhaseBusy); s.Runner.Relaunches != 0 {
		t.Errorf("the runner was disturbed: %+v", s)
	}
}

func TestExecErrors(t *testing.T) {
	t.Parallel()
	h := startGuest(t, "exit 0")
	for name, tt := range map[string]struct {
		request guest.ExecRequest
		want    string
	}{
		"no program":          {guest.ExecRequest{}, "argv is empty"},
		"no such program":     {guest.ExecRequest{Argv: []string{"/no/such/program"}}, "no such file"},
		"no such folder":      {guest.ExecRequest{Argv: []string{"true"}, Dir: "/no/such/folder"}, "no such file"},
		"relative folder":     {guest.ExecRequest{Argv: []string{"true"}, Dir: "x"}, "absolute"},
		"no such user":        {guest.ExecRequest{Argv: []string{"true"}, User: "nobody-of-that-name"}, "user"},
		"the listener's own":  {guest.ExecRequest{Argv: []string{"true"}, Env: map[string]string{"ACTIONS_RUNNER_INPUT_URL": "x"}}, "arguments"},
		"too much input":      {guest.ExecRequest{Argv: []string{"cat"}, Stdin: make([]byte, 1<<20)}, "stdin"},
		"too long":            {guest.ExecRequest{Argv: []string{"true"}, Timeout: 48 * time.Hour}, "timeout_seconds"},
		"a signal":            {shell("kill -KILL $$"), "killed"},
		"more than is wanted": {guest.ExecRequest{Argv: []string{"yes"}, MaxOutput: 1000}, "larger"},
		"time over":           {guest.ExecRequest{Argv: []string{"sleep", "100000"}, Timeout: 20 * time.Millisecond}, "did not end within 20ms"},
	} {
		code, err := h.client.Exec(h.ctx(), tt.request, nil, nil)
		if code != -1 || err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %d, %v; want %q", name, code, err, tt.want)
		}
	}
	_, err := h.client.Exec(h.ctx(), shell("kill -TERM $$"), nil, nil)
	if se, ok := errors.AsType[*guest.ExecSignalError](err); !ok || !strings.Contains(se.Signal, "terminated") {
		t.Errorf("a signal: %v", err)
	}
}

// TestExecEnds: whatever ends a command ends all that it started.
func TestExecEnds(t *testing.T) {
	t.Parallel()
	const family = `trap '' TERM HUP
(sleep 100000) &
echo up
`
	for name, tt := range map[string]struct {
		script string
		end    func(*host, context.CancelFunc)
	}{
		"with its caller":  {family + "sleep 100000", func(_ *host, cancel context.CancelFunc) { cancel() }},
		"with the program": {family + "sleep 100000", func(h *host, _ context.CancelFunc) { h.cancel() }},
		"by itself":        {family + "exit 0", func(*host, context.CancelFunc) {}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := startGuest(t, "exit 0")
			ended := h.witness()
			ctx, cancel := context.WithCancel(h.ctx())
			defer cancel()
			up := make(chan struct{})
			done := make(chan error, 1)
			go func() {
				r := shell("exec 3> " + filepath.Join(h.dir, "witness") + "\n" + tt.script)
				_, err := h.client.Exec(ctx, r, writerFunc(func(p []byte) (int, error) {
					close(up)
					return len(p), nil
				}), nil)
				done <- err
			}()
			<-up
			tt.end(h, cancel)
			<-done
			ended()
		})
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestExecAtOnce(t *testing.T) {
	t.Parallel()
	h := startGuest(t, "exit 0")
	ctx, cancel := context.WithCancel(h.ctx())
	defer cancel()
	up := make(chan struct{}, 8)
	done := make(chan struct{}, 8)
	for range 8 {
		go func() {
			defer func() { done <- struct{}{} }()
			_, _ = h.client.Exec(ctx, shell("echo up; sleep 100000"), writerFunc(func(p []byte) (int, error) {
				up <- struct{}{}
				return len(p), nil
			}), nil)
		}()
	}
	for range 8 {
		<-up
	}
	_, err := h.client.Exec(h.ctx(), shell("exit 0"), nil, nil)
	if re, ok := errors.AsType[*guest.ResponseError](err); !ok || re.Code != http.StatusServiceUnavailable {
		t.Errorf("a ninth: %v", err)
	}
	cancel()
	for range 8 {
		<-done
	}
}

func TestExecAsUser(t *testing.T) {
	t.Parallel()
	h := startGuest(t, "exit 0")
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Skip(err)
	}
	var out bytes.Buffer
	r := guest.ExecRequest{Argv: []string{"/bin/sh", "-c", `id -u; id -G; echo "$USER $HOME"`}, User: "nobody"}
	code, err := h.client.Exec(h.ctx(), r, &out, nil)
	if os.Geteuid() != 0 {
		if err == nil || !strings.Contains(err.Error(), "only root") {
			t.Errorf("without root: %v", err)
		}
		return
	}
	if want := nobody.Uid + "\n" + nobody.Gid + "\nnobody " + nobody.HomeDir + "\n"; err != nil || code != 0 || out.String() != want {
		t.Errorf("%d, %v, %q; want %q", code, err, &out, want)
	}
}

// TestListenerAsUser: the listener becomes the user, with its config and without root's
// groups.
func TestListenerAsUser(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 || runtime.GOOS != "linux" {
		t.Skip("becoming another user needs root, and Linux")
	}
	dir, err := os.MkdirTemp("", "mf") // not below a folder that only root can enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Chmod(dir, 0o755))
	must(os.Mkdir(filepath.Join(dir, "bin"), 0o755))
	must(os.Symlink("/bin/sh", filepath.Join(dir, "bin", "Runner.Listener")))
	must(os.WriteFile(filepath.Join(dir, "run"), []byte(`echo "as $(id -un) $(id -G) $HOME $USER root=$RUNNER_ALLOW_RUNASROOT"
echo "config: $ACTIONS_RUNNER_INPUT_JITCONFIG"
`+officialBusy+"exit 100"), 0o644))
	h := startGuestIn(t, dir, func(c *guest.Config) { c.User = "nobody" })
	h.run(nil)
	h.untilPhase(guest.PhaseFinished)
	tail, err := h.client.Tail(h.ctx())
	if err != nil || !strings.Contains(tail, "as nobody 65534 /nonexistent nobody root=\n") || !strings.Contains(tail, "config: [redacted]\n") {
		t.Errorf("%q, %v", tail, err)
	}
}
