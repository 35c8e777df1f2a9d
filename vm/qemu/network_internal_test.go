// SPDX-License-Identifier: MIT

//go:build linux

package qemu

import (
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/minifleet/minifleet/vm/console"
)

// TestPasstSaysTooMuch: what passt prints, of which a guest can cause any amount, is kept
// within bounds, and passt is not held up.
func TestPasstSaysTooMuch(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	passt := filepath.Join(dir, "passt")
	script := "#!/bin/sh\nhead -c 20000000 /dev/zero >&2\nprintf '\\0\\0\\0\\1x' >&3\nexec cat <&3\n"
	if err := os.WriteFile(passt, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	n, err := startPasst(slog.New(slog.DiscardHandler), plan{dir: dir, passt: passt})
	if err != nil {
		t.Fatal(err)
	}
	frame := make([]byte, 5)
	_, err = io.ReadFull(n.wire, frame)
	n.wire.Close()
	n.end()
	if err != nil || frame[4] != 'x' {
		t.Errorf("through passt: %q, %v", frame, err)
	}
	info, err := os.Stat(filepath.Join(dir, filePasstLog))
	if err != nil || info.Size() < console.Limit || info.Size() > console.Limit+1000 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestReachable(t *testing.T) {
	t.Parallel()
	own := netip.MustParseAddr("192.168.7.2")
	for text, want := range map[string]bool{
		"192.168.7.1": true, "9.9.9.9": true,
		"192.168.7.2": false, "127.0.0.1": false, "0.0.0.0": false, "0.1.2.3": false, "169.254.169.254": false, "224.0.0.251": false, "255.255.255.255": false,
		"100.100.100.200": false, "168.63.129.16": false, "192.0.0.192": false,
	} {
		if got := reachable(netip.MustParseAddr(text), func(a netip.Addr) bool { return a == own }); got != want {
			t.Errorf("%s is reachable: %v", text, got)
		}
	}
}

func TestSeldom(t *testing.T) {
	t.Parallel()
	var s seldom
	began := time.Unix(1, 0)
	said, before := 0, 0
	for i := range 1000 {
		if n, say := s.next(began.Add(time.Duration(i) * 100 * time.Millisecond)); say {
			said++
			before += n
		}
	}
	if said != 2 || before != 599 {
		t.Errorf("said %d times, with %d before", said, before)
	}
}
