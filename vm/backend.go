// SPDX-License-Identifier: MIT

package vm

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
)

// Backend is one way to run machines, as the vmm knows it: two facts and a function.
// Everything else a backend does is behind the Instance that Open returns.
type Backend struct {
	Name BackendName
	// Isolation is shown in every state; IsolationNone is also logged as a warning.
	Isolation Isolation
	// SavesState says whether Pause, Save and Restore work. If false they return
	// errors.ErrUnsupported and change nothing.
	SavesState bool
	// Open prepares the machine of one bundle and starts nothing. It checks everything
	// that can be checked beforehand and returns what is wrong as an error with a reason
	// (WithReason), ReasonBadConfiguration above all. It is called once in a vmm's life.
	// After an error there is nothing to clean up.
	Open func(ctx context.Context, cfg OpenConfig) (Instance, error)
}

// OpenConfig is what a backend gets to work with. All fields are set.
type OpenConfig struct {
	// Dir is the bundle's absolute path. The backend may use FileInnerSocket,
	// FileConsole and whatever the image brought; the rest is the vmm's.
	Dir  string
	Spec Spec
	// Lock is the bundle's lock, held. Every process that the backend starts and that can
	// write to the disk inherits this descriptor, so that the lock ends with the last
	// writer even when the vmm is killed. A backend must never unlock or close it.
	Lock *os.File
	// RecordWriter notes in the bundle which process writes to the disk, for whoever has
	// to end it after the vmm was killed. A backend whose machine lives in a process of
	// its own calls it right after that process has started; one whose machine lives in
	// the vmm does not.
	RecordWriter func(pid int) error
	// Publish tells what a reader of the machine's state needs to know of it. A backend
	// that has something to tell calls it once, before Start returns.
	Publish func(Facts)
	// Ended must be called exactly once after a successful Start, in a goroutine of the
	// backend: when the machine no longer runs, whatever ended it, Stop included, and no
	// process that it started is left. It returns quickly.
	Ended func(Ending)
	Log   *slog.Logger
}

// Facts is what only the backend knows of its machine.
type Facts struct {
	// SSHAddress is where the host reaches the guest's port 22; zero if nowhere.
	SSHAddress netip.AddrPort
	// Accelerator is what runs the guest's code, "kvm" or "tcg" (emulation); "" if the
	// backend knows one way only.
	Accelerator string
}

// Ending says how a machine ended by itself. After Stop its content is not looked at.
type Ending struct {
	// Reason is ReasonGuestEnded when the guest shut down or its program ended.
	Reason Reason
	// Detail is one sentence for an operator.
	Detail string
}

// Instance is one machine. The vmm makes one call at a time, with one exception:
// Connect may be called at any moment and by several goroutines at once.
//
// Order of calls: Open, then at most one Restore, then Start; then any number of
// Pause, Save and Start; Stop at any point, and nothing but Stop after it.
//
// A ctx bounds the call and not the machine: what was started goes on after it.
type Instance interface {
	// Start boots the machine; after Restore it continues the machine where it was
	// saved, and after Pause where it was paused. It returns when the machine runs,
	// without waiting for the guest agent. If ctx ends before that, it gives up with an
	// error. After an error the machine does not run, no process of it is left, and Ended
	// is not called for it.
	Start(ctx context.Context) error

	// Stop powers the machine off at once; the guest is not asked. When it returns nil
	// the machine does not run, no process of it is left, Ended has been called if Start
	// had succeeded, and every connection is closed. On a machine that never started or
	// has already ended it returns nil, so it can be repeated. It returns an error only
	// if something still runs, at the latest when ctx ends.
	Stop(ctx context.Context) error

	// Pause halts the machine's processors; disk and memory are then at rest. Pausing a
	// paused machine does nothing. Start continues it. After an error the machine runs on;
	// if ctx has ended nobody knows whether it does, and it is of no more use.
	Pause(ctx context.Context) error

	// Save writes the paused machine's memory and devices into the empty folder dir,
	// which must have no file of its own in it after an error. The machine stays paused.
	// Disks are not part of it: the caller clones them while the machine is paused.
	Save(ctx context.Context, dir string) error

	// Restore loads what Save wrote, instead of a boot: the bundle's disks must be clones
	// of those taken with it, and CPUs, memory and backend equal. Start then continues
	// the machine. After an error the machine can still be booted by Start, but only from
	// an untouched disk.
	Restore(ctx context.Context, dir string) error

	// Connect opens one new stream to the guest agent, independent of all others: a
	// backend that has a single channel multiplexes it. It waits for a guest that does
	// not answer yet, and fails when ctx ends or the machine has ended. A stream that
	// has CloseWrite() error passes the end of one direction on without ending the other.
	// What happens to a stream never ends the machine.
	Connect(ctx context.Context) (net.Conn, error)
}

// WithReason gives err the reason with which the machine's life ends because of it.
func WithReason(reason Reason, err error) error {
	if err == nil {
		return nil
	}
	return &reasonError{reason: reason, err: err}
}

// ReasonOf returns the reason that err carries, or fallback if it carries none.
func ReasonOf(err error, fallback Reason) Reason {
	if e, ok := errors.AsType[*reasonError](err); ok {
		return e.reason
	}
	return fallback
}

type reasonError struct {
	reason Reason
	err    error
}

func (e *reasonError) Error() string { return e.err.Error() }
func (e *reasonError) Unwrap() error { return e.err }
