// SPDX-License-Identifier: MIT

package agent_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestWhatOfTheOfficialRunnerReachesTheController replays recordings of the official
// runner in real VMs of the process backend, and reads the agent's last word on each.
func TestWhatOfTheOfficialRunnerReachesTheController(t *testing.T) {
	const official = "../../guest/testdata/official"
	listener, err := os.ReadFile(filepath.Join(official, "Runner.Listener"))
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t)
	tests := []struct {
		recording, result string
		failure           string // "" means none
	}{
		{"job-succeeded", "succeeded", ""},
		{"job-failed-code-0", "failed", ""},
		{"job-abandoned", "abandoned", ""},
		{"canceled-then-retryable", "canceled", ""},
		{"deleted-while-polling", "", "ended without a job: the runner's registration is gone"},
		{"token-revoked", "", "ended without a job"},
		{"poll-refused", "", "ended without a job: the runner's registration is gone"},
		{"deleted-before-session", "", "ended without a job: the runner's registration is gone"},
		{"config-unreadable", "", "failed (bad_config)"},
		{"session-conflict", "", "failed (conflict)"},
		{"version-refused", "", "failed (refused)"},
		{"clock", "", "clock differs"},
		{"update-once", "succeeded", ""},
	}
	for _, tt := range tests {
		recording, err := os.ReadFile(filepath.Join(official, tt.recording+".recording"))
		if err != nil {
			t.Fatal(err)
		}
		s.image(tt.recording, map[string]string{
			"root/runner/bin/Runner.Listener": string(listener), "root/runner/recording": string(recording),
		})
	}
	s.start()
	for _, tt := range tests {
		t.Run(tt.recording, func(t *testing.T) {
			want := armed(tt.recording)
			want.Image = tt.recording
			s.c.want(want)
			got := s.c.awaitObserved(tt.recording, "gone")
			if got.Result != tt.result || (got.Failure == "") != (tt.failure == "") || !strings.Contains(got.Failure, tt.failure) || !got.HasConfig || got.HoldsSlot {
				t.Errorf("reported as %+v, want result %q and failure %q", got, tt.result, tt.failure)
			}
			if named := strings.Contains(string(readFile(t, filepath.Join(official, tt.recording+".recording"))), "Current runner version: '2.336.0'"); named != (got.RunnerVersion == "2.336.0") ||
				got.RunnerRefused != strings.HasPrefix(tt.recording, "version-refused") {
				t.Errorf("of its version it reports %q, refused %t", got.RunnerVersion, got.RunnerRefused)
			}
		})
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
