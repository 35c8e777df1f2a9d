// SPDX-License-Identifier: MIT

package vz

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
)

// Identity is what a guest takes its machine for. It belongs to a slot of a host and not
// to a machine: so DHCP leases do not run out, and a saved state finds the machine that it
// was saved on. No two machines that run at once may share one.
type Identity struct {
	// ECID is what a Mac's serial number follows. Linux guests have none.
	ECID uint64 `json:"ecid,string"`
	// MAC is the address of the network card, locally administered.
	MAC string `json:"mac"`
}

// NewIdentity makes an identity that no other host has, from a source of random bytes.
func NewIdentity(random io.Reader) (Identity, error) {
	b := make([]byte, 14)
	if _, err := io.ReadFull(random, b); err != nil {
		return Identity{}, fmt.Errorf("make an identity: %w", err)
	}
	mac := net.HardwareAddr(b[8:])
	mac[0] = mac[0]&^1 | 2 // one receiver, administered locally
	// Without the highest bit, which numbers in property lists have for their sign; never 0.
	return Identity{ECID: binary.BigEndian.Uint64(b)>>1 | 1, MAC: mac.String()}, nil
}

func (id Identity) validate(mac bool) error {
	if mac && (id.ECID == 0 || id.ECID>>63 != 0) {
		return fmt.Errorf("ecid is %d: a macOS guest needs one from 1 to 2^63-1, made once for its slot", id.ECID)
	}
	a, err := net.ParseMAC(id.MAC)
	if err != nil || len(a) != 6 || a[0]&3 != 2 {
		return fmt.Errorf("mac is %.40q: give a locally administered address of one receiver, such as 02:00:00:00:00:01", id.MAC)
	}
	return nil
}

// MachineIdentifier returns the ECID in the form that the framework stores: a binary
// property list with this one key.
func (id Identity) MachineIdentifier() []byte {
	b := []byte("bplist00\xd1\x01\x02\x54ECID\x13")
	b = binary.BigEndian.AppendUint64(b, id.ECID)
	b = append(b, 8, 11, 16) // where the three objects are
	trailer := [plistTrailer]byte{6: 1, 7: 1, 15: 3, 31: 25}
	return append(b, trailer[:]...)
}

// ParseMachineIdentifier returns the ECID of a stored machine identifier.
func ParseMachineIdentifier(b []byte) (uint64, error) {
	v, err := parsePlist(b)
	if err != nil {
		return 0, fmt.Errorf("machine identifier: %w", err)
	}
	d, _ := v.(map[string]any)
	ecid, ok := d["ECID"].(uint64)
	if !ok || ecid == 0 {
		return 0, errors.New("machine identifier: it has no ECID")
	}
	return ecid, nil
}

// HardwareModel is what a stored hardware model says of the hosts that can run it.
type HardwareModel struct {
	MinimumOS Version
	Platform  uint64
}

// ParseHardwareModel reads a stored hardware model.
func ParseHardwareModel(b []byte) (HardwareModel, error) {
	v, err := parsePlist(b)
	if err != nil {
		return HardwareModel{}, fmt.Errorf("hardware model: %w", err)
	}
	d, _ := v.(map[string]any)
	platform, ok := d["PlatformVersion"].(uint64)
	if !ok {
		return HardwareModel{}, errors.New("hardware model: it has no platform version")
	}
	m := HardwareModel{Platform: platform}
	parts, ok := d["MinimumSupportedOS"].([]any)
	if !ok || len(parts) < 2 || len(parts) > 3 {
		return HardwareModel{}, errors.New("hardware model: it has no version of macOS")
	}
	for i, p := range parts {
		n, ok := p.(uint64)
		if !ok || n > 1000 {
			return HardwareModel{}, errors.New("hardware model: its version of macOS is none")
		}
		m.MinimumOS[i] = int(n)
	}
	return m, nil
}

// Version is a version of macOS: major, minor, patch.
type Version [3]int

// ParseVersion reads a version such as 14.4.1.
func ParseVersion(text string) (Version, error) {
	var v Version
	n, _ := fmt.Sscanf(text+".0.0", "%d.%d.%d", &v[0], &v[1], &v[2])
	if n != 3 || slices.Min(v[:]) < 0 || v[0] == 0 {
		return Version{}, fmt.Errorf("%.40q is no version of macOS", text)
	}
	return v, nil
}

// AtLeast reports whether the version is that of a major release or later.
func (v Version) AtLeast(major int) bool { return v[0] >= major }

// String returns the version as macOS writes it, without a last zero.
func (v Version) String() string {
	if v[2] == 0 {
		return fmt.Sprintf("%d.%d", v[0], v[1])
	}
	return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2])
}

func (v Version) compare(w Version) int { return slices.Compare(v[:], w[:]) }
