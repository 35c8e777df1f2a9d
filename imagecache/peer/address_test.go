// SPDX-License-Identifier: MIT

package peer

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
)

func prefixes(list ...string) (out []netip.Prefix) {
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// mac is a Mac mini with guests, a container engine and a VPN.
func mac() ([]Interface, error) {
	return []Interface{
		{Name: "lo0", Prefixes: prefixes("127.0.0.1/8", "::1/128")},
		{Name: "en0", Prefixes: prefixes("fe80::1/64", "192.168.1.20/24", "2001:db8::20/64")},
		{Name: "en1", Prefixes: prefixes("fe80::2/64")},
		{Name: "bridge100", Prefixes: prefixes("192.168.64.1/24")},
		{Name: "br0", Bridge: true, Prefixes: prefixes("10.9.0.1/16")},
		{Name: "utun3", Prefixes: prefixes("10.8.0.2/24")},
	}, nil
}

func TestWhereAHostMayListen(t *testing.T) {
	for address, want := range map[string]string{
		"192.168.1.20:7443": "", "en0:7443": "", "[2001:db8::20]:7443": "", "10.8.0.2:7443": "",
		"0.0.0.0:7443": "every network", "[::]:7443": "every network", ":7443": "give one address", "192.168.1.20": "give one address",
		"192.168.1.20:x": "no port", "192.168.1.20:70000": "no port", "224.0.0.1:7443": "every network", "255.255.255.255:1": "every network",
		"[::ffff:0.0.0.0]:7443": "every network", "127.0.0.1:7443": "no other host", "[::1]:7443": "no other host", "lo0:7443": "no other host",
		"192.168.64.1:7443": "leads to guests", "bridge100:7443": "leads to guests", "br0:7443": "leads to guests",
		"192.168.1.21:7443": "no address of this host", "en9:7443": "no interface", "en1:7443": "no interface",
	} {
		g, err := newGate(gateConfig{address: address, interfaces: mac})
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", address, err, want)
		}
		if address == "en0:7443" && (err != nil || g.bound.String() != "192.168.1.20:7443") {
			t.Errorf("%s is bound to %v", address, g)
		}
	}
}

func TestWhoMayConnect(t *testing.T) {
	for _, tc := range []struct {
		address, source string
		allow           []netip.Prefix
		good            bool
	}{
		{"192.168.1.20:1", "192.168.1.21", nil, true},
		{"192.168.1.20:1", "::ffff:192.168.1.21", nil, true},
		{"192.168.1.20:1", "192.168.1.20", nil, false}, // a guest behind its host
		{"192.168.1.20:1", "192.168.1.20", prefixes("192.168.1.0/24"), false},
		{"192.168.1.20:1", "10.8.0.2", prefixes("10.0.0.0/8"), false}, // the same, by another interface
		{"192.168.1.20:1", "127.0.0.1", prefixes("10.0.0.0/8"), false},
		{"192.168.1.20:1", "192.168.64.7", nil, false}, // a guest of macOS's NAT
		{"192.168.1.20:1", "192.168.64.7", prefixes("192.168.0.0/16"), false},
		{"192.168.1.20:1", "10.9.3.3", prefixes("10.0.0.0/8"), false},
		{"192.168.1.20:1", "192.168.2.5", nil, false},
		{"192.168.1.20:1", "192.168.2.5", prefixes("192.168.2.0/24"), true},
		{"192.168.1.20:1", "2001:db8::21", nil, false}, // another network of the same interface
		{"[2001:db8::20]:1", "2001:db8::21", nil, true},
		{"[2001:db8::20]:1", "fe80::9%en0", nil, false},
		{"127.0.0.1:1", "127.0.0.1", prefixes("127.0.0.0/8"), true},
		{"127.0.0.1:1", "192.168.1.21", prefixes("127.0.0.0/8"), false},
	} {
		g, err := newGate(gateConfig{address: tc.address, allow: tc.allow, interfaces: mac})
		if err != nil {
			t.Fatal(err)
		}
		err = g.admit(netip.MustParseAddr(tc.source))
		if (err == nil) != tc.good || err != nil && !errors.Is(err, errStranger) {
			t.Errorf("%s at %s, allowed %v: %v", tc.source, tc.address, tc.allow, err)
		}
	}
}

// TestAnAddressThatGoes lets nobody in when the interface has become one of guests.
func TestAnAddressThatGoes(t *testing.T) {
	now := mac
	g, err := newGate(gateConfig{address: "en0:1", interfaces: func() ([]Interface, error) { return now() }})
	if err != nil {
		t.Fatal(err)
	}
	now = func() ([]Interface, error) {
		return []Interface{{Name: "bridge0", Prefixes: prefixes("192.168.1.20/24")}}, nil
	}
	g.looked = g.looked.Add(-2 * interfacesFor)
	if err := g.stands(); err == nil {
		t.Error("it still stands")
	}
	if err := g.admit(netip.MustParseAddr("192.168.1.21")); err == nil {
		t.Error("and somebody gets in")
	}
}

// TestAStrangerReadsNothing connects for real, from a source that the gate takes for a guest's.
func TestAStrangerReadsNothing(t *testing.T) {
	log := &logged{}
	l, err := listen(t.Context(), gateConfig{address: "127.0.0.1:0", allow: loopback, interfaces: func() ([]Interface, error) {
		// 127.0.0.2 is the listener's own, as it were, and the source is on a bridge.
		return []Interface{{Name: "en0", Prefixes: prefixes("127.0.0.1/32")}, {Name: "bridge100", Prefixes: prefixes("127.0.0.2/24")}}, nil
	}}, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan net.Conn)
	go func() {
		defer close(accepted)
		if c, err := l.Accept(); err == nil {
			accepted <- c
		}
	}()
	for range 3 {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 7)}}
		c, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("it reads %d bytes, %v", n, err)
		}
		c.Close()
	}
	l.Close()
	if c := <-accepted; c != nil {
		t.Error("a stranger was let in")
	}
	if n := strings.Count(log.String(), "127.0.0.7"); n == 0 || strings.Count(log.String(), "msg=") != 1 {
		t.Errorf("log: %s", log)
	}
}

func TestThisMachinesInterfaces(t *testing.T) {
	all, err := Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range all {
		if i.has(netip.MustParseAddr("127.0.0.1")) {
			return
		}
	}
	t.Errorf("none of %v is the loopback", all)
}
