// SPDX-License-Identifier: MIT

package scalesets

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/hashicorp/go-retryablehttp"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/secret"
)

const (
	callWithin = 30 * time.Second
	mintWithin = time.Minute
	// A message holds at most 50 jobs, each with at most 100 labels of 256 bytes.
	maxAnswer = 4 << 20
	// defaultPause is how long nothing is asked where GitHub does not say until when.
	defaultPause = time.Minute

	statusConflict = http.StatusConflict
	statusNotFound = http.StatusNotFound
)

// wire is below GitHub's library. It has the App sign in, never repeats a request by itself,
// reads each answer whole, turns limits into errors, and notes what became of a call: the
// library's errors do not tell.
type wire struct {
	base    http.RoundTripper
	signIn  func(context.Context) (secret.Text, error) // gives a token that registers
	observe func(kind string, status int, took time.Duration)

	mu      sync.Mutex // guards service
	service connection
}

// connection is where the Actions service is, and the token for it, as the library got
// them last.
type connection struct {
	URL   string `json:"url"`
	Token string `json:"token"`
}

// client returns what the library makes its calls with. It has to be given a transport of
// net/http's own kind; its requests are passed on to w.
func (w *wire) client() *retryablehttp.Client {
	t := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}}
	t.RegisterProtocol("http", w)
	t.RegisterProtocol("https", w)
	c := retryablehttp.NewClient()
	c.HTTPClient = &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	c.RetryMax, c.ErrorHandler = 0, retryablehttp.PassthroughErrorHandler
	c.CheckRetry = func(context.Context, *http.Response, error) (bool, error) { return false, nil }
	return c
}

// RoundTrip implements http.RoundTripper.
func (w *wire) RoundTrip(req *http.Request) (*http.Response, error) {
	kind := kindOfCall(req)
	if kind == kindSignIn {
		closeBody(req)
		return w.signedIn(req)
	}
	n := noteOf(req.Context())
	if kind == kindConnect {
		n = &note{} // not the call itself
	}
	status, began := 0, time.Now()
	defer func() { w.observe(kind, status, time.Since(began)) }()
	out := req.Clone(req.Context()) // a RoundTripper must not change what it is given
	n.began()
	resp, err := w.base.RoundTrip(out)
	if err != nil {
		if dial := (*net.OpError)(nil); errors.As(err, &dial) && dial.Op == "dial" {
			n.notSent()
		}
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	if len(body) > maxAnswer {
		return nil, fmt.Errorf("the answer is larger than %d MB", maxAnswer>>20)
	}
	status = resp.StatusCode
	n.answered(status, body)
	if until, limited := limitedUntil(resp); limited {
		return nil, &fleet.RateLimited{Until: until}
	}
	if resp.StatusCode >= 500 { // the library would make another kind of error of it each time
		return nil, serverError(resp.StatusCode, body)
	}
	if kind == kindConnect && resp.StatusCode/100 == 2 {
		w.remember(body)
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	resp.ContentLength = int64(len(body))
	return resp, nil
}

// signedIn answers the library's request for a token that registers by what the App is given,
// whose calls keep to GitHub's limits.
func (w *wire) signedIn(req *http.Request) (*http.Response, error) {
	token, err := w.signIn(req.Context())
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(map[string]string{"token": token.Reveal()})
	if err != nil {
		return nil, err
	}
	return &http.Response{
		Status: "201 Created", StatusCode: http.StatusCreated, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: req,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)),
	}, nil
}

// serverError says what the service says of its own failure.
func serverError(status int, body []byte) error {
	var said struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(body, &said) != nil {
		said.Message = ""
	}
	return fmt.Errorf("GitHub answered %d %s: %s", status, http.StatusText(status), cmp.Or(clean(said.Message, 300), "without a reason"))
}

func closeBody(req *http.Request) {
	if req.Body != nil {
		req.Body.Close()
	}
}

// limitedUntil reads GitHub's order to ask nothing for a while.
func limitedUntil(resp *http.Response) (time.Time, bool) {
	h := resp.Header
	used := resp.StatusCode == http.StatusForbidden && (h.Get("Retry-After") != "" || h.Get("X-Ratelimit-Remaining") == "0")
	if resp.StatusCode != http.StatusTooManyRequests && !used && (resp.StatusCode != http.StatusServiceUnavailable || h.Get("Retry-After") == "") {
		return time.Time{}, false
	}
	if s, err := strconv.Atoi(h.Get("Retry-After")); err == nil && s >= 0 {
		return time.Now().Add(min(time.Duration(s)*time.Second, time.Hour)), true
	}
	if reset, err := strconv.ParseInt(h.Get("X-Ratelimit-Reset"), 10, 64); err == nil && time.Until(time.Unix(reset, 0)) > 0 {
		return time.Unix(reset, 0), true
	}
	return time.Now().Add(defaultPause), true
}

func (w *wire) remember(body []byte) {
	var c connection
	if json.Unmarshal(body, &c) != nil || c.URL == "" || c.Token == "" {
		return // the library says what is wrong with it
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.service = c
}

// end closes a message session by its id. The library closes only those that it opened, so
// this is a call of our own, made right after one of the library's, with what that signed in
// with. A session that is gone is closed.
func (s *set) end(ctx context.Context, set int64, session string) error {
	const what = "close the message session that was left open"
	if err := s.call(ctx, what, func(ctx context.Context) error {
		_, err := s.client.GetRunnerScaleSetByID(ctx, int(set))
		return err
	}); err != nil {
		if statusOf(err) == statusNotFound {
			return nil // with its set
		}
		return err
	}
	s.wire.mu.Lock()
	at := s.wire.service
	s.wire.mu.Unlock()
	err := s.call(ctx, what, func(ctx context.Context) error {
		path, err := url.JoinPath(at.URL, "_apis/runtime/runnerscalesets", strconv.FormatInt(set, 10), "sessions", session)
		if err != nil {
			return err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodDelete, path+"?api-version=6.0-preview", nil)
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+at.Token)
		resp, err := s.wire.RoundTrip(req)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode/100 != 2 {
			return errors.New(resp.Status)
		}
		return nil
	})
	if statusOf(err) == statusNotFound {
		return nil
	}
	return err
}

// note is what became of the last request of a call.
type note struct {
	mu     sync.Mutex // guards the three below
	sent   bool       // it may have been carried out
	status int        // of its answer, 0 if there was none
	answer []byte
}

type noteKey struct{}

func noteOf(ctx context.Context) *note {
	if n, ok := ctx.Value(noteKey{}).(*note); ok {
		return n
	}
	return &note{}
}

func (n *note) set(sent bool, status int, answer []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sent, n.status, n.answer = sent, status, answer
}

func (n *note) began()                           { n.set(true, 0, nil) }
func (n *note) notSent()                         { n.set(false, 0, nil) }
func (n *note) answered(status int, body []byte) { n.set(true, status, body) }

// callError is a call that failed otherwise than by a limit.
type callError struct {
	what    string
	sent    bool
	status  int
	message envelope // of the answer, if that is a message
	err     error
}

func (e *callError) Error() string {
	if e.status/100 == 2 { // what it holds may be secret, and the library quotes it
		return e.what + ": GitHub's answer is not understood"
	}
	return e.what + ": " + clean(e.err.Error(), 600)
}

// Unwrap returns the library's error.
func (e *callError) Unwrap() error { return e.err }

func statusOf(err error) int {
	var call *callError
	if errors.As(err, &call) {
		return call.status
	}
	return 0
}

var errTimeout = errors.New("GitHub did not answer in time")

func (s *set) call(ctx context.Context, what string, fn func(context.Context) error) error {
	return s.callWithin(ctx, callWithin, what, fn)
}

// callWithin makes one call, under a time limit.
func (s *set) callWithin(ctx context.Context, limit time.Duration, what string, fn func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errTimeout)
	defer cancel()
	n := &note{}
	err := fn(context.WithValue(ctx, noteKey{}, n))
	if err == nil {
		return nil
	}
	var limited *fleet.RateLimited
	if errors.As(err, &limited) {
		return fmt.Errorf("%s: %w", what, limited)
	}
	if why := context.Cause(ctx); why != nil && !errors.Is(err, why) {
		err = fmt.Errorf("%w: %w", why, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return &callError{what: cmp.Or(what, "call GitHub"), sent: n.sent, status: n.status, message: envelopeOf(n.answer), err: err}
}

// clean makes a foreign text fit for a log and a database.
func clean(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "")
	}
	return strings.TrimSpace(s)
}
