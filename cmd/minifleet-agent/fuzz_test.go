// SPDX-License-Identifier: MIT

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// FuzzSettings gives the agent any configuration file: one that is taken names the host,
// has folders that are absolute and times that are none below zero, and carries the
// credential over TLS or loopback only; no error shows a secret.
func FuzzSettings(f *testing.F) {
	const canary = "canary-s3cret-canary"
	f.Fuzz(func(t *testing.T, text string) {
		path := filepath.Join(t.TempDir(), "agent.yaml")
		if err := os.WriteFile(path, []byte(text+"\nenrolment_token: "+canary+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := load(path, func(string) string { return "" })
		if err != nil {
			if strings.Contains(err.Error(), canary) {
				t.Errorf("the error shows the secret: %v", err)
			}
			return
		}
		if !fleet.ValidName(s.Name) || s.Slots < 1 || s.Slots > 1000 || s.KeepFailures < 0 || s.SavedStates.bytes() < 0 || !filepath.IsAbs(s.StateDir) || !filepath.IsAbs(s.ImagesDir) {
			t.Errorf("taken: %+v", s)
		}
		if !strings.HasPrefix(strings.ToLower(s.Controller), "https://") && !strings.HasPrefix(strings.ToLower(s.Controller), "http://") {
			t.Errorf("controller %q", s.Controller)
		}
		for _, d := range []time.Duration{s.BootDelay, s.BootTimeout, s.GuestTimeout, s.EndGrace, s.MaxLife, s.SavedStates.Timeout} {
			if d < 0 {
				t.Errorf("time %v in %+v", d, s)
			}
		}
	})
}
