// SPDX-License-Identifier: MIT

// Package freeze has a process stand still, for tests of what its neighbours do then.
package freeze

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// patience is for a machine so busy that a thread does not come to its end of work.
const patience = time.Minute

// Process stops a process and returns when none of its threads runs any more: SIGSTOP alone
// takes effect at some time after it was sent, and until then the process goes on. SIGCONT
// has it go on. The error is unix.ESRCH if there is no such process, or it ended.
func Process(pid int) error {
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		return fmt.Errorf("stop process %d: %w", pid, err)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); time.Since(began) < patience; <-tick.C {
		if still, err := stands(pid); err != nil || still {
			return err
		}
	}
	return errors.New("process " + fmt.Sprint(pid) + " goes on after SIGSTOP")
}
