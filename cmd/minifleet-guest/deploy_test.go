// SPDX-License-Identifier: MIT

package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/guest/channel"
)

func deployed(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile("../../deploy/guest/" + file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestDeployedCommandLines holds what starts the guest program in an image to its flags.
func TestDeployedCommandLines(t *testing.T) {
	const program, port = "/usr/local/bin/minifleet-guest", "serial:minifleet.guest"
	fields := func(file, before string) []string {
		_, rest, _ := strings.Cut(deployed(t, file), before)
		line, _, _ := strings.Cut(rest, "\n")
		return strings.Fields(line)
	}
	for file, tt := range map[string]struct {
		command      []string
		listen, user string
	}{
		"io.github.minifleet.guest.plist": {plistOf(t, deployed(t, "io.github.minifleet.guest.plist")).strings("ProgramArguments"), "vsock:" + strconv.Itoa(channel.VsockPort), "admin"},
		"minifleet-guest.service":         {fields("minifleet-guest.service", "\nExecStart="), port, "runner"},
		"inittab":                         {fields("inittab", "\n::respawn:"), port, "runner"},
	} {
		if len(tt.command) < 2 || tt.command[0] != program {
			t.Errorf("%s starts %q", file, tt.command)
			continue
		}
		var f flags
		parser, err := kong.New(&f, kong.Vars{"version": ""})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parser.Parse(tt.command[1:]); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		if f.Listen != tt.listen || f.User != tt.user {
			t.Errorf("%s listens on %q as %q", file, f.Listen, f.User)
		}
		if err := (guest.Config{RunnerDir: f.RunnerDir, WorkDir: f.WorkDir, Env: f.Env, StopGrace: f.StopGrace}).Validate(); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		if stop := f.StopGrace + 10*time.Second; file != "inittab" && waits(t, file) < stop+5*time.Second {
			t.Errorf("%s waits %v, and a stop takes up to %v: want 5 s more", file, waits(t, file), stop)
		}
	}
}

// waits is how long the service manager waits for the program's end.
func waits(t *testing.T, file string) time.Duration {
	t.Helper()
	_, rest, _ := strings.Cut(deployed(t, file), "\nTimeoutStopSec=")
	text, _, _ := strings.Cut(rest, "\n")
	if strings.HasSuffix(file, ".plist") {
		text = plistOf(t, deployed(t, file))["ExitTimeOut"].text
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return time.Duration(n) * time.Second
}

func TestPlist(t *testing.T) {
	p := plistOf(t, deployed(t, "io.github.minifleet.guest.plist"))
	known := []string{"Label", "ProgramArguments", "RunAtLoad", "KeepAlive", "ProcessType", "ExitTimeOut", "StandardErrorPath"}
	for key := range p {
		if !slices.Contains(known, key) {
			t.Errorf("key %s is not one of launchd's that this test knows", key)
		}
	}
	if p["Label"].text != "io.github.minifleet.guest" || p["RunAtLoad"].kind != "true" || p["KeepAlive"].kind != "true" {
		t.Errorf("%+v", p)
	}
	if _, ok := p["UserName"]; ok {
		t.Error("it does not run as root: the port below 1024 and the GUI session need that")
	}
	args := p.strings("ProgramArguments")
	if !slices.Contains(args, "--session-user=admin") {
		t.Errorf("%q does not wait for the session", args)
	}
}

// plist is the dictionary of a property list.
type plist map[string]value

type value struct {
	kind, text string
	items      []value
}

func (p plist) strings(key string) []string {
	var out []string
	for _, v := range p[key].items {
		out = append(out, v.text)
	}
	return out
}

func plistOf(t *testing.T, text string) plist {
	t.Helper()
	type element struct {
		XMLName xml.Name
		Text    string    `xml:",chardata"`
		Inner   []element `xml:",any"`
	}
	var root element
	d := xml.NewDecoder(strings.NewReader(text))
	if err := d.Decode(&root); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Token(); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if root.XMLName.Local != "plist" || len(root.Inner) != 1 || root.Inner[0].XMLName.Local != "dict" || len(root.Inner[0].Inner)%2 != 0 {
		t.Fatalf("%+v is no dictionary", root.XMLName)
	}
	p := plist{}
	for pair := range slices.Chunk(root.Inner[0].Inner, 2) {
		if pair[0].XMLName.Local != "key" || p[pair[0].Text].kind != "" {
			t.Fatalf("key %q is none, or there twice", pair[0].Text)
		}
		v := value{kind: pair[1].XMLName.Local, text: pair[1].Text}
		for _, item := range pair[1].Inner {
			v.items = append(v.items, value{kind: item.XMLName.Local, text: item.Text})
		}
		p[pair[0].Text] = v
	}
	return p
}
