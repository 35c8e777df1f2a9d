// SPDX-License-Identifier: MIT

// Package address finds the IPv4 address of a VM behind a Mac's own NAT by the address of
// its network card: in the leases of the host's DHCP server, or else in its ARP table. Both
// hold what guests say of themselves, so what is found is a place to try, and no proof of
// who is there.
package address

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

const (
	leasesFile = "/var/db/dhcpd_leases" // of macOS's bootpd
	arpProgram = "/usr/sbin/arp"
	maxBytes   = 4 << 20 // read of either
	arpTime    = 5 * time.Second
)

// Find returns the address of the VM with this network card. It fails while the host does
// not know it: a guest asks for its address some seconds after it has started.
func Find(ctx context.Context, mac net.HardwareAddr) (netip.Addr, error) {
	leases, leaseErr := readLeases()
	if a, ok := FromLeases(leases, mac, time.Now()); ok {
		return a, nil
	}
	table, arpErr := readARP(ctx)
	if a, ok := FromARP(table, mac); ok {
		return a, nil
	}
	if err := errors.Join(leaseErr, arpErr); err != nil {
		return netip.Addr{}, err
	}
	return netip.Addr{}, fmt.Errorf("neither the DHCP leases (%s) nor the ARP table know the network card %s: the guest has not asked for an address yet", leasesFile, mac)
}

// readLeases reads the file of leases. There is none before the first one.
func readLeases() ([]byte, error) {
	f, err := os.Open(leasesFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the DHCP leases: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxBytes))
	if err != nil {
		return nil, fmt.Errorf("read the DHCP leases: %w", err)
	}
	return b, nil
}

func readARP(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, arpTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, arpProgram, "-an").Output()
	if err != nil {
		return nil, fmt.Errorf("read the ARP table: %s -an: %w", arpProgram, err)
	}
	return out[:min(len(out), maxBytes)], nil
}

// FromLeases returns the address in the newest lease of the network card that has not
// expired by now. The file is a list of blocks:
//
//	{
//		name=admins-Virtual-Machine
//		ip_address=192.168.64.5
//		hw_address=1,6e:9:2:0:a1:f
//		identifier=1,6e:9:2:0:a1:f
//		lease=0x6a2f1b30
//	}
//
// where the lease is the time of its expiry, in seconds since 1970, and the bytes of the
// hardware address have no leading zeros. Blocks that are not whole are left out.
func FromLeases(file []byte, mac net.HardwareAddr, now time.Time) (netip.Addr, bool) {
	var best lease
	var this *lease
	for line := range bytes.Lines(file) {
		switch text := strings.TrimSpace(string(line)); {
		case text == "{":
			this = &lease{}
		case this == nil:
		case text == "}":
			if this.address.IsValid() && bytes.Equal(this.mac, mac) && this.expiry > now.Unix() && this.expiry > best.expiry {
				best = *this
			}
			this = nil
		default:
			this.set(text)
		}
	}
	return best.address, best.address.IsValid()
}

// lease is one block.
type lease struct {
	address netip.Addr
	mac     net.HardwareAddr
	expiry  int64
}

// set takes a line; of a key that comes twice the first one counts, for the name is the
// guest's own choice and comes first only as long as nobody thought of more.
func (l *lease) set(line string) {
	key, value, _ := strings.Cut(line, "=")
	switch {
	case key == "ip_address" && !l.address.IsValid():
		l.address = ipv4(value)
	case key == "hw_address" && l.mac == nil:
		if kind, address, _ := strings.Cut(value, ","); kind == "1" { // Ethernet
			l.mac = parseMAC(address)
		}
	case key == "lease" && l.expiry == 0:
		hex, ok := strings.CutPrefix(value, "0x")
		if n, err := strconv.ParseInt(hex, 16, 64); ok && err == nil && n > 0 {
			l.expiry = n
		}
	}
}

// FromARP returns the address of the network card in what `arp -an` prints:
//
//	? (192.168.64.5) at 6e:9:2:0:a1:f on bridge100 ifscope [bridge]
//
// Where the card is at several addresses, the last one counts.
func FromARP(table []byte, mac net.HardwareAddr) (netip.Addr, bool) {
	var found netip.Addr
	for line := range bytes.Lines(table) {
		words := strings.Fields(string(line))
		if len(words) < 4 || words[2] != "at" || !bytes.Equal(parseMAC(words[3]), mac) {
			continue
		}
		inner, ok := strings.CutPrefix(words[1], "(")
		inner, closed := strings.CutSuffix(inner, ")")
		if a := ipv4(inner); ok && closed && a.IsValid() {
			found = a
		}
	}
	return found, found.IsValid()
}

// ipv4 reads an address at which a VM can be; the zero one is none.
func ipv4(text string) netip.Addr {
	a, err := netip.ParseAddr(text)
	if err != nil || !a.Is4() || !a.IsGlobalUnicast() {
		return netip.Addr{}
	}
	return a
}

// parseMAC reads six bytes with or without leading zeros; nil if it is anything else.
func parseMAC(text string) net.HardwareAddr {
	parts := strings.Split(text, ":")
	if len(parts) != 6 {
		return nil
	}
	mac := make(net.HardwareAddr, 6)
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 16, 8)
		if err != nil || len(p) > 2 {
			return nil
		}
		mac[i] = byte(n)
	}
	return mac
}
