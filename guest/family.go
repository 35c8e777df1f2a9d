// SPDX-License-Identifier: MIT

package guest

import (
	"errors"
	"os"
	"os/exec"
	"sync"
	"syscall"
)

// family knows which children this process started itself. On Linux, where
// asked to, it adopts what those leave behind and ends it.
type family struct {
	orphans *orphans // nil: only process groups are ended

	mu    sync.Mutex // guards known, and is held over start
	known map[int]bool
}

func newFamily(adopt bool) (*family, error) {
	f := &family{known: map[int]bool{}}
	if adopt {
		var err error
		if f.orphans, err = adoptOrphans(f); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// open begins to look after orphans, until close.
func (f *family) open() {
	if f.orphans != nil {
		f.orphans.start()
	}
}

// start starts cmd as the leader of a new process group and makes it known,
// before anybody could take it for an orphan. On Linux cmd is killed when the
// calling thread ends, so the caller keeps the thread.
func (f *family) start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	dieWithParent(cmd.SysProcAttr)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return err
	}
	f.known[cmd.Process.Pid] = true
	return nil
}

// wait waits for cmd and forgets it.
func (f *family) wait(cmd *exec.Cmd) error {
	err := cmd.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.known, cmd.Process.Pid)
	return err
}

// killGroup kills every process of the group. A group keeps its number from
// being used again for as long as it has a member, so this is safe right after
// its leader was waited for.
func killGroup(pgid int) error {
	if err := syscall.Kill(-pgid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return os.NewSyscallError("kill", err)
	}
	return nil
}

// killOrphans ends what known children left behind outside their groups.
func (f *family) killOrphans() error {
	if f.orphans == nil {
		return nil
	}
	return f.orphans.kill(nil)
}

// killMarked ends those among them that have the mark, NAME=value, in their environment.
func (f *family) killMarked(mark string) error {
	if f.orphans == nil {
		return nil
	}
	return f.orphans.killMarked(mark)
}

func (f *family) close() {
	if f.orphans != nil {
		f.orphans.close()
	}
}
