// SPDX-License-Identifier: MIT

package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/minifleet/minifleet/admin/api"
	"github.com/minifleet/minifleet/fleet"
)

const internalError = "the controller failed to answer: its log has the cause"

// refusal is an answer other than success that is the caller's to mend.
type refusal struct {
	status int
	text   string
}

func (r refusal) Error() string { return r.text }

func badParameter(name, want string) error {
	return refusal{http.StatusBadRequest, fmt.Sprintf("parameter %s: want %s", name, want)}
}

func notFound(format string, args ...any) error {
	return refusal{http.StatusNotFound, fmt.Sprintf(format, args...)}
}

// refuse is the one place that maps errors to statuses.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	var (
		known   refusal
		tooLong *http.MaxBytesError
	)
	switch {
	case errors.As(err, &known):
		writeError(w, known.status, known.text)
	case errors.Is(err, fleet.ErrCursor):
		writeError(w, http.StatusBadRequest, "parameter cursor: want the `next` of an earlier answer to the same request")
	case errors.As(err, &tooLong):
		writeError(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is larger than %d bytes", tooLong.Limit))
	case errors.Is(err, context.Canceled) && r.Context().Err() != nil:
		writeError(w, http.StatusServiceUnavailable, "the request was given up") // nobody reads it
	default:
		s.cfg.Log.ErrorContext(r.Context(), "request failed", slog.String("method", r.Method), slog.String("path", r.URL.Path), slog.Any("error", err))
		writeError(w, http.StatusInternalServerError, internalError)
	}
}

// refuseParameter answers for the generated code where a parameter has the
// wrong form.
func refuseParameter(w http.ResponseWriter, r *http.Request, err error) {
	var format *api.InvalidParamFormatError
	if !errors.As(err, &format) {
		writeError(w, http.StatusBadRequest, err.Error())
		return
	}
	if n := len(r.URL.Query()[format.ParamName]); n > 1 {
		writeError(w, http.StatusBadRequest, givenTwice(format.ParamName, n))
		return
	}
	writeError(w, http.StatusBadRequest, badParameter(format.ParamName, wantedForm(format.ParamName)).Error())
}

func writeError(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// An error here is a caller who has gone: there is nobody left to tell.
	_ = json.NewEncoder(w).Encode(api.Error{Error: text})
}
