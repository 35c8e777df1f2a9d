// SPDX-License-Identifier: MIT

package vz

import (
	"bytes"
	"encoding/json"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/vm"
	"github.com/minifleet/minifleet/vm/options"
)

func planOf(t *testing.T, h host, change func(*vm.Spec, map[string]string)) (plan, string, error) {
	t.Helper()
	dir := newBundle(t, change)
	spec, err := vm.ReadSpec(dir)
	if err != nil {
		t.Fatal(err)
	}
	p, err := newPlan(dir, spec, h)
	return p, dir, err
}

func TestPlanOfAMac(t *testing.T) {
	t.Parallel()
	p, dir, err := planOf(t, goodHost(), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := plan{
		guest: options.GuestMacOS, cpus: 4, memory: 8 << 30, port: options.DefaultPort,
		disk: filepath.Join(dir, options.FileDisk), nvram: filepath.Join(dir, options.FileNVRAM),
		hardwareModel: []byte(goodModel), machineID: MachineIdentifier(7),
		mac: net.HardwareAddr{2, 0, 0, 0, 0, 7}, macKeyboard: true, macTrackpad: true, saves: true,
		display: screen{1920, 1200, 80},
	}
	if diff := cmp.Diff(want, p, cmp.AllowUnexported(plan{}, screen{})); diff != "" {
		t.Error(diff)
	}
}

func TestPlanFollowsTheHost(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		version         Version
		keyboard, saves bool
	}{
		"macOS 13": {Version{13, 6, 1}, false, false},
		"macOS 14": {Version{14, 0, 0}, true, true},
	} {
		h := goodHost()
		h.version, h.maxCPUs, h.minMemory, h.maxMemory = tt.version, 2, 1<<30, 4<<30+12345
		p, _, err := planOf(t, h, nil)
		if err != nil || p.macKeyboard != tt.keyboard || !p.macTrackpad || p.saves != tt.saves {
			t.Errorf("%s: keyboard %v, trackpad %v, saves %v, %v", name, p.macKeyboard, p.macTrackpad, p.saves, err)
		}
		if p.cpus != 2 || p.memory != 4<<30 {
			t.Errorf("%s: %d CPUs and %d bytes are not what the host allows", name, p.cpus, p.memory)
		}
	}
}

func TestPlanOfLinux(t *testing.T) {
	t.Parallel()
	linux := func(files map[string]string) func(*vm.Spec, map[string]string) {
		return func(s *vm.Spec, image map[string]string) {
			s.Options = json.RawMessage(`{"guest":"linux","ecid":"0","mac":"02:00:00:00:00:01","console":true,"durable":true}`)
			delete(image, options.FileNVRAM)
			delete(image, options.FileHardwareModel)
			for name, text := range files {
				image[name] = text
			}
		}
	}
	p, dir, err := planOf(t, goodHost(), linux(nil))
	if err != nil || p.kernel != "" || !p.newNVRAM || p.nvram != filepath.Join(dir, options.FileNVRAM) || p.macKeyboard || p.machineID != nil || !p.durable || p.console == "" {
		t.Errorf("EFI, first boot: %+v, %v", p, err)
	}
	p, _, err = planOf(t, goodHost(), linux(map[string]string{options.FileNVRAM: "variables", options.FileMachineID: "id"}))
	if err != nil || p.newNVRAM || string(p.machineID) != "id" {
		t.Errorf("EFI, later boot: %+v, %v", p, err)
	}
	p, dir, err = planOf(t, goodHost(), linux(map[string]string{options.FileKernel: "k", options.FileInitrd: "i", options.FileCommandLine: "console=hvc0\n"}))
	if err != nil || p.kernel != filepath.Join(dir, options.FileKernel) || p.initrd != filepath.Join(dir, options.FileInitrd) || p.commandLine != "console=hvc0" || p.nvram != "" {
		t.Errorf("kernel: %+v, %v", p, err)
	}
	old := goodHost()
	old.version = Version{12, 7, 0}
	if _, _, err := planOf(t, old, linux(nil)); err == nil || !strings.Contains(err.Error(), "macOS 13") {
		t.Errorf("on macOS 12: %v", err)
	}
}

func TestPlanRefuses(t *testing.T) {
	t.Parallel()
	opts := func(text string) func(*vm.Spec, map[string]string) {
		return func(s *vm.Spec, _ map[string]string) { s.Options = json.RawMessage(text) }
	}
	file := func(name, text string) func(*vm.Spec, map[string]string) {
		return func(_ *vm.Spec, files map[string]string) { files[name] = text }
	}
	newer := strings.Replace(goodModel, "\x10\x0d", "\x10\x63", 1) // macOS 99
	for name, tt := range map[string]struct {
		change func(*vm.Spec, map[string]string)
		want   string
	}{
		"no options":            {opts(""), "options"},
		"unknown option":        {opts(`{"guest":"macos","fast":true}`), "fast"},
		"unknown guest":         {opts(`{"guest":"beos"}`), "macos or linux"},
		"no ECID":               {opts(`{"guest":"macos","mac":"02:00:00:00:00:01"}`), "ecid"},
		"ECID too large":        {opts(`{"guest":"macos","ecid":"9223372036854775808","mac":"02:00:00:00:00:01"}`), "ecid"},
		"no MAC":                {opts(`{"guest":"macos","ecid":"1"}`), "mac"},
		"MAC of a manufacturer": {opts(`{"guest":"macos","ecid":"1","mac":"00:1b:63:00:00:01"}`), "locally administered"},
		"MAC of many":           {opts(`{"guest":"macos","ecid":"1","mac":"03:00:00:00:00:01"}`), "locally administered"},
		"console of a Mac":      {opts(`{"guest":"macos","ecid":"1","mac":"02:00:00:00:00:01","console":true}`), "console"},
		"empty disk":            {file(options.FileDisk, ""), "empty"},
		"no hardware model":     {func(_ *vm.Spec, f map[string]string) { delete(f, options.FileHardwareModel) }, options.FileHardwareModel},
		"broken hardware model": {file(options.FileHardwareModel, "no"), "property list"},
		"huge hardware model":   {file(options.FileHardwareModel, strings.Repeat("x", maxPlistBytes+1)), "more than"},
		"model of a newer host": {file(options.FileHardwareModel, newer), "needs macOS 99.0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, _, err := planOf(t, goodHost(), tt.change)
			if err == nil || !strings.Contains(err.Error(), tt.want) || vm.ReasonOf(err, "") != vm.ReasonBadConfiguration {
				t.Errorf("%v (%q), want %q", err, vm.ReasonOf(err, ""), tt.want)
			}
		})
	}
}

func TestIdentity(t *testing.T) {
	t.Parallel()
	id, err := options.NewIdentity(bytes.NewReader(bytes.Repeat([]byte{0xff}, 14)))
	if err != nil || id.MAC != "fe:ff:ff:ff:ff:ff" || id.ECID>>63 != 0 {
		t.Errorf("%+v, %v", id, err)
	}
	if id, err = options.NewIdentity(bytes.NewReader(make([]byte, 14))); err != nil || id.Validate(true) != nil {
		t.Errorf("%+v is not valid: %v, %v", id, id.Validate(true), err)
	}
	if _, err := options.NewIdentity(bytes.NewReader(nil)); err == nil {
		t.Error("an identity without random bytes")
	}
	b, err := json.Marshal(options.VZ{Guest: options.GuestMacOS, Identity: options.Identity{ECID: 1<<63 - 1, MAC: "02:00:00:00:00:01"}})
	if err != nil {
		t.Fatal(err)
	}
	if o, err := options.ParseVZ(b); err != nil || o.ECID != 1<<63-1 {
		t.Errorf("%s comes back as %+v, %v", b, o, err)
	}
	for _, ecid := range []uint64{1, 0x1234_5678_9abc_def0, 1<<63 - 1} {
		if got, err := ParseMachineIdentifier(MachineIdentifier(ecid)); got != ecid || err != nil {
			t.Errorf("%d comes back as %d, %v", ecid, got, err)
		}
	}
	for name, text := range map[string]string{"": "nothing", "a hardware model": goodModel} {
		if got, err := ParseMachineIdentifier([]byte(text)); err == nil {
			t.Errorf("%q has the ECID %d", name, got)
		}
	}
}

func TestHardwareModel(t *testing.T) {
	t.Parallel()
	m, err := ParseHardwareModel([]byte(goodModel))
	if want := (HardwareModel{MinimumOS: Version{13, 0, 0}, Platform: 2}); err != nil || m != want {
		t.Errorf("%+v, %v; want %+v", m, err, want)
	}
	if m, err := ParseHardwareModel(MachineIdentifier(1)); err == nil {
		t.Errorf("a machine identifier is read as %+v", m)
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Version{"14.4.1": {14, 4, 1}, "26.1": {26, 1, 0}, "13": {13, 0, 0}} {
		if v, err := ParseVersion(text); v != want || err != nil {
			t.Errorf("%q: %v, %v", text, v, err)
		}
	}
	for _, text := range []string{"", "x", "14.x", "-1.2.3", "0.1"} {
		if v, err := ParseVersion(text); err == nil {
			t.Errorf("%q is read as %v", text, v)
		}
	}
}

func TestErrorsHaveReasons(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		err  error
		want vm.Reason
	}{
		"internal":             {&nsError{vzDomain, codeInternal, "The virtual machine stopped unexpectedly.", ""}, vm.ReasonHypervisorCrashed},
		"internal, no key":     {&nsError{vzDomain, codeInternal, "", `NSUnderlyingError = "Failed to create new HostKey"`}, vm.ReasonKeychainLocked},
		"configuration":        {&nsError{vzDomain, codeInvalidConfiguration, "", ""}, vm.ReasonBadConfiguration},
		"entitlement":          {&nsError{vzDomain, codeInvalidConfiguration, "", "the process lacks the entitlement"}, vm.ReasonNoEntitlement},
		"disk image":           {&nsError{vzDomain, codeInvalidDiskImage, "", ""}, vm.ReasonBadConfiguration},
		"third machine":        {&nsError{vzDomain, codeLimitExceeded, "", ""}, vm.ReasonTwoVMLimit},
		"save":                 {&nsError{vzDomain, codeSave, "invalid argument", ""}, vm.ReasonBackendFailed},
		"save, locked":         {&nsError{vzDomain, codeSave, "permission denied", ""}, vm.ReasonKeychainLocked},
		"restore":              {&nsError{vzDomain, codeRestore, "invalid argument", ""}, vm.ReasonRestoreFailed},
		"restore, locked":      {&nsError{vzDomain, codeRestore, "", "Code=-25308"}, vm.ReasonKeychainLocked},
		"permission elsehow":   {&nsError{vzDomain, 7, "permission denied", ""}, vm.ReasonBackendFailed},
		"another domain":       {&nsError{"NSPOSIXErrorDomain", 12, "", ""}, vm.ReasonBackendFailed},
		"none of Apple's":      {errTest, vm.ReasonBackendFailed},
		"a code of the future": {&nsError{vzDomain, 4711, "", ""}, vm.ReasonBackendFailed},
	} {
		err := explain("start", tt.err)
		if got := vm.ReasonOf(err, ""); got != tt.want || !strings.HasPrefix(err.Error(), "start: ") {
			t.Errorf("%s: %q, want %q (%v)", name, got, tt.want, err)
		}
	}
	if explain("start", nil) != nil {
		t.Error("no error is explained as one")
	}
}

func FuzzParsePlist(f *testing.F) {
	f.Add([]byte(goodModel))
	f.Add(MachineIdentifier(7))
	f.Add([]byte("bplist00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := ParseHardwareModel(b); err != nil && !strings.HasPrefix(err.Error(), "hardware model: ") {
			t.Error(err)
		}
		if ecid, err := ParseMachineIdentifier(b); err == nil && ecid == 0 {
			t.Error("an identifier without an ECID")
		}
	})
}
