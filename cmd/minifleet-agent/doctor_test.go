// SPDX-License-Identifier: MIT

package main

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/hosts/doctor"
	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/program"
	"github.com/minifleet/minifleet/secret"
)

// TestDoctor looks at this machine, whatever it is: what depends on the configuration is
// found, and the exit status says whether something fails.
func TestDoctor(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
		_ = json.NewEncoder(w).Encode(protocol.Error{Code: protocol.CodeCredential})
	}))
	defer s.Close()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "images", "one"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "images", "one", "disk.img"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	text := "controller: " + s.URL + "\nname: a\nbackend: process\nallow_copy: true\nstate_dir: " + dir + "/not/yet\nimages_dir: " + dir + "/images\n"
	vars := map[string]string{"MINIFLEET_AGENT_ENROLMENT_TOKEN": protocol.FormatEnrolment(secret.New("t"), "").Reveal()}
	out, err := call(t, vars, "doctor", "--config", write(t, text), "-o", "json")
	var found []doctor.Finding
	if err := json.Unmarshal([]byte(out), &found); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	levels := map[string]doctor.Level{}
	for _, f := range found {
		levels[f.Check] = f.Level
	}
	if levels["volume"] != doctor.OK || levels["controller"] != doctor.OK || levels["clock"] != doctor.OK || levels["clones"] == doctor.Fail {
		t.Errorf("found %+v", found)
	}
	if failed := doctor.Failed(found); failed != errors.Is(err, program.Exit(1)) || !failed && err != nil {
		t.Errorf("failed %v and the error is %v", failed, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "not")); err == nil {
		t.Error("a folder was made")
	}
	s.Close()
	out, err = call(t, vars, "doctor", "--config", write(t, text))
	if !errors.Is(err, program.Exit(1)) || !strings.Contains(out, "FAIL  controller") || !strings.Contains(out, "→") {
		t.Errorf("without a controller: %v\n%s", err, out)
	}
}

// The doctor judges by what the agent goes by.
func TestTarget(t *testing.T) {
	cfg := settings{DiskReserve: 2048, AllowCopy: true, Slots: 3}
	cfg.QEMU.Accelerator = "tcg"
	got, err := target(cfg)
	if err != nil || got.Reserve != 2<<30 || got.Accelerator != "tcg" || !got.AllowCopy || got.Slots != 3 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestLargestImage(t *testing.T) {
	dir := t.TempDir()
	for name, size := range map[string]int{"a": 1 << 20, "b": 3 << 20} {
		if err := os.MkdirAll(filepath.Join(dir, name, "deep"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "deep", "disk.img"), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// What was written may still be on its way to the volume, so this is no exact number.
	if size, err := largestImage(dir); err != nil || size > 4<<20 {
		t.Errorf("%d, %v", size, err)
	}
	if size, err := largestImage(filepath.Join(dir, "none")); size != 0 || err != nil {
		t.Errorf("no folder: %d, %v", size, err)
	}
}
