// SPDX-License-Identifier: MIT

package qemu

import (
	"time"

	"github.com/minifleet/minifleet/vm"
)

// Config says where the backend finds what it needs.
type Config struct {
	// Program is QEMU; "" means options.QEMUProgram in PATH.
	Program string
	// Passt gives a machine of the network nat its way out; "" means passt in PATH.
	Passt string
	// HandOver is a program with arguments that calls HandOver with the two arguments that
	// follow them. Forwards need it.
	HandOver []string
	// CacheDir keeps which accelerator works on this host until it boots anew; "" means
	// that each machine finds out for itself.
	CacheDir string
	// RoomTime is how long a machine halts that could not write because its host's volume
	// is full; then it ends. Zero means half a minute.
	RoomTime time.Duration
}

// Backend returns the backend on QEMU. Where QEMU is missing, Open says so.
func Backend(cfg Config) vm.Backend {
	return vm.Backend{Name: vm.BackendQEMU, Isolation: vm.IsolationVM, SavesState: true, Open: cfg.open}
}
