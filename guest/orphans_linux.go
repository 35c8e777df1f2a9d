// SPDX-License-Identifier: MIT

package guest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// orphans are the processes that became children of this one because their
// parent ended: this process is their reaper. Only direct children are ever
// signalled, for no other process can take the number of a child that we have
// not waited for; a child's own children come to us when it ends.
type orphans struct {
	family  *family
	signals chan os.Signal
	done    chan struct{}
	reaper  sync.WaitGroup
}

func adoptOrphans(f *family) (*orphans, error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("adopt orphans: %w", err)
	}
	return &orphans{family: f, signals: make(chan os.Signal, 1), done: make(chan struct{})}, nil
}

func (o *orphans) start() {
	signal.Notify(o.signals, unix.SIGCHLD)
	o.reaper.Go(o.reap)
}

// reap waits for orphans that end by themselves, so that a long job does not
// fill the process table with zombies.
func (o *orphans) reap() {
	for {
		select {
		case <-o.done:
			return
		case <-o.signals:
			o.each(func(pid int) { wait(pid) }) //nolint:errcheck // the next round looks again
		}
	}
}

// killLimit bounds the time for which processes that keep starting others are chased.
const killLimit = 10 * time.Second

// killMarked ends the orphans that have the mark in their environment.
func (o *orphans) killMarked(mark string) error {
	return o.kill(func(pid int) bool {
		environ, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
		return err == nil && slices.Contains(strings.Split(string(environ), "\x00"), mark)
	})
}

// kill ends the orphans, or those of them that are meant, and waits for them, until a look
// finds none: what an orphan leaves behind when it ends is an orphan only then.
func (o *orphans) kill(meant func(pid int) bool) error {
	for deadline := time.Now().Add(killLimit); ; {
		left := 0
		if err := o.each(func(pid int) {
			if meant != nil && !meant(pid) {
				return
			}
			left++
			unix.Kill(pid, unix.SIGKILL) //nolint:errcheck // it may be gone
			wait(pid)
		}); err != nil {
			return err
		}
		if left == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d processes that were left behind do not end", left)
		}
		// The next SIGCHLD would tell, but the reaper may be the one to get it.
		time.Sleep(time.Millisecond)
	}
}

// each calls f with every child that is not known.
func (o *orphans) each(f func(pid int)) error {
	o.family.mu.Lock()
	defer o.family.mu.Unlock()
	pids, err := children(os.Getpid())
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if !o.family.known[pid] {
			f(pid)
		}
	}
	return nil
}

// wait reports whether a child has ended, and releases it then.
func wait(pid int) bool {
	for {
		got, err := unix.Wait4(pid, nil, unix.WNOHANG, nil)
		if !errors.Is(err, syscall.EINTR) {
			return err != nil || got == pid
		}
	}
}

// children returns the processes whose parent is pid.
func children(pid int) ([]int, error) {
	proc, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	defer proc.Close()
	names, err := proc.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var pids []int
	for _, name := range names {
		child, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		// A process that is gone by now was not ours: ours stay until waited for.
		stat, err := os.ReadFile("/proc/" + name + "/stat")
		if err == nil && parentOf(stat) == pid {
			pids = append(pids, child)
		}
	}
	return pids, nil
}

// parentOf reads the parent from a stat line. The name before it is in
// parentheses and may contain anything, parentheses too.
func parentOf(stat []byte) int {
	i := bytes.LastIndexByte(stat, ')')
	if i < 0 {
		return 0
	}
	fields := bytes.Fields(stat[i+1:])
	if len(fields) < 2 {
		return 0
	}
	ppid, err := strconv.Atoi(string(fields[1]))
	if err != nil {
		return 0
	}
	return ppid
}

// dieWithParent makes a child end even when this program is killed.
func dieWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGKILL }

// close leaves what becomes an orphan from now on to whoever adopts it elsewhere.
func (o *orphans) close() {
	unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) //nolint:errcheck // clearing it cannot fail
	signal.Stop(o.signals)
	close(o.done)
	o.reaper.Wait()
	o.each(func(pid int) { wait(pid) }) //nolint:errcheck // nothing follows that could be done
}
