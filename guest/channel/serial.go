// SPDX-License-Identifier: MIT

package channel

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// lookAgain is the pause between two looks for a port that is not there: its driver
// may not be loaded yet, or the host has unplugged it to plug in a fresh one.
const lookAgain = 200 * time.Millisecond

var portName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// Serial listens on the virtio-serial port that the hypervisor calls name. It need not
// be there yet. A port has no connections of its own: while the host's side is closed a
// read ends at once, and a host that comes back without our noticing would meet the
// rest of the session before. The host therefore unplugs the port and plugs it in anew
// before each session, and reads fail until we have looked the port up again.
func Serial(name string, log *slog.Logger) (net.Listener, error) {
	if runtime.GOOS != "linux" {
		return nil, errors.New("virtio-serial ports are found on Linux only: listen on vsock")
	}
	if !portName.MatchString(name) {
		return nil, fmt.Errorf("serial port %q: a name has letters, digits, dots, dashes and underscores", name)
	}
	return serial(name, "/sys", "/dev", log), nil
}

func serial(name, sys, dev string, log *slog.Logger) *listener {
	l := newListener(addr{"serial", name}, log)
	p := &port{listener: l, sys: sys, dev: dev}
	l.work.Go(func() {
		for p.serveOnce() {
		}
	})
	return l
}

// port is a virtio-serial port that comes and goes.
type port struct {
	*listener
	sys, dev string
	missed   bool // and said so
}

// serveOnce waits for the port and for the host on it, and serves one channel. It
// reports whether to do so again.
func (p *port) serveOnce() bool {
	f, err := p.open()
	if err != nil {
		if !p.missed {
			p.missed = true
			p.log.Info("waiting for the serial port", slog.Any("error", err))
		}
		return p.sleep(lookAgain)
	}
	p.missed = false
	closed := make(chan struct{})
	p.work.Go(func() { // the wait for the host ends with the listener
		select {
		case <-p.life.Done():
			f.SetReadDeadline(time.Unix(1, 0))
		case <-closed:
		}
	})
	first, err := awaitHost(f)
	close(closed)
	if err != nil {
		f.Close()
		return p.sleep(lookAgain)
	}
	p.serve(p.life, &begun{fileConn: fileConn{f, p.address}, first: first})
	return p.life.Err() == nil
}

// open finds the port by its name in sysfs and opens its device.
func (p *port) open() (*os.File, error) {
	names, err := filepath.Glob(filepath.Join(p.sys, "class", "virtio-ports", "*", "name"))
	if err != nil {
		return nil, err
	}
	for _, path := range names {
		text, err := os.ReadFile(path)
		if err != nil || strings.TrimSpace(string(text)) != p.address.port {
			continue // unplugged meanwhile, or another port
		}
		device := filepath.Join(p.dev, filepath.Base(filepath.Dir(path)))
		return os.OpenFile(device, os.O_RDWR|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	}
	return nil, fmt.Errorf("no port of %s is called %q: is the virtio_console module loaded, and has the machine the port?",
		filepath.Join(p.sys, "class", "virtio-ports"), p.address.port)
}

// awaitHost waits until the host says something on the port, and returns that. A port
// whose host is away is readable for ever and has nothing: only the poller's edges tell
// when that changes, so that waiting costs nothing.
func awaitHost(f *os.File) ([]byte, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	buf := make([]byte, 4<<10)
	var n int
	var readErr error
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, readErr = syscall.Read(int(fd), buf)
			if !errors.Is(readErr, syscall.EINTR) {
				break
			}
		}
		return n > 0 || readErr != nil && !errors.Is(readErr, syscall.EAGAIN)
	})
	if err = errors.Join(err, readErr); n <= 0 {
		return nil, err
	}
	return buf[:n], nil
}

// begun is a channel of which the first bytes were read already.
type begun struct {
	fileConn
	first []byte
}

func (b *begun) Read(p []byte) (int, error) {
	if len(b.first) == 0 {
		return b.fileConn.Read(p)
	}
	n := copy(p, b.first)
	b.first = b.first[n:]
	return n, nil
}
