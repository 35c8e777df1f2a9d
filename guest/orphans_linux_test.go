// SPDX-License-Identifier: MIT

package guest_test

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/guest"
)

// These tests are not parallel: a guest that adopts orphans takes every child
// of the process for one.

func adopting(c *guest.Config) { c.AdoptOrphans = true }

func TestOrphansOutsideTheGroup(t *testing.T) {
	h := startGuest(t, "exec 3> witness\nmkfifo ready\n"+officialBusy+`
setsid sh -c "trap '' TERM HUP; setsid sh -c 'echo x > ready; sleep 100000; :' & sleep 100000; :" &
read ready < ready
exit 100`, adopting)
	ended := h.witness()
	h.run(nil)
	s := h.untilPhase(guest.PhaseFinished)
	if s.Runner.Outcome != guest.OutcomeJob {
		t.Errorf("outcome %s: %s", s.Runner.Outcome, s.Runner.Reason)
	}
	ended()
}

// Orphans that end during a long job must not stay as zombies.
func TestOrphansAreReaped(t *testing.T) {
	h := startGuest(t, gentle+officialBusy+`
i=0
while [ $i -lt 20 ]; do
	sh -c 'sh -c ": > started; exit 3" &'
	i=$((i+1))
done
echo all started
`+waitForever, adopting)
	h.run(nil)
	h.untilTail("all started")
	ctx := h.ctx()
	for zombies() > 0 {
		if ctx.Err() != nil {
			t.Fatalf("%d zombies stay", zombies())
		}
	}
	h.must(h.client.End(ctx, patience))
	h.untilPhase(guest.PhaseFinished)
}

// zombies counts the ended children of this process.
func zombies() int {
	n := 0
	tasks, _ := os.ReadDir("/proc")
	for _, task := range tasks {
		stat, err := os.ReadFile("/proc/" + task.Name() + "/status")
		if err != nil {
			continue
		}
		if strings.Contains(string(stat), "\nState:\tZ") && strings.Contains(string(stat), "\nPPid:\t"+strconv.Itoa(os.Getpid())+"\n") {
			n++
		}
	}
	return n
}
