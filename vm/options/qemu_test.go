// SPDX-License-Identifier: MIT

package options_test

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/minifleet/minifleet/vm/options"
)

func TestQEMUSurvivesARoundTrip(t *testing.T) {
	want := options.QEMU{
		Identity: options.Identity{MAC: "02:00:00:00:00:01"}, Network: options.NetworkIsolated, SSH: true, Durable: true, Accelerator: "tcg", Console: true,
		Forwards: []options.Forward{{Guest: netip.MustParseAddrPort("10.0.2.100:80"), Host: netip.MustParseAddrPort("127.0.0.1:8080")}},
	}
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := options.ParseQEMU(b)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{})); d != "" {
		t.Error(d)
	}
}

func TestQEMURefuses(t *testing.T) {
	const begin = `{"ecid":"0","mac":"02:00:00:00:00:01",`
	for name, tt := range map[string]struct{ text, want string }{
		"nothing":             {``, "options"},
		"unknown key":         {begin + `"network":"nat","speed":1}`, "speed"},
		"no MAC":              {`{"ecid":"0","network":"nat"}`, "mac"},
		"no network":          {begin + `"console":true}`, "isolated or nat"},
		"forwards behind NAT": {begin + `"network":"nat","forwards":[{"guest":"10.0.2.100:80","host":"127.0.0.1:80"}]}`, "isolated one"},
		"forward elsewhere":   {begin + `"network":"isolated","forwards":[{"guest":"10.0.3.100:80","host":"127.0.0.1:80"}]}`, "10.0.2.0/24"},
		"forward to nowhere":  {begin + `"network":"isolated","forwards":[{"guest":"10.0.2.100:80","host":""}]}`, "forward"},
		"many forwards": {
			begin + `"network":"isolated","forwards":[` + strings.Repeat(`{"guest":"10.0.2.100:80","host":"127.0.0.1:80"},`, 16) +
				`{"guest":"10.0.2.100:80","host":"127.0.0.1:80"}]}`, "16 are allowed",
		},
		"accelerator": {begin + `"network":"nat","accelerator":"hvf"}`, "kvm, tcg"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := options.ParseQEMU([]byte(tt.text)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want it to contain %q", err, tt.want)
			}
		})
	}
}
