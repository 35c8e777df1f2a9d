// SPDX-License-Identifier: MIT

package vm_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/vm"
)

const goldenSpec = `{
  "schema": 1,
  "id": "m-1",
  "backend": "process",
  "cpus": 4,
  "memory_mib": 8192,
  "max_life": "6h0m0s",
  "image": {
    "name": "dev",
    "digest": "sha256:00"
  },
  "annotations": {
    "runner": "r-7"
  },
  "process": {
    "guest_program": "/opt/minifleet-guest",
    "args": [
      "--verbose"
    ],
    "env": {
      "A": "b"
    },
    "runner_dir": "runner",
    "boot_delay": "2s"
  }
}
`

func fullSpec() vm.Spec {
	return vm.Spec{
		ID: "m-1", Backend: vm.BackendProcess, CPUs: 4, MemoryMiB: 8192, MaxLife: 6 * time.Hour,
		Image: vm.ImageRef{Name: "dev", Digest: "sha256:00"}, Annotations: map[string]string{"runner": "r-7"},
		Process: &vm.ProcessSpec{
			GuestProgram: "/opt/minifleet-guest", Args: []string{"--verbose"}, Env: map[string]string{"A": "b"},
			RunnerDir: "runner", BootDelay: 2 * time.Second,
		},
	}
}

func TestSpecFile(t *testing.T) {
	t.Parallel()
	b, err := fullSpec().Encode()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(goldenSpec, string(b)); diff != "" {
		t.Error(diff)
	}
	got, err := vm.ParseSpec([]byte(goldenSpec))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(fullSpec(), got); diff != "" {
		t.Error(diff)
	}
	other := vm.Spec{ID: "q", Backend: vm.BackendQEMU, CPUs: 1, MemoryMiB: 1, MaxLife: 1, Options: json.RawMessage(`{"accel":"tcg"}`)}
	if b, err = other.Encode(); err != nil {
		t.Fatal(err)
	}
	if got, err = vm.ParseSpec(b); err != nil || !strings.Contains(string(got.Options), `"accel"`) {
		t.Errorf("options of another backend: %s, %v", got.Options, err)
	}
}

func TestParseSpecRefuses(t *testing.T) {
	t.Parallel()
	edit := func(old, with string) string {
		if !strings.Contains(goldenSpec, old) {
			t.Fatalf("the golden spec has no %s", old)
		}
		return strings.Replace(goldenSpec, old, with, 1)
	}
	for name, tt := range map[string]struct{ text, want string }{
		"empty":               {"", "unexpected end"},
		"newer schema":        {edit(`"schema": 1`, `"schema": 2, "new": true`), "schema 2"},
		"no schema":           {edit(`"schema": 1,`, ``), "schema 0"},
		"unknown key":         {edit(`"cpus": 4`, `"cpus": 4, "cpu": 5`), `unknown field "cpu"`},
		"something follows":   {goldenSpec + "{}", "after top-level value"},
		"traversal":           {edit(`"m-1"`, `"../m"`), "only a-z"},
		"id of dots":          {edit(`"m-1"`, `".."`), "only a-z"},
		"id too long":         {edit(`"m-1"`, `"`+strings.Repeat("a", 41)+`"`), "41 characters"},
		"unknown backend":     {edit(`"backend": "process"`, `"backend": "docker"`), "docker"},
		"no CPUs":             {edit(`"cpus": 4`, `"cpus": 0`), "cpus is 0"},
		"no memory":           {edit(`"memory_mib": 8192`, `"memory_mib": -1`), "memory_mib is -1"},
		"no maximum life":     {edit(`"max_life": "6h0m0s"`, `"max_life": "0s"`), "max_life is 0s"},
		"life is no duration": {edit(`"6h0m0s"`, `"long"`), "invalid duration"},
		"relative guest":      {edit(`"/opt/minifleet-guest"`, `"minifleet-guest"`), "absolute path"},
		"runner outside":      {edit(`"runner_dir": "runner"`, `"runner_dir": "../../x"`), "runner_dir"},
		"bad environment":     {edit(`"A": "b"`, `"A=B": "b"`), "process.env"},
		"long boot":           {edit(`"2s"`, `"48h"`), "boot_delay"},
		"bad annotation":      {edit(`"runner": "r-7"`, `"a b": "r-7"`), "annotation"},
		"large annotation":    {edit(`"r-7"`, `"`+strings.Repeat("x", vm.MaxAnnotationBytes)+`"`), "annotations have"},
		"options and process": {edit(`"process": {`, `"options": {}, "process": {`), "options is set"},
		"process for another": {edit(`"backend": "process"`, `"backend": "qemu"`), "process is set"},
		"too large":           {strings.Repeat(" ", vm.MaxSpecBytes) + goldenSpec, "bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := vm.ParseSpec([]byte(tt.text)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want it to say %q", err, tt.want)
			}
		})
	}
}

func TestRestoreInSpec(t *testing.T) {
	t.Parallel()
	spec := vm.Spec{ID: "q", Backend: vm.BackendQEMU, CPUs: 1, MemoryMiB: 1, MaxLife: 1, Restore: "/var/lib/states/1-a"}
	b, err := spec.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := vm.ParseSpec(b); err != nil || got.Restore != spec.Restore {
		t.Errorf("%+v, %v", got, err)
	}
	for name, path := range map[string]string{
		"relative": "states/1", "climbs": "/var/../states", "ends in a slash": "/states/", "zero byte": "/states/\x00", "no text": "/states/\xff",
		"long": "/" + strings.Repeat("s", vm.MaxSavedPath),
	} {
		bad := spec
		bad.Restore = path
		if err := bad.Validate(); err == nil || !strings.Contains(err.Error(), "restore: the path") {
			t.Errorf("%s: %v", name, err)
		}
	}
	process := fullSpec()
	process.Restore = spec.Restore
	if err := process.Validate(); err == nil || !strings.Contains(err.Error(), "no saved states") {
		t.Errorf("the process backend: %v", err)
	}
}

func TestValidateTellsAll(t *testing.T) {
	t.Parallel()
	err := vm.Spec{ID: "UPPER"}.Validate()
	for _, want := range []string{"UPPER", "cpus", "memory_mib", "max_life", "backend"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not speak of %s: %v", want, err)
		}
	}
}

func TestParseStatus(t *testing.T) {
	t.Parallel()
	const first, second, last = `{"revision":1,"phase":"starting"}` + "\n", `{"revision":2,"phase":"running","new_key":1}` + "\n",
		`{"revision":3,"phase":"final","reason":"a_new_one","detail":"d"}` + "\n"
	for name, tt := range map[string]struct {
		text   string
		states int
		want   string // "" means no error
	}{
		"empty":                 {"", 0, ""},
		"a whole life":          {first + second + last, 3, ""},
		"cut off":               {first + second + last[:20], 2, ""},
		"cut off before a line": {first[:10], 0, ""},
		"rubbish":               {first + "rubbish\n" + last, 1, "line 2"},
		"unknown phase":         {`{"revision":1,"phase":"flying"}` + "\n", 0, "flying"},
		"revision falls":        {second + first, 1, "revision 1 follows 2"},
		"after the final line":  {last + `{"revision":4,"phase":"running"}` + "\n", 1, "follows the final"},
		"too large":             {strings.Repeat("x", vm.MaxStatusBytes+1), 0, "allowed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			states, err := vm.ParseStatus([]byte(tt.text))
			if len(states) != tt.states {
				t.Errorf("%d states, want %d", len(states), tt.states)
			}
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}
