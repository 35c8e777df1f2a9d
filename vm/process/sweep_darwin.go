// SPDX-License-Identifier: MIT

package process

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// adoptDescendants does nothing: macOS has no way to become the parent of orphans.
func adoptDescendants() error { return nil }

// awaitExit returns when the process has ended, and leaves it to be waited for.
func awaitExit(pid int) {
	if q, err := unix.Kqueue(); err == nil {
		unix.CloseOnExec(q)
		defer unix.Close(q)
		watch := unix.Kevent_t{Ident: uint64(pid), Filter: unix.EVFILT_PROC, Flags: unix.EV_ADD | unix.EV_ONESHOT, Fflags: unix.NOTE_EXIT}
		events := make([]unix.Kevent_t, 1)
		n := 0
		for err = unix.EINTR; n == 0 && errors.Is(err, unix.EINTR); {
			n, err = unix.Kevent(q, []unix.Kevent_t{watch}, events, nil)
		}
	}
	// The event says so before the process is a zombie, and a queue may not be had when
	// descriptors are short: the process table has the last word.
	for {
		k, err := unix.SysctlKinfoProc("kern.proc.pid", pid)
		if err != nil || k.Proc.P_stat == zombieState {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// zombieState is SZOMB of <sys/proc.h>.
const zombieState = 5

// killGroup kills the guest agent's process group. The guest agent has not been waited for,
// so its pid and its group's cannot have become another's.
func killGroup(leader int) { _ = unix.Kill(-leader, unix.SIGKILL) }

// killDescendants does nothing more: what left the group cannot be found.
func killDescendants() {}

// reapOrphans does nothing: orphans are launchd's.
func reapOrphans(int, <-chan struct{}) {}
