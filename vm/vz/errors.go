// SPDX-License-Identifier: MIT

package vz

import (
	"errors"
	"fmt"
	"strings"

	"github.com/minifleet/minifleet/vm"
)

// nsError is an error of one of Apple's frameworks, without its type.
type nsError struct {
	Domain string
	Code   int
	Text   string // what the framework says
	Info   string // and what it adds; the cause of a cause is only here
}

func (e *nsError) Error() string {
	text := e.Text
	if text == "" {
		text = "no description"
	}
	return fmt.Sprintf("%s (%s %d)", text, e.Domain, e.Code)
}

// vzDomain is the domain of Virtualization.framework's own errors.
const vzDomain = "VZErrorDomain"

// Codes of vzDomain, as VZError.h has them. The negative one is not in it, but has been
// met where the user's keychain was locked.
const (
	codeInternal             = 1
	codeInvalidConfiguration = 2
	codeInvalidDiskImage     = 5
	codeLimitExceeded        = 6
	codeNotSupported         = 10
	codeSave                 = 11
	codeRestore              = 12
	codeSecurity             = -9
)

// explain gives an error of the framework the reason that it means for the machine.
func explain(op string, err error) error {
	if err == nil {
		return nil
	}
	return vm.WithReason(reasonOf(err), fmt.Errorf("%s: %w", op, err))
}

func reasonOf(err error) vm.Reason {
	e, ok := errors.AsType[*nsError](err)
	if !ok {
		return vm.ReasonOf(err, vm.ReasonBackendFailed)
	}
	if e.Domain != vzDomain {
		return vm.ReasonBackendFailed
	}
	all := e.Text + " " + e.Info
	// Saving and restoring say only "permission denied" of themselves where the host is locked.
	saved := e.Code == codeSave || e.Code == codeRestore
	if keyDenied(all) || saved && strings.Contains(strings.ToLower(all), "permission denied") {
		return vm.ReasonKeychainLocked
	}
	switch e.Code {
	case codeInternal:
		return vm.ReasonHypervisorCrashed
	case codeInvalidConfiguration:
		if strings.Contains(all, "entitlement") {
			return vm.ReasonNoEntitlement
		}
		return vm.ReasonBadConfiguration
	case codeInvalidDiskImage, codeNotSupported:
		return vm.ReasonBadConfiguration
	case codeLimitExceeded:
		return vm.ReasonTwoVMLimit
	case codeSecurity:
		return vm.ReasonKeychainLocked
	case codeRestore:
		return vm.ReasonRestoreFailed
	}
	return vm.ReasonBackendFailed
}

// keyDenied reports whether an error says somewhere that the key of a machine could not be
// had: the user's keychain is locked, or there is no session of his.
func keyDenied(text string) bool {
	for _, sign := range []string{"-25308", "errSecInteractionNotAllowed", "HostKey"} {
		if strings.Contains(text, sign) {
			return true
		}
	}
	return false
}
