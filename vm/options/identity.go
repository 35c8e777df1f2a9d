// SPDX-License-Identifier: MIT

package options

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
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

// Validate checks an identity: that of a Mac has an ECID.
func (id Identity) Validate(mac bool) error {
	if mac && (id.ECID == 0 || id.ECID>>63 != 0) {
		return fmt.Errorf("ecid is %d: a macOS guest needs one from 1 to 2^63-1, made once for its slot", id.ECID)
	}
	a, err := net.ParseMAC(id.MAC)
	if err != nil || len(a) != 6 || a[0]&3 != 2 {
		return fmt.Errorf("mac is %.40q: give a locally administered address of one receiver, such as 02:00:00:00:00:01", id.MAC)
	}
	return nil
}
