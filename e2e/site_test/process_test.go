// SPDX-License-Identifier: MIT

package site_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is far more than anything here takes; it only ends a test that hangs.
const patience = 5 * time.Minute

// settling is how long the last process may take from the end of its work to its end, on a
// machine that is busy with others.
const settling = 30 * time.Second

// folder makes a folder whose path is short enough for sockets, and holds the test to
// leave nothing of it behind: no process that knows its name, no report of a race.
// What must be empty at the end is for the test to say.
func folder(t *testing.T) string {
	t.Helper()
	temp := ""
	if runtime.GOOS == "darwin" {
		temp = "/tmp"
	}
	dir, err := os.MkdirTemp(temp, "")
	if err != nil {
		t.Fatal(err)
	}
	races := racesOf(dir)
	if err := errors.Join(os.Mkdir(races, 0o700), os.Chmod(races, 0o777)); err != nil { // programs may run as another user
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// A vmm gives its lock up, which is what others wait for, shortly before its end.
		left := processesOf(t, dir)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for over := time.Now().Add(settling); len(left) > 0 && time.Now().Before(over); left = processesOf(t, dir) {
			<-tick.C
		}
		if len(left) > 0 {
			t.Errorf("processes left behind:\n  %s", strings.Join(left, "\n  "))
			for _, line := range left { // they carry this test's own folder
				if pid, err := strconv.Atoi(strings.Fields(line)[0]); err == nil {
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
			}
		}
		reports, _ := filepath.Glob(filepath.Join(races, "*"))
		for _, file := range reports {
			text, _ := os.ReadFile(file)
			t.Errorf("the race detector of a program reports:\n%s", text)
		}
		if err := errors.Join(os.RemoveAll(dir), os.RemoveAll(races)); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// racesOf is the folder in which the programs of a site report races.
func racesOf(dir string) string { return dir + "-races" }

// processesOf returns the processes that have the folder in their arguments, their
// environment or as their place.
func processesOf(t *testing.T, dir string) []string {
	t.Helper()
	if runtime.GOOS != "linux" {
		out, err := exec.CommandContext(t.Context(), "ps", "-axwwE", "-o", "pid=,command=").Output()
		if err != nil {
			t.Fatal(err)
		}
		return slices.DeleteFunc(strings.Split(string(out), "\n"), func(line string) bool { return !strings.Contains(line, dir) })
	}
	var left []string
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		args, _ := os.ReadFile(filepath.Join(p, "cmdline")) // it may be gone by now
		environment, _ := os.ReadFile(filepath.Join(p, "environ"))
		place, _ := os.Readlink(filepath.Join(p, "cwd"))
		if bytes.Contains(args, []byte(dir)) || bytes.Contains(environment, []byte(dir)) || strings.Contains(place, dir) {
			left = append(left, filepath.Base(p)+" "+string(bytes.ReplaceAll(args, []byte{0}, []byte{' '}))+"in "+place)
		}
	}
	return left
}

// program is a program that runs, and everything that it has said.
type program struct {
	t    *testing.T
	name string
	cmd  *exec.Cmd
	done chan struct{}
	err  error // of Wait, when done is closed

	mu   sync.Mutex // guards both
	said []byte
	more chan struct{} // closed when there is more
}

func (p *program) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.said = append(p.said, b...)
	close(p.more)
	p.more = make(chan struct{})
	return len(b), nil
}

func (p *program) output() (string, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return string(p.said), p.more
}

// launch starts a program of ours, by its name or its path, with TMPDIR set to dir and
// further variables.
func launch(t *testing.T, dir, name string, env []string, args ...string) *program {
	t.Helper()
	return launchAs(t, nil, dir, name, env, args...)
}

// launchAs is launch as another user. A program that is not ours has its whole path.
func launchAs(t *testing.T, user *syscall.Credential, dir, name string, env []string, args ...string) *program {
	t.Helper()
	p := &program{t: t, name: filepath.Base(name), done: make(chan struct{}), more: make(chan struct{})}
	path := name
	if !filepath.IsAbs(name) {
		path = filepath.Join(programs(t), name)
	}
	p.cmd = exec.Command(path, args...)
	p.cmd.Env = slices.Concat(slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "MINIFLEET_") || strings.HasPrefix(kv, "CI=") || strings.HasPrefix(kv, "TMPDIR=")
	}), []string{"TMPDIR=" + dir, "GORACE=atexit_sleep_ms=0 log_path=" + filepath.Join(racesOf(dir), "race")}, env)
	p.cmd.Stdout, p.cmd.Stderr = p, p
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: user, Setpgid: true}
	// A descendant that keeps its output open must not hang the test.
	p.cmd.WaitDelay = settling
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // it has normally ended
		<-p.done
		if text, _ := p.output(); t.Failed() {
			t.Logf("%s said:\n%s", name, text[max(0, len(text)-12000):])
		}
	})
	return p
}

// await waits until the program's output satisfies ok.
func (p *program) await(what string, ok func(output string) bool) string {
	p.t.Helper()
	over := time.NewTimer(patience)
	defer over.Stop()
	for {
		text, more := p.output()
		if ok(text) {
			return text
		}
		select {
		case <-more:
		case <-p.done:
			if text, _ := p.output(); ok(text) {
				return text
			}
			p.t.Fatalf("%s ended (%v) before this: %s", p.name, p.err, what)
		case <-over.C:
			p.t.Fatalf("%s: not within %s: %s", p.name, patience, what)
		}
	}
}

// announced waits for a line that begins with a word and returns the rest of it.
func (p *program) announced(word string) string {
	p.t.Helper()
	var rest string
	p.await("it says "+word, func(output string) bool {
		for line := range strings.Lines(output) {
			if after, ok := strings.CutPrefix(line, word+" "); ok && strings.HasSuffix(line, "\n") {
				rest = strings.TrimSpace(after)
				return true
			}
		}
		return false
	})
	return rest
}

// exit waits for the program's end and returns its exit status and all that it said.
func (p *program) exit() (int, string) {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(2 * patience):
		p.t.Fatalf("%s does not end", p.name)
	}
	if _, ok := errors.AsType[*exec.ExitError](p.err); p.err != nil && !ok {
		p.t.Errorf("%s: %v: what it started has kept its output open", p.name, p.err)
	}
	text, _ := p.output()
	return p.cmd.ProcessState.ExitCode(), text
}

// signal sends a signal to the program alone.
func (p *program) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatalf("%s: %v", p.name, err)
	}
}

// stop ends the program as a service manager does.
func (p *program) stop() {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	if code, _ := p.exit(); code != 0 {
		p.t.Errorf("%s, told to stop, ends with status %d", p.name, code)
	}
}

// eventually asks until the answer is yes.
func eventually(t *testing.T, what string, ask func() bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	over := time.NewTimer(patience)
	defer over.Stop()
	for !ask() {
		select {
		case <-tick.C:
		case <-over.C:
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

// empty demands that a folder is empty or gone.
func empty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	for _, e := range entries {
		t.Errorf("left behind: %s", filepath.Join(dir, e.Name()))
	}
}
