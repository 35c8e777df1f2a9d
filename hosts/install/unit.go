// SPDX-License-Identifier: MIT

package install

import (
	"encoding/xml"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/minifleet/minifleet/internal/plist"
)

// Names by which service managers know the agent.
const (
	Label = "io.github.minifleet.agent"
	Unit  = "minifleet-agent.service"
)

// Service is what stands in the description of the agent's service.
type Service struct {
	Program string // absolute path of minifleet-agent
	Config  string // absolute path of its configuration
	Log     string // absolute path of the file for its log; not for systemd, which keeps its own
	User    string // as whom it runs; for systemd only
}

// stopSeconds is how long a service manager waits for the agent's end: longer than the 10 s
// after which the agent gives its stop up by itself.
const stopSeconds = 20

// Daemon is launchd's description of the agent as a service of the machine, run by root.
func Daemon(s Service) []byte {
	return property(`The agent as a service of the Mac, run by root, which starts each VM as the
     configuration's session_user in that user's login session. Written by
     minifleet-agent install, which also loads it.`, s, "")
}

// LoginAgent is launchd's description of the agent as a part of a user's login session.
func LoginAgent(s Service) []byte {
	return property(`The agent as a part of a user's login session: it begins and ends with it, and
     macOS asks at the screen before it lets the agent into the local network. Written by
     minifleet-agent install with the variant agent, which also loads it.`, s, `
	<!-- With a screen, and so with the user's keychain. -->
	<key>LimitLoadToSessionType</key>
	<string>Aqua</string>`)
}

func property(about string, s Service, more string) []byte {
	return fmt.Appendf(nil, `<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<!-- %s -->
<plist version="1.0">
<dict>
	<key>Label</key>
	<string>%s</string>
	<key>ProgramArguments</key>
	<array>
		<string>%s</string>
		<string>run</string>
		<string>--config</string>
		<string>%s</string>
	</array>
	<key>RunAtLoad</key>
	<true/>
	<key>KeepAlive</key>
	<true/>%s
	<!-- VMs outlive the agent. -->
	<key>AbandonProcessGroup</key>
	<true/>
	<!-- Seconds: longer than the 10 after which the agent gives its stop up by itself. -->
	<key>ExitTimeOut</key>
	<integer>%d</integer>
	<!-- Not slowed down for the sake of others, launchd.plist(5). -->
	<key>ProcessType</key>
	<string>Interactive</string>
	<key>Umask</key>
	<integer>63</integer>
	<key>StandardErrorPath</key>
	<string>%s</string>
</dict>
</plist>
`, about, Label, escape(s.Program), escape(s.Config), more, stopSeconds, escape(s.Log))
}

func escape(text string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(text)) // a strings.Builder takes everything
	return b.String()
}

// Systemd is systemd's description of the agent.
func Systemd(s Service) []byte {
	state := ""
	if s.User != "root" {
		state = "StateDirectory=minifleet\nStateDirectoryMode=0700\nNoNewPrivileges=true\n"
	}
	return fmt.Appendf(nil, `# The agent on a Linux host. Written by minifleet-agent install, which also starts it.
[Unit]
Description=Minifleet agent
Documentation=https://github.com/minifleet/minifleet
After=network-online.target
Wants=network-online.target

[Service]
ExecStart=%s run --config %s
User=%s
%sRestart=always
RestartSec=2
# VMs outlive the agent: only the agent is stopped, and a VM that runs out of memory takes nothing else along.
KillMode=process
OOMPolicy=continue
# Longer than the 10 s after which the agent gives its stop up by itself.
TimeoutStopSec=%d
UMask=0077

[Install]
WantedBy=multi-user.target
`, quote(s.Program), quote(s.Config), s.User, state, stopSeconds)
}

// quote writes a word of a command line as systemd reads it (systemd.service(5)).
func quote(text string) string {
	text = strings.NewReplacer(`%`, `%%`, `$`, `$$`, `\`, `\\`, `"`, `\"`).Replace(text)
	if strings.ContainsAny(text, " \t'\"\\;") {
		return `"` + text + `"`
	}
	return text
}

// Check returns what is wrong with launchd's description of a service: what launchctl itself
// would report as an input/output error and no more.
func Check(b []byte) error {
	v, err := plist.Parse(b)
	if err != nil {
		return err
	}
	d, ok := v.(plist.Dict)
	if !ok {
		return errors.New("property list: it is no dictionary")
	}
	var errs []error
	want := func(key string, good bool, what string) {
		if !good {
			errs = append(errs, fmt.Errorf("property list: %s is %v: want %s", key, d[key], what))
		}
	}
	want("Label", d["Label"] == Label, Label)
	arguments, _ := d["ProgramArguments"].([]any)
	isText := func(v any) bool { s, ok := v.(string); return ok && s != "" }
	want("ProgramArguments", len(arguments) > 0 && !slices.ContainsFunc(arguments, func(v any) bool { return !isText(v) }), "a list of words")
	want("AbandonProcessGroup", d["AbandonProcessGroup"] == true, "true: without it launchd ends the VMs together with the agent")
	for _, key := range []string{"RunAtLoad", "KeepAlive"} {
		want(key, d[key] == true, "true")
	}
	n, _ := d["ExitTimeOut"].(int64)
	want("ExitTimeOut", n >= 15, "at least 15 seconds, which a stop may take")
	return errors.Join(errs...)
}
