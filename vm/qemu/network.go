// SPDX-License-Identifier: MIT

//go:build linux

package qemu

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/minifleet/minifleet/vm/console"
	"github.com/minifleet/minifleet/vm/options"
)

// connectNetwork makes what a machine's network needs beside QEMU, for as long as QEMU lives.
func connectNetwork(log *slog.Logger, p plan) (network, error) {
	switch {
	case p.options.Network == options.NetworkNAT:
		return startPasst(log, p)
	case len(p.options.Forwards) > 0:
		end, err := acceptForwards(log, filepath.Join(p.dir, fileForward), p.options.Forwards)
		return network{end: end}, err
	}
	return network{end: func() {}}, nil
}

// network is what is beside QEMU.
type network struct {
	wire *os.File // for QEMU to inherit; nil with the network isolated
	end  func()   // takes it down
}

// startPasst gives the machine a way out by passt, a user-mode network stack. Between the
// two stands a filter: passt would open a connection to whatever address the guest sends
// to, and the host's own addresses are not to be reached.
func startPasst(log *slog.Logger, p plan) (n network, err error) {
	var files []io.Closer
	defer func() {
		if err != nil {
			for _, f := range files {
				f.Close()
			}
		}
	}()
	guestOurs, guestTheirs, err := socketPair("guest")
	if err != nil {
		return network{}, err
	}
	files = append(files, guestOurs, guestTheirs)
	passtOurs, passtTheirs, err := socketPair("passt")
	if err != nil {
		return network{}, err
	}
	files = append(files, passtOurs)
	defer passtTheirs.Close()
	// Bounded: a guest can have it complain of every frame.
	said, err := console.Open(filepath.Join(p.dir, filePasstLog))
	if err != nil {
		return network{}, err
	}
	cmd := exec.Command(p.passt, passtArguments(nameservers())...) //nolint:noctx // it lives as long as the machine
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/local/bin:/usr/bin:/bin"}
	cmd.Stdout, cmd.Stderr = said.Input(), said.Input()
	cmd.ExtraFiles = []*os.File{passtTheirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	said.Started()
	if err != nil {
		said.Close()
		return network{}, fmt.Errorf("start passt: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() {
		if err := cmd.Wait(); ctx.Err() == nil {
			log.Error("the machine's network has ended", "error", fmt.Sprintf("passt: %v", err), "log", filePasstLog)
		}
	})
	shut := func() { // either's end is the other's
		guestOurs.Close()
		passtOurs.Close()
	}
	own := &ownAddresses{}
	all.Go(func() {
		defer shut()
		_ = copyFrames(passtOurs, guestOurs, func(frame []byte) bool { return mayLeave(frame, own.has) })
	})
	all.Go(func() {
		defer shut()
		_, _ = io.Copy(guestOurs, passtOurs)
	})
	n.wire = guestTheirs
	n.end = func() {
		cancel()
		shut()
		_ = cmd.Process.Kill() // it would end by itself, with its socket
		all.Wait()
		said.Close()
	}
	return n, nil
}

// filePasstLog is what passt itself prints, in the bundle.
const filePasstLog = "passt.log"

// passtArguments has passt serve the descriptor 3 and end with it. IPv6 is left out: the
// guest's addresses would be the host's neighbours'.
func passtArguments(resolvers []netip.Addr) []string {
	a := []string{"--foreground", "--quiet", "--stderr", "--fd", "3", "--ipv4-only", "--no-map-gw", "--tcp-ports", "none", "--udp-ports", "none"}
	for _, r := range resolvers {
		a = append(a, "--dns", r.String())
	}
	if len(resolvers) == 0 {
		a = append(a, "--no-dhcp-dns")
	}
	return append(a, "--no-dhcp-search")
}

// nameservers returns the resolvers that a guest can reach: those of the host that are not
// on the host, or those behind systemd's own resolver.
func nameservers() []netip.Addr {
	own := &ownAddresses{}
	for _, file := range []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		var found []netip.Addr
		for line := range strings.Lines(string(b)) {
			words := strings.Fields(line)
			if len(words) < 2 || words[0] != "nameserver" {
				continue
			}
			if a, err := netip.ParseAddr(words[1]); err == nil && a.Is4() && reachable(a, own.has) && len(found) < 3 {
				found = append(found, a)
			}
		}
		if len(found) > 0 {
			return found
		}
	}
	return nil
}

// ownAddresses knows the host's addresses, at most ownAge old.
type ownAddresses struct {
	mu   sync.Mutex // guards what follows
	at   time.Time
	list []netip.Addr
}

const ownAge = time.Second

func (o *ownAddresses) has(a netip.Addr) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.list == nil || time.Since(o.at) > ownAge {
		addrs, err := net.InterfaceAddrs()
		if err != nil {
			return true // better none reached than the host
		}
		o.list, o.at = o.list[:0], time.Now()
		for _, addr := range addrs {
			if p, err := netip.ParsePrefix(addr.String()); err == nil {
				o.list = append(o.list, p.Addr().Unmap())
			}
		}
	}
	return slices.Contains(o.list, a)
}

// reachable says whether a guest may send to an address: not to the host, by whatever name,
// nor to a cloud's metadata service, which takes it for its host.
func reachable(a netip.Addr, own func(netip.Addr) bool) bool {
	return a.As4()[0] != 0 && !a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.IsMulticast() && a.As4()[0] < 240 &&
		!slices.Contains(metadata, a) && !own(a)
}

// metadata are the services of clouds that are not at a link-local address as most are:
// those of Alibaba, Azure and Oracle.
var metadata = []netip.Addr{
	netip.AddrFrom4([4]byte{100, 100, 100, 200}), netip.AddrFrom4([4]byte{168, 63, 129, 16}), netip.AddrFrom4([4]byte{192, 0, 0, 192}),
}

const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	protoUDP  = 17
	portDHCP  = 67
)

// mayLeave says whether a frame of the guest may go to passt: ARP, a DHCP broadcast, and
// IPv4 to where it may send. Fragments carry their destination each.
func mayLeave(frame []byte, own func(netip.Addr) bool) bool {
	if len(frame) < 14 {
		return false
	}
	ip := frame[14:]
	switch binary.BigEndian.Uint16(frame[12:]) {
	case etherARP:
		return true
	case etherIPv4:
	default:
		return false
	}
	if len(ip) < 20 || ip[0]>>4 != 4 {
		return false
	}
	to := netip.AddrFrom4([4]byte(ip[16:20]))
	if to == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		header := int(ip[0]&15) * 4
		whole := binary.BigEndian.Uint16(ip[6:])&0x3fff == 0
		return ip[9] == protoUDP && whole && header >= 20 && len(ip) >= header+8 && binary.BigEndian.Uint16(ip[header+2:]) == portDHCP
	}
	return reachable(to, own)
}

// maxFrame is more than any frame of QEMU's network card, offloads included.
const maxFrame = 128 << 10

// copyFrames passes frames on, each of which follows its length, if they may leave.
func copyFrames(to io.Writer, from io.Reader, may func([]byte) bool) error {
	b := make([]byte, 4+maxFrame)
	for {
		if _, err := io.ReadFull(from, b[:4]); err != nil {
			return err
		}
		n := binary.BigEndian.Uint32(b)
		if n > maxFrame {
			return fmt.Errorf("a frame of %d bytes", n)
		}
		if _, err := io.ReadFull(from, b[4:4+n]); err != nil {
			return err
		}
		if !may(b[4 : 4+n]) {
			continue
		}
		if _, err := to.Write(b[:4+n]); err != nil {
			return err
		}
	}
}

// maxForwarded bounds the connections of one machine's forwards that are open at once.
const maxForwarded = 64

// acceptForwards takes over the connections that the guest opens to its forwards. QEMU
// starts a process for each, which would be the guest's to multiply: it only hands the
// connection over and ends.
func acceptForwards(log *slog.Logger, path string, forwards []options.Forward) (end func(), err error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen for forwards: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	room := make(chan struct{}, maxForwarded)
	var failed seldom
	all.Go(func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				if ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
					log.Error("forwards no longer served", "error", err)
				}
				return
			}
			select {
			case room <- struct{}{}:
			default:
				c.Close()
				continue
			}
			all.Go(func() {
				defer func() { <-room }()
				err := serveForward(ctx, c, forwards)
				if err == nil || ctx.Err() != nil {
					return
				}
				if before, say := failed.next(time.Now()); say {
					log.Warn("a forwarded connection failed", "error", err, "before", before)
				}
			})
		}
	})
	return func() {
		cancel()
		l.Close()
		all.Wait()
	}, nil
}

// sayAgain is how long nothing is said of what a guest can cause at will.
const sayAgain = time.Minute

// seldom has something said once in a while: a guest that causes it over and over must not
// fill the host's disk with it.
type seldom struct {
	mu     sync.Mutex // guards what follows
	said   time.Time
	unsaid int
}

// next reports whether to say it now, and how often it was left unsaid before.
func (s *seldom) next(now time.Time) (before int, say bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.said.IsZero() && now.Sub(s.said) < sayAgain {
		s.unsaid++
		return 0, false
	}
	before, s.said, s.unsaid = s.unsaid, now, 0
	return before, true
}

// handOverLimit bounds the handing over, and the host's answer.
const handOverLimit = 10 * time.Second

func serveForward(ctx context.Context, c *net.UnixConn, forwards []options.Forward) error {
	guest, i, err := receive(c)
	c.Close()
	if err != nil {
		return err
	}
	defer guest.Close()
	if i >= len(forwards) {
		return fmt.Errorf("there is no forward %d", i)
	}
	d := net.Dialer{Timeout: handOverLimit}
	host, err := d.DialContext(ctx, "tcp", forwards[i].Host.String())
	if err != nil {
		return fmt.Errorf("forward to %v: %w", forwards[i].Host, err)
	}
	defer host.Close()
	defer context.AfterFunc(ctx, func() {
		guest.Close()
		host.Close()
	})()
	var back sync.WaitGroup
	back.Go(func() {
		pass(guest, host)
	})
	pass(host, guest)
	back.Wait()
	return nil
}

// pass copies one direction to its end and passes that on. It does not let the kernel
// splice: the pipes for that, which Go keeps, are more descriptors than the connection's.
func pass(to, from net.Conn) {
	_, _ = io.Copy(struct{ io.Writer }{to}, struct{ io.Reader }{from})
	if half, ok := to.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite() // it has ended already, at worst
	}
}

// receive takes a connection over from HandOver, with the number of its forward.
func receive(c *net.UnixConn) (net.Conn, int, error) {
	if err := c.SetDeadline(time.Now().Add(handOverLimit)); err != nil {
		return nil, 0, err
	}
	b, oob := make([]byte, 8), make([]byte, 64)
	n, oobn, _, _, err := c.ReadMsgUnix(b, oob)
	if err != nil {
		return nil, 0, fmt.Errorf("take a connection over: %w", err)
	}
	file, err := onlyFile(oob[:oobn])
	if err != nil {
		return nil, 0, err
	}
	defer file.Close()
	i, err := strconv.ParseUint(string(b[:n]), 10, 8)
	if err != nil {
		return nil, 0, fmt.Errorf("the number of a forward: %w", err)
	}
	guest, err := net.FileConn(file)
	return guest, int(i), err
}
