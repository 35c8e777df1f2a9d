// SPDX-License-Identifier: MIT

package githubapp

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode"

	"github.com/bradleyfalzon/ghinstallation/v2"
	"github.com/google/go-github/v62/github"
)

// The kinds of failure that callers tell apart.
var (
	// ErrNameTaken: a runner of that name is registered; take a new name.
	ErrNameTaken = errors.New("a runner of that name exists already")
	// ErrBusy: GitHub refuses to delete a runner because it runs a job.
	ErrBusy = errors.New("the runner is running a job")
	// ErrNotInstalled: the App is not installed there, or suspended.
	ErrNotInstalled = errors.New("the GitHub App is not installed there")
	// ErrGroup: the runner group does not exist or cannot be used.
	ErrGroup = errors.New("the runner group cannot be used")
	// ErrUncertain: a registration was asked for and the answer never came or
	// cannot be used. It may exist: find it by name before the name is forgotten.
	// Any other error of Register means that no registration is left.
	ErrUncertain = errors.New("the registration may have been made")
	// ErrRefused: GitHub has refused the request; repeating it as it is will not help.
	ErrRefused = errors.New("GitHub refused")
)

// RateLimited says that no request is made before Until: GitHub wants none, or it cannot
// be reached. What was asked for has not been done.
type RateLimited struct {
	Until  time.Time
	Outage time.Time // since when GitHub cannot be reached; zero: it is a limit
}

// Error implements error.
func (e *RateLimited) Error() string {
	if !e.Outage.IsZero() {
		return "GitHub cannot be reached since " + e.Outage.UTC().Format(time.RFC3339) + "; the next try is at " + e.Until.UTC().Format(time.RFC3339)
	}
	return "GitHub's rate limit is used up until " + e.Until.UTC().Format(time.RFC3339)
}

// statusError is an answer other than success. It holds no request, because a
// request holds credentials.
type statusError struct {
	status    int
	message   string
	requestID string
	token     bool          // it was the answer to the request for a token
	apart     time.Duration // of this machine's clock before GitHub's
}

func (e *statusError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "GitHub answered %d %s", e.status, http.StatusText(e.status))
	if e.token {
		b.WriteString(" to the request for an installation token")
	}
	if e.message != "" {
		fmt.Fprintf(&b, ": %s", e.message)
	}
	if e.requestID != "" {
		fmt.Fprintf(&b, " (request %s)", e.requestID)
	}
	switch {
	case e.status != http.StatusUnauthorized:
	case e.apart.Abs() > clockWrong:
		b.WriteString(": this machine's clock is " + apart(e.apart) + ": set it by NTP")
	default:
		b.WriteString(": check the App id, its private key and this machine's clock")
	}
	return b.String()
}

// Is makes every answer that blames the request an ErrRefused.
func (e *statusError) Is(target error) bool {
	return target == ErrRefused && e.status >= 300 && e.status < 500
}

// explain turns an error of the libraries below into one of ours.
func explain(ctx context.Context, err error, now time.Time) error {
	if err == nil {
		return nil
	}
	var (
		limited   *RateLimited
		primary   *github.RateLimitError
		secondary *github.AbuseRateLimitError
		answered  *github.ErrorResponse
		accepted  *github.AcceptedError
		token     *ghinstallation.HTTPError
	)
	switch {
	case errors.As(err, &limited):
		return limited
	case errors.As(err, &primary):
		// Its own memory of a limit that is used up: nothing was sent.
		until := primary.Rate.Reset.Time
		if until.Before(now) {
			until = now.Add(defaultPause)
		}
		return &RateLimited{Until: until}
	case errors.As(err, &secondary):
		return &RateLimited{Until: now.Add(max(secondary.GetRetryAfter(), defaultPause))}
	case errors.As(err, &token) && token.Response != nil:
		return newStatusError(token.Response, "", true, now)
	case errors.As(err, &answered) && answered.Response != nil:
		return newStatusError(answered.Response, refusal(answered), false, now)
	case errors.As(err, &accepted):
		return errors.New("GitHub put the request off (202) instead of answering it")
	}
	if why := context.Cause(ctx); why != nil && !errors.Is(err, why) {
		return fmt.Errorf("%w: %w", why, err)
	}
	return err
}

func newStatusError(resp *http.Response, message string, token bool, now time.Time) *statusError {
	return &statusError{
		status: resp.StatusCode, message: printable(message, 300), token: token,
		requestID: printable(resp.Header.Get("X-Github-Request-Id"), 64), apart: now.Sub(dateOf(resp, now)),
	}
}

// dateOf returns the time that an answer tells, or now if it tells none.
func dateOf(resp *http.Response, now time.Time) time.Time {
	if at, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		return at
	}
	return now
}

// refusal is what GitHub says against a request, field by field if it does.
func refusal(r *github.ErrorResponse) string {
	parts := []string{r.Message}
	for _, e := range r.Errors {
		if m := strings.TrimSpace(strings.Join([]string{e.Field, e.Code, e.Message}, " ")); m != "" {
			parts = append(parts, m)
		}
	}
	return strings.Join(parts, "; ")
}

// statusOf returns the status that an error of explain is about, 0 if none, and
// whether it was the answer to the request for a token.
func statusOf(err error) (status int, token bool) {
	var s *statusError
	if errors.As(err, &s) {
		return s.status, s.token
	}
	return 0, false
}

// printable makes a foreign text fit for a log and a terminal.
func printable(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	for len(s) > limit {
		cut := limit
		for cut > 0 && s[cut]&0xC0 == 0x80 { // not in the middle of a rune
			cut--
		}
		s = s[:cut]
	}
	return s
}
