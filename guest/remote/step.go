// SPDX-License-Identifier: MIT

package remote

import "strings"

// Step says how far the way into a guest led.
type Step string

// The steps, in their order.
const (
	StepAddress Step = "find the address"
	StepConnect Step = "connect"
	StepHostKey Step = "check the host key"
	StepLogin   Step = "log in"
	StepSurvey  Step = "look around"
	StepCopy    Step = "copy minifleet-guest"
	StepStart   Step = "start minifleet-guest"
	StepReach   Step = "reach minifleet-guest"
)

// Error is a failure on the way into a guest.
type Error struct {
	Step Step
	Err  error
}

func (e *Error) Error() string { return "guest over SSH: " + string(e.Step) + ": " + e.Err.Error() }

// Unwrap returns what went wrong in the step.
func (e *Error) Unwrap() error { return e.Err }

func at(s Step, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Step: s, Err: err}
}

// clean makes one printable line of at most n bytes of what a guest said.
func clean(text string, n int) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, text[:min(len(text), 4*n)])
	text = strings.Join(strings.Fields(text), " ")
	return text[:min(len(text), n)]
}
