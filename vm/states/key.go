// SPDX-License-Identifier: MIT

package states

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/minifleet/minifleet/vm"
)

// Key says what a saved state fits. A hypervisor restores it only where all of this is as
// it was, and does not check all of it by itself.
type Key struct {
	Backend vm.BackendName `json:"backend"`
	// Host is what HostBuild says of the host.
	Host string `json:"host"`
	// Image is the image's digest.
	Image     string `json:"image"`
	CPUs      int    `json:"cpus"`
	MemoryMiB int    `json:"memory_mib"`
	// Options are the machine's options as its spec has them, the slot's identity among
	// them: they make up its devices.
	Options string `json:"options,omitempty"`
	// VMM is what ProgramVersion says of the vmm.
	VMM string `json:"vmm"`
}

// Name is a name for what has this key: equal keys have equal names, and different keys
// different ones. It fails if something that a state depends on is unknown.
func (k Key) Name() (string, error) {
	if k.Backend == "" || k.Host == "" || k.Image == "" || k.VMM == "" || k.CPUs < 1 || k.MemoryMiB < 1 {
		return "", errors.New("no state can be kept: backend, host, image digest, vmm, CPUs or memory is unknown")
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %q %d %d %q %q", k.Backend, k.Host, k.Image, k.CPUs, k.MemoryMiB, k.Options, k.VMM))
	return hex.EncodeToString(sum[:16]), nil
}
