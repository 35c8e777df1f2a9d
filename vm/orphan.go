// SPDX-License-Identifier: MIT

package vm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/minifleet/minifleet/crashpoint"
)

// ErrVMMAlive says that a machine's vmm runs, so that its writers are not orphans.
var ErrVMMAlive = errors.New("the machine's vmm runs")

// EndWriter ends whatever still writes to the disk of the bundle dir after its vmm died,
// and returns nil when the lock is free. It kills only processes that it is sure of: the
// one that the vmm noted, known by pid and start time, with its session; and on Linux
// every process that holds the lock's descriptor. It fails with ErrVMMAlive while the
// vmm runs: then Adopt and Stop are the way.
func EndWriter(ctx context.Context, dir string) error {
	for wait := newBackoff(time.Millisecond, 100*time.Millisecond); ; {
		locked, err := IsLocked(dir)
		if err != nil {
			return fmt.Errorf("end the writer of %s: %w", dir, err)
		}
		if !locked {
			return nil
		}
		if vmm, err := ReadIdentity(dir, FileVMM); err == nil && vmm.Alive() {
			return fmt.Errorf("end the writer of %s: %w (pid %d)", dir, ErrVMMAlive, vmm.PID)
		}
		// Again each time round: a writer may have forked while it was looked for.
		killErr := endWriters(dir)
		crashpoint.Reached(crashpoint.WriterEnded)
		if !wait.sleep(ctx) {
			return fmt.Errorf("end the writer of %s: %w", dir, errors.Join(ErrLocked, context.Cause(ctx), killErr))
		}
	}
}
