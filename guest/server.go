// SPDX-License-Identifier: MIT

package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/secret"
)

// Serve answers the host on l until ctx ends or a host asks for shutdown; then
// it ends the runner, waits for it, and returns. It closes l. An Agent serves
// once.
func (a *Agent) Serve(ctx context.Context, l net.Listener) error {
	a.family.open()
	// Requests outlive ctx: who waits for a change is to see the runner's end.
	requests, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	srv := &http.Server{
		Handler:           a.handler(),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       5 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(a.cfg.Log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return requests },
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	s, _ := a.Status()
	a.cfg.Log.Info("guest serves", slog.String("instance", s.Instance), slog.String("address", l.Addr().String()))

	var err error
	select {
	case err = <-served:
		err = fmt.Errorf("guest listener %s: %w", l.Addr(), err)
		served <- nil
	case <-a.shutdown:
	case <-ctx.Done():
	}
	a.close()
	cancel()
	stopped, release := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer release()
	if srv.Shutdown(stopped) != nil {
		srv.Close()
	}
	<-served //nolint:errcheck // it was asked to end
	return err
}

func (a *Agent) handler() http.Handler {
	mux := http.NewServeMux()
	prefix := "/v" + strconv.Itoa(Protocol) + "/"
	mux.HandleFunc("GET "+prefix+"health", a.serveHealth)
	mux.HandleFunc("GET "+prefix+"status", a.serveStatus)
	mux.HandleFunc("POST "+prefix+"run", a.serveRun)
	mux.HandleFunc("POST "+prefix+"end", a.serveEnd)
	mux.HandleFunc("GET "+prefix+"tail", a.serveTail)
	mux.HandleFunc("GET "+prefix+"diag", a.serveDiag)
	mux.HandleFunc("POST "+prefix+"exec", a.serveExec)
	mux.HandleFunc("GET "+prefix+"files", a.serveGetFile)
	mux.HandleFunc("PUT "+prefix+"files", a.servePutFile)
	mux.HandleFunc("PUT "+prefix+"runner", a.serveInstall)
	mux.HandleFunc("POST "+prefix+"clock", a.serveClock)
	mux.HandleFunc("POST "+prefix+"resize", a.serveResize)
	mux.HandleFunc("POST "+prefix+"poweroff", a.servePowerOff)
	mux.HandleFunc("POST "+prefix+"shutdown", a.serveShutdown)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fail(w, http.StatusNotFound, fmt.Errorf("no %s %s here: this guest speaks protocol %d", clip(r.Method, 16), clip(r.URL.Path, 128), Protocol))
	})
	return mux
}

func (a *Agent) serveHealth(w http.ResponseWriter, r *http.Request) {
	s, _ := a.Status()
	reply(w, http.StatusOK, Health{
		Protocol: Protocol, Instance: s.Instance, Version: a.cfg.Version,
		SessionReady: a.session.ready(r.Context()), JobHook: true,
	})
}

func (a *Agent) serveStatus(w http.ResponseWriter, r *http.Request) {
	after, wait, err := parseWait(r)
	if err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		s, changed := a.Status()
		if s.Revision != after {
			reply(w, http.StatusOK, s)
			return
		}
		select {
		case <-changed:
		case <-timer.C:
			reply(w, http.StatusOK, s)
			return
		case <-r.Context().Done():
			reply(w, http.StatusOK, s)
			return
		}
	}
}

// parseWait reads after and wait. No after never waits: revisions begin at 1.
func parseWait(r *http.Request) (after uint64, wait time.Duration, err error) {
	q := r.URL.Query()
	if v := q.Get("after"); v != "" {
		if after, err = strconv.ParseUint(v, 10, 64); err != nil {
			return 0, 0, fmt.Errorf("after=%q: give the revision of an earlier status", clip(v, 32))
		}
	}
	if v := q.Get("wait"); v != "" {
		seconds, err := strconv.ParseFloat(v, 64)
		if err != nil || math.IsNaN(seconds) || seconds < 0 {
			return 0, 0, fmt.Errorf("wait=%q: give a number of seconds", clip(v, 32))
		}
		wait = toDuration(seconds, maxWait)
	}
	return after, wait, nil
}

func toDuration(seconds float64, limit time.Duration) time.Duration {
	return time.Duration(min(seconds, limit.Seconds()) * float64(time.Second))
}

func (a *Agent) serveRun(w http.ResponseWriter, r *http.Request) {
	var req runRequest
	if err := decode(w, r, &req); err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	if err := checkJIT(req.JITConfig); err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	if err := checkEnv(req.Env); err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	if req.Trust != nil {
		if err := req.Trust.Validate(); err != nil {
			fail(w, http.StatusBadRequest, err)
			return
		}
	}
	crashpoint.Reached(crashpoint.GuestReceived)
	err := a.start(secret.New(req.JITConfig), req.Env, req.Trust)
	switch {
	case errors.Is(err, ErrHasConfig):
		fail(w, http.StatusConflict, err)
	case errors.Is(err, errHook): // it will not work another time either
		fail(w, http.StatusUnprocessableEntity, err)
	case err != nil:
		fail(w, http.StatusServiceUnavailable, err)
	default:
		crashpoint.Reached(crashpoint.GuestTaken)
		w.WriteHeader(http.StatusAccepted)
	}
}

// checkJIT refuses what cannot be a JIT config, without repeating any of it.
func checkJIT(jit string) error {
	switch {
	case jit == "":
		return errors.New("jit_config is missing")
	case len(jit) > maxJITBytes:
		return fmt.Errorf("jit_config has %d bytes: at most %d are taken", len(jit), maxJITBytes)
	case strings.ContainsFunc(jit, func(r rune) bool { return r <= ' ' || r > '~' }):
		return errors.New("jit_config is not base64: pass it on as GitHub gave it")
	}
	return nil
}

func (a *Agent) serveEnd(w http.ResponseWriter, r *http.Request) {
	var req endRequest
	if err := decode(w, r, &req); err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	if req.GraceSeconds < 0 {
		fail(w, http.StatusBadRequest, errors.New("grace_seconds cannot be negative"))
		return
	}
	crashpoint.Reached(crashpoint.GuestEndAsked)
	a.end(toDuration(req.GraceSeconds, maxGrace))
	w.WriteHeader(http.StatusAccepted)
}

func (a *Agent) serveShutdown(w http.ResponseWriter, r *http.Request) {
	if err := decode(w, r, &struct{}{}); err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	w.WriteHeader(http.StatusAccepted)
	a.stop()
}

func (a *Agent) serveTail(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Write(a.tail.bytes())
}

func (a *Agent) serveDiag(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/x-tar")
	if err := writeDiag(w, a.cfg.RunnerDir); err != nil {
		a.cfg.Log.Warn("diag not sent whole", slog.Any("error", err))
		// The answer has begun: only breaking it off tells the host so.
		panic(http.ErrAbortHandler)
	}
}

const bodyTimeout = 30 * time.Second

// decode reads one JSON value, no larger than a request may be, without
// unknown fields and with nothing after it.
func decode(w http.ResponseWriter, r *http.Request, into any) error {
	// Only while the body is read: a deadline for the whole connection would
	// also end the answers that wait for a change.
	rc := http.NewResponseController(w)
	rc.SetReadDeadline(time.Now().Add(bodyTimeout))
	defer rc.SetReadDeadline(time.Time{})
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequestBytes))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return fmt.Errorf("request body: %w", scrub(err))
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("request body: more than one JSON value")
	}
	return nil
}

// scrub keeps a type error from quoting the value that it met: the body holds
// a secret.
func scrub(err error) error {
	if te, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Errorf("field %q has the wrong type", te.Field)
	}
	return err
}

func reply(w http.ResponseWriter, code int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err) // our own types always marshal
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	w.Write(append(body, '\n'))
}

func fail(w http.ResponseWriter, code int, err error) {
	reply(w, code, errorBody{Error: clip(err.Error(), maxReasonBytes)})
}
