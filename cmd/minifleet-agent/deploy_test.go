// SPDX-License-Identifier: MIT

package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestDeployExample holds the example that the README points to: it is a good file
// as soon as its token is there.
func TestDeployExample(t *testing.T) {
	text, err := os.ReadFile("../../deploy/agent.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "enrolment.token"), []byte("mfe1.eyJ0IjoiYSJ9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "agent.yaml")
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(text), "/etc/minifleet", dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := load(path, func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Name != "mini-1" || cfg.Slots != 2 || cfg.EnrolmentToken.Empty() {
		t.Errorf("%+v", cfg)
	}
}

// TestDeployServices: service managers wait for longer than a stop takes, and leave the
// VMs alone.
func TestDeployServices(t *testing.T) {
	for file, want := range map[string]struct{ timeout, end, spares string }{
		"minifleet-agent.service":                               {"\nTimeoutStopSec=", "\n", "\nKillMode=process\n"},
		"launchd/LaunchDaemons/io.github.minifleet.agent.plist": {"<key>ExitTimeOut</key>\n\t<integer>", "<", "<key>AbandonProcessGroup</key>\n\t<true/>"},
		"launchd/LaunchAgents/io.github.minifleet.agent.plist":  {"<key>ExitTimeOut</key>\n\t<integer>", "<", "<key>AbandonProcessGroup</key>\n\t<true/>"},
	} {
		t.Run(file, func(t *testing.T) {
			text, err := os.ReadFile("../../deploy/" + file)
			if err != nil {
				t.Fatal(err)
			}
			_, rest, _ := strings.Cut(string(text), want.timeout)
			seconds, _, _ := strings.Cut(rest, want.end)
			if n, err := strconv.Atoi(seconds); err != nil || time.Duration(n)*time.Second < stopWithin+5*time.Second {
				t.Errorf("it waits %q seconds, and a stop takes up to %s: want 5 s more", seconds, stopWithin)
			}
			if !strings.Contains(string(text), want.spares) {
				t.Errorf("%q is not in it: an agent's end would take the VMs along", want.spares)
			}
		})
	}
}
