// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/dev"
)

// TestDeployExample holds the example that the README points to: it is a good file
// as soon as the files that it names are there.
func TestDeployExample(t *testing.T) {
	text, err := os.ReadFile("../../deploy/controller.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, name := range []string{"admin.token", "app.pem", "webhook.secret"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("a secret\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "controller.yaml")
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(text), "/etc/minifleet", dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := loadSettings(path, func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Pools) != 1 || cfg.Pools[0].Standby != 1 || cfg.Agents.CertFile != filepath.Join(dir, "tls.crt") {
		t.Errorf("%+v", cfg)
	}
}

// TestDeployService: the service manager waits for longer than a stop takes.
func TestDeployService(t *testing.T) {
	text, err := os.ReadFile("../../deploy/minifleet.service")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "\nTimeoutStopSec=")
	seconds, _, _ := strings.Cut(rest, "\n")
	if n, err := strconv.Atoi(seconds); err != nil || time.Duration(n)*time.Second < stopWithin+5*time.Second {
		t.Errorf("TimeoutStopSec is %q, and a stop takes up to %s: want 5 s more", seconds, stopWithin)
	}
}

// TestOperationsPage: the page tells the bounds of stops.
func TestOperationsPage(t *testing.T) {
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for program, within := range map[string]time.Duration{"serve": stopWithin, "dev": dev.StopTime} {
		_, row, _ := strings.Cut(string(text), "\n| `minifleet "+program+"` |")
		row, _, _ = strings.Cut(row, "\n")
		if want := fmt.Sprintf("| %d s |", int(within.Seconds())); !strings.HasSuffix(row, want) {
			t.Errorf("the row of minifleet %s ends with %q, want %q", program, row[max(0, len(row)-20):], want)
		}
	}
}
