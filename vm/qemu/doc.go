// SPDX-License-Identifier: MIT

// Package qemu is the backend that runs Linux guests on QEMU: a process of an ordinary
// user for each machine, controlled over QMP. The machine is a q35 with a few virtio
// devices, run by KVM where that works and by emulation elsewhere. It reaches no service of
// its host. The package knows the guest agent as a virtio-serial port at which a mux is
// served, and nothing else of the guest.
package qemu
