// SPDX-License-Identifier: MIT

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/guest/remote"
	"github.com/minifleet/minifleet/vm"
)

// maxLogKept is how much of the end of each log is kept of a failure.
const maxLogKept = 1 << 20

// vmMachine is one bundle and, while it runs, its machine.
type vmMachine struct {
	dir     string
	program string // of the vmm
	as      *vm.Account
	client  *guest.Client
	took    Took
	way     *remote.Guest // to the guest program, of an image that has only SSH

	keepsake keepsake // but for taken, which mu guards, set once

	mu      sync.Mutex // guards the rest
	machine *vm.Machine
	ended   bool // it does not run, and why it does not
	ending  string
}

// newVM returns the machine of a bundle. How its guest program is reached is decided here
// alone: by the one stream that every backend has, or, by GuestSSH in an order or a bundle's
// notes, over SSH to an image without the program.
func (v *VMs) newVM(dir, by string, image vm.ImageRef) *vmMachine {
	m := &vmMachine{dir: dir, program: v.cfg.VMMProgram, as: v.cfg.Account}
	dial := m.dial
	if by == GuestSSH {
		dial = v.overSSH(m, image.Digest)
	}
	m.client = guest.NewClient(dial)
	return m
}

var errNotStarted = errors.New("the VM does not run")

func (m *vmMachine) current() (*vm.Machine, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.machine, m.ended
}

func (m *vmMachine) set(machine *vm.Machine) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.machine = machine
}

// end notes that nothing of the VM runs.
func (m *vmMachine) end(why string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ended, m.ending = true, why
}

func (m *vmMachine) dial(ctx context.Context) (net.Conn, error) {
	machine, _ := m.current()
	if machine == nil {
		return nil, errNotStarted
	}
	return machine.DialGuest(ctx)
}

func (m *vmMachine) adopt(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, adoptTime)
	defer cancel()
	machine, err := vm.Adopt(ctx, m.dir)
	if err == nil {
		m.set(machine)
	}
	return err
}

func (m *vmMachine) Start(ctx context.Context) error {
	machine, err := vm.StartAs(ctx, m.dir, m.program, m.as)
	if err != nil {
		return explain(err)
	}
	m.set(machine)
	for revision := int64(0); ; {
		s, err := machine.State(ctx, revision, vm.MaxStateWait)
		if err != nil {
			return err
		}
		switch {
		case s.Phase == vm.PhaseFinal:
			return vm.WithReason(s.Reason, errors.New(describe(s.Reason, s.Detail)))
		case s.RunningAt.IsZero(): // it starts, or could not be started and is cleared away
			revision = s.Revision
		default: // it runs, or did
			return nil
		}
	}
}

func (m *vmMachine) Took() Took { return m.took }

func (m *vmMachine) Guest() Guest { return m.client }

func (m *vmMachine) Wait(ctx context.Context) (string, error) {
	machine, ended := m.current()
	switch {
	case ended:
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.ending, nil
	case machine == nil:
		return "", errNotStarted
	}
	select {
	case <-machine.Done():
		return describe(machine.Final()), nil
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// Stop also ends what a dead vmm left behind, and a vmm that could not be adopted
// before.
func (m *vmMachine) Stop(ctx context.Context) error {
	machine, ended := m.current()
	if ended {
		return nil
	}
	if machine == nil {
		err := vm.EndWriter(ctx, m.dir)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, vm.ErrVMMAlive):
			return err
		}
		if err := m.adopt(ctx); err != nil {
			return err
		}
		machine, _ = m.current()
	}
	return machine.Stop(ctx)
}

// Keep copies the ends of the VM's logs.
func (m *vmMachine) Keep(dir string) error {
	var errs []error
	for _, name := range []string{vm.FileVMMLog, vm.FileConsole, vm.FileStatus} {
		if err := copyEnd(filepath.Join(m.dir, name), filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("keep %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func copyEnd(from, to string) error {
	// Where the vmm runs as another user, that one could put a link or a pipe in its place.
	src, err := os.OpenFile(from, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file", from)
	}
	if _, err := src.Seek(max(0, info.Size()-maxLogKept), io.SeekStart); err != nil {
		return err
	}
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.CopyN(dst, src, maxLogKept)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return errors.Join(err, dst.Close())
}

// Remove also ends a vmm that was started by an agent that died at that moment, and took
// the bundle's lock only after this agent had found the bundle unlocked.
func (m *vmMachine) Remove(ctx context.Context) error {
	err := vm.Remove(ctx, m.dir)
	if !errors.Is(err, vm.ErrLocked) {
		return err
	}
	m.mu.Lock()
	m.ended = false
	m.mu.Unlock()
	stop, cancel := context.WithTimeout(ctx, stopPatience)
	defer cancel()
	if err := m.Stop(stop); err != nil {
		return err
	}
	return vm.Remove(ctx, m.dir)
}

func (m *vmMachine) Release() {
	m.Continued() // nobody uses the state any more
	m.client.Close()
	if m.way != nil {
		m.way.Close()
	}
	if machine, _ := m.current(); machine != nil {
		machine.Detach()
	}
}
