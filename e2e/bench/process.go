// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is a program that is measured.
type process struct {
	name string
	log  string
	cmd  *exec.Cmd
	said map[string]string // what it announced: first word, rest of the line
	done chan struct{}
	err  error // of its end, once done is closed
}

// launch starts a program and waits until it has announced the given words. extra are
// further files for it, from descriptor 3 on.
func launch(ctx context.Context, dir, name string, announced []string, extra []*os.File, program string, args ...string) (*process, error) {
	p := &process{name: name, log: filepath.Join(dir, name+".log"), said: map[string]string{}, done: make(chan struct{})}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd = exec.Command(program, args...) //nolint:noctx // stop ends it
	p.cmd.Stderr, p.cmd.ExtraFiles, p.cmd.Dir = log, extra, dir
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a signal from the terminal reaches it through us
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	ready := make(chan struct{})
	go func() {
		defer close(p.done)
		tell := sync.OnceFunc(func() { close(ready) })
		lines := bufio.NewScanner(out)
		for len(p.said) < len(announced) && lines.Scan() {
			word, rest, _ := strings.Cut(lines.Text(), " ")
			p.said[word] = rest
		}
		if len(p.said) >= len(announced) {
			tell()
		}
		for lines.Scan() { // what it says later is not for us
		}
		p.err = p.cmd.Wait()
	}()
	select {
	case <-ready:
		return p, nil
	case <-p.done:
		return nil, fmt.Errorf("%s ended before it was ready: %v\n%s", name, p.err, p.tail())
	case <-time.After(patience):
		p.stop()
		return nil, fmt.Errorf("%s is not ready after %s:\n%s", name, patience, p.tail())
	case <-ctx.Done():
		p.stop()
		return nil, context.Cause(ctx)
	}
}

// stop asks a process to end, and insists after a while.
func (p *process) stop() {
	if p == nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may be gone
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// tail returns the end of its log.
func (p *process) tail() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-2000):])
}

func (p *process) proc(file string) string {
	return filepath.Join("/proc", strconv.Itoa(p.cmd.Process.Pid), file)
}

// memory returns what the process holds in memory now and held at most.
func (p *process) memory() (now, most int64) {
	return memoryOf(strconv.Itoa(p.cmd.Process.Pid))
}

// cpu returns the processor time that the process has used.
func (p *process) cpu() time.Duration {
	b, err := os.ReadFile(p.proc("stat"))
	if err != nil {
		return 0
	}
	// The second field, in parentheses, may hold spaces.
	words := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	var ticks int64
	for _, w := range words[11:13] { // utime, stime
		n, _ := strconv.ParseInt(w, 10, 64)
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100 // USER_HZ is 100 on every Linux that Go runs on
}

// descriptors counts the open files of the process.
func (p *process) descriptors() int {
	entries, _ := os.ReadDir(p.proc("fd"))
	return len(entries)
}
