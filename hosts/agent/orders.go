// SPDX-License-Identifier: MIT

package agent

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/minifleet/minifleet/imagecache"
	"github.com/minifleet/minifleet/vm"
	"github.com/minifleet/minifleet/vm/options"
)

// What the agent notes in a bundle, so that it survives the agent.
const (
	notePool  = "minifleet/pool"
	noteSlot  = "minifleet/slot"  // its number
	noteGuest = "minifleet/guest" // how the guest program is reached, if not as usual: GuestSSH
)

// GuestSSH is the Order.Guest of an image that has only an SSH server.
const GuestSSH = "ssh"

// checkOrder refuses what this host cannot make.
func (v *VMs) checkOrder(o Order) error {
	if err := v.checkGuest(o); err != nil {
		return err
	}
	switch {
	case o.Backend != "" && o.Backend != string(v.cfg.Backend):
		return fmt.Errorf("pool %s asks for the backend %s and this host has %s: change the pool or place it elsewhere", o.Pool, o.Backend, v.cfg.Backend)
	case o.Network == "" || v.cfg.Backend == vm.BackendQEMU:
		return nil
	case v.cfg.Backend == vm.BackendVZ && o.Network == options.NetworkNAT:
		return nil // the only one that it has
	default:
		return fmt.Errorf("pool %s asks for the network %s, which the backend %s does not have: change the pool or place it elsewhere", o.Pool, o.Network, v.cfg.Backend)
	}
}

// spec turns an order into what the vmm is told.
func (v *VMs) spec(o Order, image *imagecache.Image) (vm.Spec, error) {
	s := vm.Spec{
		ID: o.ID, Backend: v.cfg.Backend,
		CPUs: cmp.Or(o.CPUs, defaultCPUs), MemoryMiB: cmp.Or(o.MemoryMiB, defaultMemoryMiB), MaxLife: v.cfg.MaxLife,
		Image:       vm.ImageRef{Name: image.Name, Digest: image.Digest},
		Annotations: map[string]string{notePool: o.Pool, noteSlot: strconv.Itoa(o.Slot)},
	}
	if o.Guest != "" {
		s.Annotations[noteGuest] = o.Guest
	}
	if v.cfg.Backend == vm.BackendProcess {
		s.Process = &vm.ProcessSpec{GuestProgram: v.cfg.GuestProgram, RunnerDir: RunnerDir, BootDelay: v.cfg.BootDelay}
		return s, nil
	}
	id, err := v.identities.of(o.Slot)
	if err != nil {
		return vm.Spec{}, err
	}
	if v.cfg.Backend == vm.BackendVZ {
		s.Options, err = json.Marshal(options.VZ{Guest: guestOf(image.GuestOS), Identity: id})
	} else {
		s.Options, err = json.Marshal(v.qemu(o, id))
	}
	return s, err
}

// qemu says what the backend qemu needs. What the pool says of the network wins; what a
// guest may reach beyond it, only the host's owner says.
func (v *VMs) qemu(o Order, id options.Identity) options.QEMU {
	q := options.QEMU{
		Identity: id, Network: cmp.Or(o.Network, v.cfg.QEMU.Network, options.NetworkIsolated),
		SSH: o.Guest == GuestSSH, Accelerator: v.cfg.QEMU.Accelerator,
		Console: true, // bounded, and all that there is of a guest that never answers
	}
	if q.Network == options.NetworkIsolated {
		q.Forwards = v.cfg.QEMU.Forwards
	}
	return q
}

// QEMUConfig is how this host's QEMU machines are made.
type QEMUConfig struct {
	// Network is that of pools that name none: options.NetworkIsolated, which is the
	// default, or options.NetworkNAT.
	Network string
	// Forwards are what guests of an isolated network may reach.
	Forwards []options.Forward
	// Accelerator is "kvm", "tcg", or "" for the best that works.
	Accelerator string
}

// Validate returns what is wrong with the configuration.
func (c QEMUConfig) Validate() error {
	// Checked as what it becomes, with an identity that is none but valid.
	network := cmp.Or(c.Network, options.NetworkIsolated)
	q := options.QEMU{Identity: options.Identity{MAC: "02:00:00:00:00:01"}, Network: network, Accelerator: c.Accelerator}
	raw, err := json.Marshal(q)
	if err == nil {
		_, err = options.ParseQEMU(raw)
	}
	if err != nil {
		return err
	}
	// The forwards are those of pools whose network is isolated, whatever the default.
	q.Network, q.Forwards = options.NetworkIsolated, c.Forwards
	if raw, err = json.Marshal(q); err == nil {
		_, err = options.ParseQEMU(raw)
	}
	return err
}

// guestOf puts what an image says of itself into the word of the backend vz.
func guestOf(imageOS string) string {
	if imageOS == "darwin" {
		return options.GuestMacOS
	}
	return options.GuestLinux
}

// notes are what a bundle tells of the order that it was made by.
type notes struct {
	pool     string
	slot     int // 0 if it is not told
	guest    string
	mac      bool
	identity options.Identity // zero if the backend gives none
}

// readNotes reads them. With the process backend a guest can write there, so nothing is
// believed but what could have been written.
func readNotes(s vm.Spec) notes {
	n := notes{pool: s.Annotations[notePool], guest: s.Annotations[noteGuest]}
	if slot, err := strconv.Atoi(s.Annotations[noteSlot]); err == nil && slot >= 1 && slot <= maxSlotNumber {
		n.slot = slot
	}
	switch s.Backend {
	case vm.BackendVZ:
		if o, err := options.ParseVZ(s.Options); err == nil {
			n.mac, n.identity = o.Guest == options.GuestMacOS, o.Identity
		}
	case vm.BackendQEMU:
		if o, err := options.ParseQEMU(s.Options); err == nil {
			n.identity = o.Identity
		}
	}
	if n.identity.Validate(true) != nil {
		n.identity = options.Identity{}
	}
	return n
}
