// SPDX-License-Identifier: MIT

package githubsim

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"strings"
	"time"
)

// call is one REST call on its way.
type call struct {
	*http.Request
	sim  *Sim
	who  principal
	base string
	now  time.Time
	body []byte
}

// endpoint answers a call. It runs under the Sim's lock unless its route says otherwise.
type endpoint func(c *call) *answer

// access says who may use a route.
type access int

const (
	anyone access = iota
	appOnly
	installationOnly
)

type route struct {
	pattern string
	access  access
	free    bool // of rate limits
	serve   endpoint
}

func (s *Sim) restRoutes() []route {
	routes := []route{
		{"GET /meta", anyone, false, s.getMeta},
		{"GET /rate_limit", anyone, true, s.getRateLimit},
		{"GET /repos/{owner}/{repo}", installationOnly, false, s.getRepo},
	}
	routes = append(routes, s.appRoutes()...)
	routes = append(routes, s.hookRoutes()...)
	routes = append(routes, s.runRoutes()...)
	return append(routes, s.runnerRoutes()...)
}

// routes builds the handler of everything.
func (s *Sim) routes() http.Handler {
	rest := http.NewServeMux()
	for _, r := range s.restRoutes() {
		rest.HandleFunc(r.pattern, func(w http.ResponseWriter, req *http.Request) { s.serveREST(w, req, r) })
	}
	rest.HandleFunc("/", func(w http.ResponseWriter, req *http.Request) {
		s.serveREST(w, req, route{access: anyone, serve: func(*call) *answer { return notFound() }})
	})
	control, service, pages := s.controlHandler(), s.serviceHandler(), s.webPages()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch path := r.URL.Path; {
		case strings.HasPrefix(path, controlPrefix):
			control.ServeHTTP(w, r)
		case strings.HasPrefix(path, servicePrefix):
			s.serveService(w, r, service)
		case isPage(path):
			pages.ServeHTTP(w, r)
		case s.opt.Enterprise != "":
			s.enterprise(http.StripPrefix(enterprisePrefix, rest)).ServeHTTP(w, r)
		default:
			http.StripPrefix(strings.TrimSuffix(apiPrefix(path), "/"), rest).ServeHTTP(w, r)
		}
	})
}

// apiPrefix is the prefix of an Enterprise Server's API, which clients may use here too.
func apiPrefix(path string) string {
	if strings.HasPrefix(path, "/api/v3/") {
		return "/api/v3/"
	}
	return ""
}

const bodyLimit = 10 << 20

// serveREST is what all REST calls have in common: faults, latency,
// authentication, limits, and the writing of the answer.
func (s *Sim) serveREST(w http.ResponseWriter, r *http.Request, rt route) {
	fault := s.faults.forCall(r, true)
	wait := s.opt.Latency
	if fault != nil {
		wait += map[FaultKind]time.Duration{FaultDelay: fault.Delay, FaultTimeoutAfterSuccess: fault.Delay}[fault.Kind]
	}
	note := Request{At: time.Now(), Method: r.Method, Path: r.URL.Path}
	defer func() { s.record(note) }()
	if fault != nil {
		note.Fault = string(fault.Kind)
		if fault.Kind == FaultDrop {
			panic(http.ErrAbortHandler)
		}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyLimit))
	if err != nil {
		s.write(w, fail(http.StatusBadRequest, "Problems reading the request body"), &note)
		return
	}
	if fault != nil && (fault.Kind == FaultStatus || fault.Kind == FaultRetryAfter) {
		s.write(w, fault.answer(), &note)
		return
	}
	a, bucket := s.dispatch(r, rt, body, wait)
	if a == nil {
		return // the client or the Sim has gone
	}
	if bucket != "" {
		if a.header == nil {
			a.header = http.Header{}
		}
		s.limits.headers(bucket, a.header)
	}
	if fault != nil && fault.Kind == FaultTimeoutAfterSuccess {
		if fault.Status == 0 {
			panic(http.ErrAbortHandler)
		}
		a = fail(fault.Status, "We couldn't respond to your request in time.")
	}
	if s.unchanged(r, a) {
		s.limits.refund(bucket)
		s.limits.headers(bucket, a.header)
	}
	s.write(w, a, &note)
}

// dispatch authenticates, charges and serves a call, and holds the answer back
// for a while; meanwhile the call counts as one of the concurrent ones. bucket is
// empty if no limit applied, and the answer nil if nobody waits for it any more.
func (s *Sim) dispatch(r *http.Request, rt route, body []byte, hold time.Duration) (a *answer, bucket string) {
	s.mu.Lock()
	who, refused := s.authenticate(r)
	base := s.base(r)
	s.mu.Unlock()
	if rt.access == anyone && bearer(r) == "" {
		refused = nil
	}
	if refused != nil {
		return refused, ""
	}
	bucket = who.bucket()
	if !rt.free {
		leave, refused := s.limits.enter(bucket, r.Method)
		defer leave()
		if refused != nil {
			return refused, bucket
		}
	}
	switch {
	case rt.access == appOnly && !who.app:
		return fail(http.StatusUnauthorized, "A JSON web token could not be decoded"), bucket
	case rt.access == installationOnly && who.token == nil:
		return fail(http.StatusForbidden, "Resource not accessible by integration"), bucket
	}
	a = rt.serve(&call{Request: r, sim: s, who: who, base: base, now: time.Now(), body: body})
	if !s.pause(r, hold) {
		return nil, bucket
	}
	return a, bucket
}

// pause waits, and reports whether the call is still wanted.
func (s *Sim) pause(r *http.Request, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.Context().Done():
	case <-s.ctx.Done():
	}
	return false
}

// unchanged turns the answer to a conditional GET into a 304 if the client has it already.
func (s *Sim) unchanged(r *http.Request, a *answer) bool {
	if r.Method != http.MethodGet || a.status != http.StatusOK {
		return false
	}
	sum := sha256.Sum256(a.encode())
	etag := `W/"` + hex.EncodeToString(sum[:]) + `"`
	if a.header == nil {
		a.header = http.Header{}
	}
	a.header.Set("ETag", etag)
	if r.Header.Get("If-None-Match") != etag {
		return false
	}
	a.status, a.body, a.list, a.raw = http.StatusNotModified, nil, nil, nil
	a.header.Del("Link") // nobody promises it
	return true
}

func (s *Sim) write(w http.ResponseWriter, a *answer, note *Request) {
	note.Status = a.status
	h := w.Header()
	for name, values := range a.header {
		h[http.CanonicalHeaderKey(name)] = values
	}
	h.Set("X-GitHub-Request-Id", strings.ToUpper(newGUID()[:23]))
	body := a.encode()
	if body != nil {
		h.Set("Content-Type", "application/json; charset=utf-8")
		h.Set("X-GitHub-Media-Type", "github.v3; format=json")
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(body) // the client may have gone; there is nobody else to tell
}

const keptRequests = 10_000

func (s *Sim) record(note Request) {
	s.log.Debug("rest", "method", note.Method, "path", note.Path, "status", note.Status, "fault", note.Fault)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.requests) == keptRequests {
		s.requests = s.requests[1:]
	}
	s.requests = append(s.requests, note)
}
