// SPDX-License-Identifier: MIT

package vz

import "net"

// framework is one machine of Virtualization.framework as the backend uses it. Its calls
// know no context: each returns when the framework has called back. All errors of the
// framework are *nsError.
type framework interface {
	// state is the state now. next waits for the next change, which may be an old one by
	// then, until quit is closed. Changes queue without bound until they are read.
	state() state
	next(quit <-chan struct{}) (state, bool)
	start() error
	stop() error
	pause() error
	resume() error
	save(path string) error
	restore(path string) error
	// savable says what of the configuration cannot be saved. It must not be called where
	// the host's macOS knows no saved states.
	savable() error
	// dial connects to a port of the guest, or fails at once if nobody listens.
	dial(port uint32) (net.Conn, error)
	// show opens the machine's screen in a window until that is closed or the machine has
	// stopped. It needs the process's first thread.
	show(title string) error
}

// state is a VZVirtualMachineState, with its number.
type state int

const (
	stateStopped state = iota
	stateRunning
	statePaused
	stateError
)

// over reports whether nothing runs in this state.
func (s state) over() bool { return s == stateStopped || s == stateError }
