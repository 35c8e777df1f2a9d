// SPDX-License-Identifier: MIT

package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// Machine is a running machine as the agent sees it: its vmm is another process, a
// child or adopted. All methods may be called by several goroutines. The owner calls
// Detach when it lets go of a machine that has not ended.
type Machine struct {
	dir    string
	spec   Spec
	vmm    ProcessID
	client client
	child  *exec.Cmd // nil if adopted

	cancel   context.CancelFunc
	watcher  sync.WaitGroup
	done     chan struct{}
	final    State // written before done is closed
	letGo    sync.Once
	detached chan struct{}
}

func newMachine(dir string, spec Spec, vmm ProcessID) *Machine {
	return &Machine{dir: dir, spec: spec, vmm: vmm, client: newClient(dir), done: make(chan struct{}), detached: make(chan struct{})}
}

var (
	// ErrNotRunning says that a bundle has no machine that could be adopted.
	ErrNotRunning = errors.New("the machine does not run")
	// ErrDetached says that the machine was let go.
	ErrDetached = errors.New("the machine was detached")
)

// adoptWait is how long Adopt waits for the vmm's first answer.
const adoptWait = 2 * time.Second

// Adopt takes over the running machine of the bundle dir, whoever started it. It fails
// with ErrNotRunning if there is none; Scan tells what to do then. A vmm that lives but
// does not answer within two seconds is adopted all the same, so that it can be stopped.
func Adopt(ctx context.Context, dir string) (*Machine, error) {
	spec, err := ReadSpec(dir)
	if err != nil {
		return nil, fmt.Errorf("adopt: %w", err)
	}
	locked, vmm, err := holderOf(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("adopt %s: %w", dir, err)
	}
	if !locked || !vmm.Alive() {
		return nil, fmt.Errorf("adopt %s: %w", dir, ErrNotRunning)
	}
	m := newMachine(dir, spec, vmm)
	if err := m.hear(ctx); err != nil {
		return nil, fmt.Errorf("adopt %s: %w", dir, err)
	}
	m.watch()
	return m, nil
}

// hear waits for the vmm's first answer: one that was started a moment ago may not have
// its sockets yet.
func (m *Machine) hear(ctx context.Context) error {
	short, cancel := context.WithTimeout(ctx, adoptWait)
	defer cancel()
	for wait := newBackoff(time.Millisecond, 100*time.Millisecond); ; {
		if _, err := m.client.state(short, 0, 0); err == nil {
			return nil
		}
		if !m.vmm.Alive() {
			return ErrNotRunning
		}
		if !wait.sleep(short) {
			return context.Cause(ctx) // nil if only the short wait is over
		}
	}
}

// ID returns the machine's id.
func (m *Machine) ID() string { return m.spec.ID }

// Dir returns the bundle's folder.
func (m *Machine) Dir() string { return m.dir }

// Spec returns the machine's spec, the annotations among it.
func (m *Machine) Spec() Spec { return m.spec.clone() }

// Done is closed when nothing holds the bundle's lock any more: the slot is free, and
// the bundle can be removed. If the vmm dies, what it leaves running is ended first.
// It is never closed after Detach.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Final returns why the machine ended, and in a sentence for an operator. Both are
// empty until Done is closed.
func (m *Machine) Final() (Reason, string) {
	select {
	case <-m.done:
		return m.final.Reason, m.final.Detail
	default:
		return "", ""
	}
}

// Detach lets go of the machine, which runs on and can be adopted again. It returns
// when nothing in this process watches the machine any more.
func (m *Machine) Detach() {
	m.letGo.Do(func() { close(m.detached) })
	m.cancel()
	m.watcher.Wait()
	m.client.http.CloseIdleConnections()
}

// unansweredGrace is how long State waits for the end of a machine whose vmm does not
// answer, before it reports the vmm's silence instead.
const unansweredGrace = 2 * time.Second

// State returns the machine's state. While its revision is after, the call waits up to
// wait for a change; wait 0 returns at once, and so does a revision that the machine
// never had. After the machine's end it returns the final state. If the vmm cannot be
// asked the call fails some seconds after wait, having found out whether the machine ended.
func (m *Machine) State(ctx context.Context, after int64, wait time.Duration) (State, error) {
	select {
	case <-m.done:
		return m.final, nil
	default:
	}
	s, err := m.client.state(ctx, after, wait)
	if err == nil {
		return s, nil
	}
	grace := time.NewTimer(unansweredGrace)
	defer grace.Stop()
	select {
	case <-m.done:
		return m.final, nil
	case <-ctx.Done():
		return State{}, fmt.Errorf("state of machine %s: %w", m.spec.ID, context.Cause(ctx))
	case <-grace.C:
		return State{}, fmt.Errorf("state of machine %s: %w", m.spec.ID, err)
	}
}

// DialGuest opens a stream to the guest agent. It succeeds while the vmm runs: a guest
// that does not answer yet is waited for behind the stream, and the stream ends when
// the machine does.
func (m *Machine) DialGuest(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", filepath.Join(m.dir, FileGuestSocket))
	if err != nil {
		return nil, fmt.Errorf("dial the guest of machine %s: %w", m.spec.ID, err)
	}
	return c, nil
}

// Stop ends the machine at once and returns nil when its slot is free. A vmm that has
// not obeyed by ctx's deadline is killed, and the writers it leaves with it; that can
// take ten seconds beyond the deadline. If ctx is cancelled instead, Stop only gives
// up waiting. So give a deadline: without one a vmm that hangs is waited for until ctx
// is cancelled. Stopping what has ended does nothing, and a detached machine is not
// stopped: ErrDetached.
func (m *Machine) Stop(ctx context.Context) error {
	select {
	case <-m.done:
		return nil
	case <-m.detached:
		return m.stopError(ErrDetached, nil)
	default:
	}
	// What the vmm answers matters little: either it ends, or it is made to.
	_, askErr := m.client.stop(ctx)
	err := m.awaitEnd(ctx)
	if err == nil || errors.Is(err, ErrDetached) || !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return m.stopError(err, askErr)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTime)
	defer cancel()
	if err := m.vmm.kill(); err != nil {
		return m.stopError(err, askErr)
	}
	return m.stopError(m.awaitEnd(ctx), askErr) // the watcher ends the writers
}

func (m *Machine) stopError(err, askErr error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("stop machine %s: %w", m.spec.ID, errors.Join(err, askErr))
}

func (m *Machine) awaitEnd(ctx context.Context) error {
	select {
	case <-m.done:
		return nil
	case <-m.detached:
		return ErrDetached
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// watch starts the goroutine that establishes the machine's end. The vmm's answer to
// a query, or the broken connection, wakes it the moment the vmm ends.
func (m *Machine) watch() {
	ctx, cancel := context.WithCancelCause(context.Background())
	m.cancel = func() { cancel(ErrDetached) }
	m.watcher.Go(func() {
		defer m.cancel()
		said, err := m.awaitVMM(ctx)
		if err != nil || m.awaitFreeLock(ctx) != nil {
			if m.child != nil {
				_ = m.child.Process.Release() // nothing to do about it, and init waits in the end
			}
			return
		}
		m.reap()
		m.final = endOf(m.dir)
		if m.final.Reason == ReasonVMMDied && said.Phase == PhaseFinal {
			m.final = said // it could not be written down, on a full disk for one
		}
		close(m.done)
	})
}

// awaitVMM returns without an error when the vmm has ended or has said its last word,
// which it then returns.
func (m *Machine) awaitVMM(ctx context.Context) (State, error) {
	wait := newBackoff(time.Millisecond, time.Second)
	for revision := int64(0); ; {
		s, err := m.client.state(ctx, revision, MaxStateWait)
		switch {
		case ctx.Err() != nil:
			return State{}, context.Cause(ctx)
		case err == nil && s.Phase == PhaseFinal:
			return s, nil
		case err == nil:
			revision = s.Revision
			wait = newBackoff(time.Millisecond, time.Second)
		case !m.vmm.Alive():
			return State{}, nil
		case !wait.sleep(ctx): // alive, but it does not answer
			return State{}, context.Cause(ctx)
		}
	}
}

// awaitFreeLock returns nil when nothing holds the lock. The lock's end sends no signal
// that could be waited for and still be called off, so this looks again and again; it
// is called only once the vmm is known to end. While the vmm lives it is left
// to end by itself; once it is dead, the writers that it left are ended.
func (m *Machine) awaitFreeLock(ctx context.Context) error {
	for wait := newBackoff(time.Millisecond, 100*time.Millisecond); ; {
		locked, err := IsLocked(m.dir)
		if err == nil && !locked {
			return nil
		}
		if locked && !m.vmm.Alive() {
			err = EndWriter(ctx, m.dir)
			if err == nil {
				return nil
			}
		}
		if !wait.sleep(ctx) {
			return context.Cause(ctx)
		}
	}
}

// reap takes the vmm's exit status if it is a child of this process, so that no zombie
// stays; also if it was started by an earlier Machine that was detached since.
func (m *Machine) reap() {
	if m.child != nil {
		_ = m.child.Wait() // its status says nothing that status.jsonl does not
		return
	}
	if info, err := lookUp(m.vmm.PID); err == nil && info.start == m.vmm.Start && info.parent == syscall.Getpid() {
		for {
			if _, err := syscall.Wait4(m.vmm.PID, nil, 0, nil); !errors.Is(err, syscall.EINTR) {
				return
			}
		}
	}
}
