// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/imagecache/publish"
)

// A real terminal is known as one, and its width is asked for.
func TestProgressOnAPseudoTerminal(t *testing.T) {
	t.Setenv("TERM", "xterm")
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skipf("there is no pseudo-terminal here: %v", err)
	}
	defer master.Close()
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	if err := unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 100}); err != nil {
		t.Fatal(err)
	}
	if !terminal(slave) || columns(slave)() != 100 {
		t.Fatalf("a terminal: %t, of %d columns", terminal(slave), columns(slave)())
	}
	p := newProgress(slave, terminal(slave), columns(slave))
	p.set(publish.Progress{Doing: "pushing", Done: 1 << 30, Total: 2 << 30})
	var out strings.Builder
	buf := make([]byte, 1<<10)
	until := func(want string) {
		for !strings.Contains(out.String(), want) {
			n, err := unix.Read(int(master.Fd()), buf)
			if err == unix.EAGAIN || err == unix.EINTR { //nolint:errorlint // it is an errno
				if _, err := unix.Poll([]unix.PollFd{{Fd: int32(master.Fd()), Events: unix.POLLIN}}, int(patience.Milliseconds())); err != nil && err != unix.EINTR { //nolint:errorlint // it is an errno
					t.Fatal(err)
				}
				continue
			}
			if err != nil {
				t.Fatalf("%v, after %q", err, out.String())
			}
			out.Write(buf[:n])
		}
	}
	until("pushing  50 %  1.00 GiB of 2.00 GiB  [###############---------------]\x1b[K")
	p.end()
	until("\x1b[K\r\x1b[K")
	if strings.Contains(out.String(), "\n") {
		t.Errorf("%q", out.String())
	}
}
