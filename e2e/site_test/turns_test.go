// SPDX-License-Identifier: MIT

package site_test

import (
	"sync"
	"testing"

	"golang.org/x/sync/semaphore"
)

// Tests mostly wait, whatever the number of processors: for deadlines, or for machines to
// boot. So they run beside each other, as far as there is room. Who has waited longest is
// next.
var (
	processSites = semaphore.NewWeighted(6)
	// Emulated machines that have something to do. More of them at once would boot slower,
	// and not sooner.
	machineSlots = semaphore.NewWeighted(3)
)

// turn lets a test run beside others, once there is room for a site of processes.
func turn(t *testing.T) {
	t.Helper()
	t.Parallel()
	takeRoom(t, processSites, 1)
}

// machineTests are the tests that boot machines and have not ended. TestManyMachines waits
// for them, and boots what is left to boot.
var machineTests sync.WaitGroup

// machineTurn lets a test run beside others that takes machines by machineSlots.
func machineTurn(t *testing.T) {
	t.Helper()
	machineTests.Add(1)
	t.Cleanup(machineTests.Done)
	t.Parallel()
}

// takeRoom waits for room, which the test has until it ends or gives it back.
func takeRoom(t *testing.T, room *semaphore.Weighted, size int64) (giveBack func()) {
	t.Helper()
	if err := room.Acquire(t.Context(), size); err != nil {
		t.Fatal(err)
	}
	giveBack = sync.OnceFunc(func() { room.Release(size) })
	t.Cleanup(giveBack)
	return giveBack
}
