// SPDX-License-Identifier: MIT

package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"time"
)

// The vmm's protocol: HTTP/1.1 and JSON on FileVMMSocket.
//
//	GET  /v1/state?after=REV&wait=DURATION   the State; waits while its revision is REV
//	POST /v1/stop                            asks for the end; 202 and the State; repeatable
//	POST /v1/save                            with a SaveRequest: saves the running machine, once in
//	                                         its life; 200 and the State when it runs again
//
// An error is a status of 400 or above with an ErrorBody.
const (
	PathState = "/v1/state"
	PathStop  = "/v1/stop"
	PathSave  = "/v1/save"
)

// MaxStateWait bounds how long one query waits for a change.
const MaxStateWait = time.Minute

// ErrorBody is the body of an answer that is an error.
type ErrorBody struct {
	Error string `json:"error"`
}

const maxAnswerBytes = 64 << 10

// client speaks to one vmm. It keeps no connection: calls are rare, and an idle
// connection would only hold up the vmm's end.
type client struct{ http *http.Client }

func newClient(dir string) client {
	path := filepath.Join(dir, FileVMMSocket)
	return client{&http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}}}
}

// answerTime is how long a vmm may take beyond the wait that it was asked for. One that
// hangs is found out by it.
const answerTime = 5 * time.Second

func (c client) state(ctx context.Context, after int64, wait time.Duration) (State, error) {
	wait = min(max(wait, 0), MaxStateWait)
	ctx, cancel := context.WithTimeoutCause(ctx, wait+answerTime, errors.New("the vmm does not answer"))
	defer cancel()
	q := "?after=" + strconv.FormatInt(after, 10) + "&wait=" + wait.String()
	return c.call(ctx, http.MethodGet, PathState+q, nil)
}

func (c client) stop(ctx context.Context) (State, error) {
	return c.call(ctx, http.MethodPost, PathStop, nil)
}

func (c client) save(ctx context.Context, r SaveRequest) (State, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return State{}, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, ContinueTime+SaveTime+ContinueTime+answerTime, errors.New("the vmm does not answer"))
	defer cancel()
	return c.call(ctx, http.MethodPost, PathSave, bytes.NewReader(b))
}

func (c client) call(ctx context.Context, method, path string, body io.Reader) (State, error) {
	var s State
	req, err := http.NewRequestWithContext(ctx, method, "http://vmm"+path, body)
	if err != nil {
		return s, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
	if err != nil {
		return s, err
	}
	if resp.StatusCode >= http.StatusBadRequest {
		var e ErrorBody
		if json.Unmarshal(b, &e) != nil || e.Error == "" {
			e.Error = "no explanation"
		}
		return s, fmt.Errorf("the vmm answered %d: %s", resp.StatusCode, clip(e.Error, MaxStatusDetail))
	}
	if s, err = parseState(b); err != nil {
		return s, fmt.Errorf("the vmm's answer: %w", err)
	}
	return s, nil
}

// lastLogLine returns the last line of the vmm's log, cut to a readable length.
func lastLogLine(dir string) string {
	f, err := openRegular(filepath.Join(dir, FileVMMLog))
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	b := make([]byte, min(info.Size(), 4<<10))
	n, err := f.ReadAt(b, info.Size()-int64(len(b)))
	if err != nil && !errors.Is(err, io.EOF) {
		return ""
	}
	b = bytes.TrimSpace(b[:n])
	b = b[bytes.LastIndexByte(b, '\n')+1:]
	return string(bytes.ToValidUTF8(b[:min(len(b), 500)], []byte("?")))
}
