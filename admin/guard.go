// SPDX-License-Identifier: MIT

package admin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"

	"github.com/minifleet/minifleet/admin/api"
	"github.com/minifleet/minifleet/secret"
)

// maxBody is far above what any operation with a body can need.
const maxBody = 64 << 10

// secure keeps answers out of caches, and out of the hands of a browser that
// would guess at their type.
func secure(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("X-Content-Type-Options", "nosniff")
		next.ServeHTTP(w, r)
	})
}

// recoverPanics answers 500 where a handler panics, and logs what happened.
func (s *Server) recoverPanics(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		watched := middleware.NewWrapResponseWriter(w, r.ProtoMajor)
		defer func() {
			p := recover()
			if p == nil {
				return
			}
			if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(p) // how a handler asks the server to drop the connection
			}
			s.cfg.Log.ErrorContext(r.Context(), "request panicked", slog.String("method", r.Method), slog.String("path", r.URL.Path),
				slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
			if watched.Status() == 0 {
				writeError(watched, http.StatusInternalServerError, internalError)
			}
		}()
		next.ServeHTTP(watched, r)
	})
}

// authenticate lets probes pass and asks everybody else for the token.
func (s *Server) authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" || r.URL.Path == "/readyz" {
			next.ServeHTTP(w, r)
			return
		}
		token, given := bearer(r.Header)
		switch {
		case given && token.Equal(s.cfg.Token):
			next.ServeHTTP(w, r)
		case given:
			s.cfg.Log.WarnContext(r.Context(), "operator token refused", slog.String("remote", r.RemoteAddr), slog.String("path", r.URL.Path))
			w.Header().Set("WWW-Authenticate", `Bearer realm="minifleet", error="invalid_token"`)
			writeError(w, http.StatusUnauthorized, "the token is not the operator's")
		default:
			w.Header().Set("WWW-Authenticate", `Bearer realm="minifleet"`)
			writeError(w, http.StatusUnauthorized, "the operator's token is missing: send it as \"Authorization: Bearer <token>\"")
		}
	})
}

// bearer returns the token of a request, and false if it carries none.
func bearer(h http.Header) (secret.Text, bool) {
	values := h.Values("Authorization")
	if len(values) != 1 {
		return secret.Text{}, false
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	token = strings.TrimSpace(token)
	return secret.New(token), strings.EqualFold(scheme, "Bearer") && token != ""
}

// checkQuery refuses a query string of which a part would be dropped unseen.
func checkQuery(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := url.ParseQuery(r.URL.RawQuery); err != nil {
			writeError(w, http.StatusBadRequest, fmt.Sprintf("the query string cannot be read: %v", err))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// headAsGet routes HEAD as GET: net/http leaves out the body by itself. (chi's
// own middleware asks the router around this one, which takes every method.)
func headAsGet(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			chi.RouteContext(r.Context()).RouteMethod = http.MethodGet
		}
		next.ServeHTTP(w, r)
	})
}

// strictBody refuses a body that the generated code would read with leniency:
// unknown fields, a second value, another type, too many bytes. Only one
// operation has a body.
func (s *Server) strictBody(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			next.ServeHTTP(w, r)
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			s.refuse(w, r, fmt.Errorf("read body: %w", err))
			return
		}
		if err := checkBody(r.Header.Get("Content-Type"), body, bodyOf(r)); err != nil {
			s.refuse(w, r, err)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		next.ServeHTTP(w, r)
	})
}

// bodyOf returns what the body of a request is decoded into, by its operation.
func bodyOf(r *http.Request) any {
	switch path := chi.RouteContext(r.Context()).RoutePattern(); {
	case strings.HasSuffix(path, "/pools/{name}/rollout"):
		return new(api.RolloutRequest)
	case strings.HasSuffix(path, "/pools/{name}/rollback"):
		return new(api.RollbackRequest)
	case strings.HasSuffix(path, "/enrolment-tokens"):
		return new(api.EnrolmentRequest)
	default:
		return new(struct{}) // it has no field
	}
}

func checkBody(contentType string, body []byte, into any) error {
	if len(body) == 0 {
		return nil
	}
	if kind, _, err := mime.ParseMediaType(contentType); err != nil || kind != "application/json" {
		return refusal{http.StatusUnsupportedMediaType, fmt.Sprintf("the body is of type %q: want application/json", contentType)}
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return refusal{http.StatusBadRequest, fmt.Sprintf("the body is not as it should be: %v", err)}
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return refusal{http.StatusBadRequest, "the body has more after its JSON object"}
	}
	return nil
}
