// SPDX-License-Identifier: MIT

package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/minifleet/minifleet/secret"
	"github.com/minifleet/minifleet/trust"
)

// ErrHasConfig is the answer to Run of a guest that has taken a JIT config
// before: it takes one in its life.
var ErrHasConfig = errors.New("the guest has already taken a JIT config")

// Every request ends within these, whatever the guest does and whatever
// deadline the caller has.
const (
	answerTimeout = 30 * time.Second
	diagTimeout   = 2 * time.Minute
)

var errSlow = errors.New("the guest does not answer in time")

// ResponseError is an answer of the guest other than success.
type ResponseError struct {
	Code    int    // HTTP status
	Message string // the guest's words, made printable and cut
}

func (e *ResponseError) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("guest answered %d", e.Code)
	}
	return fmt.Sprintf("guest answered %d: %s", e.Code, e.Message)
}

// Client asks one guest. It is safe for concurrent use.
type Client struct {
	http *http.Client
}

// NewClient returns a client that reaches the guest through dial, which is
// called for every connection that the client opens.
func NewClient(dial func(context.Context) (net.Conn, error)) *Client {
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := dial(ctx)
			if err != nil {
				return nil, err
			}
			return askFirst(conn), nil
		},
		// What a guest says while nothing is asked would be put into our log as it is.
		DisableKeepAlives:      true,
		DisableCompression:     true, // a few compressed bytes must not become many
		MaxResponseHeaderBytes: 16 << 10,
		ExpectContinueTimeout:  answerTimeout,
	}
	return &Client{
		http: &http.Client{
			Transport:     t,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// Close closes the idle connections. Requests under way are not disturbed, and
// the client can still be used.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Health asks whether the guest program answers and speaks our protocol.
func (c *Client) Health(ctx context.Context) (Health, error) {
	body, err := c.get(ctx, "health", maxStatusBytes, 0)
	if err != nil {
		return Health{}, err
	}
	return decodeHealth(body)
}

// Status returns the guest's status: at once if its revision is not after, or
// else when it changes, or after wait (at most a minute). Zero for after asks
// for the status as it is. A hostile guest can answer at once every time: a
// caller in a loop paces itself.
func (c *Client) Status(ctx context.Context, after uint64, wait time.Duration) (Status, error) {
	wait = min(max(wait, 0), maxWait)
	path := "status"
	if after != 0 {
		path += "?after=" + strconv.FormatUint(after, 10) + "&wait=" + strconv.FormatFloat(wait.Seconds(), 'f', -1, 64)
	}
	body, err := c.get(ctx, path, maxStatusBytes, wait)
	if err != nil {
		return Status{}, err
	}
	return decodeStatus(body)
}

// Run gives the guest its JIT config and starts the listener with it and with
// env. With a policy the guest ends a job that it refuses before its first step. A guest that has taken one before answers ErrHasConfig.
func (c *Client) Run(ctx context.Context, jit secret.Text, env map[string]string, policy *trust.Policy) error {
	err := c.post(ctx, "run", runRequest{JITConfig: jit.Reveal(), Env: env, Trust: policy})
	if re, ok := errors.AsType[*ResponseError](err); ok && re.Code == http.StatusConflict {
		return ErrHasConfig
	}
	return err
}

// End asks the guest to end its listener: gently, and after grace by force. It
// returns when the guest has taken the request; Status shows the end.
func (c *Client) End(ctx context.Context, grace time.Duration) error {
	return c.post(ctx, "end", endRequest{GraceSeconds: max(grace, 0).Seconds()})
}

// Shutdown asks the guest program to end its listener and then itself.
func (c *Client) Shutdown(ctx context.Context) error {
	return c.post(ctx, "shutdown", struct{}{})
}

// Tail returns the end of the listener's output, made printable.
func (c *Client) Tail(ctx context.Context) (string, error) {
	body, err := c.get(ctx, "tail", maxTailBytes, 0)
	if err != nil {
		return "", err
	}
	return printable(string(body), maxTailBytes, true), nil
}

// Diag writes a tar of the runner's _diag folder to w. The archive comes from
// the guest: keep it as a file, unpack it only with care.
func (c *Client) Diag(ctx context.Context, w io.Writer) error {
	ctx, cancel := context.WithTimeoutCause(ctx, diagTimeout, errSlow)
	defer cancel()
	resp, err := c.do(ctx, http.MethodGet, "diag", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	n, err := io.Copy(w, io.LimitReader(resp.Body, maxDiagBytes+1))
	if err != nil {
		return fmt.Errorf("guest diag: %w", foreign{err})
	}
	if n > maxDiagBytes {
		return fmt.Errorf("guest diag: more than %d bytes", maxDiagBytes)
	}
	return nil
}

func (c *Client) get(ctx context.Context, path string, limit int64, wait time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, wait+answerTimeout, errSlow)
	defer cancel()
	resp, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := readAtMost(resp.Body, limit)
	if err != nil {
		return nil, fmt.Errorf("guest %s: %w", path, foreign{err})
	}
	return body, nil
}

func (c *Client) post(ctx context.Context, path string, in any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("guest %s: %w", path, err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, answerTimeout, errSlow)
	defer cancel()
	resp, err := c.do(ctx, http.MethodPost, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := readAtMost(resp.Body, maxErrorBytes); err != nil {
		return fmt.Errorf("guest %s: %w", path, foreign{err})
	}
	return nil
}

// do sends one request and turns every answer but 2xx into an error.
func (c *Client) do(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, requestURL(path), bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("guest %s: %w", path, err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return c.send(req)
}

func requestURL(path string) string {
	return "http://guest/v" + strconv.Itoa(Protocol) + "/" + path
}

// send is do for a request that the caller has made.
func (c *Client) send(req *http.Request) (*http.Response, error) {
	path := strings.TrimPrefix(req.URL.Path, "/v"+strconv.Itoa(Protocol)+"/")
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("guest %s: %w", path, foreign{err})
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	re := &ResponseError{Code: resp.StatusCode}
	if text, err := readAtMost(resp.Body, maxErrorBytes); err == nil {
		var e errorBody
		if json.Unmarshal(text, &e) == nil {
			re.Message = printable(e.Error, maxReasonBytes, false)
		}
	}
	return nil, fmt.Errorf("guest %s: %w", path, re)
}

func readAtMost(r io.Reader, limit int64) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(body)) > limit {
		err = fmt.Errorf("answer is larger than %d bytes", limit)
	}
	return body, err
}
