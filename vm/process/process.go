// SPDX-License-Identifier: MIT

package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/vm"
	"github.com/minifleet/minifleet/vm/console"
)

// Backend returns the process backend.
func Backend() vm.Backend {
	return vm.Backend{Name: vm.BackendProcess, Isolation: vm.IsolationNone, SavesState: false, Open: open}
}

// machine is a guest agent and everything that descends from it.
type machine struct {
	cfg    vm.OpenConfig
	plan   plan
	log    *slog.Logger
	socket string

	started bool // Start succeeded; the vmm makes one call at a time
	stopped bool
	leader  int           // the guest agent's pid, which is also its group's and session's
	stdin   *os.File      // its end tells the guest agent to end
	killed  chan struct{} // closed by Stop
	done    chan struct{} // closed when nothing is left
	told    chan struct{} // closed when the vmm was told so, the last thing that happens
}

func open(_ context.Context, cfg vm.OpenConfig) (vm.Instance, error) {
	p, err := newPlan(cfg.Dir, cfg.Spec)
	if err != nil {
		return nil, vm.WithReason(vm.ReasonBadConfiguration, err)
	}
	return &machine{
		cfg: cfg, plan: p, log: cfg.Log,
		socket: filepath.Join(cfg.Dir, vm.FileInnerSocket),
		killed: make(chan struct{}), done: make(chan struct{}), told: make(chan struct{}),
	}, nil
}

var (
	errStopped = errors.New("the machine was stopped")
	errEnded   = errors.New("the guest agent has ended")
)

// Start waits for the boot delay and starts the guest agent.
func (m *machine) Start(ctx context.Context) error {
	switch {
	case m.stopped:
		return errStopped
	case m.started:
		return errors.New("the machine has already been started")
	}
	if err := bootDelay(ctx, m.cfg.Spec.Process.BootDelay); err != nil {
		return err
	}
	if err := adoptDescendants(); err != nil {
		return fmt.Errorf("take over orphans of the guest: %w", err)
	}
	cmd, output, err := m.spawn()
	if err != nil {
		return err
	}
	crashpoint.Reached(crashpoint.WriterSpawned)
	if err := m.cfg.RecordWriter(m.leader); err != nil {
		m.stdin.Close()
		killGroup(m.leader)
		_ = cmd.Wait() // killed, it has nothing to say
		killDescendants()
		output.Close()
		return fmt.Errorf("note the guest's process: %w", err)
	}
	crashpoint.Reached(crashpoint.WriterRecorded)
	m.started = true
	go m.await(cmd, output) // Stop waits for it
	return nil
}

func bootDelay(ctx context.Context, delay time.Duration) error {
	t := time.NewTimer(delay)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err()
	case <-ctx.Done():
		return fmt.Errorf("boot: %w", context.Cause(ctx))
	}
}

// spawn starts the guest agent in a session of its own, with the bundle's lock as its
// third extra descriptor and a standard input that ends when the vmm does.
func (m *machine) spawn() (*exec.Cmd, *console.Console, error) {
	out, err := console.Open(filepath.Join(m.cfg.Dir, vm.FileConsole))
	if err != nil {
		return nil, nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		out.Close()
		return nil, nil, err
	}
	defer r.Close()
	// Not CommandContext: a ctx ends the start and not the machine.
	cmd := exec.Command(m.plan.program, m.plan.args...) //nolint:noctx // see above
	cmd.Dir, cmd.Env = m.plan.root, append(crashpoint.Environ(), m.plan.env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = r, out.Input(), out.Input()
	cmd.ExtraFiles = []*os.File{m.cfg.Lock}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	out.Started()
	if err != nil {
		w.Close()
		out.Close()
		return nil, nil, fmt.Errorf("start the guest agent: %w", err)
	}
	m.leader, m.stdin = cmd.Process.Pid, w
	return cmd, out, nil
}

// await waits for the guest agent's end, asked for or not, ends whatever it left, and
// tells the vmm.
func (m *machine) await(cmd *exec.Cmd, output *console.Console) {
	exited := make(chan struct{})
	var helpers sync.WaitGroup
	helpers.Go(func() { reapOrphans(m.leader, exited) })
	helpers.Go(func() {
		select {
		case <-m.killed:
			killGroup(m.leader)
		case <-exited:
		}
	})
	awaitExit(m.leader) // still a zombie then, so its pid is nobody else's
	close(exited)
	helpers.Wait()
	killGroup(m.leader)
	err := cmd.Wait()
	killDescendants()
	m.stdin.Close()
	output.Close()
	crashpoint.Reached(crashpoint.WriterGone)
	close(m.done)
	m.cfg.Ended(vm.Ending{Reason: vm.ReasonGuestEnded, Detail: describe(err)})
	close(m.told)
}

// describe says how the guest agent ended, in a sentence.
func describe(err error) string {
	exit, ok := errors.AsType[*exec.ExitError](err)
	switch {
	case err == nil:
		return "the guest agent ended by itself"
	case !ok:
		return fmt.Sprintf("the guest agent ended: %v", err)
	default:
		return fmt.Sprintf("the guest agent ended by itself with %s; see %s", exit, vm.FileConsole)
	}
}

// Stop kills the guest agent and everything that descends from it.
func (m *machine) Stop(ctx context.Context) error {
	if !m.stopped {
		m.stopped = true
		close(m.killed)
	}
	if !m.started {
		return nil
	}
	select {
	case <-m.told:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("processes of the guest cannot be killed: %w", context.Cause(ctx))
	}
}

// Pause is not possible.
func (*machine) Pause(context.Context) error { return unsupported("pause") }

// Save is not possible.
func (*machine) Save(context.Context, string) error { return unsupported("save") }

// Restore is not possible.
func (*machine) Restore(context.Context, string) error { return unsupported("restore") }

func unsupported(what string) error {
	return fmt.Errorf("%s: the process backend cannot save a machine's state: %w", what, errors.ErrUnsupported)
}

// Connect dials the guest agent's own socket, again and again until it accepts.
func (m *machine) Connect(ctx context.Context) (net.Conn, error) {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for next := 5 * time.Millisecond; ; next = min(2*next, 100*time.Millisecond) {
		select {
		case <-pause.C:
		case <-m.done:
			return nil, errEnded
		case <-m.killed:
			return nil, errStopped
		case <-ctx.Done():
			return nil, fmt.Errorf("reach the guest agent: %w", context.Cause(ctx))
		}
		var d net.Dialer
		c, err := d.DialContext(ctx, "unix", m.socket)
		if err == nil {
			return c, nil
		}
		pause.Reset(next)
	}
}
