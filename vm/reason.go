// SPDX-License-Identifier: MIT

package vm

// Reason says why a machine ended. A reader has to cope with one that it does not know,
// of a newer vmm: State.Detail is written for people.
type Reason string

// The reasons that a machine can end with.
const (
	ReasonStopped           Reason = "stopped"            // asked to, by command or by signal
	ReasonGuestEnded        Reason = "guest_ended"        // the guest ended by itself
	ReasonMaxLife           Reason = "max_life"           // the spec's hard limit was reached
	ReasonBadConfiguration  Reason = "bad_configuration"  // the spec, or what it names, is wrong
	ReasonTwoVMLimit        Reason = "two_vm_limit"       // macOS runs no third macOS guest
	ReasonRestoreFailed     Reason = "restore_failed"     // the saved state was refused; nothing ran
	ReasonNoEntitlement     Reason = "no_entitlement"     // the vmm is not signed for the hypervisor
	ReasonKeychainLocked    Reason = "keychain_locked"    // the user's session or keychain is locked or missing
	ReasonHypervisorCrashed Reason = "hypervisor_crashed" // the hypervisor ended and not the guest
	ReasonBackendFailed     Reason = "backend_failed"     // the backend could not start or keep the machine
	ReasonVMMFailed         Reason = "vmm_failed"         // the vmm could not do its own work
	ReasonVMMDied           Reason = "vmm_died"           // the vmm ended without a last word; never written by it
)

// Failed reports whether the reason is a failure rather than an ordinary end.
func (r Reason) Failed() bool {
	return r != ReasonStopped && r != ReasonGuestEnded && r != ReasonMaxLife
}

// Sentence tells an operator what happened and, where something can be done, what to do;
// "" for a reason that this version does not know.
func (r Reason) Sentence() string {
	switch r {
	case ReasonStopped:
		return "it was told to stop"
	case ReasonGuestEnded:
		return "the guest shut down or its program ended"
	case ReasonMaxLife:
		return "it reached its longest life; if jobs take that long, raise max_life"
	case ReasonBadConfiguration:
		return "the image or the pool's settings do not fit this host: mend what the detail names"
	case ReasonTwoVMLimit:
		return "macOS runs two macOS guests at once and no more: end those that are not Minifleet's, lower the host's slots, or restart the host if none are left"
	case ReasonRestoreFailed:
		return "the saved state does not fit this host, its macOS or its image any more: delete it and boot cold"
	case ReasonNoEntitlement:
		return "minifleet-vmm is not signed with com.apple.security.virtualization: sign it again as docs/mac-host.md says"
	case ReasonKeychainLocked:
		return "macOS keeps the machine's keys in the login keychain of the vmm's user: log that user in, and turn screen lock off and automatic login on"
	case ReasonHypervisorCrashed:
		return "the hypervisor ended, not the guest: look at the host's system log; restart the host if it repeats"
	case ReasonBackendFailed:
		return "the machine could not be started or kept: the detail and the VM's vmm.log say more"
	case ReasonVMMFailed:
		return "the vmm could not do its own work: see the VM's vmm.log; free space and permissions of state_dir are the usual causes"
	case ReasonVMMDied:
		return "the vmm was killed or crashed: see the VM's vmm.log and the host's system log"
	}
	return ""
}
