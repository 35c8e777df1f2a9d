// SPDX-License-Identifier: MIT

package fleet

import (
	"errors"
	"fmt"
	"time"
)

// Errors of the store that its callers branch on.
var (
	ErrNotFound     = errors.New("not found")
	ErrConflict     = errors.New("changed meanwhile")
	ErrCursor       = error(badCursor{})
	ErrToken        = errors.New("enrolment token is unknown, used up or expired")
	ErrHostName     = errors.New("host name is taken by another machine")
	ErrSuperseded   = errors.New("a newer agent speaks for this host")
	ErrOtherMachine = errors.New("another machine that is live uses this host's credential")
	ErrNoGrant      = errors.New("runner is not armed")
	ErrRunnerBusy   = errors.New("runner's registration runs a job")
	ErrLater        = errors.New("not now")
	ErrWrongHost    = errors.New("runner belongs to another host")
	// ErrNoHost is an ErrNotFound: the host was removed, or never enrolled.
	ErrNoHost = fmt.Errorf("host %w", ErrNotFound)
)

// badCursor marks a page's cursor that no answer of ours gave: the caller's fault.
type badCursor struct{}

func (badCursor) Error() string   { return "cursor is not one that a listing gave" }
func (badCursor) BadCursor() bool { return true }

// Errors of GitHub that its callers branch on. ErrRunnerBusy is one of them too:
// GitHub refuses to delete a registration that runs a job.
var (
	// ErrNameTaken: a registration of that name exists; another name is needed.
	ErrNameTaken = errors.New("runner name is taken at GitHub")
	// ErrUncertain: no answer, or a server's error: it may have taken effect.
	ErrUncertain = errors.New("GitHub gave no certain answer")
	// ErrRefused: GitHub certainly did nothing.
	ErrRefused = errors.New("GitHub refused")
)

// RateLimited says that no call is made before Until: GitHub wants none, or it cannot be
// reached. What was asked for has not been done.
type RateLimited struct {
	Until  time.Time
	Outage time.Time // since when GitHub cannot be reached; zero: it is a limit
}

func (e *RateLimited) Error() string {
	if !e.Outage.IsZero() {
		return fmt.Sprintf("GitHub cannot be reached since %s; the next try is at %s", e.Outage.UTC().Format(time.RFC3339), e.Until.UTC().Format(time.RFC3339))
	}
	return fmt.Sprintf("GitHub's rate limit is used up until %s", e.Until.UTC().Format(time.RFC3339))
}
