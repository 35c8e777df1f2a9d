// SPDX-License-Identifier: MIT

package vm

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// zombieState is SZOMB of <sys/proc.h>.
const zombieState = 5

// lookUp asks the kernel; the start time is in microseconds since 1970.
func lookUp(pid int) (procInfo, error) {
	k, err := unix.SysctlKinfoProc("kern.proc.pid", pid)
	if errors.Is(err, unix.EIO) {
		return procInfo{}, unix.ESRCH // no entry comes back for a pid that nobody has
	}
	if err != nil {
		return procInfo{}, err
	}
	t := k.Proc.P_starttime
	return procInfo{
		start:  uint64(t.Sec)*1_000_000 + uint64(t.Usec),
		parent: int(k.Eproc.Ppid),
		zombie: k.Proc.P_stat == zombieState,
	}, nil
}

// userOf returns the user who started the process: its real one, and not whose rights it has.
func userOf(pid int) (uint32, error) {
	k, err := unix.SysctlKinfoProc("kern.proc.pid", pid)
	if err != nil {
		return 0, err
	}
	return k.Eproc.Pcred.P_ruid, nil
}

// kill ends exactly this process. One that has already ended is no error. macOS has no
// handle of a process to signal, so between the comparison and the signal a pid could
// in theory pass to another process; macOS hands pids out in a circle of 99,999.
func (p ProcessID) kill() error {
	if !p.Alive() {
		return nil
	}
	if err := unix.Kill(p.PID, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", p.PID, err)
	}
	return nil
}
