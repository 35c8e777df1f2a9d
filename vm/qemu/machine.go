// SPDX-License-Identifier: MIT

//go:build linux

package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/minifleet/minifleet/mux"
	"github.com/minifleet/minifleet/vm"
)

// machine keeps the contract of vm.Instance.
type machine struct {
	cfg         vm.OpenConfig
	plan        plan
	accelerator string
	guest       *mux.Client

	// The vmm makes one call at a time.
	qemu     *process // nil before Start or Restore
	running  bool     // Start succeeded
	paused   bool
	stopOnce sync.Once
	up       chan struct{} // closed when the machine first runs
	stopped  chan struct{} // closed by Stop
	done     chan struct{} // closed when the machine that ran has ended
	told     chan struct{} // closed when the vmm was told so, the last thing that happens

	used bool // the guest's port has had a connection; dial is called one at a time
}

func (c Config) open(ctx context.Context, cfg vm.OpenConfig) (vm.Instance, error) {
	p, err := newPlan(c, cfg.Dir, cfg.Spec)
	if err != nil {
		return nil, vm.WithReason(vm.ReasonBadConfiguration, err)
	}
	m := &machine{
		cfg: cfg, plan: p,
		up: make(chan struct{}), stopped: make(chan struct{}), done: make(chan struct{}), told: make(chan struct{}),
	}
	if m.accelerator = p.options.Accelerator; m.accelerator == "" {
		var why string
		if m.accelerator, why, err = c.accelerator(ctx, p.program); err != nil {
			return nil, err
		}
		cfg.Log.Info("QEMU's accelerator", "accelerator", m.accelerator, "because", why)
	}
	m.guest = mux.NewClient(m.dial)
	return m, nil
}

var (
	errStopped = errors.New("the machine was stopped")
	errEnded   = errors.New("the machine has ended")
)

// Start boots the machine, or continues it where it was restored or paused.
func (m *machine) Start(ctx context.Context) error {
	switch {
	case m.isStopped():
		return errStopped
	case ctx.Err() != nil:
		return fmt.Errorf("start: %w", context.Cause(ctx))
	case m.running && !m.paused:
		return errors.New("the machine has already been started")
	}
	if m.running {
		m.qemu.halt(false)
		if err := m.qemu.qmp.patiently(ctx, "cont", nil, nil); err != nil {
			return m.qemu.explain("continue the machine", err)
		}
		m.paused = false
		return nil
	}
	if err := m.begin(ctx); err != nil {
		return errors.Join(err, m.discard(ctx))
	}
	m.running, m.paused = true, false
	close(m.up)
	go m.await() // Stop waits for it
	return nil
}

// begin has a machine run that never ran.
func (m *machine) begin(ctx context.Context) error {
	if m.qemu == nil {
		var err error
		if m.qemu, err = spawn(ctx, m.cfg, m.plan, m.accelerator, false); err != nil {
			return err
		}
	}
	facts := vm.Facts{Accelerator: m.accelerator}
	if m.plan.options.SSH {
		var err error
		if facts.SSHAddress, err = m.qemu.sshAddress(ctx); err != nil {
			return err
		}
	}
	if err := m.qemu.call(ctx, "cont", nil, nil); err != nil {
		return m.qemu.explain("start the machine", err)
	}
	m.cfg.Publish(facts)
	return nil
}

// discardLimit bounds how long the end of a QEMU takes that is of no use.
const discardLimit = 10 * time.Second

// discard ends a QEMU whose machine never ran.
func (m *machine) discard(ctx context.Context) error {
	if m.qemu == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), discardLimit)
	defer cancel()
	err := m.qemu.powerOff(ctx)
	if err == nil {
		m.qemu = nil
	}
	return err
}

// await tells the vmm of the end, asked for or not.
func (m *machine) await() {
	<-m.qemu.gone
	close(m.done)
	m.guest.Close()
	m.cfg.Ended(m.qemu.ending())
	close(m.told)
}

func (m *machine) isStopped() bool {
	select {
	case <-m.stopped:
		return true
	default:
		return false
	}
}

// Stop powers the machine off: the guest is not asked, unless its disk is to last, and QEMU
// for a moment only.
func (m *machine) Stop(ctx context.Context) error {
	m.stopOnce.Do(func() { close(m.stopped) })
	m.guest.Close()
	if m.qemu == nil {
		return nil
	}
	if m.plan.options.Durable && m.running && !m.paused {
		m.qemu.pressButton(ctx)
	}
	if err := m.qemu.powerOff(ctx); err != nil {
		return err
	}
	if m.running {
		<-m.told // QEMU is gone
	}
	return nil
}

// runs says why a call that needs a running machine cannot be made.
func (m *machine) runs() error {
	switch {
	case m.isStopped():
		return errStopped
	case !m.running:
		return errors.New("the machine was not started")
	}
	select {
	case <-m.done:
		return errEnded
	default:
		return nil
	}
}

// Pause halts the machine. When QEMU answers, nothing it wrote is on its way any more, which
// can take a disk a while. Whoever gave up earlier would not know whether it halts after that.
func (m *machine) Pause(ctx context.Context) error {
	if err := m.runs(); err != nil {
		return fmt.Errorf("pause: %w", err)
	}
	if m.paused {
		return nil
	}
	m.qemu.halt(true)
	if err := m.qemu.qmp.patiently(ctx, "stop", nil, nil); err != nil {
		return m.qemu.explain("pause", err)
	}
	m.paused = true
	return nil
}

// Connect opens a stream to the guest agent when the machine runs and answers.
func (m *machine) Connect(ctx context.Context) (net.Conn, error) {
	select {
	case <-m.up:
	case <-m.stopped:
		return nil, errStopped
	case <-ctx.Done():
		return nil, fmt.Errorf("reach the guest: %w", context.Cause(ctx))
	}
	c, err := m.guest.Connect(ctx)
	if errors.Is(err, mux.ErrClosed) {
		return nil, errEnded
	}
	return c, err
}

// dial connects to the guest's port. What is sent waits there until the guest opens it, so
// there is nothing to try again. Before every connection but a booting guest's first, the
// port is unplugged and plugged in again: the guest does not see that a connection ended
// if the next follows soon, and what is left of the one would spoil the other.
func (m *machine) dial(ctx context.Context) (net.Conn, error) {
	if m.used {
		m.qemu.connected(nil)
		if err := m.qemu.replug(ctx); err != nil {
			return nil, m.qemu.explain("reach the guest", err)
		}
	}
	m.used = true
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", m.plan.channel())
	if err != nil {
		return nil, m.qemu.explain("reach the guest", err)
	}
	m.qemu.connected(c)
	return c, nil
}
