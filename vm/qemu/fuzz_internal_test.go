// SPDX-License-Identifier: MIT

//go:build linux

package qemu

import (
	"net/netip"
	"testing"
)

// FuzzMessage holds what QEMU says to being one thing at a time.
func FuzzMessage(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMessage(b)
		if err != nil {
			if len(err.Error()) > 1<<10 {
				t.Fatalf("an error of %d bytes", len(err.Error()))
			}
			return
		}
		if m.Greeting == nil && m.Return == nil && m.Error == nil && m.Event == "" {
			t.Fatalf("%q is nothing", b)
		}
		r := &process{migration: make(chan string, 1), deleted: make(chan struct{}, 1)}
		r.hear(m)
		_ = r.ending()
	})
}

// FuzzUsernet holds the way to a guest's SSH to the host's loopback.
func FuzzUsernet(f *testing.F) {
	f.Fuzz(func(t *testing.T, text string) {
		if a, err := parseUsernet(text); err == nil && (!a.Addr().IsLoopback() || a.Port() == 0) {
			t.Fatalf("%q leads to %v", text, a)
		}
	})
}

// FuzzFrame holds the frames that may leave to never being sent to the host.
func FuzzFrame(f *testing.F) {
	host := netip.MustParseAddr("192.0.2.2")
	f.Fuzz(func(t *testing.T, b []byte) {
		if !mayLeave(b, func(a netip.Addr) bool { return a == host }) || b[12] == 8 && b[13] == 6 {
			return
		}
		to := netip.AddrFrom4([4]byte(b[30:34]))
		if b[12] != 8 || b[13] != 0 || b[14]>>4 != 4 || to == host || to.IsLoopback() || to.IsUnspecified() || to.IsLinkLocalUnicast() {
			t.Fatalf("a frame to %v may leave: %x", to, b)
		}
	})
}

// TestFrames: what may leave, and that it is the address that decides.
func TestFrames(t *testing.T) {
	t.Parallel()
	own := func(a netip.Addr) bool { return a == netip.MustParseAddr("192.0.2.2") }
	for to, want := range map[string]bool{
		"192.0.2.1": true, "192.0.2.3": true, "8.8.8.8": true, "10.0.0.1": true,
		"192.0.2.2": false, "127.0.0.1": false, "127.9.9.9": false, "0.0.0.0": false, "0.1.2.3": false,
		"169.254.169.254": false, "224.0.0.1": false, "255.255.255.255": false, "240.0.0.1": false,
	} {
		frame := make([]byte, 60)
		frame[12], frame[14] = 8, 0x45
		a := netip.MustParseAddr(to).As4()
		copy(frame[30:], a[:])
		if got := mayLeave(frame, own); got != want {
			t.Errorf("to %s: %v, want %v", to, got, want)
		}
	}
}
