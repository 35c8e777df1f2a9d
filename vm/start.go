// SPDX-License-Identifier: MIT

package vm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/minifleet/minifleet/crashpoint"
)

// ReadyLine is what a vmm writes to the descriptor given as --ready-fd once it holds
// the bundle and its sockets are open.
const ReadyLine = "ready\n"

// ErrSecondLife says that the bundle's machine was started before: no disk has two lives.
var ErrSecondLife = errors.New("the bundle's machine has already been started once: make a new bundle")

// cleanUpTime bounds what has to be cleaned up after a ctx has ended.
const cleanUpTime = 10 * time.Second

// Start starts the vmm program on the bundle dir, in a session of its own, and returns
// when the vmm answers; the machine boots meanwhile. The vmm gets no secret: its
// environment is a short list of harmless names, its input is empty, and its output
// goes to the bundle's vmm.log. It survives this process. If it does not come up, the
// error says why, and nothing is left running.
func Start(ctx context.Context, dir, vmmProgram string) (*Machine, error) {
	return StartAs(ctx, dir, vmmProgram, nil)
}

// StartAs is Start with the vmm running as another user, on a Mac inside that user's login
// session; nil means this process's own. Only root can do that. The bundle becomes the
// user's, who must be able to reach it: the folders above need search permission.
func StartAs(ctx context.Context, dir, vmmProgram string, as *Account) (*Machine, error) {
	if !filepath.IsAbs(vmmProgram) {
		return nil, fmt.Errorf("start machine in %s: the vmm program %q is no absolute path", dir, vmmProgram)
	}
	if err := checkBundlePath(dir); err != nil {
		return nil, fmt.Errorf("start machine: %w", err)
	}
	spec, err := ReadSpec(dir)
	if err != nil {
		return nil, fmt.Errorf("start machine: %w", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, FileStatus)); err == nil {
		return nil, fmt.Errorf("start machine %s: %w", spec.ID, ErrSecondLife)
	}
	child, ready, err := spawn(dir, vmmProgram, as)
	if err != nil {
		return nil, fmt.Errorf("start machine %s: %w", spec.ID, err)
	}
	crashpoint.Reached(crashpoint.VMMSpawned)
	vmm, err := IdentifyProcess(child.Process.Pid)
	if err == nil {
		err = awaitReady(ctx, ready)
	}
	if err == nil && as != nil {
		vmm, err = ReadIdentity(dir, FileVMM) // the child may be what started the vmm
	}
	ready.Close()
	if err != nil {
		return nil, fmt.Errorf("start machine %s: %w", spec.ID, abandon(ctx, dir, child, err))
	}
	crashpoint.Reached(crashpoint.VMMReady)
	m := newMachine(dir, spec, vmm)
	m.child = child
	m.watch()
	return m, nil
}

// spawn starts the vmm and returns the pipe on which it will say that it is ready.
func spawn(dir, program string, as *Account) (*exec.Cmd, *os.File, error) {
	log, err := os.OpenFile(filepath.Join(dir, FileVMMLog), os.O_WRONLY|os.O_CREATE|os.O_APPEND|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, nil, err
	}
	defer log.Close()
	if as != nil {
		if err := as.take(dir); err != nil {
			return nil, nil, err
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer w.Close()
	// Not CommandContext: the vmm outlives the call and this process.
	args := vmmCommand(program, dir, as)
	cmd := exec.Command(args[0], args[1:]...) //nolint:noctx // see above
	cmd.Dir = "/"
	cmd.Env = vmmEnvironment(os.LookupEnv, as)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		r.Close()
		return nil, nil, err
	}
	return cmd, r, nil
}

// vmmEnvironment picks what a vmm needs. The agent's environment may hold secrets.
func vmmEnvironment(lookup func(string) (string, bool), as *Account) []string {
	env := append([]string{}, crashpoint.Environ()...) // never nil, which would be the agent's own
	if as != nil {
		own, agents := as.variables(), lookup
		lookup = func(name string) (string, bool) {
			if v, ok := own[name]; ok || name == "TMPDIR" { // root's is not the user's to write to
				return v, ok
			}
			return agents(name)
		}
	}
	for _, name := range []string{"HOME", "PATH", "USER", "LOGNAME", "LANG", "TMPDIR"} {
		if v, ok := lookup(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

var errNotReady = errors.New("the vmm ended before it was ready")

func awaitReady(ctx context.Context, ready *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	line, err := bufio.NewReader(ready).ReadString('\n')
	if line == ReadyLine {
		return nil
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("the vmm was not ready in time: %w", context.Cause(ctx))
	}
	return errNotReady
}

// abandon ends a vmm that did not come up, and adds what it said to err.
func abandon(ctx context.Context, dir string, child *exec.Cmd, err error) error {
	if !errors.Is(err, errNotReady) {
		// With whatever it started: the child leads a session, and so a group, of its own.
		if e := syscall.Kill(-child.Process.Pid, syscall.SIGKILL); e != nil && !errors.Is(e, syscall.ESRCH) {
			err = errors.Join(err, e)
		}
	}
	_ = child.Wait() // its state tells
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTime)
	defer cancel()
	switch states, _ := ReadStatus(dir); {
	case !errors.Is(err, errNotReady):
	case len(states) > 0 && states[len(states)-1].Phase == PhaseFinal:
		s := states[len(states)-1]
		err = WithReason(s.Reason, fmt.Errorf("%w: %s: %s", err, s.Reason, s.Detail))
	default:
		err = fmt.Errorf("%w: %s", err, child.ProcessState)
		if line := lastLogLine(dir); line != "" {
			err = fmt.Errorf("%w; its log ends with: %s", err, line)
		}
	}
	// Only what this vmm left may be ended. If it did not even get the lock, whoever has
	// it is alive and well, and EndWriter leaves that one alone.
	if e := EndWriter(ctx, dir); e != nil && !errors.Is(e, ErrVMMAlive) {
		err = errors.Join(err, e)
	}
	return err
}
