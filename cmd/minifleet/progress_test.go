// SPDX-License-Identifier: MIT

package main

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minifleet/minifleet/imagecache/publish"
)

// shown is what is written of 100 MiB at 10 MiB/s.
func shown(t *testing.T, terminal bool, columns int) string {
	t.Helper()
	var out buffer
	synctest.Test(t, func(t *testing.T) {
		p := newProgress(&out, terminal, func() int { return columns })
		time.Sleep(50 * time.Millisecond) // never at the moment of a tick
		for i := range int64(100) {
			p.set(publish.Progress{Doing: "pushing", Done: i << 20, Total: 100 << 20, Sent: i << 19})
			time.Sleep(100 * time.Millisecond)
		}
		p.set(publish.Progress{Doing: "keeping", Done: 0, Total: 100 << 20})
		time.Sleep(time.Second)
		p.end()
	})
	return out.String()
}

func TestProgressInLines(t *testing.T) {
	t.Parallel()
	out := shown(t, false, 80)
	if strings.ContainsAny(out, "\r\x1b") {
		t.Errorf("a log has a bar in it: %q", out)
	}
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	if len(lines) < 8 || len(lines) > 20 {
		t.Errorf("%d lines:\n%s", len(lines), out)
	}
	if want := "pushing  51 %  51.0 MiB of 100.0 MiB, 25.5 MiB sent, 10.0 MiB/s, 4 s left"; !strings.Contains(out, want) {
		t.Errorf("%q is not in\n%s", want, out)
	}
}

func TestProgressOnATerminal(t *testing.T) {
	t.Parallel()
	for _, columns := range []int{120, 60, 20, 1} {
		out := shown(t, true, columns)
		if strings.Contains(out, "\n") {
			t.Errorf("the bar moves the screen: %q", out)
		}
		if !strings.HasSuffix(out, "\r\x1b[K") {
			t.Errorf("the bar is left on the screen: %q", out[max(0, len(out)-40):])
		}
		for drawn := range strings.SplitSeq(out, "\r") {
			if n := len(strings.TrimSuffix(drawn, "\x1b[K")); n >= columns {
				t.Fatalf("%d characters on a screen of %d: %q", n, columns, drawn)
			}
		}
		if has := strings.Contains(out, "5 s left  [##############----------------]"); has != (columns == 120) {
			t.Errorf("of %d columns: a bar: %t\n%q", columns, has, out)
		}
	}
}

// Nothing is shown of what is over at once.
func TestProgressOfNothing(t *testing.T) {
	t.Parallel()
	var out buffer
	for _, terminal := range []bool{false, true} {
		p := newProgress(&out, terminal, func() int { return 80 })
		p.set(publish.Progress{Doing: "pushing"})
		p.end()
	}
	if out.String() != "" {
		t.Errorf("%q", out.String())
	}
}

func TestSizes(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 4 << 10: "4 KiB", 5 << 20: "5.0 MiB", 60 << 30: "60.00 GiB"} {
		if have := size(n); have != want {
			t.Errorf("%d is %s, want %s", n, have, want)
		}
	}
	for d, want := range map[time.Duration]string{0: "1 s", 59 * time.Second: "59 s", 90 * time.Second: "2 min", 90 * time.Minute: "1.5 h", 1 << 62: "1000.0 h"} {
		if have := remaining(d); have != want {
			t.Errorf("%s is %s, want %s", d, have, want)
		}
	}
}
