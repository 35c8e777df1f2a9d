// SPDX-License-Identifier: MIT

package vz

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minifleet/minifleet/vm"
)

func TestProbe(t *testing.T) {
	image := newBundle(t, nil)
	for _, name := range []string{vm.FileSpec, vm.FileLock} { // of a bundle an image again
		os.Remove(filepath.Join(image, name))
	}
	for name, tt := range map[string]struct {
		change func(*simulatedMac)
		image  string
		says   []string
		err    string
	}{
		"all works": {nil, image, []string{"ok    save", "ok    restore", "ok    resume", "macOS 26.1"}, ""},
		"no image":  {nil, "", []string{"nothing was booted"}, ""},
		"old macOS": {func(m *simulatedMac) { m.is.version = Version{13, 0, 0} }, image, []string{"skip  saved states", "ok    power off"}, ""},
		"not signed": {
			func(m *simulatedMac) { m.is.entitlement = false }, image,
			[]string{"FAIL  host", vm.ReasonNoEntitlement.Sentence()},
			entitlement,
		},
		"third machine": {
			func(m *simulatedMac) {
				m.with = func(s *simulated) { s.fail["start"] = &nsError{Domain: vzDomain, Code: codeLimitExceeded} }
			}, image, []string{"FAIL  start", vm.ReasonTwoVMLimit.Sentence()}, "start",
		},
		"state refused": {
			func(m *simulatedMac) {
				m.with = func(s *simulated) { s.fail["restore"] = &nsError{Domain: vzDomain, Code: codeRestore} }
			}, image, []string{"ok    save", "FAIL  restore", vm.ReasonRestoreFailed.Sentence()}, "restore",
		},
		"guest is mute": {
			func(m *simulatedMac) {
				m.with = func(s *simulated) { s.fail["dial"] = &nsError{Domain: "NSPOSIXErrorDomain", Code: 54} }
			}, image, []string{"ok    start", "FAIL  guest answers"}, "nothing within",
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "mf") //nolint:usetesting // its path is too long for sockets
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			mac := newSimulatedMac()
			if tt.change != nil {
				tt.change(mac)
			}
			var out bytes.Buffer
			ask := func(t *testing.T) {
				err = probe(t.Context(), mac, ProbeConfig{ImageDir: tt.image, Dir: dir, AllowCopy: true, Patience: time.Minute}, &out)
			}
			if name == "guest is mute" { // which is waited for
				synctest.Test(t, ask)
			} else {
				ask(t)
			}
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%v, want %q", err, tt.err)
			}
			for _, s := range tt.says {
				if !strings.Contains(out.String(), s) {
					t.Errorf("no %q in\n%s", s, &out)
				}
			}
			if left, _ := os.ReadDir(dir); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}
