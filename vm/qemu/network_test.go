// SPDX-License-Identifier: MIT

//go:build linux

package qemu_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minifleet/minifleet/vm/options"
)

// service is something of the host's that no guest is to reach. It says who came.
type service struct {
	net.Listener
	mu   sync.Mutex // guards came
	came int
}

func serve(t *testing.T, network, address string) *service {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	s := &service{Listener: l}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.came++
			s.mu.Unlock()
			all.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(time.Minute))
				b, _ := io.ReadAll(c)
				fmt.Fprintf(c, "the host got %q", b)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		all.Wait()
	})
	return s
}

func (s *service) port() uint16 { return netip.MustParseAddrPort(s.Addr().String()).Port() }

func (s *service) visits() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.came
}

// hostAddresses returns every IPv4 address of the host, and names for it from elsewhere.
func hostAddresses(t *testing.T) []string {
	t.Helper()
	all := []string{"127.0.0.1", "0.0.0.0", "10.0.2.2", "10.0.2.3"}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	own := 0
	for _, a := range addrs {
		if p := netip.MustParsePrefix(a.String()); p.Addr().Is4() && !p.Addr().IsLoopback() {
			all = append(all, p.Addr().String())
			own++
		}
	}
	if own == 0 {
		t.Log("the host has no address but its loopback's: the guest cannot be tried on one")
	}
	return all
}

const askLease = "B=/bin/busybox; $B ifconfig lo up; $B ifconfig eth0 up; $B udhcpc -i eth0 -f -q -n -t 10 -T 1 -s /lease.sh 2>&1"

// refuses tries to reach a host's service from inside the guest in every way there is.
func refuses(t *testing.T, m *machine, s *service, more ...string) {
	t.Helper()
	for _, a := range append(hostAddresses(t), more...) {
		if got := m.call("POST", fmt.Sprintf("/reach?to=%s:%d", a, s.port()), "hello"); !strings.HasPrefix(got, "no:") {
			t.Errorf("the guest reaches the host at %s: %s", a, got)
		}
	}
	if n := s.visits(); n != 0 {
		t.Errorf("%d connections reached the host", n)
	}
}

func TestIsolated(t *testing.T) {
	testImage(t)
	secret, open := serve(t, "tcp4", "0.0.0.0:0"), serve(t, "tcp4", "127.0.0.1:0")
	m := start(t, bundle(t, func(o *options.QEMU) {
		o.SSH = true
		o.Forwards = []options.Forward{
			{Guest: netip.MustParseAddrPort("10.0.2.100:80"), Host: netip.MustParseAddrPort(open.Addr().String())},
			{Guest: netip.MustParseAddrPort("10.0.2.101:443"), Host: netip.MustParseAddrPort(open.Addr().String())},
		}
	}))
	lease := m.call("POST", "/sh", askLease)
	if !strings.Contains(lease, "ip=10.0.2.15") {
		t.Fatalf("no lease: %s", lease)
	}
	for range 3 {
		for _, to := range []string{"10.0.2.100:80", "10.0.2.101:443"} {
			if got := m.call("POST", "/reach?to="+to, "hello"); got != `yes: the host got "hello"` {
				t.Errorf("through the forward %s: %s", to, got)
			}
		}
	}
	if open.visits() != 6 {
		t.Errorf("%d visits", open.visits())
	}
	// A way that the guest makes up for itself.
	m.call("POST", "/sh", "/bin/busybox route add default gw 10.0.2.2")
	refuses(t, m, secret)

	// The way in is a port of the host's loopback, which the machine's facts name.
	a := m.facts().SSHAddress
	if !a.Addr().IsLoopback() || a.Port() == 0 {
		t.Fatalf("the SSH address is %v", a)
	}
	greeted(t, m, a)
}

// greeted has the guest listen on port 22, and connects to it from the host.
func greeted(t *testing.T, m *machine, a netip.AddrPort) {
	t.Helper()
	m.call("POST", "/listen?port=22", "")
	var d net.Dialer
	c, err := d.DialContext(m.ctx, "tcp", a.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if line, err := bufio.NewReader(c).ReadString('\n'); line != "hello from the guest\n" {
		t.Errorf("through %v the guest says %q, %v", a, line, err)
	}
}

func TestNAT(t *testing.T) {
	testImage(t)
	if _, err := exec.LookPath("passt"); err != nil {
		missing(t, "passt is not installed: apt-get install passt")
	}
	secret := serve(t, "tcp4", "0.0.0.0:0")
	m := start(t, bundle(t, func(o *options.QEMU) { o.Network = options.NetworkNAT }))
	t.Cleanup(func() {
		if b, err := os.ReadFile(filepath.Join(m.dir, "passt.log")); err != nil || t.Failed() {
			t.Logf("passt.log: %s, %v", b, err)
		}
	})
	lease := m.call("POST", "/sh", askLease)
	if !strings.Contains(lease, "ip=") {
		t.Fatalf("no lease: %s", lease)
	}
	t.Log(lease)
	_, router, _ := strings.Cut(lease, "router=")
	router, _, _ = strings.Cut(router, " ")
	refuses(t, m, secret, router)
	// As another than the one it is given, with every way through the router: passt then
	// takes the host's address for one like any other, and only the filter does not.
	t.Log(m.call("POST", "/sh", "B=/bin/busybox; $B ifconfig eth0 "+beside(router)+" netmask 255.255.255.255 && $B route add -host "+router+" dev eth0 && $B route add default gw "+router+" && $B route -n"))
	refuses(t, m, secret, router)
}

// beside returns another address of the network.
func beside(router string) string {
	a := netip.MustParseAddr(router).As4()
	a[3] = 77
	return netip.AddrFrom4(a).String()
}
