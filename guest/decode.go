// SPDX-License-Identifier: MIT

package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// What the guest says is checked here before anybody acts on it: unknown words
// are errors, because a state we cannot name is a state we cannot handle;
// unknown fields are ignored, because a newer guest may send them.

var (
	instancePattern = regexp.MustCompile(`^[0-9a-f]{32}$`)
	versionPattern  = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}$`)

	repositoryPattern = regexp.MustCompile(`^[A-Za-z0-9_-]{1,100}/[A-Za-z0-9._-]{1,100}$`)

	phases   = []Phase{PhaseReady, PhaseStarting, PhaseIdle, PhaseBusy, PhaseFinished}
	results  = []Result{"", ResultSucceeded, ResultFailed, ResultCanceled, ResultAbandoned, ResultSkipped}
	outcomes = []Outcome{
		OutcomeJob, OutcomeNoJob, OutcomeRefused, OutcomeConflict, OutcomeBadConfig,
		OutcomeCrashed, OutcomeUnstartable, OutcomeEnded,
	}
)

func decodeHealth(body []byte) (Health, error) {
	var h Health
	if err := json.Unmarshal(body, &h); err != nil {
		return Health{}, fmt.Errorf("guest health: %w", foreign{err})
	}
	if err := checkGreeting(h.Protocol, h.Instance); err != nil {
		return Health{}, fmt.Errorf("guest health: %w", err)
	}
	if h.Version != "" && !versionPattern.MatchString(h.Version) {
		return Health{}, errors.New("guest health: the version is not one")
	}
	return h, nil
}

func decodeStatus(body []byte) (Status, error) {
	var s Status
	if err := json.Unmarshal(body, &s); err != nil {
		return Status{}, fmt.Errorf("guest status: %w", foreign{err})
	}
	if err := s.check(); err != nil {
		return Status{}, fmt.Errorf("guest status: %w", err)
	}
	s.Runner.Reason = printable(s.Runner.Reason, maxReasonBytes, false)
	s.Runner.Job.Refused = printable(s.Runner.Job.Refused, maxReasonBytes, false)
	return s, nil
}

func checkGreeting(protocol int, instance string) error {
	if protocol != Protocol {
		return fmt.Errorf("it speaks protocol %d and this agent %d: install the same version in the image and on the host", protocol, Protocol)
	}
	if !instancePattern.MatchString(instance) {
		return errors.New("the instance is not 32 hex digits")
	}
	return nil
}

// check reports what in a status contradicts the protocol or itself.
func (s Status) check() error {
	if err := checkGreeting(s.Protocol, s.Instance); err != nil {
		return err
	}
	r := s.Runner
	finished := s.Phase == PhaseFinished
	switch {
	case s.Revision == 0:
		return errors.New("the revision is missing")
	case !slices.Contains(phases, s.Phase):
		return fmt.Errorf("unknown phase %q", clip(string(s.Phase), 32))
	case s.HasConfig != (s.Phase != PhaseReady):
		return fmt.Errorf("phase %s contradicts has_config %t", s.Phase, s.HasConfig)
	case s.Phase == PhaseReady && r != Runner{}:
		return errors.New("a runner is reported where none was started")
	case !slices.Contains(results, r.Result):
		return fmt.Errorf("unknown result %q", clip(string(r.Result), 32))
	case finished != (r.Outcome != "") || finished && !slices.Contains(outcomes, r.Outcome):
		return fmt.Errorf("outcome %q does not fit phase %s", clip(string(r.Outcome), 32), s.Phase)
	case r.Outcome == OutcomeJob && r.Result == "":
		return errors.New("a finished job has no result")
	case r.Relaunches < 0 || r.Relaunches > 1000:
		return fmt.Errorf("%d relaunches are not believable", r.Relaunches)
	case r.Job.Repository != "" && !repositoryPattern.MatchString(r.Job.Repository) || r.Job.Run < 0:
		return errors.New("what it tells of its job names no repository, or no run")
	case r.Version != "" && !versionPattern.MatchString(r.Version):
		return errors.New("the runner's version is not one")
	}
	return nil
}

// foreign is an error that may quote what a guest sent, at any length: its text is
// made fit for a log.
type foreign struct{ error }

func (f foreign) Error() string { return printable(f.error.Error(), maxReasonBytes, false) }
func (f foreign) Unwrap() error { return f.error }

// printable makes foreign text safe for logs and terminals: valid UTF-8, no
// control characters (line breaks and tabs only where lines are wanted), at
// most limit bytes.
func printable(s string, limit int, lines bool) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	s = strings.Map(func(r rune) rune {
		switch {
		case lines && (r == '\n' || r == '\t'):
			return r
		case unicode.IsControl(r) || unicode.In(r, unicode.Cf):
			return -1
		}
		return r
	}, s)
	return clip(s, limit)
}

// clip cuts s to at most limit bytes and not inside a character.
func clip(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	for limit > 0 && !utf8.RuneStart(s[limit]) {
		limit--
	}
	return s[:limit]
}
