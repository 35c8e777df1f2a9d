// SPDX-License-Identifier: MIT

package objects

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/oauth2"
	"google.golang.org/api/googleapi"
)

const (
	longestPause   = 16 * time.Second
	fewestAttempts = 3 // of a call, however long each takes

	// maxRequests bounds an attempt, which is one request but for a page of a list: that
	// one may come in as many parts as it has objects, and some that are empty.
	maxRequests = pageObjects + 100
)

// attempt is one request on its way. It ends when nothing moves for too long.
type attempt struct {
	cancel context.CancelCauseFunc
	stall  time.Duration
	timer  *time.Timer
	asked  int // requests, one after the other
}

type attemptKey struct{}

// begin returns a context in which one attempt is made. The caller calls end.
func begin(ctx context.Context, stall time.Duration) (context.Context, *attempt) {
	ctx, cancel := context.WithCancelCause(ctx)
	a := &attempt{cancel: cancel, stall: stall}
	a.timer = time.AfterFunc(stall, func() { cancel(broken{fmt.Errorf("nothing moved for %s", stall)}) })
	return context.WithValue(ctx, attemptKey{}, a), a
}

func (a *attempt) moved() { a.timer.Reset(a.stall) }

// rest stops the clock while it is not the other side that is waited for.
func (a *attempt) rest() { a.timer.Stop() }

func (a *attempt) end() {
	a.timer.Stop()
	a.cancel(nil)
}

// watched tells the attempt that a request belongs to whenever bytes move, and ends it
// when its connection breaks: whatever is to be tried again is decided in one place.
type watched struct{ base http.RoundTripper }

func (t watched) RoundTrip(req *http.Request) (*http.Response, error) {
	a, ok := req.Context().Value(attemptKey{}).(*attempt)
	if !ok {
		return t.base.RoundTrip(req)
	}
	if a.asked++; a.asked > maxRequests {
		return nil, errors.New("the server sends one empty page after the other")
	}
	if req.Body != nil {
		req = req.WithContext(req.Context()) // a copy: a request is its caller's
		req.Body = &moving{ReadCloser: req.Body, attempt: a}
		req.GetBody = nil
	}
	resp, err := t.base.RoundTrip(req)
	if err != nil {
		return nil, broken{err}
	}
	a.moved()
	resp.Body = &moving{ReadCloser: resp.Body, attempt: a, inbound: true}
	return resp, nil
}

type moving struct {
	io.ReadCloser
	attempt *attempt
	inbound bool
}

func (m *moving) Read(p []byte) (int, error) {
	n, err := m.ReadCloser.Read(p)
	if n > 0 {
		m.attempt.moved()
	}
	if m.inbound && err != nil && !errors.Is(err, io.EOF) {
		m.attempt.cancel(broken{err})
	}
	return n, err
}

// retries counts what one call has tried since anything moved.
type retries struct {
	b     *bucket
	since time.Time
	n     int
}

func (b *bucket) retries() *retries { return &retries{b: b, since: time.Now()} }

func (r *retries) progress() { r.since, r.n = time.Now(), 0 }

// again waits before another attempt, or returns why there is none: err, if it is final,
// or that it has gone on for too long.
func (r *retries) again(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	asked, worth := worthRetry(err)
	if !worth {
		return err
	}
	pause := max(asked, rand.N(min(r.b.pause<<min(r.n, 10), longestPause)+1))
	r.n++
	if tried := time.Since(r.since); asked > r.b.patience || r.n >= fewestAttempts && tried+pause > r.b.patience {
		if asked > r.b.patience {
			return fmt.Errorf("it asks for a pause of %s: try again then: %w", asked, err)
		}
		return fmt.Errorf("given up after %d attempts in %s: check the network, and try again later: %w", r.n, tried.Round(time.Second), err)
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// try makes attempts until one succeeds or no further one is worth it. do is told whether
// an earlier one may have been carried out although its answer was lost.
func (b *bucket) try(ctx context.Context, do func(ctx context.Context, lost bool) error) error {
	lost := false
	for r := b.retries(); ; {
		within, a := begin(ctx, b.stall)
		err := do(within, lost)
		err = ended(within, err)
		a.end()
		if err == nil {
			return nil
		}
		lost = lost || mayBeDone(err)
		if err := r.again(ctx, err); err != nil {
			return err
		}
	}
}

// ended says of an error of an attempt why it came, if it came because the attempt ended.
func ended(within context.Context, err error) error {
	if _, answered := errors.AsType[*googleapi.Error](err); err == nil || answered || within.Err() == nil {
		return err
	}
	return context.Cause(within)
}

// broken is what ended a request without a whole answer.
type broken struct{ error }

func (b broken) Unwrap() error { return b.error }

// worthRetry reports whether another attempt may do better, and after what pause the
// server wants it.
func worthRetry(err error) (pause time.Duration, worth bool) {
	if e, ok := errors.AsType[*googleapi.Error](err); ok {
		switch {
		case e.Code == http.StatusRequestTimeout, e.Code == http.StatusTooManyRequests, e.Code >= 500, slowDown(e):
			return retryAfter(e.Header), true
		}
		return 0, false
	}
	if e, ok := errors.AsType[*oauth2.RetrieveError](err); ok {
		return 0, e.Response == nil || e.Response.StatusCode >= 500 || e.Response.StatusCode == http.StatusTooManyRequests
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return 0, false
	}
	_, worth = errors.AsType[broken](err)
	return 0, worth || errors.Is(err, io.ErrUnexpectedEOF)
}

// slowDown reports whether a 403 is about the rate and not about permission.
func slowDown(e *googleapi.Error) bool {
	if e.Code != http.StatusForbidden {
		return false
	}
	reason := ""
	if len(e.Errors) > 0 {
		reason = e.Errors[0].Reason
	} else {
		reason, _ = unpack(e.Body)
	}
	return reason == "rateLimitExceeded" || reason == "userRateLimitExceeded"
}

// unpack reads the error that a body holds where the library has not done so: that of a
// download.
func unpack(body string) (reason, message string) {
	var answer struct {
		Error struct {
			Message string
			Errors  []struct{ Reason string }
		}
	}
	if json.Unmarshal([]byte(body), &answer) != nil {
		return "", body
	}
	if len(answer.Error.Errors) > 0 {
		reason = answer.Error.Errors[0].Reason
	}
	return reason, answer.Error.Message
}

// mayBeDone reports whether a request that ended so may have been carried out.
func mayBeDone(err error) bool {
	e, ok := errors.AsType[*googleapi.Error](err)
	return !ok || e.Code >= 500 || e.Code == http.StatusRequestTimeout
}

// retryAfter reads the pause that an answer asks for, in seconds or as a moment.
func retryAfter(h http.Header) time.Duration {
	text := h.Get("Retry-After")
	if n, err := strconv.ParseUint(text, 10, 20); err == nil {
		return time.Duration(n) * time.Second
	}
	at, err := http.ParseTime(text)
	if err != nil {
		return 0
	}
	now := time.Now()
	if t, err := http.ParseTime(h.Get("Date")); err == nil {
		now = t // the clock that the moment was read from
	}
	return max(0, at.Sub(now))
}
