// SPDX-License-Identifier: MIT

package webhook

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

const (
	// MaxBody is the largest payload that GitHub sends.
	MaxBody = 25 << 20
	// Bodies up to smallBody are read at once. Who sends more is not known yet to
	// be GitHub, so only largeBodies such requests may hold memory at a time.
	smallBody   = 1 << 20
	largeBodies = 8
)

var (
	errTooLarge = fmt.Errorf("the body is larger than %d MB, the most that GitHub sends", MaxBody>>20)
	errBusy     = errors.New("too many large deliveries at once: redeliver it later")
	errSlow     = errors.New("the body did not arrive in time")
)

// readBody reads a request's body within its limits of size and time. On success
// the caller must call release when it is done with the body; otherwise status is
// what to answer.
func (h *Handler) readBody(w http.ResponseWriter, r *http.Request) (body []byte, release func(), status int, err error) {
	if r.ContentLength > MaxBody {
		w.Header().Set("Connection", "close") // instead of draining what is refused
		return nil, nil, http.StatusRequestEntityTooLarge, errTooLarge
	}
	control := http.NewResponseController(w)
	// A server that cannot set deadlines has its own; the body is bounded anyway.
	_ = control.SetReadDeadline(time.Now().Add(readTimeout))
	limited := http.MaxBytesReader(w, r.Body, MaxBody)
	body, err = io.ReadAll(io.LimitReader(limited, smallBody))
	release = func() {}
	if err == nil && len(body) == smallBody {
		select {
		case h.large <- struct{}{}:
			release = func() { <-h.large }
		default:
			return nil, nil, http.StatusServiceUnavailable, errBusy
		}
		var rest []byte
		rest, err = io.ReadAll(limited)
		body = append(body, rest...)
	}
	if err == nil {
		// The deadline would otherwise cut the connection while the store works.
		_ = control.SetReadDeadline(time.Time{})
		return body, release, 0, nil
	}
	release()
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, nil, http.StatusRequestEntityTooLarge, errTooLarge
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, nil, http.StatusRequestTimeout, errSlow
	default:
		return nil, nil, http.StatusBadRequest, fmt.Errorf("read the body: %w", err)
	}
}
