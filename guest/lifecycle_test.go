// SPDX-License-Identifier: MIT

package guest_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/secret"
)

// Waits in the foreground in a way that a trap can interrupt.
const (
	waitForever = "sleep 100000 & wait $!\n"
	gentle      = "trap 'echo Exiting...; exit 0' TERM\n"
	stubborn    = "trap '' TERM\n"
)

func TestOneConfigInALife(t *testing.T) {
	t.Parallel()
	h := startGuest(t, gentle+officialIdle+waitForever)
	s, err := h.client.Status(h.ctx(), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if s.Phase != guest.PhaseReady || s.HasConfig || s.Revision != 1 || s.Runner != (guest.Runner{}) {
		t.Errorf("before the config: %+v", s)
	}
	h.run(nil)
	again := func(when string) {
		t.Helper()
		if err := h.client.Run(h.ctx(), secret.New(jit), nil, nil); !errors.Is(err, guest.ErrHasConfig) {
			t.Errorf("second config %s: %v, want ErrHasConfig", when, err)
		}
	}
	again("while it starts")
	idle := h.untilPhase(guest.PhaseIdle)
	again("while idle")
	if !idle.HasConfig || idle.Instance != s.Instance || idle.Runner.IdleAt.IsZero() || idle.Runner.Version != "2.336.0" {
		t.Errorf("idle: %+v", idle)
	}
	if err := h.client.End(h.ctx(), patience); err != nil {
		t.Fatal(err)
	}
	h.untilPhase(guest.PhaseFinished)
	again("after its end")
}

func TestListenerEnvironment(t *testing.T) {
	t.Setenv("MINIFLEET_TEST_LEAK", "must not be inherited")
	h := startGuest(t, `env > env
echo "$@" > args
tr '\0' ' ' < /dev/null > cmdline
pwd > cwd
echo "config: $ACTIONS_RUNNER_INPUT_JITCONFIG"
`+officialBusy+"exit 100", func(c *guest.Config) {
		c.Env = map[string]string{"OPERATOR": "o", "BOTH": "operator"}
	})
	h.run(map[string]string{"JOB": "with spaces\nand a line", "BOTH": "host"})
	h.untilPhase(guest.PhaseFinished)

	raw, err := os.ReadFile(filepath.Join(h.dir, "env"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(raw), "\n")
	for _, want := range []string{
		"ACTIONS_RUNNER_INPUT_JITCONFIG=" + jit,
		"ACTIONS_RUNNER_RETURN_JOB_RESULT_FOR_HOSTED=true",
		"ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE=1",
		"OPERATOR=o", "BOTH=host", "JOB=with spaces", "and a line",
		"PATH=" + os.Getenv("PATH"),
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("%s is not in the environment:\n%s", want, raw)
		}
	}
	if os.Geteuid() == 0 && !slices.Contains(lines, "RUNNER_ALLOW_RUNASROOT=1") {
		t.Error("root is not allowed to the runner")
	}
	if strings.Contains(string(raw), "MINIFLEET_TEST_LEAK") {
		t.Error("the guest's own environment is passed on")
	}
	if args, _ := os.ReadFile(filepath.Join(h.dir, "args")); strings.TrimSpace(string(args)) != "" {
		t.Errorf("arguments after run: %q", args)
	}
	tail, err := h.client.Tail(h.ctx())
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(tail, jit) || !strings.Contains(tail, "config: [redacted]") {
		t.Errorf("tail: %q", tail)
	}
}

func TestEnd(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		script string
		phase  guest.Phase
		grace  time.Duration
		want   guest.Outcome
		reason string
	}{
		{"gently while it starts", gentle + "echo up\n" + waitForever, guest.PhaseStarting, patience, guest.OutcomeEnded, "before it had a job"},
		{"gently while idle", gentle + officialIdle + waitForever, guest.PhaseIdle, patience, guest.OutcomeEnded, "before it had a job"},
		{"without a trap", officialIdle + waitForever, guest.PhaseIdle, patience, guest.OutcomeEnded, "before it had a job"},
		{"by force while idle", stubborn + officialIdle + waitForever, guest.PhaseIdle, time.Millisecond, guest.OutcomeEnded, "before it had a job"},
		{"by force at once", stubborn + officialIdle + waitForever, guest.PhaseIdle, 0, guest.OutcomeEnded, "before it had a job"},
		{"by force in a job", stubborn + officialBusy + waitForever, guest.PhaseBusy, time.Millisecond, guest.OutcomeEnded, "during its job"},
		{
			"gently in a job", "trap 'echo \"Job build completed with result: Canceled\"; exit 103' TERM\n" + officialBusy + waitForever,
			guest.PhaseBusy, patience, guest.OutcomeJob, "canceled",
		},
		{"asked to be restarted meanwhile", "trap 'exit 2' TERM\n" + officialIdle + waitForever, guest.PhaseIdle, patience, guest.OutcomeEnded, "before it had a job"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := startGuest(t, "exec 3> witness\n"+tt.script)
			ended := h.witness()
			h.run(nil)
			if tt.phase == guest.PhaseStarting {
				h.untilTail("up")
			}
			h.untilPhase(tt.phase)
			for range 2 { // the second changes nothing
				if err := h.client.End(h.ctx(), tt.grace); err != nil {
					t.Fatal(err)
				}
			}
			s := h.untilPhase(guest.PhaseFinished)
			if s.Runner.Outcome != tt.want || !strings.Contains(s.Runner.Reason, tt.reason) {
				t.Errorf("outcome %s: %s", s.Runner.Outcome, s.Runner.Reason)
			}
			ended()
			if err := h.client.End(h.ctx(), 0); err != nil {
				t.Errorf("End after the end: %v", err)
			}
		})
	}
}

// untilTail waits for a line of output that changes no status.
func (h *host) untilTail(line string) {
	h.t.Helper()
	ctx := h.ctx()
	for ctx.Err() == nil {
		tail, err := h.client.Tail(ctx)
		if err != nil {
			h.t.Fatal(err)
		}
		if strings.Contains(tail, line+"\n") {
			return
		}
	}
	h.t.Fatalf("%q is not printed", line)
}

func TestEndWithLessGrace(t *testing.T) {
	t.Parallel()
	h := startGuest(t, stubborn+officialIdle+waitForever)
	h.run(nil)
	h.untilPhase(guest.PhaseIdle)
	for _, grace := range []time.Duration{time.Hour, time.Millisecond, time.Hour} {
		if err := h.client.End(h.ctx(), grace); err != nil {
			t.Fatal(err)
		}
	}
	h.untilPhase(guest.PhaseFinished)
}

func TestEndWithoutRunner(t *testing.T) {
	t.Parallel()
	h := startGuest(t, officialBusy+"exit 100")
	if err := h.client.End(h.ctx(), 0); err != nil {
		t.Fatal(err)
	}
	h.run(nil)
	if s := h.untilPhase(guest.PhaseFinished); s.Runner.Outcome != guest.OutcomeJob {
		t.Errorf("an end before the config ended the runner after it: %+v", s.Runner)
	}
}

func TestEndBetweenRestarts(t *testing.T) {
	t.Parallel()
	h := startGuest(t, "echo up\nexit 2", func(c *guest.Config) { c.RelaunchDelay = time.Hour })
	h.run(nil)
	h.untilTail("up")
	if err := h.client.End(h.ctx(), 0); err != nil {
		t.Fatal(err)
	}
	if s := h.untilPhase(guest.PhaseFinished); s.Runner.Outcome != guest.OutcomeEnded {
		t.Errorf("outcome %s: %s", s.Runner.Outcome, s.Runner.Reason)
	}
}

// What the listener leaves in its group holds its output open and ignores
// SIGTERM: it neither delays the end nor outlives it.
func TestLeftoversInTheGroup(t *testing.T) {
	t.Parallel()
	h := startGuest(t, "exec 3> witness\n"+officialBusy+`(trap '' TERM HUP; sleep 100000) &
exit 100`)
	ended := h.witness()
	h.run(nil)
	h.untilPhase(guest.PhaseFinished)
	ended()
}

func TestProgramEnds(t *testing.T) {
	t.Parallel()
	ends := map[string]func(*host){
		"on request":       func(h *host) { h.must(h.client.Shutdown(h.ctx())) },
		"with its context": func(h *host) { h.cancel() },
	}
	for name, end := range ends {
		t.Run(name+", without a runner", func(t *testing.T) {
			t.Parallel()
			h := startGuest(t, "exit 0")
			if _, err := h.client.Health(h.ctx()); err != nil {
				t.Fatal(err)
			}
			end(h)
			if err := h.wait(); err != nil {
				t.Error(err)
			}
		})
		t.Run(name+", with a runner", func(t *testing.T) {
			t.Parallel()
			h := startGuest(t, "exec 3> witness\n"+gentle+officialIdle+waitForever)
			ended := h.witness()
			h.run(nil)
			idle := h.untilPhase(guest.PhaseIdle)
			// Who watches sees the end before the program is gone.
			seen := make(chan guest.Status, 1)
			watch := h.ctx()
			go func() {
				s, _ := h.client.Status(watch, idle.Revision, time.Minute)
				seen <- s
			}()
			end(h)
			if err := h.wait(); err != nil {
				t.Error(err)
			}
			ended()
			if s := <-seen; s.Phase != guest.PhaseFinished && s.Phase != "" {
				t.Errorf("the watcher saw %s", s.Phase)
			}
		})
		t.Run(name+", with a stubborn runner", func(t *testing.T) {
			t.Parallel()
			h := startGuest(t, "exec 3> witness\n"+stubborn+officialBusy+waitForever, func(c *guest.Config) { c.StopGrace = time.Millisecond })
			ended := h.witness()
			h.run(nil)
			h.untilPhase(guest.PhaseBusy)
			end(h)
			if err := h.wait(); err != nil {
				t.Error(err)
			}
			ended()
		})
	}
}

func (h *host) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func TestStatusWaits(t *testing.T) {
	t.Parallel()
	h := startGuest(t, gentle+officialIdle+waitForever)
	ctx := h.ctx()
	first, err := h.client.Status(ctx, 0, time.Minute)
	h.must(err)
	for _, other := range []uint64{first.Revision + 1, 1 << 40} {
		s, err := h.client.Status(ctx, other, time.Minute)
		if err != nil || s != first {
			t.Errorf("after %d: %+v, %v; want the status at once", other, s, err)
		}
	}
	s, err := h.client.Status(ctx, first.Revision, time.Millisecond)
	if err != nil || s != first {
		t.Errorf("after the wait: %+v, %v; want the same status", s, err)
	}
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if _, err := h.client.Status(short, first.Revision, time.Minute); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("status with a short deadline: %v", err)
	}

	changed := make(chan guest.Status, 1)
	go func() {
		s, _ := h.client.Status(ctx, first.Revision, time.Minute)
		changed <- s
	}()
	h.run(nil)
	if s := <-changed; s.Revision <= first.Revision || !s.HasConfig {
		t.Errorf("the waiting request answered %+v", s)
	}
}

func TestHugeOutput(t *testing.T) {
	t.Parallel()
	// A line of 16 MiB whose end looks like a result, 16 MiB of short lines,
	// and then what counts.
	h := startGuest(t, officialBusy+`printf 'Job '
head -c 16777216 /dev/zero | tr '\0' x
echo ' completed with result: Failed'
yes 'a line of output' | head -c 16777216
echo
echo 'the last line'
echo 'Job build completed with result: Succeeded'
exit 0`)
	h.run(nil)
	s := h.untilPhase(guest.PhaseFinished)
	if s.Runner.Result != guest.ResultSucceeded {
		t.Errorf("result %q", s.Runner.Result)
	}
	tail, err := h.client.Tail(h.ctx())
	h.must(err)
	if len(tail) > 256<<10 || len(tail) < 200<<10 {
		t.Errorf("tail has %d bytes", len(tail))
	}
	if !strings.HasPrefix(tail, "a line of output\n") || !strings.Contains(tail, "\nthe last line\n") {
		t.Errorf("tail is %q ... %q", tail[:50], tail[len(tail)-100:])
	}
}
