// SPDX-License-Identifier: MIT

package doctor_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/hosts/doctor"
	"github.com/minifleet/minifleet/internal/leakcheck"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

var now = time.Date(2026, 2, 9, 10, 0, 0, 0, time.UTC)

// world is a host whose tools print what a test says.
type world struct {
	doctor.Host
	prints map[string]string // by the beginning of the command
	fails  map[string]string // the same: the error
	reach  doctor.Reached
	down   error
	free   int64
	image  int64
	apart  bool // images are on another volume
	clones bool
	broken error // of the folders
}

// newMac is a Mac as docs/mac-host.md sets it up; newLinux a host for QEMU. The texts are
// those of manuals and other projects: none was recorded on a Mac by this one.
func newMac() *world {
	w := &world{
		prints: map[string]string{
			"/usr/bin/sw_vers":             "15.6.1\n",
			"/usr/sbin/sysctl":             "1\n",
			"/usr/bin/codesign":            "Executable=/usr/local/bin/minifleet-vmm\n" + `<?xml version="1.0" encoding="UTF-8"?><!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "https://www.apple.com/DTDs/PropertyList-1.0.dtd"><plist version="1.0"><dict><key>com.apple.security.virtualization</key><true/></dict></plist>`,
			"/bin/launchctl print gui/501": "gui/501 = {\n\ttype = login\n",
			"/usr/sbin/ioreg":              "+-o Root  <class IORegistryEntry>\n    {\n      \"IOConsoleLocked\" = No\n      \"IOConsoleUsers\" = ({\"kCGSSessionOnConsoleKey\"=Yes,\"kSCSecuritySessionID\"=100})\n    }\n",
			"asuser sysadminctl":           "2026-02-09 10:00:00.000 sysadminctl[1:2] screenLock is off\n",
			"asuser security":              "Keychain \"<NULL>\" no-timeout\n",
			"/usr/bin/defaults":            "builder\n",
			"/usr/bin/fdesetup":            "FileVault is Off.\n",
			"/usr/bin/pmset":               "System-wide power settings:\nCurrently in use:\n standby              0\n Sleep On Power Button 1\n autorestart          1\n powernap             1\n disksleep            0\n sleep                0 (sleep prevented by powerd, bluetoothd)\n displaysleep         0\n womp                 1\n",
			"/usr/bin/plutil":              "600\n",
		},
	}
	w.System, w.Arch = "darwin", "arm64"
	w.Target = doctor.Target{Backend: "vz", StateDir: "/s", ImagesDir: "/i", VMM: "/usr/local/bin/minifleet-vmm", Slots: 2, SessionUser: "builder", SessionUID: 501}
	return w.ready()
}

func newLinux() *world {
	w := &world{prints: map[string]string{
		"qemu-system-x86_64 --version": "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright (c) 2003-2022 Fabrice Bellard and the QEMU Project developers\n",
		"sh":                           "",
		"passt":                        "passt 0.0~git20230309.7c7625d-1\n",
	}}
	w.System, w.Arch, w.UID = "linux", "amd64", 1000
	w.Target = doctor.Target{Backend: "qemu", StateDir: "/s", ImagesDir: "/i", Slots: 2}
	return w.ready()
}

func (w *world) ready() *world {
	w.fails, w.free, w.image, w.clones = map[string]string{}, 200<<30, 60<<30, true
	w.reach = doctor.Reached{Trust: "its certificate is the pinned one", Enrolled: true, Date: now}
	w.Run = w.run
	w.Clones = func(string) (bool, error) { return w.clones, w.broken }
	w.Space = func(dir string) (doctor.Space, error) {
		s := doctor.Space{Free: w.free}
		if w.apart && dir == "/i" {
			s.Volume = 1
		}
		return s, w.broken
	}
	w.ImageSize = func(string) (int64, error) { return w.image, nil }
	w.Reach = func(context.Context) (doctor.Reached, error) { return w.reach, w.down }
	w.Now = func() time.Time { return now }
	return w
}

func (w *world) run(_ context.Context, command ...string) (string, error) {
	text := strings.Join(command, " ")
	text = strings.Replace(text, "/bin/launchctl asuser 501 /usr/bin/sudo -n -u builder /usr/sbin/", "asuser ", 1)
	text = strings.Replace(text, "/bin/launchctl asuser 501 /usr/bin/sudo -n -u builder /usr/bin/", "asuser ", 1)
	for begin, why := range w.fails {
		if strings.HasPrefix(text, begin) {
			return "", errors.New(why)
		}
	}
	for begin, out := range w.prints {
		if strings.HasPrefix(text, begin) {
			return out, nil
		}
	}
	return "", errors.New("no such program: " + text)
}

// levels examines a host and returns what each check came to.
func levels(t *testing.T, w *world) map[string]doctor.Level {
	t.Helper()
	all := map[string]doctor.Level{}
	for _, f := range doctor.Examine(t.Context(), &w.Host) {
		all[f.Check] = f.Level
	}
	return all
}

// A copy takes its image at once.
func TestSpaceForCopies(t *testing.T) {
	for name, spoil := range map[string]func(*world){
		"no clones": func(w *world) { w.clones = false }, "two volumes": func(w *world) { w.apart = true },
	} {
		w := newLinux()
		w.Target.AllowCopy = true
		w.free = 70 << 30
		if l := levels(t, w); l["space"] != doctor.OK {
			t.Errorf("with clones: %v", l)
		}
		if spoil(w); levels(t, w)["space"] != doctor.Fail {
			t.Errorf("%s: %v", name, levels(t, w))
		}
	}
}

func TestGoodHosts(t *testing.T) {
	for name, w := range map[string]*world{"Mac": newMac(), "Linux": newLinux()} {
		found := doctor.Examine(t.Context(), &w.Host)
		if len(found) < 9 || doctor.Failed(found) {
			t.Errorf("%s: %+v", name, found)
		}
		for _, f := range found {
			if f.Level != doctor.OK || f.Detail == "" || f.Advice != "" {
				t.Errorf("%s: %+v", name, f)
			}
		}
	}
}

// TestWhatIsWrong breaks one thing at a time: its check says so, and no other.
func TestWhatIsWrong(t *testing.T) {
	type test struct {
		name  string
		spoil func(*world)
		check string
		level doctor.Level
		says  string
	}
	prints := func(begin, out string) func(*world) { return func(w *world) { w.prints[begin] = out } }
	fails := func(begin, why string) func(*world) { return func(w *world) { w.fails[begin] = why } }
	for system, tests := range map[string][]test{
		"Mac": {
			{"old", prints("/usr/bin/sw_vers", "12.7\n"), "macos", doctor.Fail, "13 is needed"},
			{"no states", prints("/usr/bin/sw_vers", "13.0\n"), "macos", doctor.Warn, "saved states"},
			{"no version", prints("/usr/bin/sw_vers", "?"), "macos", doctor.Fail, "not understood"},
			{"no sw_vers", fails("/usr/bin/sw_vers", "gone"), "macos", doctor.Fail, "gone"},
			{"Intel", func(w *world) { w.Arch = "amd64" }, "macos", doctor.Fail, "amd64"},
			{"a VM", prints("/usr/sbin/sysctl", "0\n"), "hypervisor", doctor.Fail, "inside of a VM"},
			{"an old kernel", fails("/usr/sbin/sysctl", "unknown oid"), "hypervisor", doctor.Fail, "unknown oid"},
			{"signed without", prints("/usr/bin/codesign", "Executable=/x\n"), "vmm", doctor.Fail, "not entitled"},
			{"entitled to nothing", prints("/usr/bin/codesign", "<plist><dict/></plist>"), "vmm", doctor.Fail, "not entitled"},
			{"entitlement denied", prints("/usr/bin/codesign", "<plist><dict><key>com.apple.security.virtualization</key><false/></dict></plist>"), "vmm", doctor.Fail, "not entitled"},
			{"entitlement odd", prints("/usr/bin/codesign", "<plist><dict>x</dict></plist>"), "vmm", doctor.Fail, "property list"},
			{"not signed", fails("/usr/bin/codesign", "code object is not signed at all"), "vmm", doctor.Fail, "not signed at all"},
			{"nobody is logged in", fails("/bin/launchctl print", "Bad request. Could not find domain"), "session", doctor.Fail, "no login session gui/501"},
			{"locked", prints("/usr/sbin/ioreg", `"IOConsoleLocked" = Yes`), "screen", doctor.Fail, "locked"},
			{"screen locked", prints("/usr/sbin/ioreg", `"IOConsoleLocked" = No, {"CGSSessionScreenIsLocked"=Yes}`), "screen", doctor.Fail, "locked"},
			{"another ioreg", prints("/usr/sbin/ioreg", "+-o Root"), "screen", doctor.Warn, "not known"},
			{"no ioreg", fails("/usr/sbin/ioreg", "gone"), "screen", doctor.Warn, "gone"},
			{"locks later", prints("asuser sysadminctl", "sysadminctl[1:2] screenLock delay is 300 seconds"), "screen-lock", doctor.Fail, "delay is 300 seconds"},
			{"another sysadminctl", prints("asuser sysadminctl", "usage"), "screen-lock", doctor.Warn, "usage"},
			{"no sysadminctl", fails("asuser sysadminctl", "gone"), "screen-lock", doctor.Warn, "gone"},
			{"keychain locked", fails("asuser security", "User interaction is not allowed."), "keychain", doctor.Fail, "not allowed"},
			{"keychain locks", prints("asuser security", `Keychain "<NULL>" lock-on-sleep timeout=300s`), "keychain", doctor.Warn, "by itself"},
			{"another security", prints("asuser security", "usage"), "keychain", doctor.Warn, "usage"},
			{"no auto-login", fails("/usr/bin/defaults", "does not exist"), "auto-login", doctor.Warn, "nobody"},
			{"somebody else", prints("/usr/bin/defaults", "guest\n"), "auto-login", doctor.Warn, "session_user is builder"},
			{"FileVault", prints("/usr/bin/fdesetup", "FileVault is On.\n"), "filevault", doctor.Warn, "on:"},
			{"FileVault odd", prints("/usr/bin/fdesetup", "Deferred"), "filevault", doctor.Warn, "Deferred"},
			{"no fdesetup", fails("/usr/bin/fdesetup", "gone"), "filevault", doctor.Warn, "gone"},
			{"sleeps", prints("/usr/bin/pmset", " sleep 10\n autorestart 1\n"), "sleep", doctor.Fail, "10 min"},
			{"stays off", prints("/usr/bin/pmset", " sleep 0\n autorestart 0\n"), "sleep", doctor.Warn, "power failure"},
			{"another pmset", prints("/usr/bin/pmset", "usage"), "sleep", doctor.Warn, "not known"},
			{"no pmset", fails("/usr/bin/pmset", "gone"), "sleep", doctor.Warn, "gone"},
			{"a day", prints("/usr/bin/plutil", "86400\n"), "dhcp-lease", doctor.Warn, "24h"},
			{"the default", fails("/usr/bin/plutil", "No value at that key path"), "dhcp-lease", doctor.Warn, "a day"},
			{"no time", prints("/usr/bin/plutil", "0\n"), "dhcp-lease", doctor.Warn, "0 s"},
		},
		"Linux": {
			{"no QEMU", fails("qemu-system-x86_64", "not found"), "qemu", doctor.Fail, "not found"},
			{"old QEMU", prints("qemu-system-x86_64 --version", "QEMU emulator version 5.2.0"), "qemu", doctor.Warn, "7.0"},
			{"odd QEMU", prints("qemu-system-x86_64 --version", "hello"), "qemu", doctor.Warn, "hello"},
			{"huge QEMU", prints("qemu-system-x86_64 --version", "QEMU emulator version 99999999999999999999.1"), "qemu", doctor.Warn, "not understood"},
			{"no KVM", fails("sh", "status 137"), "kvm", doctor.Warn, "emulated"},
			{"no KVM, which is wanted", func(w *world) { w.fails["sh"], w.Target.Accelerator = "status 137", "kvm" }, "kvm", doctor.Fail, "qemu.accelerator is kvm"},
			{"no KVM, which is not wanted", func(w *world) { w.fails["sh"], w.Target.Accelerator = "status 137", "tcg" }, "kvm", doctor.OK, "not needed"},
			{"no passt", fails("passt", "not found"), "passt", doctor.Warn, "nat"},
			{"root's", func(w *world) { w.UID = 0 }, "agent", doctor.Warn, "root"},
			{"for root", func(w *world) { w.Target.SessionUser = "nobody" }, "agent", doctor.Warn, "session_user"},
			{"two volumes", func(w *world) { w.apart = true }, "volume", doctor.Fail, "two volumes"},
			{"no clones", func(w *world) { w.clones = false }, "clones", doctor.Fail, "refuses to start"},
			{"full", func(w *world) { w.free = 1 << 30 }, "space", doctor.Fail, "1.0 GiB free"},
			{"nearly full", func(w *world) { w.free = 25 << 30 }, "space", doctor.Warn, "30.0 GiB"},
			{"too full for one", func(w *world) { w.free = 12 << 30 }, "space", doctor.Fail, "at least 15.0 GiB"},
			{"little reserved", func(w *world) { w.free, w.Target.Reserve = 1<<30, 512<<20 }, "space", doctor.OK, "1.0 GiB are advisable"},
			{"much reserved", func(w *world) { w.free, w.Target.Reserve = 30<<30, 40<<30 }, "space", doctor.Fail, "at least 40.0 GiB"},
			{"much reserved for two", func(w *world) { w.free, w.Target.Reserve = 50<<30, 40<<30 }, "space", doctor.Warn, "80.0 GiB"},
			{"never joined", func(w *world) { w.reach.Enrolled = false }, "controller", doctor.Fail, "no token"},
			{"a late clock", func(w *world) { w.reach.Date = now.Add(time.Minute) }, "clock", doctor.Warn, "-1m0s"},
			{"a wrong clock", func(w *world) { w.reach.Date = now.Add(-time.Hour) }, "clock", doctor.Fail, "1h0m0s"},
			{"no clock", func(w *world) { w.reach.Date = time.Time{} }, "clock", doctor.Warn, "not known"},
		},
	} {
		for _, tt := range tests {
			t.Run(system+"/"+tt.name, func(t *testing.T) {
				w := newLinux()
				if system == "Mac" {
					w, w.UID = newMac(), 0
				}
				tt.spoil(w)
				for _, f := range doctor.Examine(t.Context(), &w.Host) {
					switch {
					case f.Check != tt.check && f.Level != doctor.OK:
						t.Errorf("another check complains: %+v", f)
					case f.Check == tt.check && (f.Level != tt.level || !strings.Contains(f.Detail, tt.says)):
						t.Errorf("%+v, want %s with %q", f, tt.level, tt.says)
					}
				}
			})
		}
	}
}

// TestSeveralAtOnce: what is wrong with the same thing, and what settings change.
func TestSeveralAtOnce(t *testing.T) {
	w := newLinux()
	w.apart, w.clones, w.Target.AllowCopy = true, false, true
	if l := levels(t, w); l["volume"] != doctor.Warn || l["clones"] != doctor.Warn {
		t.Errorf("with allow_copy: %v", l)
	}
	w = newLinux()
	w.broken, w.down = errors.New("no such folder"), errors.New("refused")
	if l := levels(t, w); l["volume"] != doctor.Fail || l["clones"] != doctor.Fail || l["space"] != doctor.Fail || l["controller"] != doctor.Fail || l["clock"] != doctor.Warn {
		t.Errorf("with nothing there: %v", l)
	}
	w = newLinux()
	w.fails["qemu"], w.Target.Backend = "not found", "process"
	if l := levels(t, w); l["qemu"] != doctor.Skip || l["agent"] != doctor.OK {
		t.Errorf("QEMU that nobody needs: %v", l)
	}
	w = newLinux()
	w.Target = doctor.Target{}
	w.Reach = nil
	if l := levels(t, w); l["volume"] != doctor.Skip || l["controller"] != doctor.Skip || l["qemu"] != doctor.OK {
		t.Errorf("without a configuration: %v", l)
	}
	w = newMac()
	w.UID, w.Target.SessionUser = 0, ""
	if l := levels(t, w); l["agent"] != doctor.Fail {
		t.Errorf("root's VMs: %v", l)
	}
	w = newMac() // as the user in whose session the agent runs
	w.UID, w.Target.SessionUser = 501, ""
	w.prints["/usr/sbin/sysadminctl"], w.prints["/usr/bin/security"] = w.prints["asuser sysadminctl"], w.prints["asuser security"]
	for check, level := range levels(t, w) {
		if level != doctor.OK {
			t.Errorf("in a session %s is %s", check, level)
		}
	}
}

func TestPrint(t *testing.T) {
	var out bytes.Buffer
	err := doctor.Print(&out, []doctor.Finding{
		{Check: "a", Level: doctor.OK, Detail: "good"},
		{Check: "b", Level: doctor.Fail, Detail: "bad\n\x1b[31mred\xff", Advice: "mend\tit"},
	})
	want := "ok    a            good\nFAIL  b            bad [31mred?\n                   → mend it\n"
	if got := out.String(); got != want || err != nil {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
}

// FuzzTools lets every tool print anything: each check still says one thing.
func FuzzTools(f *testing.F) {
	f.Fuzz(func(t *testing.T, out string, failed bool) {
		for _, w := range []*world{newMac(), newLinux()} {
			w.Run = func(context.Context, ...string) (string, error) {
				if failed {
					return "", errors.New(out)
				}
				return out, nil
			}
			found := doctor.Examine(t.Context(), &w.Host)
			var text bytes.Buffer
			if err := doctor.Print(&text, found); err != nil {
				t.Error(err)
			}
			lines := 0
			for _, f := range found {
				lines++
				if f.Advice != "" {
					lines++
				}
				if f.Level == doctor.OK && f.Advice != "" || f.Level != doctor.OK && f.Detail == "" {
					t.Errorf("%+v", f)
				}
			}
			if strings.Count(text.String(), "\n") != lines || strings.ContainsAny(text.String(), "\x1b\x00\r") {
				t.Errorf("%q", text.String())
			}
		}
	})
}
