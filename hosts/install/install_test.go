// SPDX-License-Identifier: MIT

package install_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/hosts/install"
	"github.com/minifleet/minifleet/internal/leakcheck"
	"github.com/minifleet/minifleet/internal/plist"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

// host is a machine whose service manager only remembers.
type host struct {
	install.Config
	dir     string
	out     bytes.Buffer
	ran     []string        // what changed something, in order
	yes     map[string]bool // by command: what a question is answered
	fail    string          // the command that fails
	lingers int             // questions for which launchd keeps what was booted out
}

func newHost(t *testing.T, system string, uid int) *host {
	t.Helper()
	dir := t.TempDir()
	h := &host{dir: dir, yes: map[string]bool{}}
	for _, name := range []string{"minifleet-agent", "minifleet-vmm", "agent.yaml"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	h.Config = install.Config{
		Variant:  install.VariantDaemon,
		Service:  install.Service{Program: filepath.Join(dir, "minifleet-agent"), Config: filepath.Join(dir, "agent.yaml"), Log: "/var/log/minifleet-agent.log", User: "root"},
		Programs: []string{filepath.Join(dir, "minifleet-agent"), filepath.Join(dir, "minifleet-vmm")},
		System:   system, UID: uid, Home: "/Users/builder", Root: filepath.Join(dir, "root"), Run: h.run, Out: &h.out,
	}
	return h
}

const (
	inSystem  = "/bin/launchctl print system/" + install.Label
	inSession = "/bin/launchctl print gui/501/" + install.Label
	active    = "systemctl is-active --quiet " + install.Unit
)

func (h *host) run(_ context.Context, command ...string) (string, error) {
	text := strings.ReplaceAll(strings.Join(command, " "), h.dir, "")
	if strings.Contains(text, "launchctl print") || strings.Contains(text, "is-active") {
		if h.yes[text] {
			return "", nil
		}
		if h.lingers > 0 {
			h.lingers--
			return "", nil
		}
		return "", errors.New("no such service")
	}
	if at := strings.Index(text, ".new-"); at >= 0 {
		text = text[:at] + ".new"
	}
	h.ran = append(h.ran, text)
	if h.fail != "" && strings.Contains(text, h.fail) {
		return "", errors.New("5: Input/output error")
	}
	switch {
	case strings.Contains(text, "bootstrap system"):
		h.yes[inSystem] = true
	case strings.Contains(text, "bootstrap gui/501"):
		h.yes[inSession] = true
	case strings.Contains(text, "bootout"):
		clear(h.yes)
	case strings.Contains(text, "--now") && strings.Contains(text, "enable"):
		h.yes[active] = true
	case strings.Contains(text, "systemctl stop"), strings.Contains(text, "disable --now"):
		h.yes[active] = false
	}
	return "", nil
}

// did returns what was run since it was asked last.
func (h *host) did() []string {
	defer func() { h.ran = nil }()
	return h.ran
}

func (h *host) file(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(h.Root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func want(t *testing.T, got []string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("commands:\n%s", diff)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

const (
	daemonFile = "/Library/LaunchDaemons/io.github.minifleet.agent.plist"
	agentFile  = "/Users/builder/Library/LaunchAgents/io.github.minifleet.agent.plist"
	unitFile   = "/etc/systemd/system/minifleet-agent.service"
)

func TestDaemonOnAMac(t *testing.T) {
	h := newHost(t, "darwin", 0)
	must(t, install.Install(t.Context(), h.Config))
	lint := "/usr/bin/plutil -lint /root/Library/LaunchDaemons/.io.github.minifleet.agent.plist.new"
	load := []string{
		"/bin/launchctl enable system/io.github.minifleet.agent",
		"/bin/launchctl bootstrap system /root" + daemonFile,
		"/bin/launchctl kickstart system/io.github.minifleet.agent",
	}
	want(t, h.did(), append([]string{lint}, load...)...)
	v, err := plist.Parse([]byte(h.file(t, daemonFile)))
	must(t, err)
	if diff := cmp.Diff([]any{h.Service.Program, "run", "--config", h.Service.Config}, v.(plist.Dict)["ProgramArguments"]); diff != "" {
		t.Error(diff)
	}
	if info, err := os.Stat(filepath.Join(h.Root, daemonFile)); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("%v, %v: launchd takes files that only their owner can change", info.Mode(), err)
	}

	t.Log("again: nothing but a look whether it runs")
	must(t, install.Install(t.Context(), h.Config))
	want(t, h.did(), load[2])

	t.Log("changed: launchd lets go of the old one before the new one is there")
	h.Service.Log = "/var/log/another.log"
	must(t, install.Install(t.Context(), h.Config))
	want(t, h.did(), append([]string{lint, "/bin/launchctl bootout system/io.github.minifleet.agent"}, load...)...)

	must(t, install.Uninstall(t.Context(), h.Config))
	want(t, h.did(), "/bin/launchctl bootout system/io.github.minifleet.agent")
	if _, err := os.Stat(filepath.Join(h.Root, daemonFile)); err == nil {
		t.Error("the file is still there")
	}
	must(t, install.Uninstall(t.Context(), h.Config))
	want(t, h.did())
}

func TestAgentOfASession(t *testing.T) {
	h := newHost(t, "darwin", 501)
	h.Variant = install.VariantAgent
	if err := install.Install(t.Context(), h.Config); err == nil || !strings.Contains(err.Error(), "log in at its screen") {
		t.Errorf("without a session: %v", err)
	}
	want(t, h.did())
	h.yes["/bin/launchctl print gui/501"] = true
	must(t, install.Install(t.Context(), h.Config))
	want(t, h.did(),
		"/usr/bin/plutil -lint /root/Users/builder/Library/LaunchAgents/.io.github.minifleet.agent.plist.new",
		"/bin/launchctl enable gui/501/io.github.minifleet.agent",
		"/bin/launchctl bootstrap gui/501 /root"+agentFile,
		"/bin/launchctl kickstart gui/501/io.github.minifleet.agent")
	if text := h.file(t, agentFile); !strings.Contains(text, "<string>Aqua</string>") {
		t.Error(text)
	}
}

func TestOnLinux(t *testing.T) {
	h := newHost(t, "linux", 0)
	must(t, install.Install(t.Context(), h.Config))
	start := []string{"systemctl daemon-reload", "systemctl enable --now minifleet-agent.service"}
	want(t, h.did(), start...)
	must(t, install.Install(t.Context(), h.Config))
	want(t, h.did(), start...)
	h.Service.Config = filepath.Join(h.dir, "minifleet-vmm")
	must(t, install.Install(t.Context(), h.Config))
	want(t, h.did(), append([]string{"systemctl stop minifleet-agent.service"}, start...)...)
	must(t, install.Uninstall(t.Context(), h.Config))
	want(t, h.did(), "systemctl disable --now minifleet-agent.service", "systemctl daemon-reload")
	must(t, install.Uninstall(t.Context(), h.Config))
	want(t, h.did())
}

// TestCutShort: an installation that failed somewhere is completed by repeating it.
func TestCutShort(t *testing.T) {
	for _, fail := range []string{"-lint", "bootout", "enable", "bootstrap", "kickstart"} {
		t.Run(fail, func(t *testing.T) {
			h := newHost(t, "darwin", 0)
			must(t, install.Install(t.Context(), h.Config))
			h.Service.Log = "/var/log/another.log"
			h.did()
			h.fail = fail
			if err := install.Install(t.Context(), h.Config); err == nil || !strings.Contains(err.Error(), fail) || !strings.Contains(err.Error(), "Input/output") {
				t.Errorf("error %v", err)
			}
			before := len(h.did())
			h.fail = ""
			must(t, install.Install(t.Context(), h.Config))
			if again := strings.Join(h.did(), "\n"); !h.yes[inSystem] || !strings.Contains(again, "kickstart") || fail != "kickstart" && !strings.Contains(again, "bootstrap") {
				t.Errorf("after %d commands, repeated: %s", before, again)
			}
			if !strings.Contains(h.file(t, daemonFile), "another.log") {
				t.Error("the new description is not there")
			}
			if left, _ := filepath.Glob(filepath.Join(h.Root, "Library/LaunchDaemons/.*")); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// TestLaunchdTakesItsTime: what was booted out is waited for, and not for ever.
func TestLaunchdTakesItsTime(t *testing.T) {
	h := newHost(t, "darwin", 0)
	must(t, install.Install(t.Context(), h.Config))
	synctest.Test(t, func(t *testing.T) {
		h.lingers = 20
		must(t, install.Uninstall(t.Context(), h.Config))
		if h.lingers != 0 {
			t.Errorf("%d questions were not asked", h.lingers)
		}
	})
	must(t, install.Install(t.Context(), h.Config))
	synctest.Test(t, func(t *testing.T) {
		h.lingers = 1 << 30
		if err := install.Uninstall(t.Context(), h.Config); err == nil || !strings.Contains(err.Error(), "launchd still has") {
			t.Errorf("error %v", err)
		}
	})
	h.lingers = 0
	h.file(t, daemonFile) // not removed under launchd
}

func TestDryRun(t *testing.T) {
	for _, system := range []string{"darwin", "linux"} {
		h := newHost(t, system, 501)
		h.DryRun = true
		must(t, install.Install(t.Context(), h.Config))
		want(t, h.did())
		if _, err := os.Stat(h.Root); err == nil {
			t.Error("something was written")
		}
		text := h.out.String()
		for _, want := range []string{"would write", h.Service.Program, "would run"} {
			if !strings.Contains(text, want) {
				t.Errorf("%s: %q is not in\n%s", system, want, text)
			}
		}
		must(t, install.Uninstall(t.Context(), h.Config))
		want(t, h.did())
	}
}

func TestRefusals(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*testing.T, *host)
		want   string
	}{
		"daemon without root": {func(_ *testing.T, h *host) { h.UID = 501 }, "sudo"},
		"agent of root":       {func(_ *testing.T, h *host) { h.Variant = install.VariantAgent }, "without sudo"},
		"agent on Linux":      {func(_ *testing.T, h *host) { h.Variant, h.System = install.VariantAgent, "linux" }, "for Macs"},
		"another variant":     {func(_ *testing.T, h *host) { h.Variant = "app" }, `"app"`},
		"another system":      {func(_ *testing.T, h *host) { h.System = "plan9" }, "plan9"},
		"no program":          {func(_ *testing.T, h *host) { h.Programs[0] += "-none" }, "no such file"},
		"a program of all":    {func(t *testing.T, h *host) { must(t, os.Chmod(h.Programs[1], 0o777)) }, "minifleet-vmm can be changed by others"},
		"a folder of a group": {func(t *testing.T, h *host) { must(t, os.Chmod(h.dir, 0o775)) }, "can be changed by others"},
		"a link in a folder of all": {func(t *testing.T, h *host) {
			folder := filepath.Join(h.dir, "links")
			must(t, errors.Join(os.Mkdir(folder, 0o700), os.Symlink(h.Programs[1], filepath.Join(folder, "vmm")), os.Chmod(folder, 0o777)))
			h.Programs[1] = filepath.Join(folder, "vmm")
		}, "links can be changed by others"},
		"a link by way of it": {func(t *testing.T, h *host) {
			folder := filepath.Join(h.dir, "links")
			must(t, errors.Join(os.Mkdir(folder, 0o700), os.Symlink(h.Programs[1], filepath.Join(folder, "vmm")), os.Chmod(folder, 0o777),
				os.Symlink("links/vmm", filepath.Join(h.dir, "first"))))
			h.Programs[1] = filepath.Join(h.dir, "first")
		}, "links can be changed by others"},
		"configuration of all": {func(t *testing.T, h *host) { must(t, os.Chmod(h.Service.Config, 0o666)) }, "agent.yaml can be changed"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, "darwin", 0)
			tt.change(t, h)
			if err := install.Install(t.Context(), h.Config); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q in it", err, tt.want)
			}
			want(t, h.did())
			if _, err := os.Stat(h.Root); err == nil {
				t.Error("something was written")
			}
		})
	}
}
