// SPDX-License-Identifier: MIT

package channel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/mux"
)

// machine has the folders in which a guest looks for its ports.
type machine struct {
	t        *testing.T
	sys, dev string
}

// plug adds a port as /dev/vportN called name; a terminal's master is the host's side.
func (m *machine) plug(device, name string) (host *os.File) {
	m.t.Helper()
	host, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { host.Close() })
	raw, err := host.SyscallConn()
	if err != nil {
		m.t.Fatal(err)
	}
	var number int
	var ptyErr error
	err = raw.Control(func(fd uintptr) {
		if ptyErr = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); ptyErr != nil {
			return
		}
		if number, ptyErr = unix.IoctlGetInt(int(fd), unix.TIOCGPTN); ptyErr != nil {
			return
		}
		plain := unix.Termios{Cflag: unix.CS8 | unix.CREAD}
		plain.Cc[unix.VMIN] = 1 // a read without bytes waits
		ptyErr = unix.IoctlSetTermios(int(fd), unix.TCSETS, &plain)
	})
	if err = errors.Join(err, ptyErr); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Symlink("/dev/pts/"+strconv.Itoa(number), filepath.Join(m.dev, device)); err != nil {
		m.t.Fatal(err)
	}
	dir := filepath.Join(m.sys, "class", "virtio-ports", device)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "name"), []byte(name+"\n"), 0o644); err != nil {
		m.t.Fatal(err)
	}
	return host
}

func (m *machine) unplug(device string, host *os.File) {
	m.t.Helper()
	if err := os.RemoveAll(filepath.Join(m.sys, "class", "virtio-ports", device)); err != nil {
		m.t.Fatal(err)
	}
	host.Close()
}

func TestSerialPortComesAndGoes(t *testing.T) {
	t.Parallel()
	m := &machine{t, t.TempDir(), t.TempDir()}
	l := serial("minifleet.guest", m.sys, m.dev, quiet)
	reflect(t, l)
	if l.Addr().String() != "serial:minifleet.guest" {
		t.Errorf("address %s", l.Addr())
	}
	m.plug("vport0p1", "something.else")
	for i := range 3 {
		device := fmt.Sprintf("vport%dp2", i)
		host := m.plug(device, "minifleet.guest")
		c := mux.NewClient(func(context.Context) (net.Conn, error) { return fileConn{host, addr{"pty", device}}, nil })
		exchange(t, c)
		s := exchange(t, c)
		m.unplug(device, host)
		s.SetReadDeadline(time.Now().Add(patience))
		if n, err := s.Read(make([]byte, 1)); n != 0 || err == nil || os.IsTimeout(err) {
			t.Errorf("a stream outlives its port: %d, %v", n, err)
		}
		c.Close()
	}
}

// TestAwaitHost: a pipe without a writer, as a port without a host, is readable and has
// nothing.
func TestAwaitHost(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "port")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, word := range []string{"first", "second"} {
		said := make(chan string, 1)
		go func() {
			first, err := awaitHost(f)
			said <- fmt.Sprintf("%s %v", first, err)
		}()
		host, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := host.WriteString(word); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-said:
			if got != word+" <nil>" {
				t.Errorf("%q", got)
			}
		case <-time.After(patience):
			t.Fatal("the host is not heard")
		}
		host.Close()
	}
	f.SetReadDeadline(time.Unix(1, 0))
	if _, err := awaitHost(f); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after the end: %v", err)
	}
}

func TestSerialNames(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"", "../x", "a b", strings.Repeat("x", 65), "a\n"} {
		if l, err := Serial(bad, quiet); err == nil {
			l.Close()
			t.Errorf("%q is taken", bad)
		}
	}
	l, err := Serial("no.such-port_here", quiet)
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan error)
	go func() {
		_, err := l.Accept()
		closed <- err
	}()
	l.Close()
	if err := <-closed; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v", err)
	}
}
