// SPDX-License-Identifier: MIT

package hosts

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/secret"
)

// asHost finds the host by its credential before anything of the body is read.
func (s *Server) asHost(next func(http.ResponseWriter, *http.Request, fleet.Host)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		scheme, credential, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if !strings.EqualFold(scheme, "Bearer") || credential == "" || len(credential) > 200 {
			fail(w, http.StatusUnauthorized, protocol.CodeCredential, "no host credential")
			return
		}
		h, err := s.c.Store.HostByCredential(r.Context(), secret.New(credential).Hash())
		if errors.Is(err, fleet.ErrNotFound) {
			fail(w, http.StatusUnauthorized, protocol.CodeCredential, "host credential is unknown or revoked: enrol again")
			return
		}
		if err != nil {
			s.failWith(w, r, err)
			return
		}
		next(w, r, h)
	}
}

// decode reads one JSON value of bounded size and nothing after it. Fields that are
// not known are ignored: an agent may be newer than its controller.
func decode[T any](w http.ResponseWriter, r *http.Request, limit int64) (v T, ok bool) {
	in := json.NewDecoder(http.MaxBytesReader(w, r.Body, limit))
	err := in.Decode(&v)
	if err == nil {
		if _, end := in.Token(); !errors.Is(end, io.EOF) {
			err = cmp.Or(end, errors.New("more than one value"))
		}
	}
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		fail(w, http.StatusRequestEntityTooLarge, protocol.CodeTooLarge, fmt.Sprintf("body is larger than %d bytes", large.Limit))
		return v, false
	case err != nil:
		fail(w, http.StatusBadRequest, protocol.CodeBadRequest, fmt.Sprintf("body is not the JSON that is expected here: %.300s", printable(err.Error())))
		return v, false
	}
	return v, true
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	json.NewEncoder(w).Encode(v) //nolint:errcheck // the client is gone: it will ask again
}

func fail(w http.ResponseWriter, status int, code protocol.Code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(protocol.Error{Message: message, Code: code}) //nolint:errcheck // as above
}

func later(w http.ResponseWriter, wait time.Duration, message string) {
	w.Header().Set("Retry-After", strconv.Itoa(max(1, int((wait+time.Second-1)/time.Second))))
	fail(w, http.StatusServiceUnavailable, protocol.CodeLater, message)
}

// failWith is the one place that turns an error into an answer.
func (s *Server) failWith(w http.ResponseWriter, r *http.Request, err error) {
	for _, known := range []struct {
		is     error
		status int
		code   protocol.Code
	}{
		{fleet.ErrToken, http.StatusUnauthorized, protocol.CodeToken},
		{fleet.ErrHostName, http.StatusConflict, protocol.CodeToken},
		{fleet.ErrSuperseded, http.StatusConflict, protocol.CodeSuperseded},
		{fleet.ErrOtherMachine, http.StatusConflict, protocol.CodeOtherMachine},
		{fleet.ErrNoGrant, http.StatusConflict, protocol.CodeNoGrant},
		{fleet.ErrRunnerBusy, http.StatusConflict, protocol.CodeRunnerBusy},
		{fleet.ErrWrongHost, http.StatusForbidden, protocol.CodeWrongHost},
		{fleet.ErrRefused, http.StatusBadGateway, protocol.CodeRefused},
		{fleet.ErrNoHost, http.StatusUnauthorized, protocol.CodeCredential}, // removed during the call
		{fleet.ErrNotFound, http.StatusNotFound, protocol.CodeNoSuchRunner},
	} {
		if errors.Is(err, known.is) {
			fail(w, known.status, known.code, err.Error())
			return
		}
	}
	var limited *fleet.RateLimited
	switch {
	case r.Context().Err() != nil:
		return // nobody is listening
	case errors.As(err, &limited):
		later(w, time.Until(limited.Until), err.Error())
	case errors.Is(err, fleet.ErrLater), errors.Is(err, fleet.ErrUncertain), errors.Is(err, fleet.ErrConflict), errors.Is(err, fleet.ErrNameTaken):
		later(w, time.Second, err.Error())
	default:
		s.c.Log.Error("agent request failed", "path", r.URL.Path, "error", err)
		w.Header().Set("Retry-After", "2")
		fail(w, http.StatusServiceUnavailable, protocol.CodeUnavailable, "the controller cannot answer now")
	}
}
