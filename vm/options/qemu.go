// SPDX-License-Identifier: MIT

package options

import (
	"errors"
	"fmt"
	"net/netip"
)

// The networks of a QEMU machine. In none of them does a guest reach its host.
const (
	// NetworkIsolated has no way out but the named forwards.
	NetworkIsolated = "isolated"
	// NetworkNAT reaches what the host reaches, and not the host itself: passt, without a
	// mapping of the host's loopback.
	NetworkNAT = "nat"
)

// GuestPortName is the virtio-serial port at which a guest's agent listens.
const GuestPortName = "minifleet.guest"

// QEMUProgram is the QEMU that runs machines, whatever the host's processor: its version is
// part of what a saved state belongs to.
const QEMUProgram = "qemu-system-x86_64"

// QEMU is what the backend qemu needs.
type QEMU struct {
	Identity
	// Network is NetworkIsolated or NetworkNAT.
	Network string `json:"network"`
	// Forwards are the ways out of an isolated network.
	Forwards []Forward `json:"forwards,omitempty"`
	// SSH forwards a port of the host's loopback to the guest's port 22. Which one, the
	// machine's state tells.
	SSH bool `json:"ssh,omitempty"`
	// Durable has what the guest flushes reach the disk, and has the guest shut down before
	// its machine is powered off, as the building of an image needs it. Without it a stop
	// is at once and a crash of the host loses the disk, which suits a clone.
	Durable bool `json:"durable,omitempty"`
	// Accelerator is "kvm", "tcg", or "" to try KVM by booting and fall back.
	Accelerator string `json:"accelerator,omitempty"`
	// Console writes what the guest prints into the bundle, bounded.
	Console bool `json:"console,omitempty"`
}

// Forward is one way out of an isolated network: what a guest sends to Guest arrives at
// Host, and nowhere else.
type Forward struct {
	Guest netip.AddrPort `json:"guest"` // within 10.0.2.0/24
	Host  netip.AddrPort `json:"host"`
}

// ParseQEMU decodes the options of the backend qemu, strictly.
func ParseQEMU(b []byte) (QEMU, error) {
	var o QEMU
	if err := decode(b, &o); err != nil {
		return QEMU{}, err
	}
	if err := o.check(); err != nil {
		return QEMU{}, fmt.Errorf("options: %w", err)
	}
	return o, nil
}

var forwardNet = netip.MustParsePrefix("10.0.2.0/24")

func (o QEMU) check() error {
	if err := o.Validate(false); err != nil {
		return err
	}
	switch o.Network {
	case NetworkIsolated:
	case NetworkNAT:
		if len(o.Forwards) > 0 {
			return errors.New("forwards are given, but the network is nat: forwards belong to an isolated one")
		}
	default:
		return fmt.Errorf("network is %.40q: give %s or %s", o.Network, NetworkIsolated, NetworkNAT)
	}
	if o.Accelerator != "" && o.Accelerator != "kvm" && o.Accelerator != "tcg" {
		return fmt.Errorf("accelerator is %.40q: give kvm, tcg or nothing", o.Accelerator)
	}
	if len(o.Forwards) > 16 {
		return fmt.Errorf("there are %d forwards: 16 are allowed", len(o.Forwards))
	}
	for _, f := range o.Forwards {
		if !forwardNet.Contains(f.Guest.Addr()) || f.Guest.Port() == 0 || !f.Host.IsValid() || f.Host.Port() == 0 {
			return fmt.Errorf("forward %v to %v: give an address and port within %v, and a host's address and port", f.Guest, f.Host, forwardNet)
		}
	}
	return nil
}
