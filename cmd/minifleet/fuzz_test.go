// SPDX-License-Identifier: MIT

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// FuzzSettings gives the controller any configuration file: one that is taken makes
// pools that are valid and times that are none below zero, and says nothing in clear
// beyond loopback; no error shows a secret.
func FuzzSettings(f *testing.F) {
	const canary = "canary-s3cret-canary"
	f.Fuzz(func(t *testing.T, text string) {
		path := filepath.Join(t.TempDir(), "controller.yaml")
		if err := os.WriteFile(path, []byte(text+"\nadmin: {token: "+canary+"}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := loadSettings(path, nothing)
		if err != nil {
			if strings.Contains(err.Error(), canary) {
				t.Errorf("the error shows the secret: %v", err)
			}
			return
		}
		if s.GitHub.AppID <= 0 || s.GitHub.PrivateKey.Empty() || s.GitHub.WebhookSecret.Empty() || s.Admin.Token.Empty() || s.GitHub.MintsPerMinute < 0 {
			t.Errorf("taken: %+v", s)
		}
		for name, l := range map[string]listener{"agents": s.Agents.listener(), "admin": s.Admin.listener()} {
			if l.validate(name, false, "") != nil {
				t.Errorf("%s listens at %+v", name, l)
			}
		}
		times := []time.Duration{
			s.KeepEvents, s.KeepPast, s.GitHub.InstallationRefresh,
			s.Timing.HostDeadline, s.Timing.Poll, s.Timing.Lease, s.Timing.EndGrace, s.Timing.Repair,
		}
		for _, p := range s.pools() {
			if err := p.Validate(); err != nil || len(p.Scopes) == 0 || strings.TrimSpace(strings.Join(p.LabelNames, "")) == "" {
				t.Errorf("pool %+v: %v", p, err)
			}
			for _, l := range p.LabelNames {
				if strings.TrimSpace(l) == "" || strings.ContainsAny(l, "\x00\n\r\x1b") {
					t.Errorf("label %q got through", l)
				}
			}
			l := p.Limits
			times = append(times, l.Placed, l.Preparing, l.Booting, l.Registering, l.Surplus, l.Unnamed, l.Assignment, l.Ending, l.Arming, l.Job)
		}
		for i, d := range times {
			if d < 0 {
				t.Errorf("time %d is %v", i, d)
			}
		}
	})
}
