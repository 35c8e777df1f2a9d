// SPDX-License-Identifier: MIT

package vz

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// MachineIdentifier returns an ECID in the form that the framework stores: a binary
// property list with this one key.
func MachineIdentifier(ecid uint64) []byte {
	b := []byte("bplist00\xd1\x01\x02\x54ECID\x13")
	b = binary.BigEndian.AppendUint64(b, ecid)
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
