// SPDX-License-Identifier: MIT

package githubsim

import (
	"encoding/json"
	"io"
	"net/http"
	"time"
)

// The Actions service lives below one prefix, in place of the several hosts of the real one.
const (
	servicePrefix = "/_services/"
	tokenPath     = "/_services/token/_apis/oauth2/token/"
	pipelinesPath = "/_services/pipelines"
	brokerPath    = "/_services/broker"
	runPath       = "/_services/run"
	resultsPath   = "/_services/results"
	blobPath      = "/_services/blob"
	feedPath      = "/_services/feed"
)

func (s *Sim) serviceHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+tokenPath, s.exchangeToken)
	s.pipelineRoutes(mux)
	s.brokerRoutes(mux)
	s.resultsRoutes(mux)
	s.scaleSetRoutes(mux)
	mux.HandleFunc("GET "+feedPath, s.serveFeed)
	return mux
}

// serveService applies faults to the Actions service.
func (s *Sim) serveService(w http.ResponseWriter, r *http.Request, service http.Handler) {
	fault := s.faults.forCall(r, false)
	if fault == nil {
		service.ServeHTTP(w, r)
		return
	}
	switch fault.Kind {
	case FaultDrop:
		panic(http.ErrAbortHandler)
	case FaultStatus, FaultRetryAfter:
		a := fault.answer()
		for name, values := range a.header {
			w.Header()[name] = values
		}
		reply(w, a.status, a.body)
	case FaultTimeoutAfterSuccess:
		service.ServeHTTP(&unanswered{header: http.Header{}}, r)
		s.pause(r, fault.Delay)
		if fault.Status == 0 {
			panic(http.ErrAbortHandler)
		}
		reply(w, fault.Status, object{"message": http.StatusText(fault.Status)})
	default:
		if s.pause(r, fault.Delay) {
			service.ServeHTTP(w, r)
		}
	}
}

// unanswered swallows an answer that the client must not see.
type unanswered struct{ header http.Header }

func (u *unanswered) Header() http.Header         { return u.header }
func (u *unanswered) Write(b []byte) (int, error) { return len(b), nil }
func (u *unanswered) WriteHeader(int)             {}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	if body != nil {
		_, _ = w.Write(marshal(body)) // the client may have gone; there is nobody else to tell
	}
}

// serviceError is the older service's error.
func serviceError(w http.ResponseWriter, status int, kind, message string) {
	reply(w, status, object{"$id": "1", "typeKey": kind, "typeName": "GitHub." + kind, "message": message})
}

// brokerError is the broker's error.
func brokerError(w http.ResponseWriter, status int, kind, message string) {
	reply(w, status, object{"source": "actions-broker-listener", "errorKind": kind, "statusCode": status, "errorMessage": message})
}

// runError is the run service's error.
func runError(w http.ResponseWriter, status int, message string) {
	reply(w, status, object{"source": "actions-run-service", "statusCode": status, "errorMessage": message})
}

// asRunner serves a call that a runner makes with its own token, under the lock.
func (s *Sim) asRunner(serve func(w http.ResponseWriter, r *http.Request, ru *runner)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		ru, bad := s.callingRunner(r)
		if bad {
			serviceError(w, http.StatusUnauthorized, "VssUnauthorizedException", "The token is unknown or has expired.")
			return
		}
		serve(w, r, ru)
	}
}

// asJob serves a call that a runner makes with the token of its job, under the
// lock. A nil answer is an empty 200.
func (s *Sim) asJob(serve func(j *job, r *http.Request, body []byte) any) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyLimit))
		if err != nil {
			serviceError(w, http.StatusBadRequest, "VssInvalidRequestException", "The body cannot be read.")
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		j := s.jobTokens[bearer(r)]
		if j == nil || j.done() {
			serviceError(w, http.StatusUnauthorized, "VssUnauthorizedException", "The job's token is unknown or has expired.")
			return
		}
		reply(w, http.StatusOK, serve(j, r, body))
	}
}

// callingRunner finds the runner that a token belongs to. The caller holds mu.
func (s *Sim) callingRunner(r *http.Request) (ru *runner, bad bool) {
	got, known := s.runnerTokens[bearer(r)]
	if !known || got.of.removed() || time.Now().After(got.expires) {
		return nil, true
	}
	return got.of, false
}

// decodeLoose reads what a runner sends; a field that does not fit stays empty,
// as the real service ignores what it does not know.
func decodeLoose[T any](body []byte) (v T) {
	_ = json.Unmarshal(body, &v)
	return v
}
