// SPDX-License-Identifier: MIT

package main

import (
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// TestInstallDryRun: what would be done is shown to whoever asks, and only of a good
// configuration.
func TestInstallDryRun(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("shows what is done on Linux")
	}
	path := write(t, good)
	out, err := call(t, nil, "install", "--config", path, "--dry-run")
	// The programs beside this one are not there; nobody but root may change what root runs,
	// and this is not root's service.
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"would write /etc/systemd/system/minifleet-agent.service", "--config " + path, "User=minifleet", "would run   systemctl enable --now minifleet-agent.service"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	for name, args := range map[string][]string{
		"bad configuration": {"install", "--dry-run", "--config", write(t, "slots: 0\n")},
		"none":              {"install", "--dry-run", "--config", filepath.Join(t.TempDir(), "none")},
		"another variant":   {"install", "--dry-run", "--config", path, "--variant", "app"},
		"a Mac's":           {"install", "--dry-run", "--config", path, "--variant", "agent"},
		"root's to change":  {"install", "--dry-run", "--config", path, "--user", "root"}, // its programs are missing
	} {
		if out, err := call(t, nil, args...); err == nil {
			t.Errorf("%s: no error; it printed %q", name, out)
		}
	}
	if out, err := call(t, nil, "uninstall", "--dry-run"); err != nil || !strings.Contains(out, "go on") {
		t.Errorf("uninstall: %q, %v", out, err)
	}
}

func TestRunProgram(t *testing.T) {
	if out, err := runProgram(t.Context(), "echo", "a b"); out != "a b" || err != nil {
		t.Errorf("%q, %v", out, err)
	}
	if _, err := runProgram(t.Context(), "sh", "-c", "echo why >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "why") {
		t.Errorf("error %v", err)
	}
}
