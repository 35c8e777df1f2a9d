// SPDX-License-Identifier: MIT

package peer

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Interface is a network interface of this host.
type Interface struct {
	Name     string
	Bridge   bool // others are behind it
	Prefixes []netip.Prefix
}

// Interfaces lists this host's.
func Interfaces() ([]Interface, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var out []Interface
	for _, i := range all {
		if i.Flags&net.FlagUp == 0 {
			continue
		}
		addresses, err := i.Addrs()
		if err != nil {
			continue // it is gone meanwhile
		}
		found := Interface{Name: i.Name, Bridge: isBridge(i.Name)}
		for _, a := range addresses {
			if n, ok := a.(*net.IPNet); ok {
				if ip, ok := netip.AddrFromSlice(n.IP); ok {
					ones, _ := n.Mask.Size()
					found.Prefixes = append(found.Prefixes, netip.PrefixFrom(ip.Unmap(), ones))
				}
			}
		}
		out = append(out, found)
	}
	return out, nil
}

// isBridge asks Linux; elsewhere the name tells.
func isBridge(name string) bool {
	_, err := os.Stat(filepath.Join("/sys/class/net", name, "bridge"))
	return err == nil
}

// guestInterfaces are how interfaces are called that lead to VMs and containers: vmnet's on
// macOS, then libvirt's, Docker's and their like.
var guestInterfaces = []string{"bridge", "vmenet", "vmnet", "vnet", "virbr", "docker", "br-", "veth", "tap", "lxc", "lxd", "podman", "cni", "vboxnet"}

func (i Interface) forGuests() bool {
	return i.Bridge || slices.ContainsFunc(guestInterfaces, func(p string) bool { return strings.HasPrefix(i.Name, p) })
}

func (i Interface) has(a netip.Addr) bool {
	return slices.ContainsFunc(i.Prefixes, func(p netip.Prefix) bool { return p.Addr() == a })
}

// gateConfig is where to listen and for whom.
type gateConfig struct {
	address    string // IP:PORT or INTERFACE:PORT
	allow      []netip.Prefix
	interfaces func() ([]Interface, error)
}

// gate decides who may connect, before a byte is read. A guest must not: it may look like
// its host, or come from a network of its own.
type gate struct {
	cfg   gateConfig
	bound netip.AddrPort

	mu     sync.Mutex // guards the rest
	known  []Interface
	looked time.Time
}

// interfacesFor is how long a look at the interfaces counts.
const interfacesFor = 5 * time.Second

// CheckAddress refuses an address that no host can have for its peers.
func CheckAddress(address string, allow []netip.Prefix) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil || port == "" || host == "" {
		return fmt.Errorf("%.80q: give one address of this host, or the name of an interface, and a port, such as 192.168.1.20:7443 or en0:7443", address)
	}
	if _, err := netip.ParseAddrPort(net.JoinHostPort("127.0.0.1", port)); err != nil {
		return fmt.Errorf("%.80q: %.20q is no port", address, port)
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return nil // an interface
	}
	ip = ip.Unmap()
	switch {
	case ip.IsUnspecified() || ip.IsMulticast() || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("%.80q: it is not to be reached on every network, guests' among them: give the address of one interface", address)
	case ip.IsLoopback() && !contains(allow, ip):
		return fmt.Errorf("%.80q: no other host reaches it; for tests, name it among the networks that are allowed", address)
	}
	return nil
}

// newGate finds the address to listen on.
func newGate(cfg gateConfig) (*gate, error) {
	if cfg.interfaces == nil {
		cfg.interfaces = Interfaces
	}
	if err := CheckAddress(cfg.address, cfg.allow); err != nil {
		return nil, err
	}
	host, port, _ := net.SplitHostPort(cfg.address)
	g := &gate{cfg: cfg}
	all, err := g.look()
	if err != nil {
		return nil, err
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		if ip, err = addressOf(all, host); err != nil {
			return nil, err
		}
		if err := CheckAddress(net.JoinHostPort(ip.String(), port), cfg.allow); err != nil {
			return nil, err
		}
	}
	at, err := netip.ParseAddrPort(net.JoinHostPort(ip.Unmap().String(), port))
	if err != nil {
		return nil, err
	}
	g.bound = at
	return g, g.stands()
}

// addressOf chooses an interface's address: that of IPv4 if it has one.
func addressOf(all []Interface, name string) (netip.Addr, error) {
	var best netip.Addr
	for _, i := range all {
		if i.Name != name {
			continue
		}
		for _, p := range i.Prefixes {
			a := p.Addr()
			if !a.IsLinkLocalUnicast() && (!best.IsValid() || a.Is4() && !best.Is4()) {
				best = a
			}
		}
	}
	if !best.IsValid() {
		return best, fmt.Errorf("there is no interface %.40q with an address that others reach: see the list of interfaces (ifconfig, ip address)", name)
	}
	return best, nil
}

func (g *gate) look() ([]Interface, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.known != nil && time.Since(g.looked) < interfacesFor {
		return g.known, nil
	}
	all, err := g.cfg.interfaces()
	if err != nil {
		return nil, fmt.Errorf("list this host's network interfaces: %w", err)
	}
	g.known, g.looked = all, time.Now()
	return all, nil
}

// stands reports whether the address still is one of this host's that guests are not on.
func (g *gate) stands() error {
	all, err := g.look()
	if err != nil {
		return err
	}
	if _, err := g.home(all); err != nil {
		return err
	}
	return nil
}

// home returns the interface that has the address.
func (g *gate) home(all []Interface) (Interface, error) {
	ip := g.bound.Addr()
	for _, i := range all {
		if !i.has(ip) {
			continue
		}
		if i.forGuests() {
			return i, fmt.Errorf("%s is the address of the interface %s, which leads to guests: give that of the local network", ip, i.Name)
		}
		return i, nil
	}
	return Interface{}, fmt.Errorf("%s is no address of this host now", ip)
}

// errStranger says why a connection is not taken.
var errStranger = errors.New("not from a host of the local network")

// admit decides about the source of a connection.
func (g *gate) admit(source netip.Addr) error {
	source = source.Unmap().WithZone("")
	all, err := g.look()
	if err != nil {
		return err
	}
	home, err := g.home(all)
	if err != nil {
		return err
	}
	allowed := contains(g.cfg.allow, source)
	for _, i := range all {
		switch {
		case i.has(source) && (!source.IsLoopback() || !allowed):
			return fmt.Errorf("%w: %s is this host's own, as which guests appear", errStranger, source)
		case i.forGuests() && contains(i.Prefixes, source):
			return fmt.Errorf("%w: %s is on %s, where guests are", errStranger, source, i.Name)
		}
	}
	for _, p := range home.Prefixes {
		if allowed || p.Contains(g.bound.Addr()) && p.Contains(source) {
			return nil
		}
	}
	return fmt.Errorf("%w: %s is outside of the network of %s", errStranger, source, g.bound.Addr())
}

func contains(prefixes []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}
