// SPDX-License-Identifier: MIT

package agent

import (
	"context"
	"io"
	"time"

	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/secret"
	"github.com/minifleet/minifleet/trust"
)

// Machines makes the VMs of a host, and finds those that an earlier agent left.
type Machines interface {
	// Scan finds every VM of the host, and clears away what is no VM yet or no more.
	Scan(ctx context.Context) ([]Found, error)
	// Create makes a VM ready to start: its image and its clone. It calls progress
	// with a few words whenever the work has moved on. After an error nothing is left.
	Create(ctx context.Context, order Order, progress func(string)) (Machine, error)
	// IsMac reports whether a VM of the image is one of those that macOS runs two of.
	IsMac(ctx context.Context, image string) (bool, error)
	// EndLeftovers ends what outlived VMs of this host and counts as a VM to its system,
	// and returns how many it ended.
	EndLeftovers(ctx context.Context) (int, error)
	// Images lists the names of the images that need no download.
	Images(ctx context.Context) ([]string, error)
}

// Order says which VM to make.
type Order struct {
	ID        string
	Pool      string
	Slot      int // its number: no two VMs that run at once have the same
	Mac       bool
	Image     string
	Backend   string // "" lets Machines choose
	Guest     string // how its guest program is reached: "" or GuestSSH
	Network   string // "" lets Machines choose
	CPUs      int    // 0 = its default
	MemoryMiB int    // 0 = its default
	Cold      bool   // it boots, whatever state is saved
}

// Found is a VM that an earlier agent left.
type Found struct {
	ID      string
	Pool    string
	Slot    int // 0 if it does not tell
	Mac     bool
	Running bool   // something still runs, or still writes to its disk
	Orphan  bool   // what runs has lost its vmm and can only be ended
	Ending  string // for one that does not run: why, in a sentence
	Machine Machine
}

// Machine is one VM. Its methods may be called at the same time.
type Machine interface {
	// Start boots the VM and returns when it runs, without waiting for the guest. It is
	// called once. An error has the vm.Reason of a VM that ended; after any, Stop is due.
	Start(ctx context.Context) error
	// Took returns how long its making took, as far as it is made.
	Took() Took
	// Guest reaches the guest program; nil if there is no way to.
	Guest() Guest
	// Wait returns when nothing of the VM runs any more, with a sentence that says why.
	Wait(ctx context.Context) (string, error)
	// Stop powers the VM off, and returns nil when nothing of it runs any more. It can
	// be repeated, and called on a VM that never started.
	Stop(ctx context.Context) error
	// Keep copies what explains the VM's end into dir, at most a few MiB.
	Keep(dir string) error
	// Remove deletes the VM's files. It can be repeated.
	Remove(ctx context.Context) error
	// Release lets go of a VM, which runs on.
	Release()
}

// Guest is the guest program as guest.Client reaches it.
type Guest interface {
	Health(ctx context.Context) (guest.Health, error)
	Status(ctx context.Context, after uint64, wait time.Duration) (guest.Status, error)
	InstallRunner(ctx context.Context, size int64, digest []byte, r io.Reader) error
	Run(ctx context.Context, jit secret.Text, env map[string]string, policy *trust.Policy) error
	End(ctx context.Context, grace time.Duration) error
	Tail(ctx context.Context) (string, error)
	Diag(ctx context.Context, w io.Writer) error
}
