// SPDX-License-Identifier: MIT

// Package vm is a virtual machine as the host's agent sees it: the bundle (a
// folder with disk, spec, lock, sockets, status and logs), its copy-on-write
// clone from an image, the protocol of the vmm process that owns the machine,
// adoption after a restart, and the sweep of what was left behind. It also
// states the contract that every backend keeps (see Backend and Instance). The
// vmm itself is package vm/vmm. This package knows nothing of GitHub, of the
// controller, or of what the guest is used for.
package vm
