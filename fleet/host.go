// SPDX-License-Identifier: MIT

package fleet

import (
	"slices"
	"time"
)

// HostID is made by the controller when a host enrols.
type HostID string

// Host is a machine that runs the agent.
type Host struct {
	ID           HostID
	Name         string
	Slots        int      // VMs it may run at once
	Backends     []string // that its agent offers
	Images       []string // that VMs can be cloned from: names, and digests of what was fetched
	OS, Arch     string
	AgentVersion string
	Degraded     string // what the agent says is wrong with the host, "" if nothing

	Revision int64     // raised with every change of what is wanted of it
	Instance string    // of the agent that speaks for the host
	Sequence int64     // of the newest report taken from that instance
	Machine  string    // identity of the hardware, to tell a restart from a copy
	SeenAt   time.Time // last word from the agent, our clock
	BackAt   time.Time // end of its last silence: no deadline runs while nothing is heard

	Prefetch []Prefetch    // images it is to have, most wanted first
	Cached   []CachedImage // as it reported last; not stored

	Failures  int       // runners that failed here in a row
	FailedAt  time.Time // the last of them
	CreatedAt time.Time
}

// Holds reports whether VMs can be cloned from the image at once.
func (h *Host) Holds(image string) bool { return slices.Contains(h.Images, ImageKey(image)) }

// HostFacts is what an agent says of its host.
type HostFacts struct {
	Slots        int
	Backends     []string
	Images       []string
	OS, Arch     string
	AgentVersion string
	Degraded     string
}

// BackoffAfter returns how long to leave alone what has failed n times in a row:
// nothing for the first failure, then 2 s doubling up to 5 minutes. One failure
// may be chance, and the next try is on another host.
func BackoffAfter(n int) time.Duration {
	if n < 2 {
		return 0
	}
	return min(time.Second<<min(n-1, 9), 5*time.Minute)
}

// PatienceAfter returns how long a job is left alone that n runners in a row listened for in
// vain: nothing for the first, which may be chance, then 10 minutes doubling up to an hour.
// What keeps GitHub from assigning it is an operator's to mend, and is looked into for ever.
func PatienceAfter(n int) time.Duration {
	if n < 2 {
		return 0
	}
	return min(10*time.Minute<<min(n-2, 3), time.Hour)
}
