// SPDX-License-Identifier: MIT

package githubapp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// GitHub refuses more than 100 requests at once of one App. Half of it is kept
	// free for whatever else the App is used for.
	maxConcurrent = 50
	// A page of 100 runners with 100 labels of 256 bytes each is below 5 MB.
	maxAnswer = 8 << 20
)

var errAnswerSize = fmt.Errorf("the answer is larger than %d MB", maxAnswer>>20)

// transport is below whatever signs the requests of one installation, or of the
// App itself. It reads each answer whole, so that no body can be endless or be
// left open, turns answers about limits into errors, and notes the rates.
type transport struct {
	app          *App
	installation int64
}

// RoundTrip implements http.RoundTripper. A sign-in of the App that is refused because it
// was signed for another time is repeated, once.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	before := t.app.clock.off()
	resp, err := t.roundTrip(req)
	if err != nil || resp.StatusCode != http.StatusUnauthorized || (t.app.clock.off()-before).Abs() < clockMoved ||
		t.installation != 0 && !isTokenRequest(req) {
		return resp, err
	}
	again := t.app.signedAnew(req)
	if again == nil {
		return resp, nil
	}
	return t.roundTrip(again)
}

func (t *transport) roundTrip(req *http.Request) (resp *http.Response, err error) {
	class := classOf(req.Method, req.URL.Path)
	p := &pass{lane: t.installation, class: class, path: req.URL.Path, priority: priorityOf(req.Context(), class), points: writePoints}
	if req.Method == http.MethodGet || req.Method == http.MethodHead {
		p.points = readPoints
	}
	p.probe = req.Context().Value(probeKey{}) != nil
	if class == ClassToken {
		p.lane = 0 // the App itself asks for it
	}
	if err := t.app.gate.enter(req.Context(), p); err != nil {
		closeBody(req)
		t.app.observe(Call{AppID: t.app.id, Installation: p.lane, Class: class, Held: true})
		return nil, err
	}
	out := outcomeFailed
	defer func() { t.app.gate.leave(p, out) }()
	ctx, cancel := req.Context(), context.CancelFunc(func() {})
	if d := timeoutOf(ctx); d > 0 {
		ctx, cancel = context.WithTimeoutCause(ctx, d, errTimeout)
	}
	defer cancel()
	if resp, err = t.send(ctx, req, p, &out); err != nil {
		if req.Context().Err() != nil {
			out = outcomeDropped
		} else if context.Cause(ctx) == errTimeout { //nolint:errorlint // it is this very one
			err = fmt.Errorf("%w: %w", errTimeout, err)
		}
	}
	return resp, err
}

// send makes a request and reads its answer.
func (t *transport) send(ctx context.Context, req *http.Request, p *pass, out *outcome) (*http.Response, error) {
	made := req.Clone(ctx) // a RoundTripper must not change what it is given
	if made.Header.Get("User-Agent") == "" {
		made.Header.Set("User-Agent", t.app.userAgent)
	}
	mark := markOf(req)
	mark.sent()
	call := Call{AppID: t.app.id, Installation: p.lane, Class: p.class}
	began := t.app.now()
	defer func() {
		call.Took = t.app.now().Sub(began)
		t.app.observe(call)
	}()
	resp, err := t.app.wire.RoundTrip(made)
	if err != nil {
		if dial := (*net.OpError)(nil); errors.As(err, &dial) && dial.Op == "dial" {
			mark.notSent()
		}
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	call.Status = resp.StatusCode
	if resp.StatusCode < 500 {
		*out = outcomeAnswered
	}
	if len(body) > maxAnswer {
		return nil, errAnswerSize
	}
	if resp.StatusCode >= 300 && resp.StatusCode < 500 {
		mark.notSent() // it was, and GitHub has refused it
	}
	t.app.noteVersion(resp.Header.Get("X-Github-Enterprise-Version"))
	now := t.app.now()
	t.app.clock.note(resp.Header, began, now, t.app.log)
	t.app.clock.here(resp.Header)
	t.app.rates.note(p.lane, resp.Header, now)
	limit := rateLimited(resp, body, now)
	if until := t.app.gate.charged(p, resp.Header.Get("X-Ratelimit-Resource"), limit, now); limit != nil {
		return nil, &RateLimited{Until: until}
	}
	if isTokenRequest(req) && resp.StatusCode/100 == 2 {
		if err := checkToken(body); err != nil {
			return nil, err
		}
		body = t.app.clock.tokenHere(body)
	}
	// go-github books every rate it sees as that of the path it guesses, and would
	// hold back all calls when a resource of another name is used up.
	if resource := resp.Header.Get("X-Ratelimit-Resource"); resource != "" && resource != "core" {
		resp.Header.Del("X-Ratelimit-Remaining")
		resp.Header.Del("X-Ratelimit-Reset")
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	resp.ContentLength = int64(len(body))
	return resp, nil
}

func closeBody(req *http.Request) {
	if req.Body != nil {
		req.Body.Close()
	}
}

func isTokenRequest(req *http.Request) bool {
	return req.Method == http.MethodPost && strings.HasSuffix(req.URL.Path, "/access_tokens")
}

// checkToken refuses what the installation's transport would trip over.
func checkToken(body []byte) error {
	var token struct {
		Token     string    `json:"token"`
		ExpiresAt time.Time `json:"expires_at"`
	}
	if json.Unmarshal(body, &token) != nil || token.Token == "" || token.ExpiresAt.IsZero() {
		return errors.New("GitHub's answer to the request for an installation token holds none")
	}
	return nil
}

// sendMark tells whether a request may have been carried out. Its nil value takes
// no notes.
type sendMark struct{ flag atomic.Bool }

type sendMarkKey struct{}

func withSendMark(ctx context.Context) (context.Context, *sendMark) {
	m := &sendMark{}
	return context.WithValue(ctx, sendMarkKey{}, m), m
}

// markOf returns the mark of a request. The request for a token that may come
// before it is another matter.
func markOf(req *http.Request) *sendMark {
	if isTokenRequest(req) {
		return nil
	}
	m, _ := req.Context().Value(sendMarkKey{}).(*sendMark)
	return m
}

func (m *sendMark) sent() {
	if m != nil {
		m.flag.Store(true)
	}
}

func (m *sendMark) notSent() {
	if m != nil {
		m.flag.Store(false)
	}
}
