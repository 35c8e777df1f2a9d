// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/config"
	"github.com/minifleet/minifleet/internal/leakcheck"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

func call(t *testing.T, vars map[string]string, args ...string) (string, error) {
	t.Helper()
	var out, complaints bytes.Buffer // written to side by side
	err := run(t.Context(), args, strings.NewReader(""), &out, &complaints, func(k string) string { return vars[k] })
	return out.String() + complaints.String(), err
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const good = `controller: https://minifleet.example.com
name: mini-1
state_dir: /var/lib/minifleet
images_dir: /var/lib/minifleet-images
backend: process
`

func TestConfigCheck(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		vars map[string]string
		want []string // in the error; none means that the file is good
	}{
		"good":             {good, nil, nil},
		"unknown key":      {good + "slot: 2\n", nil, []string{"agent.yaml:6:1", `"slot"`}},
		"no backend":       {strings.Replace(good, "backend: process\n", "", 1), nil, nil},
		"a hypervisor":     {strings.Replace(good, "process", "qemu", 1) + "qemu:\n  network: nat\n  accelerator: tcg\n", nil, nil},
		"another backend":  {strings.Replace(good, "process", "xen", 1), nil, []string{"xen", "qemu", "vz", "no isolation"}},
		"forwards":         {good + "qemu:\n  forwards:\n  - guest: 10.0.2.100:443\n    host: 192.0.2.7:443\n", nil, nil},
		"forward's guest":  {good + "qemu:\n  forwards:\n  - guest: 10.0.2.100\n    host: 192.0.2.7:443\n", nil, []string{"qemu.forwards[0].guest", "10.0.2.100:443"}},
		"forward's host":   {good + "qemu:\n  forwards:\n  - guest: 10.0.2.100:443\n    host: proxy:443\n", nil, []string{"qemu.forwards[0].host", "proxy"}},
		"forward outside":  {good + "qemu:\n  forwards:\n  - guest: 10.0.3.100:443\n    host: 192.0.2.7:443\n", nil, []string{"10.0.2.0/24"}},
		"reserve":          {good + "disk_reserve_mib: -1\n", nil, []string{"disk_reserve_mib is -1"}},
		"network":          {good + "qemu:\n  network: bridged\n", nil, []string{"qemu", "bridged", "isolated or nat"}},
		"accelerator":      {good + "qemu:\n  accelerator: hvf\n", nil, []string{"qemu", "hvf"}},
		"plain http":       {strings.Replace(good, "https", "http", 1), nil, []string{"loopback only"}},
		"relative folder":  {strings.Replace(good, "/var/lib/minifleet\n", "state\n", 1), nil, []string{"state_dir", "absolute"}},
		"bad name":         {strings.Replace(good, "mini-1", "Mini 1", 1), nil, []string{"name", "lower-case"}},
		"saved states":     {good + "saved_states: {enabled: true, size_gib: 0, timeout: 0s}\n", nil, []string{"saved_states.size_gib is 0"}},
		"peers":            {good + "peers: {address: 'en0:7443', group: berlin, allow: [10.1.0.0/16]}\n", nil, nil},
		"peers everywhere": {good + "peers: {address: '0.0.0.0:7443'}\n", nil, []string{"peers", "every network"}},
		"peers' networks":  {good + "peers: {address: 'en0:7443', allow: [en1]}\n", nil, []string{"peers.allow[0]", "en1"}},
		"peers' limit":     {good + "peers: {mib_per_second: 0}\n", nil, []string{"peers.mib_per_second is 0"}},
		"peers' group":     {good + "peers: {group: 'a b'}\n", nil, []string{"peers", "group"}},
		"log level":        {good + "log_level: loud\n", nil, []string{"log_level", "loud"}},
		"by the variable":  {good, map[string]string{"MINIFLEET_AGENT_SLOTS": "0"}, []string{"slots is 0"}},
		"all at one time":  {"name: A\nbackend: x\n", nil, []string{"controller is missing", "state_dir is missing"}},
		"token file lacks": {good + "enrolment_token_file: nowhere\n", nil, []string{"enrolment_token_file", "nowhere"}},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := call(t, tc.vars, "config", "check", write(t, tc.text))
			if tc.want == nil {
				if err != nil || !strings.Contains(out, "is good") {
					t.Errorf("got %q, %v", out, err)
				}
				return
			}
			for _, want := range tc.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("error %v lacks %q", err, want)
				}
			}
		})
	}
}

func TestHelpListsEveryKey(t *testing.T) {
	out, err := call(t, nil, "run", "--help")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range config.Describe[settings](envPrefix) {
		if !strings.Contains(out, k.Name) || k.Help == "" {
			t.Errorf("%s is not explained", k.Name)
		}
	}
}

func TestCommandLineErrors(t *testing.T) {
	for name, args := range map[string][]string{
		"nothing": nil, "unknown command": {"serve"}, "no file": {"run"}, "no such file": {"run", "--config", "/nowhere/agent.yaml"},
		"no controller": {"simulate"}, "no hosts": {"simulate", "--controller", "http://127.0.0.1:1", "--hosts", "0"},
	} {
		t.Run(name, func(t *testing.T) {
			if out, err := call(t, nil, args...); err == nil {
				t.Errorf("no error; it printed %q", out)
			}
		})
	}
	if out, err := call(t, nil, "version"); err != nil || !strings.Contains(out, "minifleet-agent") {
		t.Errorf("version prints %q, %v", out, err)
	}
}

// TestRunRefusesWhatCannotWork shows that nothing starts halfway.
func TestRunRefusesWhatCannotWork(t *testing.T) {
	dir, err := os.MkdirTemp("", "mf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	base := "controller: http://127.0.0.1:1\nname: a\nbackend: process\nimages_dir: " + dir + "\n"
	for name, tc := range map[string]struct{ text, want string }{
		"no vmm":          {"state_dir: " + dir + "/s\nguest: " + program + "\nvmm: /nowhere\n", "minifleet-vmm"},
		"no guest":        {"state_dir: " + dir + "/s\nguest: /nowhere\nvmm: " + program + "\n", "minifleet-guest"},
		"a path too long": {"state_dir: " + dir + "/" + strings.Repeat("long/", 20) + "\nguest: " + program + "\nvmm: " + program + "\n", "state_dir"},
		"no such user":    {"state_dir: " + dir + "/s\nguest: " + program + "\nvmm: " + program + "\nsession_user: no-such-user\n", "session_user"},
		"no images":       {"state_dir: " + dir + "/s\nimages_dir: /nowhere\nguest: " + program + "\nvmm: " + program + "\n", "images_dir"},
	} {
		t.Run(name, func(t *testing.T) {
			text := base + tc.text
			if name == "no images" {
				text = strings.Replace(base, "images_dir: "+dir+"\n", "", 1) + tc.text
			}
			_, err := call(t, nil, "run", "--config", write(t, text))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestImports holds the agent's build to what a host needs.
func TestImports(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	deps := strings.Fields(string(out))
	if !slices.Contains(deps, "github.com/minifleet/minifleet/hosts/agent") {
		t.Fatal("the list of imports is not one")
	}
	for _, dep := range deps {
		for _, bad := range []string{"go-github", "ghinstallation", "sqlite", "database/sql", "pgx", "Code-Hex/vz", "minifleet/vm/vz", "minifleet/store", "minifleet/autoscaler"} {
			if strings.Contains(dep, bad) && dep != "database/sql/driver" { // the bucket's client has a type that fits there
				t.Errorf("the agent imports %s", dep)
			}
		}
	}
}
