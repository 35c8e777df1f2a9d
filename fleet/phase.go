// SPDX-License-Identifier: MIT

package fleet

// Phase is where a runner stands, as people read it. It is never stored as a
// truth of its own: it follows from what is wanted, observed and registered.
type Phase string

// The phases, in order.
const (
	PhaseRequested   Phase = "requested" // no host yet
	PhasePlaced      Phase = "placed"    // a host, and its agent has not begun
	PhasePreparing   Phase = "preparing"
	PhaseBooting     Phase = "booting"
	PhaseStandby     Phase = "standby"
	PhaseArmed       Phase = "armed" // granted a config, not minted yet
	PhaseRegistering Phase = "registering"
	PhaseIdle        Phase = "idle"
	PhaseBusy        Phase = "busy"
	PhaseFinished    Phase = "finished"
	PhaseFailed      Phase = "failed"
	PhaseDestroying  Phase = "destroying"
	PhaseGone        Phase = "gone"
)

// PhaseOf is the phase of a runner with or without a host.
func PhaseOf(placed bool, w Wanted, o Observed, reg Registration) Phase {
	switch o {
	case ObservedGone:
		return PhaseGone
	case ObservedFailed:
		return PhaseFailed
	case ObservedDestroying:
		return PhaseDestroying
	case ObservedFinished:
		return PhaseFinished
	case ObservedBusy:
		return PhaseBusy
	}
	if w == WantGone || w == WantDrain {
		return PhaseDestroying
	}
	switch o {
	case ObservedIdle:
		if reg == RegBusy {
			return PhaseBusy
		}
		return PhaseIdle
	case ObservedRegistering:
		if reg == RegBusy {
			return PhaseBusy
		}
		return PhaseRegistering
	case ObservedStandby:
		switch {
		case reg == RegBusy:
			return PhaseBusy
		case reg == RegMinting || reg == RegMinted:
			return PhaseRegistering
		case w == WantArmed:
			return PhaseArmed
		default:
			return PhaseStandby
		}
	case ObservedBooting:
		return PhaseBooting
	case ObservedPreparing:
		return PhasePreparing
	}
	if !placed {
		return PhaseRequested
	}
	return PhasePlaced
}
