// SPDX-License-Identifier: MIT

package process

import (
	"bytes"
	"errors"
	"os"
	"os/signal"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// adoptDescendants makes this process the parent of every descendant whose own parent
// ends. So none can get away by leaving its session: they all come to be children, and
// children can be found, killed and waited for.
func adoptDescendants() error {
	return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
}

// awaitExit returns when the process has ended, and leaves it to be waited for.
func awaitExit(pid int) {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// killGroup kills the guest agent's process group. The guest agent has not been waited for,
// so its pid and its group's cannot have become another's.
func killGroup(leader int) { _ = unix.Kill(-leader, unix.SIGKILL) }

// killDescendants kills and waits for everything else that descended from the guest agent.
// Each death makes children of a generation more; the loop ends when there are none.
func killDescendants() {
	for {
		kids := children()
		if len(kids) == 0 {
			return
		}
		for _, k := range kids {
			_ = unix.Kill(k.pid, unix.SIGKILL) // our child and not yet waited for: the pid is its own
		}
		for _, k := range kids {
			wait(k.pid, 0)
		}
	}
}

// reapOrphans takes the exit status of adopted descendants that end while the guest
// lives, so that a job that leaves many behind fills no process table.
func reapOrphans(leader int, stop <-chan struct{}) {
	died := make(chan os.Signal, 1)
	signal.Notify(died, unix.SIGCHLD)
	defer signal.Stop(died)
	for {
		select {
		case <-died:
		case <-stop:
			return
		}
		for _, k := range children() {
			if k.pid != leader && k.zombie {
				wait(k.pid, unix.WNOHANG)
			}
		}
		// Looking through /proc costs; a job that starts daemons in a loop sets the pace
		// otherwise.
		pause := time.NewTimer(50 * time.Millisecond)
		select {
		case <-pause.C:
		case <-stop:
			pause.Stop()
			return
		}
	}
}

func wait(pid, options int) {
	for {
		if _, err := unix.Wait4(pid, nil, options, nil); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

type child struct {
	pid    int
	zombie bool
}

// children lists this process's children. The vmm has none but its guest's.
func children() []child {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	self := strconv.Itoa(os.Getpid())
	var kids []child
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		// pid (name) state parent ...; the name can contain anything.
		fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
		if len(fields) > 1 && string(fields[1]) == self {
			kids = append(kids, child{pid, string(fields[0]) == "Z"})
		}
	}
	return kids
}
