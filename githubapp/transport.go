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

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	select {
	case t.app.slots <- struct{}{}:
		defer func() { <-t.app.slots }()
	case <-req.Context().Done():
		closeBody(req)
		return nil, req.Context().Err()
	}
	out := req.Clone(req.Context()) // a RoundTripper must not change what it is given
	if out.Header.Get("User-Agent") == "" {
		out.Header.Set("User-Agent", t.app.userAgent)
	}
	mark := markOf(req)
	mark.sent()
	call := Call{Installation: t.installation, Class: classOf(out.Method, out.URL.Path)}
	began := t.app.now()
	defer func() {
		call.Took = t.app.now().Sub(began)
		t.app.observe(call)
	}()
	resp, err := t.app.wire.RoundTrip(out)
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
	if len(body) > maxAnswer {
		return nil, errAnswerSize
	}
	if resp.StatusCode >= 300 && resp.StatusCode < 500 {
		mark.notSent() // it was, and GitHub has refused it
	}
	now := t.app.now()
	t.app.rates.note(t.installation, resp.Header, now)
	if limited := rateLimited(resp, body, now); limited != nil {
		return nil, limited
	}
	if isTokenRequest(req) && resp.StatusCode/100 == 2 {
		if err := checkToken(body); err != nil {
			return nil, err
		}
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
