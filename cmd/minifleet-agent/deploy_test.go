// SPDX-License-Identifier: MIT

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
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
