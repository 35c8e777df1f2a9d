// SPDX-License-Identifier: MIT

package dev

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// startGrace is how long a program may take until it is ready. It only ends one that hangs.
const startGrace = patience

// process is a child of ours with its log.
type process struct {
	name string
	log  string // path
	cmd  *exec.Cmd
	said map[string]string // what it announced: first word, rest of the line
	done chan struct{}
	err  error // of Wait, when done is closed
}

// start starts a program in a process group of its own, so that a signal from the
// terminal reaches it only through us, and waits until it has announced the given
// words on its standard output.
func start(ctx context.Context, name, logDir string, announced []string, program string, args ...string) (*process, error) {
	p := &process{name: name, log: filepath.Join(logDir, name+".log"), said: map[string]string{}, done: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd = exec.Command(program, args...) //nolint:noctx // stop and kill end it, in an order
	p.cmd.Stderr = log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.Env = environment()
	out, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p.cmd.Stdout = in
	err = p.cmd.Start()
	in.Close()
	if err != nil {
		out.Close()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	lines, ready := make(chan string), make(chan struct{})
	listened := sync.OnceFunc(func() { close(ready) }) // what it says later is not for us
	defer listened()
	go func() {
		defer close(p.done)
		defer out.Close()
		scan := bufio.NewScanner(out)
		for scan.Scan() {
			select {
			case lines <- scan.Text():
			case <-ready:
			}
		}
		close(lines)
		p.err = p.cmd.Wait()
	}()
	late := time.NewTimer(startGrace)
	defer late.Stop()
	for len(p.said) < len(announced) {
		select {
		case line, ok := <-lines:
			if !ok {
				<-p.done
				return nil, fmt.Errorf("%s ended before it was ready (%w):\n%s", name, p.exit(), p.tail())
			}
			word, rest, _ := strings.Cut(line, " ")
			p.said[word] = rest
		case <-late.C:
			listened()
			p.kill()
			return nil, fmt.Errorf("%s is not ready after %s:\n%s", name, startGrace, p.tail())
		case <-ctx.Done():
			listened()
			p.kill()
			return nil, context.Cause(ctx)
		}
	}
	return p, nil
}

// environment is ours without the settings of a real site.
func environment() []string {
	var out []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "MINIFLEET_") && !strings.HasPrefix(kv, "ACTIONS_RUNNER_") {
			out = append(out, kv)
		}
	}
	return out
}

func (p *process) exit() error {
	if p.err == nil {
		return errors.New("exit status 0")
	}
	return p.err
}

// kill ends it without a chance to tidy up.
func (p *process) kill() {
	p.cmd.Process.Kill() //nolint:errcheck // it may be gone
	<-p.done
}

// stop asks it to end, and kills it when it does not. One that was started a moment ago may
// not listen yet: it dies of the signal, and has begun nothing that would have to be finished.
func (p *process) stop(grace time.Duration) error {
	if p == nil {
		return nil
	}
	p.cmd.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it may be gone
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
		p.kill()
		return fmt.Errorf("%s did not stop within %s", p.name, grace)
	}
	if exit, ok := errors.AsType[*exec.ExitError](p.err); ok && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGTERM {
		return nil
	}
	if p.err != nil {
		return fmt.Errorf("%s ended badly: %w:\n%s", p.name, p.err, p.tail())
	}
	return nil
}

// tail returns the end of its log.
func (p *process) tail() string {
	f, err := os.Open(p.log)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > 3000 {
		f.Seek(-3000, io.SeekEnd) //nolint:errcheck // then all of it is shown
	}
	b, _ := io.ReadAll(f)
	return string(b)
}
