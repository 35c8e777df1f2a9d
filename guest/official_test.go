// SPDX-License-Identifier: MIT

package guest_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/guest"
)

const official = "testdata/official"

// officialEnds is what the guest makes of each recording.
func officialEnds() map[string]struct {
	want   ended
	reason string
} {
	type end = struct {
		want   ended
		reason string
	}
	const v, succeeded, failed, canceled = "2.336.0", guest.ResultSucceeded, guest.ResultFailed, guest.ResultCanceled
	job := func(result guest.Result, code int) end {
		return end{ended{guest.OutcomeJob, result, code, true, true, v, 0}, string(result)}
	}
	again := func(e end, times int) end { e.want.Again = times; return e }
	return map[string]end{
		"job-succeeded":            job(succeeded, 100),
		"job-with-issues":          job(succeeded, 101),
		"job-failed":               job(failed, 102),
		"job-canceled":             job(canceled, 103),
		"job-skipped":              job(guest.ResultSkipped, 104),
		"job-abandoned":            job(guest.ResultAbandoned, 105),
		"job-failed-code-0":        job(failed, 0),
		"job-named-like-a-result":  job(succeeded, 100),
		"canceled-then-retryable":  job(canceled, 2),
		"ended-in-job":             job(canceled, 103),
		"deleted-while-polling":    {ended{guest.OutcomeNoJob, "", 0, true, false, v, 0}, "registration is gone"},
		"token-revoked":            {ended{guest.OutcomeNoJob, "", 0, true, false, v, 0}, "without a job"},
		"poll-refused":             {ended{guest.OutcomeNoJob, "", 1, true, false, v, 0}, "registration is gone"},
		"deleted-before-session":   {ended{guest.OutcomeNoJob, "", 1, false, false, "", 0}, "registration is gone"},
		"not-found-before-session": {ended{guest.OutcomeNoJob, "", 1, false, false, "", 0}, "registration is gone"},
		"config-unreadable":        {ended{guest.OutcomeBadConfig, "", 1, false, false, "", 0}, "JIT config"},
		"not-configured":           {ended{guest.OutcomeBadConfig, "", 1, false, false, "", 0}, "JIT config"},
		"session-conflict":         {ended{guest.OutcomeConflict, "", 5, false, false, "", 0}, "used twice"},
		"session-conflict-passes":  job(succeeded, 100),
		"version-refused":          {ended{guest.OutcomeRefused, "", 7, true, false, v, 0}, "current runner"},
		"version-refused-code-1":   {ended{guest.OutcomeRefused, "", 1, true, false, v, 0}, "current runner"},
		"version-refused-misspelt": {ended{guest.OutcomeRefused, "", 1, false, false, "", 0}, "current runner"},
		"clock":                    {ended{guest.OutcomeBadConfig, "", 1, false, false, "", 0}, "clock differs"},
		"retryable":                again(job(succeeded, 100), 1),
		"retryable-for-ever":       {ended{guest.OutcomeCrashed, "", 2, false, false, "", 3}, "after 3 restarts"},
		"retryable-then-deleted":   {ended{guest.OutcomeNoJob, "", 1, false, false, "", 1}, "registration is gone"},
		"update-once":              again(job(succeeded, 100), 1),
		"update":                   again(job(succeeded, 100), 1),
		"update-for-ever":          {ended{guest.OutcomeRefused, "", 4, true, false, v, 3}, "too old"},
		"ended-idle":               {ended{guest.OutcomeEnded, "", 0, true, false, v, 0}, "before it had a job"},
	}
}

// TestOfficialRunner replays the official runner's output, its order and its exit codes
// through the guest. A recording stops where the runner waits for something, until the
// host has seen the state that the lines before it mean.
func TestOfficialRunner(t *testing.T) {
	t.Parallel()
	ends := officialEnds()
	files, err := filepath.Glob(filepath.Join(official, "*.recording"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		names = append(names, strings.TrimSuffix(filepath.Base(f), ".recording"))
	}
	slices.Sort(names)
	if known := slices.Sorted(maps.Keys(ends)); !slices.Equal(names, known) {
		t.Fatalf("recordings and what is expected of them:\n%s", cmp.Diff(known, names))
	}
	for name, tt := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			recording, err := os.ReadFile(filepath.Join(official, name+".recording"))
			if err != nil {
				t.Fatal(err)
			}
			h := startGuestIn(t, officialRunner(t, recording))
			see := h.gate()
			h.run(nil)
			for line := range strings.Lines(string(recording)) {
				switch word, phase, _ := strings.Cut(strings.TrimSpace(line), " "); word {
				case "see":
					h.untilPhase(guest.Phase(phase))
					see()
				case "term":
					h.must(h.client.End(h.ctx(), patience))
				}
			}
			s := h.untilPhase(guest.PhaseFinished)
			if diff := cmp.Diff(tt.want, endOf(s)); diff != "" {
				t.Errorf("end (-want +got):\n%s\nreason: %s\nlog:\n%s", diff, s.Runner.Reason, h.log)
			}
			if !strings.Contains(s.Runner.Reason, tt.reason) {
				t.Errorf("reason %q does not say %q", s.Runner.Reason, tt.reason)
			}
			if starts := count(t, filepath.Join(h.dir, "launches")); starts != tt.want.Again+1 {
				t.Errorf("the listener was started %d times and %d restarts are reported", starts, tt.want.Again)
			}
			if strings.Contains(string(recording), "\nupdate ") {
				if _, err := os.Stat(filepath.Join(h.dir, "updated")); err != nil {
					t.Errorf("it was started again before its update was done: %v", err)
				}
				if _, err := os.Stat(filepath.Join(h.dir, "update.finished")); err == nil && s.Runner.Outcome != guest.OutcomeRefused {
					t.Error("the updater's word is left for the next update")
				}
			}
		})
	}
}

// The guest starts a listener again for the same codes as the official scripts do (of
// run-helper.sh's, 2 makes run.sh do it): what it does with its own judgement of the
// output is tested above.
func TestRestartsWhereTheOfficialScriptsDo(t *testing.T) {
	t.Parallel()
	for code := range 110 {
		if code > 8 && code < 98 {
			continue
		}
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			t.Parallel()
			h := startGuest(t, officialIdle+fmt.Sprintf("exit %d\n", code), func(c *guest.Config) {
				c.MaxRelaunches, c.UpdateWait = 1, time.Millisecond
			})
			h.run(nil)
			s := h.untilPhase(guest.PhaseFinished)
			if again := code == 2 || code == 3 || code == 4; again != (s.Runner.Relaunches == 1) {
				t.Errorf("code %d: %d restarts; %s", code, s.Runner.Relaunches, s.Runner.Reason)
			}
			if s.Runner.Outcome == "" || s.Runner.Reason == "" || (s.Runner.Outcome == guest.OutcomeJob) != (code >= 100 && code <= 105) {
				t.Errorf("code %d: outcome %s, %s", code, s.Runner.Outcome, s.Runner.Reason)
			}
		})
	}
}

// officialRunner lays out a runner's folder whose listener replays a recording.
func officialRunner(t *testing.T, recording []byte) string {
	t.Helper()
	dir := t.TempDir()
	listener, err := os.ReadFile(filepath.Join(official, "Runner.Listener"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "bin", "Runner.Listener"), string(listener), 0o755)
	write(t, filepath.Join(dir, "recording"), string(recording), 0o644)
	return dir
}

// gate makes the pipe at which a recording waits, and returns what lets it go on.
func (h *host) gate() (open func()) {
	h.t.Helper()
	path := filepath.Join(h.dir, "see")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		h.t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0) // so that nobody waits for the other to open it
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { f.Close() })
	return func() {
		h.t.Helper()
		if _, err := f.WriteString("\n"); err != nil {
			h.t.Fatal(err)
		}
	}
}

func count(t *testing.T, path string) int {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(raw), "\n")
}
