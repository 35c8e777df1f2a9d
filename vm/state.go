// SPDX-License-Identifier: MIT

package vm

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"strings"
	"time"
)

// Phase is where a machine is in its one life.
type Phase string

// The phases, in the order in which they come; all but PhaseFinal may be skipped.
const (
	PhaseStarting Phase = "starting" // the vmm has the bundle and brings the machine up
	PhaseRunning  Phase = "running"  // the machine runs; see State.GuestReady for the guest
	PhaseStopping Phase = "stopping" // the machine is being ended
	PhaseFinal    Phase = "final"    // nothing runs any more; Reason says why
)

// Isolation says what stands between the guest and the host.
type Isolation string

// The kinds of isolation.
const (
	IsolationNone Isolation = "none" // the guest is a process of the host and can do what its user can
	IsolationVM   Isolation = "vm"   // a hypervisor
)

// State is what a vmm tells of its machine: each line of status.jsonl is one, and so is
// each answer to a query. A reader ignores keys that it does not know.
type State struct {
	// Revision is 1 for the first state and rises by one with each change.
	Revision int64     `json:"revision"`
	Time     time.Time `json:"time"`
	ID       string    `json:"id"`
	Phase    Phase     `json:"phase"`
	// GuestReady says that the guest agent has answered: the boot is complete.
	GuestReady bool `json:"guest_ready"`
	// Reason and Detail are set in PhaseFinal, and in PhaseStopping as far as known.
	Reason    Reason      `json:"reason,omitempty"`
	Detail    string      `json:"detail,omitempty"`
	Backend   BackendName `json:"backend,omitempty"`
	Isolation Isolation   `json:"isolation,omitempty"`
	// SSHAddress and Accelerator are the backend's Facts; the address is an IP address with
	// a port.
	SSHAddress  string `json:"ssh_address,omitempty"`
	Accelerator string `json:"accelerator,omitempty"`
	// The times at which the phases were reached; zero if not, or not yet.
	StartedAt    time.Time `json:"started_at,omitzero"`
	RunningAt    time.Time `json:"running_at,omitzero"`
	GuestReadyAt time.Time `json:"guest_ready_at,omitzero"`
	StoppingAt   time.Time `json:"stopping_at,omitzero"`
}

// Limits of status.jsonl. A vmm writes a handful of lines.
const (
	MaxStatusBytes  = 1 << 20
	MaxStatusDetail = 4 << 10
)

// ParseStatus reads a status.jsonl. A last line that was cut off, because the host or
// the vmm went down while it was written, is left out; anything else that is not a
// state, or revisions that do not rise, are an error, returned with the states before it.
func ParseStatus(b []byte) ([]State, error) {
	if len(b) > MaxStatusBytes {
		return nil, fmt.Errorf("%s has %d bytes: %d are allowed", FileStatus, len(b), MaxStatusBytes)
	}
	var states []State
	last := int64(0)
	whole := b[:bytes.LastIndexByte(b, '\n')+1]
	lines := bufio.NewScanner(bytes.NewReader(whole))
	lines.Buffer(nil, MaxStatusBytes+1)
	for n := 1; lines.Scan(); n++ {
		s, err := parseState(lines.Bytes())
		if err != nil {
			return states, fmt.Errorf("%s line %d: %w", FileStatus, n, err)
		}
		if s.Revision <= last {
			return states, fmt.Errorf("%s line %d: revision %d follows %d", FileStatus, n, s.Revision, last)
		}
		if len(states) > 0 && states[len(states)-1].Phase == PhaseFinal {
			return states, fmt.Errorf("%s line %d: a line follows the final one", FileStatus, n)
		}
		last = s.Revision
		states = append(states, s)
	}
	return states, lines.Err()
}

// parseState reads one state. With the process backend the guest can write where it comes
// from, so its texts are cut to what a vmm writes.
func parseState(b []byte) (State, error) {
	var s State
	if err := json.Unmarshal(b, &s); err != nil {
		return State{}, foreign{err}
	}
	switch s.Phase {
	case PhaseStarting, PhaseRunning, PhaseStopping, PhaseFinal:
	default:
		return State{}, fmt.Errorf("unknown phase %.40q", s.Phase)
	}
	s.ID, s.Reason, s.Detail = clip(s.ID, 64), Reason(clip(string(s.Reason), 64)), clip(s.Detail, MaxStatusDetail+8)
	s.Backend, s.Isolation = BackendName(clip(string(s.Backend), 64)), Isolation(clip(string(s.Isolation), 64))
	s.Accelerator = clip(s.Accelerator, 64)
	if _, err := netip.ParseAddrPort(s.SSHAddress); err != nil && s.SSHAddress != "" {
		return State{}, fmt.Errorf("ssh_address is %.60q", s.SSHAddress)
	}
	return s, nil
}

// clip cuts text to at most limit bytes and not inside a character.
func clip(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	return strings.ToValidUTF8(text[:limit], "")
}

// foreign is an error that may quote what it met at any length.
type foreign struct{ error }

func (f foreign) Error() string { return clip(f.error.Error(), 1<<10) }
func (f foreign) Unwrap() error { return f.error }

// ReadStatus reads the states of the bundle dir; none if it was never started.
func ReadStatus(dir string) ([]State, error) {
	b, err := readSmall(filepath.Join(dir, FileStatus), MaxStatusBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	states, err := ParseStatus(b)
	if err != nil {
		return states, fmt.Errorf("bundle %s: %w", dir, err)
	}
	return states, nil
}

// endOf returns the final state of a bundle whose lock is free. If the vmm left no
// last word, the state says so in its place.
func endOf(dir string) State {
	states, err := ReadStatus(dir)
	var s State
	if len(states) > 0 {
		s = states[len(states)-1]
	}
	if s.Phase == PhaseFinal {
		return s
	}
	s.ID = filepath.Base(dir)
	s.Revision++
	s.Phase, s.Reason = PhaseFinal, ReasonVMMDied
	switch {
	case err != nil:
		s.Detail = fmt.Sprintf("the vmm left no final status (%v)", err)
	case len(states) == 0:
		s.Detail = "the vmm ended before its first status"
	default:
		s.Detail = fmt.Sprintf("the vmm ended without a final status, after %q", states[len(states)-1].Phase)
	}
	if line := lastLogLine(dir); line != "" {
		s.Detail += "; its log ends with: " + line
	}
	return s
}
