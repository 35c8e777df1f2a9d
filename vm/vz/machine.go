// SPDX-License-Identifier: MIT

package vz

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/minifleet/minifleet/mux"
	"github.com/minifleet/minifleet/vm"
)

// fileState is the one file of a saved state.
const fileState = "state.vzvmsave"

// machine keeps the contract of vm.Instance over a framework that knows no contexts.
type machine struct {
	cfg      vm.OpenConfig
	plan     plan
	fw       framework
	plug     *plug
	window   *Window
	guest    *mux.Client
	busy     chan struct{} // held while a call into the framework goes on, longer than its caller perhaps
	dialling chan struct{} // the same for dial

	running  bool // Start succeeded; the vmm makes one call at a time
	restored bool // Restore succeeded, and Start is to resume
	paused   bool
	stopOnce sync.Once
	up       chan struct{} // closed when the machine first runs
	stopped  chan struct{} // closed by Stop
	told     chan struct{} // closed when the vmm was told of the end, the last thing that happens
	quit     chan struct{} // ends the watch of a machine that never ran
	watching sync.WaitGroup

	mu   sync.Mutex    // guards live and done
	live bool          // an end of the machine is news from now on
	done chan struct{} // closed when the machine that ran has ended
	fell bool          // it ended by an error of the hypervisor
}

func newMachine(cfg vm.OpenConfig, p plan, fw framework, b *backend) *machine {
	m := &machine{
		cfg: cfg, plan: p, fw: fw, plug: &b.plug, window: b.window,
		busy: make(chan struct{}, 1), dialling: make(chan struct{}, 1),
		up: make(chan struct{}), stopped: make(chan struct{}), told: make(chan struct{}),
		quit: make(chan struct{}), done: make(chan struct{}),
	}
	m.guest = mux.NewClient(m.dial)
	m.watching.Go(m.watch)
	return m
}

var (
	errStopped = errors.New("the machine was stopped")
	errEnded   = errors.New("the machine has ended")
)

// watch reads every change of the state for the whole life: they queue without bound.
func (m *machine) watch() {
	for {
		s, ok := m.fw.next(m.quit)
		if !ok {
			return
		}
		if s.over() {
			m.noteEnd()
		}
	}
}

// noteEnd ends a machine that ran if it runs no more. The change that led here may be an
// old one, of a restore that failed, so the state now is what counts.
func (m *machine) noteEnd() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if now := m.fw.state(); m.live && now.over() {
		m.live, m.fell = false, now == stateError
		close(m.done)
	}
}

// call makes one call into the framework. If ctx ends first the call goes on, and the
// next one waits for it.
func (m *machine) call(ctx context.Context, what string, f func() error) error {
	select {
	case m.busy <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("%s: an earlier call has not returned: %w", what, context.Cause(ctx))
	}
	result := make(chan error, 1)
	go func() { // nothing can end it sooner; Stop waits for it
		err := f()
		<-m.busy
		result <- err
	}()
	select {
	case err := <-result:
		return explain(what, err)
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", what, context.Cause(ctx))
	}
}

// Start boots the machine, or resumes it where it was restored or paused.
func (m *machine) Start(ctx context.Context) error {
	switch {
	case m.isStopped():
		return errStopped
	case ctx.Err() != nil:
		return fmt.Errorf("start: %w", context.Cause(ctx))
	case m.running && !m.paused:
		return errors.New("the machine has already been started")
	}
	what, begin := "start", m.fw.start
	if m.restored || m.paused {
		what, begin = "resume", m.fw.resume
	}
	if err := m.call(ctx, what, begin); err != nil {
		if m.running {
			return err // paused as before, or ended: the watch tells
		}
		return errors.Join(err, m.undo(ctx))
	}
	m.paused, m.restored = false, false
	if m.running {
		return nil
	}
	m.running = true
	m.mu.Lock()
	m.live = true
	m.mu.Unlock()
	close(m.up)
	go m.await() // Stop waits for it
	m.window.offer(func() error { return m.fw.show(m.cfg.Spec.ID) })
	m.noteEnd() // what ended before live was set is news as well
	return nil
}

// undoTime bounds how long a start that was given up may take to be undone.
const undoTime = 10 * time.Second

// undo powers off a machine whose start was given up, so that it does not run after all.
func (m *machine) undo(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), undoTime, fmt.Errorf("no answer within %v", undoTime))
	defer cancel()
	return m.powerOff(ctx)
}

// powerOff stops whatever runs, and returns when nothing does.
func (m *machine) powerOff(ctx context.Context) error {
	err := m.call(ctx, "power off", func() error {
		if m.fw.state().over() {
			return nil
		}
		err := m.fw.stop()
		if m.fw.state().over() { // it ended by itself in between, or it says so late
			return nil
		}
		return err
	})
	return err
}

// await tells the vmm of the end, asked for or not.
func (m *machine) await() {
	<-m.done
	m.guest.Close()
	m.mu.Lock()
	e := vm.Ending{Reason: vm.ReasonGuestEnded, Detail: "the guest shut down"}
	if m.fell {
		e = vm.Ending{Reason: vm.ReasonHypervisorCrashed, Detail: "Virtualization.framework ended the machine with an error of its own"}
	}
	m.mu.Unlock()
	m.cfg.Ended(e)
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

// Stop powers the machine off. The guest is not asked: a macOS guest would answer with a
// dialogue, or sleep.
func (m *machine) Stop(ctx context.Context) error {
	m.stopOnce.Do(func() { close(m.stopped) })
	m.guest.Close()
	if err := m.powerOff(ctx); err != nil {
		return err
	}
	if m.running {
		m.noteEnd()
		select {
		case <-m.told:
		case <-ctx.Done():
			return fmt.Errorf("power off: %w", context.Cause(ctx))
		}
	}
	select {
	case <-m.quit:
	default:
		close(m.quit)
	}
	m.watching.Wait()
	return nil
}

// Pause halts the machine.
func (m *machine) Pause(ctx context.Context) error {
	if err := m.canSave("pause"); err != nil {
		return err
	}
	if m.paused {
		return nil
	}
	if err := m.runs(); err != nil {
		return fmt.Errorf("pause: %w", err)
	}
	if err := m.call(ctx, "pause", m.fw.pause); err != nil {
		return err
	}
	m.paused = true
	return nil
}

// runs says why a call that needs a running machine cannot be made.
func (m *machine) runs() error {
	select {
	case <-m.stopped:
		return errStopped
	case <-m.done:
		return errEnded
	default:
	}
	if !m.running {
		return errors.New("the machine was not started")
	}
	return nil
}

func (m *machine) canSave(what string) error {
	if !m.plan.saves {
		return fmt.Errorf("%s: saved states need macOS 14 on the host: %w", what, errors.ErrUnsupported)
	}
	return nil
}

// Save writes the paused machine's state. The framework writes the file itself.
func (m *machine) Save(ctx context.Context, dir string) error {
	if err := m.canSave("save"); err != nil {
		return err
	}
	if !m.paused {
		return errors.New("save: the machine is not paused")
	}
	// An exclusive name of its own first: what has the right name is whole.
	part, whole := filepath.Join(dir, fileState+".part"), filepath.Join(dir, fileState)
	clear := func() { os.Remove(part) }
	err := m.call(ctx, "save", func() error {
		err := m.fw.savable()
		if err == nil {
			err = m.fw.save(part)
		}
		if err != nil || ctx.Err() != nil { // nobody waits any more
			clear()
		}
		return err
	})
	if err == nil {
		err = os.Rename(part, whole)
	}
	if err != nil {
		clear()
	}
	return err
}

// Restore loads a state that Save wrote. The machine is then paused.
func (m *machine) Restore(ctx context.Context, dir string) error {
	if err := m.canSave("restore"); err != nil {
		return err
	}
	if m.running || m.restored || m.isStopped() {
		return errors.New("restore: the machine is not a new one")
	}
	path := filepath.Join(dir, fileState)
	if err := regular(path); err != nil {
		return vm.WithReason(vm.ReasonRestoreFailed, fmt.Errorf("restore: %w", err))
	}
	err := m.call(ctx, "restore", func() error {
		if err := m.fw.savable(); err != nil {
			return err
		}
		return m.fw.restore(path)
	})
	if err != nil {
		// What was restored after all must not be in the way of a boot.
		return errors.Join(asRestore(err), m.undo(ctx))
	}
	m.restored = true
	return nil
}

// asRestore gives a failed restore its reason, unless the framework knows a better one.
func asRestore(err error) error {
	switch vm.ReasonOf(err, vm.ReasonRestoreFailed) {
	case vm.ReasonKeychainLocked, vm.ReasonTwoVMLimit, vm.ReasonNoEntitlement:
		return err
	}
	return vm.WithReason(vm.ReasonRestoreFailed, err)
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

// dialEvery is the pause between two attempts to reach a guest that does not listen yet. It
// is refused within milliseconds from the start on, long before the guest's kernel runs.
const dialEvery = 150 * time.Millisecond

// dial reaches the guest agent's port. The streams share the one connection that it makes:
// each has a price, see plug.
func (m *machine) dial(ctx context.Context) (net.Conn, error) {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-pause.C:
		case <-m.done:
			return nil, errEnded
		case <-ctx.Done():
			return nil, fmt.Errorf("reach the guest: %w", context.Cause(ctx))
		}
		c, err := m.dialOnce(ctx)
		if err == nil {
			return c, nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("reach the guest: %w", context.Cause(ctx))
		}
		if _, ok := errors.AsType[*nsError](err); !ok {
			return nil, err
		}
		pause.Reset(dialEvery)
	}
}

// dialOnce makes one attempt. If ctx ends first the attempt goes on, its connection is
// closed, and the next one waits for it: they are never made side by side.
func (m *machine) dialOnce(ctx context.Context) (net.Conn, error) {
	select {
	case m.dialling <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	type result struct {
		conn net.Conn
		err  error
	}
	results := make(chan result) // taken, or given up
	go func() {                  // ends with the framework's answer
		defer func() { <-m.dialling }()
		err := m.plug.prepare()
		var c net.Conn
		if err == nil {
			if c, err = m.fw.dial(m.plan.port); err == nil {
				err = m.plug.fill()
			}
		}
		select {
		case results <- result{c, err}:
		case <-ctx.Done():
			if c != nil {
				c.Close()
			}
		}
	}()
	select {
	case r := <-results:
		if r.err != nil && r.conn != nil {
			r.conn.Close()
			r.conn = nil
		}
		return r.conn, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
