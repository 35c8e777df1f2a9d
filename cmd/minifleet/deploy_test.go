// SPDX-License-Identifier: MIT

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
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
