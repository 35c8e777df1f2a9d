// SPDX-License-Identifier: MIT

package options

import (
	"errors"
	"fmt"
)

// The kinds of guests of Virtualization.framework.
const (
	GuestMacOS = "macos"
	GuestLinux = "linux"
)

// DefaultPort is the guest agent's vsock port. Below 1024 none but the guest's root
// can listen.
const DefaultPort = 1023

// VZ is what the backend vz needs.
type VZ struct {
	// Guest is GuestMacOS or GuestLinux.
	Guest string `json:"guest"`
	Identity
	// Durable has what the guest flushes reach the disk, as the building of an image needs
	// it. Without it a crash of the host loses the disk, which suits a clone.
	Durable bool `json:"durable,omitempty"`
	// Port is the guest agent's vsock port; 0 means DefaultPort.
	Port uint32 `json:"port,omitempty"`
	// Console writes what a Linux guest prints into the bundle, without a bound: to find
	// out why it does not boot, and for guests that one trusts.
	Console bool `json:"console,omitempty"`
}

// ParseVZ decodes the options of the backend vz, strictly.
func ParseVZ(b []byte) (VZ, error) {
	var o VZ
	if err := decode(b, &o); err != nil {
		return VZ{}, err
	}
	if o.Guest != GuestMacOS && o.Guest != GuestLinux {
		return VZ{}, fmt.Errorf("options: guest is %.40q: give %s or %s", o.Guest, GuestMacOS, GuestLinux)
	}
	if o.Console && o.Guest == GuestMacOS {
		return VZ{}, errors.New("options: console is set: a macOS guest prints nothing there")
	}
	if err := o.Validate(o.Guest == GuestMacOS); err != nil {
		return VZ{}, fmt.Errorf("options: %w", err)
	}
	if o.Port == 0 {
		o.Port = DefaultPort
	}
	return o, nil
}
