// SPDX-License-Identifier: MIT

package install_test

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/hosts/install"
	"github.com/minifleet/minifleet/internal/plist"
)

// TestDeploy holds the files in deploy to what is installed by default. UPDATE_DOCS=1 writes
// them anew.
func TestDeploy(t *testing.T) {
	mac := install.Service{Program: "/usr/local/bin/minifleet-agent", Config: "/usr/local/etc/minifleet/agent.yaml", Log: "/var/log/minifleet-agent.log"}
	session := mac
	session.Log = "/Users/minifleet/Library/Logs/minifleet-agent.log"
	for file, want := range map[string][]byte{
		"launchd/LaunchDaemons/io.github.minifleet.agent.plist": install.Daemon(mac),
		"launchd/LaunchAgents/io.github.minifleet.agent.plist":  install.LoginAgent(session),
		"minifleet-agent.service":                               install.Systemd(install.Service{Program: mac.Program, Config: "/etc/minifleet/agent.yaml", User: "minifleet"}),
	} {
		file = "../../deploy/" + file
		if os.Getenv("UPDATE_DOCS") == "1" {
			must(t, os.WriteFile(file, want, 0o644))
		}
		got, err := os.ReadFile(file)
		if diff := cmp.Diff(string(want), string(got)); diff != "" || err != nil {
			t.Errorf("%s: %v\n%s", file, err, diff)
		}
	}
}

func TestCheck(t *testing.T) {
	odd := install.Service{Program: `/a b/<agent>&"`, Config: "/c'd/ü.yaml", Log: "/e]]>f"}
	for name, file := range map[string][]byte{"daemon": install.Daemon(odd), "agent": install.LoginAgent(odd)} {
		if err := install.Check(file); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		v, err := plist.Parse(file)
		must(t, err)
		if diff := cmp.Diff([]any{odd.Program, "run", "--config", odd.Config}, v.(plist.Dict)["ProgramArguments"]); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	good := string(install.Daemon(odd))
	for from, to := range map[string]string{
		"</dict>":                         "",
		"<key>AbandonProcessGroup</key>":  "<key>AbandonsProcessGroup</key>",
		"<integer>20</integer>":           "<integer>10</integer>",
		"<key>KeepAlive</key>\n\t<true/>": "<key>KeepAlive</key>\n\t<false/>",
		"<string>" + install.Label:        "<string>another",
		"<key>ProgramArguments</key>":     "<key>Program</key>",
		"<string>run</string>":            "<string></string>",
		"<key>RunAtLoad</key>\n\t<true/>": "<key>RunAtLoad</key>\n\t<string>yes</string>",
		"<plist version=\"1.0\">\n<dict>": "<plist>\n<array>",
	} {
		if !strings.Contains(good, from) {
			t.Fatalf("%q is not in %s", from, good)
		}
		if err := install.Check([]byte(strings.Replace(good, from, to, 1))); err == nil {
			t.Errorf("%q for %q is taken", to, from)
		}
	}
}

func TestSystemd(t *testing.T) {
	text := string(install.Systemd(install.Service{Program: "/opt/my agent/minifleet-agent", Config: "/etc/100%$x", User: "root"}))
	if !strings.Contains(text, `ExecStart="/opt/my agent/minifleet-agent" run --config /etc/100%%$$x`+"\n") {
		t.Error(text)
	}
	// Root's agent has to become other users, and says itself where its state is.
	if strings.Contains(text, "NoNewPrivileges") || strings.Contains(text, "StateDirectory") || !strings.Contains(text, "KillMode=process") {
		t.Error(text)
	}
}
