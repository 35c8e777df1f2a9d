// SPDX-License-Identifier: MIT

package guest

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// transferTimeout bounds the sending of a file, whatever deadline the caller has.
const transferTimeout = time.Hour

// ExecRequest is a command that a guest is to run.
type ExecRequest struct {
	// Argv has the program, searched in the guest's PATH if it has no slash, and
	// its arguments. Anybody in the guest can read them.
	Argv []string
	// Env is added to what every program of the guest gets (PATH, HOME...).
	Env map[string]string
	// Dir is its working directory, absolute. Empty means the guest program's.
	Dir string
	// User is as whom it runs, which needs a guest program that runs as root.
	// Empty means as whom the guest program does.
	User string
	// Stdin is its input, at most 128 KiB.
	Stdin []byte
	// Timeout ends it. Zero means a minute; a day is the most.
	Timeout time.Duration
	// MaxOutput bounds both outputs together. Zero means 16 MiB.
	MaxOutput int64
}

// ExecSignalError says that a signal ended a command.
type ExecSignalError struct{ Signal string }

func (e *ExecSignalError) Error() string { return "the command was ended by a signal: " + e.Signal }

// Exec runs a command in the guest and passes its output on as it comes; a nil writer
// drops it. It returns the exit code, or -1 and an error: *ExecSignalError where a signal
// ended the command, *ResponseError where the guest refuses it. When ctx ends, or the
// command's timeout, the guest kills the command and everything that it started.
func (c *Client) Exec(ctx context.Context, r ExecRequest, stdout, stderr io.Writer) (exitCode int, err error) {
	timeout := r.Timeout
	if timeout == 0 {
		timeout = time.Minute
	}
	limit := r.MaxOutput
	if limit == 0 {
		limit = 16 << 20
	}
	in := execRequest{Argv: r.Argv, Env: r.Env, Dir: r.Dir, User: r.User, Stdin: r.Stdin, TimeoutSeconds: timeout.Seconds()}
	if err := in.check(); err != nil {
		return -1, fmt.Errorf("guest exec: %w", err)
	}
	body, err := json.Marshal(in)
	if err != nil {
		return -1, fmt.Errorf("guest exec: %w", err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout+answerTimeout, errSlow)
	defer cancel()
	resp, err := c.do(ctx, http.MethodPost, "exec", body)
	if err != nil {
		return -1, err
	}
	defer resp.Body.Close()
	end, err := readFrames(resp.Body, stdout, stderr, limit)
	if err == nil && end.Code == -1 {
		err = &ExecSignalError{Signal: end.Signal}
	}
	if err != nil {
		return -1, fmt.Errorf("guest exec: %w", foreign{err})
	}
	return end.Code, nil
}

// PutFile writes a file of the guest, whole or not at all, with size bytes of r that have
// the SHA-256 digest. Its folder must exist. An empty owner leaves the file to whom the
// guest program runs as.
func (c *Client) PutFile(ctx context.Context, path string, mode fs.FileMode, owner string, size int64, digest []byte, r io.Reader) error {
	q := url.Values{"path": {path}, "mode": {strconv.FormatUint(uint64(mode.Perm()), 8)}}
	if owner != "" {
		q.Set("owner", owner)
	}
	return c.put(ctx, "files?"+q.Encode(), size, digest, r)
}

// InstallRunner puts the runner of an archive (.tar.gz of size bytes with the SHA-256
// digest) into the place of the guest's. A guest that has taken a JIT config answers
// ErrHasConfig.
func (c *Client) InstallRunner(ctx context.Context, size int64, digest []byte, r io.Reader) error {
	err := c.put(ctx, "runner", size, digest, r)
	if re, ok := errors.AsType[*ResponseError](err); ok && re.Code == http.StatusConflict {
		return ErrHasConfig
	}
	return err
}

func (c *Client) put(ctx context.Context, path string, size int64, digest []byte, r io.Reader) error {
	ctx, cancel := context.WithTimeoutCause(ctx, transferTimeout, errSlow)
	defer cancel()
	body := io.NopCloser(io.LimitReader(r, size))
	if size == 0 {
		body = http.NoBody // a request whose length is 0 and body is not nil has no length
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, requestURL(path), body)
	if err != nil {
		return fmt.Errorf("guest %s: %w", path, err)
	}
	req.ContentLength = size
	req.Header.Set("Content-Type", "application/octet-stream")
	req.Header.Set("Expect", "100-continue") // a refusal comes before the body is sent
	req.Header.Set(digestHeader, hex.EncodeToString(digest))
	resp, err := c.send(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// GetFile writes a regular file of the guest to w, if it has no more than limit bytes,
// and returns how many it has. The guest can change a file while it is read.
func (c *Client) GetFile(ctx context.Context, path string, limit int64, w io.Writer) (int64, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, transferTimeout, errSlow)
	defer cancel()
	resp, err := c.do(ctx, http.MethodGet, "files?"+url.Values{"path": {path}}.Encode(), nil)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.ContentLength > limit {
		return 0, fmt.Errorf("guest files: the file has %d bytes, more than %d", resp.ContentLength, limit)
	}
	n, err := io.Copy(w, io.LimitReader(resp.Body, limit))
	if err != nil {
		return n, fmt.Errorf("guest files: %w", foreign{err})
	}
	if more, _ := io.CopyN(io.Discard, resp.Body, 1); more > 0 {
		return n, fmt.Errorf("guest files: the file has more than %d bytes", limit)
	}
	return n, nil
}

// SetClock sets the guest's wall clock, which stands still while its machine does.
func (c *Client) SetClock(ctx context.Context, now time.Time) error {
	return c.post(ctx, "clock", clockRequest{UnixNanos: now.UnixNano()})
}

// Resize lets the guest's root file system fill its disk.
func (c *Client) Resize(ctx context.Context) error { return c.post(ctx, "resize", struct{}{}) }

// PowerOff asks the guest's system to end in order. It returns when the guest has taken
// the request; the machine's own end shows the rest.
func (c *Client) PowerOff(ctx context.Context) error { return c.post(ctx, "poweroff", struct{}{}) }
