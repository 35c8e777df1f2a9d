// SPDX-License-Identifier: MIT

package hosts

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/hosts/protocol"
)

func listener(group, address string) peerFacts {
	return peerFacts{address: address, pin: protocolPin(address), group: group}
}

func protocolPin(seed string) string {
	return strings.Repeat(fmt.Sprintf("%02x", seed[len(seed)-1]), 32)
}

func TestDirectoryOfListeners(t *testing.T) {
	const live = time.Minute
	now := time.Unix(1_700_000_000, 0)
	d := &directory{hosts: map[fleet.HostID]peerFacts{}}
	d.note("a", listener("x", "10.0.0.1:1"), now)
	d.note("b", listener("x", "10.0.0.2:2"), now)
	d.note("c", listener("y", "10.0.0.3:3"), now)
	d.note("d", peerFacts{}, now)
	seen := func(id fleet.HostID, at time.Time) string {
		_, others := d.of(id, at, live)
		var out []string
		for _, p := range others {
			out = append(out, p.Address)
		}
		return strings.Join(out, " ")
	}
	for id, want := range map[fleet.HostID]string{"a": "10.0.0.2:2", "b": "10.0.0.1:1", "c": "", "d": "", "z": ""} {
		if got := seen(id, now); got != want {
			t.Errorf("host %s is told of %q, want %q", id, got, want)
		}
	}
	// A host that is silent is nobody's peer, and one that only asks is not silent.
	d.heard("a", now.Add(live/2))
	d.heard("z", now)
	if got := seen("a", now.Add(live)); got != "" {
		t.Errorf("a host that was silent for its deadline is among %q", got)
	}
	d.note("b", listener("x", "10.0.0.2:9"), now.Add(live))
	if got := seen("a", now.Add(live)); got != "10.0.0.2:9" {
		t.Errorf("after its return: %q", got)
	}
	d.note("b", peerFacts{}, now.Add(live))
	if got := seen("a", now.Add(live)); got != "" {
		t.Errorf("a listener that is closed is among %q", got)
	}
}

// TestABigGroupAgrees has all hosts told of the same ones, though of no more than they can
// use.
func TestABigGroupAgrees(t *testing.T) {
	now := time.Now()
	d := &directory{hosts: map[fleet.HostID]peerFacts{}}
	for i := range 3 * maxPeers {
		p := listener("x", fmt.Sprintf("10.0.1.%d:1", i))
		p.pin = fmt.Sprintf("%064d", i)
		d.note(fleet.HostID(fmt.Sprint(i)), p, now)
	}
	_, last := d.of("95", now, time.Minute)
	_, other := d.of("94", now, time.Minute)
	if len(last) != maxPeers || !slices.Equal(last, other) {
		t.Errorf("%d and %d hosts, the same: %t", len(last), len(other), slices.Equal(last, other))
	}
}

func TestListenersThatAreNone(t *testing.T) {
	good := protocol.Facts{PeerAddress: "192.168.1.20:7443", PeerPin: strings.Repeat("a0", 32), PeerGroup: "default"}
	if p, err := peerOf(good); err != nil || p.address != good.PeerAddress {
		t.Fatalf("%+v, %v", p, err)
	}
	if p, err := peerOf(protocol.Facts{PeerPin: "x"}); err != nil || p != (peerFacts{}) {
		t.Errorf("without an address: %+v, %v", p, err)
	}
	for name, spoil := range map[string]func(*protocol.Facts){
		"a name": func(f *protocol.Facts) { f.PeerAddress = "example.com:443" }, "no port": func(f *protocol.Facts) { f.PeerAddress = "192.168.1.20" },
		"port 0": func(f *protocol.Facts) { f.PeerAddress = "192.168.1.20:0" }, "everywhere": func(f *protocol.Facts) { f.PeerAddress = "0.0.0.0:1" },
		"a path": func(f *protocol.Facts) { f.PeerAddress = "192.168.1.20:1/x" }, "pin": func(f *protocol.Facts) { f.PeerPin = "A0" },
		"group": func(f *protocol.Facts) { f.PeerGroup = "no group" }, "no group": func(f *protocol.Facts) { f.PeerGroup = "" },
	} {
		f := good
		spoil(&f)
		if p, err := peerOf(f); err == nil || p != (peerFacts{}) {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
}
