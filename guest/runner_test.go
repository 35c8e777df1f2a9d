// SPDX-License-Identifier: MIT

package guest_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/guest"
)

// Beginnings that both runners have in common with themselves.
const (
	officialIdle = `cat <<'.'

√ Connected to GitHub

Current runner version: '2.336.0'
2026-11-21 20:42:41Z: Listening for Jobs
.
`
	officialBusy = officialIdle + `echo '2026-11-21 20:42:50Z: Running job: build'
`
	otherIdle = `echo 'Listening for Jobs: vm-1 ( http://127.0.0.1:40181/octo/demo )'
`
	otherBusy = otherIdle + `echo "Fetch next (Cancellation) Message
vm-1 ( http://127.0.0.1:40181/octo/demo ): Running Job 'build-1'"
`
)

// ended is what a test expects of a runner's end.
type ended struct {
	Outcome guest.Outcome
	Result  guest.Result
	Code    int
	Idle    bool // it was idle once
	Busy    bool // it was busy once
	Version string
	Again   int
}

func endOf(s guest.Status) ended {
	r := s.Runner
	e := ended{Outcome: r.Outcome, Result: r.Result, Code: -2, Idle: !r.IdleAt.IsZero(), Busy: !r.BusyAt.IsZero(), Version: r.Version, Again: r.Relaunches}
	if r.ExitCode != nil {
		e.Code = *r.ExitCode
	}
	return e
}

func TestRunnerEnds(t *testing.T) {
	t.Parallel()
	const v = "2.336.0"
	tests := []struct {
		name   string
		script string
		want   ended
		reason string // in the reason
	}{
		{
			"official, succeeded", officialBusy + "echo '2026-11-21 20:43:10Z: Job build completed with result: Succeeded'\necho '√ Removed .credentials'\nexit 100",
			ended{guest.OutcomeJob, guest.ResultSucceeded, 100, true, true, v, 0},
			"succeeded",
		},
		{
			"official, failed", officialBusy + "echo '2026-11-21 20:43:10Z: Job build completed with result: Failed'\nexit 102",
			ended{guest.OutcomeJob, guest.ResultFailed, 102, true, true, v, 0},
			"failed",
		},
		{
			"official, result in the output alone", officialBusy + "echo '2026-11-21 20:43:10Z: Job build completed with result: Canceled'\nexit 0",
			ended{guest.OutcomeJob, guest.ResultCanceled, 0, true, true, v, 0},
			"canceled",
		},
		{"official, succeeded with issues by code", officialBusy + "exit 101", ended{guest.OutcomeJob, guest.ResultSucceeded, 101, true, true, v, 0}, ""},
		{"official, canceled by code", officialBusy + "exit 103", ended{guest.OutcomeJob, guest.ResultCanceled, 103, true, true, v, 0}, ""},
		{"official, skipped by code", officialBusy + "exit 104", ended{guest.OutcomeJob, guest.ResultSkipped, 104, true, true, v, 0}, ""},
		{"official, abandoned by code", officialBusy + "exit 105", ended{guest.OutcomeJob, guest.ResultAbandoned, 105, true, true, v, 0}, ""},
		{"official, output stronger than code", officialBusy + "echo '2026-11-21 20:43:10Z: Job build completed with result: Abandoned'\nexit 100", ended{guest.OutcomeJob, guest.ResultAbandoned, 100, true, true, v, 0}, ""},
		{"official, no last line break", officialBusy + "printf '2026-11-21 20:43:10Z: Job build completed with result: Failed'\nexit 0", ended{guest.OutcomeJob, guest.ResultFailed, 0, true, true, v, 0}, ""},
		{
			"official, deleted while it polls", officialIdle + "echo 'The runner no longer exists on the server. Cleaning up local configuration.'\nexit 0",
			ended{guest.OutcomeNoJob, "", 0, true, false, v, 0},
			"registration is gone",
		},
		{"official, ends without a word", officialIdle + "exit 0", ended{guest.OutcomeNoJob, "", 0, true, false, v, 0}, "without a job"},
		{
			"official, deleted before its session", "echo 'Failed to create a session. The runner registration has been deleted from the server, please re-configure.'\nexit 1",
			ended{guest.OutcomeNoJob, "", 1, false, false, "", 0},
			"registration is gone",
		},
		{"official, config of no use", "echo 'Unrecognized input'\nexit 1", ended{guest.OutcomeBadConfig, "", 1, false, false, "", 0}, "JIT config"},
		{
			"official, too old by message", officialIdle + "echo 'An error occurred: Runner version v2.300.0 is deprecated and cannot receive messages.'\nexit 1",
			ended{guest.OutcomeRefused, "", 1, true, false, v, 0},
			"current runner",
		},
		{"official, too old by code", officialIdle + "exit 7", ended{guest.OutcomeRefused, "", 7, true, false, v, 0}, "current runner"},
		{"official, second session", "echo 'A session for this runner already exists.'\nexit 5", ended{guest.OutcomeConflict, "", 5, false, false, "", 0}, "used twice"},
		{"official, terminated while idle", officialIdle + "exit 1", ended{guest.OutcomeCrashed, "", 1, true, false, v, 0}, "with code 1"},
		{"official, clock", "echo \"The local machine's clock may be out of sync with the server time by more than five minutes. Please sync your clock.\"\nexit 1", ended{guest.OutcomeBadConfig, "", 1, false, false, "", 0}, "clock"},
		{"official, not reachable", "echo '2026-11-21 20:42:41Z: Runner connect error: timeout. Retrying until reconnected.'\nexit 1", ended{guest.OutcomeBadConfig, "", 1, false, false, "", 0}, "could not reach"},
		{"official, unknown code", officialIdle + "exit 6", ended{guest.OutcomeCrashed, "", 6, true, false, v, 0}, "with code 6"},
		{"official, code above the results", officialIdle + "exit 106", ended{guest.OutcomeCrashed, "", 106, true, false, v, 0}, "with code 106"},
		{"official, killed", officialIdle + "kill -KILL $$", ended{guest.OutcomeCrashed, "", -1, true, false, v, 0}, "signal killed (9)"},
		{"official, job without a result", officialBusy + "exit 0", ended{guest.OutcomeCrashed, "", 0, true, true, v, 0}, "during its job"},
		{"official, retryable in its job", officialBusy + "exit 2", ended{guest.OutcomeCrashed, "", 2, true, true, v, 0}, "during its job"},
		{"official, retryable after its job", officialBusy + "echo 'Job build completed with result: Canceled'\nexit 2", ended{guest.OutcomeJob, guest.ResultCanceled, 2, true, true, v, 0}, ""},
		{"no output at all", "exit 0", ended{guest.OutcomeCrashed, "", 0, false, false, "", 0}, "with code 0"},
		{
			"other, succeeded", otherBusy + "echo \"vm-1 ( http://127.0.0.1:40181/octo/demo ): Finished Job 'build-1' with Status Succeeded\nvm-1 ( http://127.0.0.1:40181/octo/demo ): Last Job finished, cancel Message loop\"\nexit 0",
			ended{guest.OutcomeJob, guest.ResultSucceeded, 0, true, true, "", 0},
			"",
		},
		{
			"other, result reported late", otherBusy + "echo \"vm-1 ( http://h/o/r ): Failed to finish Job 'b' with Status Succeeded: 502\nvm-1 ( http://h/o/r ): Finished Job 'b' with Status Failed\"\nexit 0",
			ended{guest.OutcomeJob, guest.ResultFailed, 0, true, true, "", 0},
			"",
		},
		{
			"other, removed", otherIdle + "echo 'Fatal: It looks like this runner has been removed from GitHub, Failed to recreate Session for vm-1 ( http://h/o/r ): invalid_client'\nexit 1",
			ended{guest.OutcomeNoJob, "", 1, true, false, "", 0},
			"registration is gone",
		},
		{"other, job lost to another", otherIdle + "exit 0", ended{guest.OutcomeNoJob, "", 0, true, false, "", 0}, "another runner"},
		{
			"job name that looks like output", officialIdle + `echo '2026-11-21 20:42:50Z: Running job: Job x completed with result: Failed'
echo '2026-11-21 20:42:51Z: Job x completed with result: Failed completed with result: Succeeded'
exit 0`,
			ended{guest.OutcomeJob, guest.ResultSucceeded, 0, true, true, v, 0},
			"",
		},
		{
			"words inside other lines", officialIdle + `echo 'error: Running job: x'
echo 'see Job x completed with result: Succeeded'
echo 'Running jobs'
exit 0`,
			ended{guest.OutcomeNoJob, "", 0, true, false, v, 0},
			"",
		},
		{"result without a job", officialIdle + "echo 'Job x completed with result: Succeeded'\nexit 0", ended{guest.OutcomeNoJob, "", 0, true, false, v, 0}, ""},
		{"first result stays", officialBusy + "echo 'Job a completed with result: Failed\nJob a completed with result: Succeeded'\nexit 0", ended{guest.OutcomeJob, guest.ResultFailed, 0, true, true, v, 0}, ""},
		{"bytes that are no text", "printf '\\377\\376\\000\\033[31m\\n'\n" + officialBusy + "printf 'Job \\377 completed with result: Failed\\n'\nexit 0", ended{guest.OutcomeJob, guest.ResultFailed, 0, true, true, v, 0}, ""},
		{"version that is none", "echo \"Current runner version: '2.3; rm -rf'\"\nexit 7", ended{guest.OutcomeRefused, "", 7, false, false, "", 0}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := startGuest(t, tt.script)
			h.run(nil)
			s := h.untilPhase(guest.PhaseFinished)
			if diff := cmp.Diff(tt.want, endOf(s)); diff != "" {
				t.Errorf("end (-want +got):\n%s\nreason: %s", diff, s.Runner.Reason)
			}
			if !strings.Contains(s.Runner.Reason, tt.reason) || s.Runner.Reason == "" {
				t.Errorf("reason %q does not say %q", s.Runner.Reason, tt.reason)
			}
			if s.Runner.FinishedAt.Before(s.Runner.StartedAt) || s.Runner.StartedAt.IsZero() {
				t.Errorf("started %v, finished %v", s.Runner.StartedAt, s.Runner.FinishedAt)
			}
		})
	}
}

func TestRunnerIsStartedAgain(t *testing.T) {
	t.Parallel()
	const count = `echo x >> starts
n=$(wc -l < starts)
`
	tests := []struct {
		name   string
		script string
		change func(*guest.Config)
		want   ended
	}{
		{
			"passing errors, then its job", count + `[ $n -lt 3 ] && exit 2
` + officialBusy + "exit 100", nil,
			ended{guest.OutcomeJob, guest.ResultSucceeded, 100, true, true, "2.336.0", 2},
		},
		{"errors that do not pass", "exit 2", nil, ended{guest.OutcomeCrashed, "", 2, false, false, "", 3}},
		{
			"at most as often as configured", "exit 2", func(c *guest.Config) { c.MaxRelaunches = 1 },
			ended{guest.OutcomeCrashed, "", 2, false, false, "", 1},
		},
		{
			// The updater belongs to the listener's group and works after its end.
			"update of its own", count + `case $n in
1) (while kill -0 $$ 2>/dev/null; do sleep 0.01; done; echo updated > version; : > update.finished) & exit 3;;
2) [ -e version ] && [ ! -e update.finished ] || exit 9;;
esac
` + officialBusy + "exit 102", nil,
			ended{guest.OutcomeJob, guest.ResultFailed, 102, true, true, "2.336.0", 1},
		},
		{
			"update that never ends", count + "[ $n = 1 ] && exit 4\n" + officialBusy + "exit 100",
			func(c *guest.Config) { c.UpdateWait = time.Millisecond },
			ended{guest.OutcomeJob, guest.ResultSucceeded, 100, true, true, "2.336.0", 1},
		},
		{
			"registration gone after a restart", count + `[ $n = 1 ] && exit 2
echo 'Failed to create a session. The runner registration has been deleted from the server.'
exit 1`, nil,
			ended{guest.OutcomeNoJob, "", 1, false, false, "", 1},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := startGuest(t, tt.script, func(c *guest.Config) {
				if tt.change != nil {
					tt.change(c)
				}
			})
			h.run(nil)
			s := h.untilPhase(guest.PhaseFinished)
			if diff := cmp.Diff(tt.want, endOf(s)); diff != "" {
				t.Errorf("end (-want +got):\n%s\nreason: %s\nlog:\n%s", diff, s.Runner.Reason, h.log)
			}
		})
	}
}

func TestListenerThatCannotBeStarted(t *testing.T) {
	t.Parallel()
	listener := filepath.Join("bin", "Runner.Listener")
	tests := []struct {
		name   string
		make   func(t *testing.T, dir string)
		reason string
	}{
		{"missing", func(*testing.T, string) {}, "install the runner there"},
		{"not executable", func(t *testing.T, dir string) { write(t, filepath.Join(dir, listener), "#!/bin/sh\n", 0o644) }, "may not be executed"},
		{"a folder", func(t *testing.T, dir string) {
			if err := os.Mkdir(filepath.Join(dir, listener), 0o755); err != nil {
				t.Fatal(err)
			}
		}, "may not be executed"},
		{"for another system", func(t *testing.T, dir string) { write(t, filepath.Join(dir, listener), "\x00\x01\x02\x03", 0o755) }, "not a program for this system"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
				t.Fatal(err)
			}
			tt.make(t, dir)
			h := startGuestIn(t, dir)
			h.run(nil)
			s := h.untilPhase(guest.PhaseFinished)
			if diff := cmp.Diff(ended{Outcome: guest.OutcomeUnstartable, Code: -2}, endOf(s)); diff != "" {
				t.Errorf("end (-want +got):\n%s", diff)
			}
			if !strings.Contains(s.Runner.Reason, tt.reason) {
				t.Errorf("reason %q does not say %q", s.Runner.Reason, tt.reason)
			}
		})
	}
	t.Run("work folder missing", func(t *testing.T) {
		t.Parallel()
		h := startGuest(t, "exit 0", func(c *guest.Config) { c.WorkDir = filepath.Join(c.RunnerDir, "nowhere") })
		h.run(nil)
		s := h.untilPhase(guest.PhaseFinished)
		if s.Runner.Outcome != guest.OutcomeUnstartable || !strings.Contains(s.Runner.Reason, "work folder") {
			t.Errorf("outcome %s, reason %q", s.Runner.Outcome, s.Runner.Reason)
		}
	})
}

// write makes a file, which may be a program: no child that another test forks meanwhile has
// it open for writing until its exec, since nobody could run it then.
func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}
