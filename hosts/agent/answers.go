// SPDX-License-Identifier: MIT

package agent

import (
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/hosts/protocol"
)

// What the controller answers is checked here before anybody acts on it: what it names
// comes back to it in reports, and it refuses a report with a name that is none as a
// whole; what it counts becomes durations.

// maxCount bounds revisions and epochs, as the controller bounds them.
const maxCount = 1 << 53

// Longest times that a controller can ask for.
const (
	maxPoll     = time.Hour
	maxLease    = 30 * 24 * time.Hour
	maxEndGrace = time.Hour // the most that a guest gives its listener
)

var namePattern = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,64}$`)

func checkEnrolled(e protocol.Enrolled) error {
	if !namePattern.MatchString(e.Host) || !namePattern.MatchString(e.Site) || !fleet.ValidName(e.Name) {
		return errors.New("the controller's answer does not name this host and its site")
	}
	return nil
}

// checkWelcome bounds the times of a welcome.
func checkWelcome(w *protocol.Welcome) error {
	if w.Epoch < 0 || w.Epoch > maxCount {
		return fmt.Errorf("the controller speaks from epoch %d", w.Epoch)
	}
	w.PollSeconds = boundSeconds(w.PollSeconds, maxPoll)
	w.LeaseSeconds = boundSeconds(w.LeaseSeconds, maxLease)
	w.Host, w.Name = cut(w.Host, protocol.MaxID), cut(w.Name, protocol.MaxID)
	return nil
}

// checkDesired refuses what contradicts itself and bounds the times in it. An id or a
// wish that this agent does not know is refused one by one, by name.
func checkDesired(d *protocol.Desired) error {
	if d.Epoch < 0 || d.Epoch > maxCount || d.Revision < 0 || d.Revision > maxCount {
		return fmt.Errorf("the controller speaks of epoch %d and revision %d", d.Epoch, d.Revision)
	}
	if len(d.Runners) > protocol.MaxRunners {
		return fmt.Errorf("the controller wants %d runners of one host: %d are allowed", len(d.Runners), protocol.MaxRunners)
	}
	seen := make(map[string]bool, len(d.Runners))
	for i := range d.Runners {
		r := &d.Runners[i]
		if seen[r.ID] {
			return fmt.Errorf("the controller wants runner %.60q twice", r.ID)
		}
		seen[r.ID] = true
		if !fleet.ValidName(r.Pool) {
			return fmt.Errorf("the controller wants runner %.60q of pool %.60q, which is not a name", r.ID, r.Pool)
		}
		if _, err := fleet.ParseScope(r.Scope); err != nil && (r.Scope != "" || r.Wanted == protocol.WantArmed) {
			return fmt.Errorf("the controller wants runner %.60q in scope %.60q, which is none", r.ID, r.Scope)
		}
		r.EndGraceSeconds = boundSeconds(r.EndGraceSeconds, maxEndGrace)
	}
	return nil
}

func checkMinted(m protocol.Minted) error {
	switch {
	case m.JITConfig == "":
		return errors.New("the controller's answer has no config")
	case !namePattern.MatchString(m.Name):
		return errors.New("the controller's answer does not name the registration")
	case m.Trust != nil && m.Trust.Validate() != nil:
		return fmt.Errorf("the pool's policy in the controller's answer: %w", m.Trust.Validate())
	}
	return nil
}

func boundSeconds(n int, most time.Duration) int {
	return min(max(n, 0), int(most/time.Second))
}
