// SPDX-License-Identifier: MIT

package guest

import "fmt"

// seen is what the listener's output has told.
type seen struct {
	listening    bool // in this launch
	disconnected bool // in this launch, and not reconnected
	gone         bool
	conflict     bool
	deprecated   bool
	clock        bool
	running      bool // in any launch: a job is never taken back
	result       Result
}

// launch forgets what concerns an earlier launch only.
func (s *seen) launch() { *s = seen{running: s.running, result: s.result} }

func (s *seen) take(e event) {
	switch e.kind {
	case eventListening:
		s.listening, s.disconnected, s.clock = true, false, false
	case eventRunning:
		s.running = true
	case eventResult:
		if s.running && s.result == "" {
			s.result = e.result
		}
	case eventGone:
		s.gone = true
	case eventConflict:
		s.conflict = true
	case eventDeprecated:
		s.deprecated = true
	case eventClock:
		s.clock = true
	case eventDisconnected:
		s.disconnected = true
	case eventReconnected:
		s.disconnected = false
	}
}

// launchEnd is how one launch of the listener ended.
type launchEnd struct {
	pgid     int    // zero: the group is ended already
	code     int    // -1: a signal
	signal   string // its name
	startErr error  // it could not be started
	waitErr  error  // its exit could not be learnt
}

// history is all that the verdict on a runner rests on.
type history struct {
	launchEnd
	seen       seen
	relaunches int
	ended      bool // on request
}

func (h *history) end(e launchEnd) { h.launchEnd = e }

type again int

const (
	againNo again = iota
	againLater
	againAfterUpdate
)

// verdict says what an exit means. While again is not againNo only reason is set.
type verdict struct {
	again   again
	outcome Outcome
	result  Result
	reason  string
}

// The listener's exit codes. The codes from exitResult on tell the job's
// result; the official runner uses them when it is asked to.
const (
	exitOK         = 0
	exitTerminated = 1
	exitRetryable  = 2
	exitUpdate     = 3
	exitUpdateOnce = 4
	exitConflict   = 5
	exitDeprecated = 7
	exitResult     = 100
)

func updating(code int) bool { return code == exitUpdate || code == exitUpdateOnce }

// exitResults are the results of the codes from exitResult on, in order.
var exitResults = [...]Result{
	ResultSucceeded, ResultSucceeded /* with issues */, ResultFailed, ResultCanceled, ResultSkipped, ResultAbandoned,
}

// judge decides from everything known whether the listener is started again,
// and if not, what its end means. Output is the base, for the codes from 100 on
// are not promised to us; they fill in what the output did not say.
func judge(h history, maxRelaunches int) verdict {
	s := h.seen
	result := s.result
	if i := h.code - exitResult; result == "" && h.startErr == nil && i >= 0 && i < len(exitResults) {
		result = exitResults[i]
	}
	switch {
	case h.startErr != nil:
		return verdict{outcome: OutcomeUnstartable, result: result, reason: h.startErr.Error()}
	case result != "":
		return verdict{outcome: OutcomeJob, result: result, reason: "the job ended: " + string(result)}
	case h.ended && s.running:
		return verdict{outcome: OutcomeEnded, reason: "ended on request during its job, before the job's result was known"}
	case h.ended:
		return verdict{outcome: OutcomeEnded, reason: "ended on request before it had a job"}
	case s.running:
		return verdict{outcome: OutcomeCrashed, reason: "the listener ended " + h.how() + " during its job, whose result is not known"}
	case s.gone || s.deprecated: // another start would end the same way
		return judgeIdle(h)
	case h.code == exitRetryable || updating(h.code):
		return judgeAgain(h, maxRelaunches)
	}
	return judgeIdle(h)
}

func judgeAgain(h history, maxRelaunches int) verdict {
	switch {
	case h.relaunches >= maxRelaunches && updating(h.code):
		return verdict{outcome: OutcomeRefused, reason: fmt.Sprintf("the runner is too old: it updates itself, %d times without an end: put a current runner into the image", h.relaunches)}
	case h.relaunches >= maxRelaunches:
		return verdict{outcome: OutcomeCrashed, reason: fmt.Sprintf("the listener ended %s again after %d restarts%s", h.how(), h.relaunches, h.hint())}
	case updating(h.code):
		return verdict{again: againAfterUpdate, reason: "the runner updates itself"}
	}
	return verdict{again: againLater, reason: "the listener ended " + h.how() + ", which a new start may cure"}
}

// judgeIdle is the verdict on a listener that ended by itself without a job.
func judgeIdle(h history) verdict {
	s := h.seen
	switch {
	case s.deprecated || h.code == exitDeprecated:
		return verdict{outcome: OutcomeRefused, reason: "the runner is too old: the service refuses its version: put a current runner into the image"}
	case s.gone:
		return verdict{outcome: OutcomeNoJob, reason: "the runner's registration is gone: it was deleted, or it expired"}
	case h.code == exitConflict:
		return verdict{outcome: OutcomeConflict, reason: "another session is open for the runner's registration: its JIT config is used twice"}
	case h.code == exitOK && s.listening:
		return verdict{outcome: OutcomeNoJob, reason: "the listener ended by itself without a job: its registration is gone, or its job went to another runner"}
	case h.code == exitTerminated && !s.listening:
		return verdict{outcome: OutcomeBadConfig, reason: "the listener could not use its JIT config or open a session with it" + h.hint() + ": see the end of its output"}
	}
	return verdict{outcome: OutcomeCrashed, reason: "the listener ended " + h.how() + " without a job" + h.hint() + ": see the end of its output"}
}

// how names the exit.
func (h history) how() string {
	switch {
	case h.waitErr != nil:
		return "in an unknown way (" + h.waitErr.Error() + ")"
	case h.signal != "":
		return "by signal " + h.signal
	}
	return fmt.Sprintf("with code %d", h.code)
}

// hint adds what the output said about the cause.
func (h history) hint() string {
	switch {
	case h.seen.clock:
		return " (it says that this machine's clock differs from the server's by more than five minutes)"
	case h.seen.conflict:
		return " (it says that another session is open for the registration)"
	case h.seen.disconnected:
		return " (it could not reach the service)"
	}
	return ""
}
