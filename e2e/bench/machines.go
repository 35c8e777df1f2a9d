// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/vm"
)

// What a VM has here: the test image needs no more.
const (
	machineCPUs   = 1
	machineMemory = 512 // MiB
)

// machineTime bounds the life of one VM, emulated processors on a busy machine included.
const machineTime = 5 * time.Minute

// noMachines says why no VM can be booted here, or nothing.
func (b *bencher) noMachines() string {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		return "QEMU is not installed (Debian: apt-get install qemu-system-x86)"
	}
	if _, err := os.Stat(filepath.Join(b.image, "image.json")); err != nil {
		return "there is no image: run make test-image, or name one with -image"
	}
	return ""
}

// machines makes VMs as the agent of a host does.
type machines struct {
	*agent.VMs
	dir   string // of the bundles
	image string
	last  int
}

// newMachines is a host whose saved states may take so much; it saves none with 0.
func newMachines(b *bencher, name string, states int64) (*machines, error) {
	m := &machines{dir: filepath.Join(b.dir, name, agent.DirVMs), image: filepath.Base(b.image)}
	if err := os.Mkdir(filepath.Dir(m.dir), 0o700); err != nil {
		return nil, err
	}
	var err error
	m.VMs, err = agent.NewVMs(agent.VMsConfig{
		Dir: m.dir, ImagesDir: filepath.Dir(b.image), Backend: vm.BackendQEMU, AllowCopy: true,
		VMMProgram: filepath.Join(b.programs, "minifleet-vmm"), SavedStates: states,
	})
	return m, err
}

// clone makes a VM that was not started, of a saved state if there is one that it may
// continue from. remove has to be called, once nothing of it runs.
func (m *machines) clone(ctx context.Context, cold bool) (one agent.Machine, dir string, remove func() error, err error) {
	m.last++
	id := fmt.Sprintf("v%d", m.last)
	one, err = m.Create(ctx, agent.Order{ID: id, Slot: 1, Image: m.image, CPUs: machineCPUs, MemoryMiB: machineMemory, Cold: cold}, func(string) {})
	if err != nil {
		return nil, "", nil, err
	}
	remove = func() error {
		one.Release()
		return one.Remove(context.WithoutCancel(ctx))
	}
	return one, filepath.Join(m.dir, id), remove, nil
}

// life is how long the parts of a VM's life took.
type life struct {
	started  time.Duration // until it ran, of the agent's start of it
	answered time.Duration // until its guest answered, from the same moment
	stopped  time.Duration // until nothing of it ran, from the order to
}

// live leads a VM through its life, as the agent does: vmm, QEMU, the guest's first answer
// over guest.sock, and the end. look is called while the VM runs.
func (m *machines) live(ctx context.Context, cold bool, look func(one agent.Machine, dir string) error) (l life, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, machineTime, fmt.Errorf("a VM's life is not over within %s", machineTime))
	defer cancel()
	one, dir, remove, err := m.clone(ctx, cold)
	if err != nil {
		return l, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	began := time.Now()
	err = one.Start(ctx)
	l.started = time.Since(began)
	if err == nil {
		err = firstAnswer(ctx, one.Guest())
		l.answered = time.Since(began)
	}
	if err == nil && look != nil {
		err = look(one, dir)
	}
	began = time.Now()
	err = errors.Join(err, one.Stop(context.WithoutCancel(ctx)))
	l.stopped = time.Since(began)
	return l, err
}

// firstAnswer waits for a guest that boots. A client gives a question up after a while, on a
// machine that is too busy to measure anything.
func firstAnswer(ctx context.Context, g agent.Guest) error {
	return until(ctx, machineTime, time.Second, "the guest answers", func() (bool, error) {
		_, err := g.Health(ctx)
		return err == nil, nil
	})
}
