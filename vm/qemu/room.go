// SPDX-License-Identifier: MIT

//go:build linux

package qemu

import (
	"context"
	"time"
)

// roomAgain is the pause before another try to write on a volume that was full.
const roomAgain = time.Second

// noRoom takes note that QEMU has halted the machine because its host's volume had no room
// for what the guest wrote. The machine would hang so with its slot: it is continued, which
// tries the write again, until there is room, and ended if there is none for long. What it
// leaves is room for the others.
func (r *process) noRoom() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refused++
	if !r.waiting {
		r.waiting = true
		r.log.Warn("the machine halts: its host's volume is full", "for_at_most", r.roomTime)
		r.asking.Go(r.awaitRoom)
	}
}

func (r *process) awaitRoom() {
	over := time.NewTimer(r.roomTime)
	defer over.Stop()
	again := time.NewTicker(min(roomAgain, r.roomTime/4))
	defer again.Stop()
	for continued, last := false, 0; ; {
		select {
		case <-r.qmp.done:
			return
		case <-over.C:
			r.mu.Lock()
			r.full = true
			r.mu.Unlock()
			r.kill()
			return
		case <-again.C:
		}
		r.mu.Lock()
		if continued && r.refused == last { // written
			r.waiting = false
			r.mu.Unlock()
			return
		}
		last = r.refused
		halted := r.halted
		r.mu.Unlock()
		continued = !halted && r.call(context.Background(), "cont", nil, nil) == nil
	}
}

// halt notes whether the vmm has halted the machine.
func (r *process) halt(halted bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.halted = halted
}
