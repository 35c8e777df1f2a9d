// SPDX-License-Identifier: MIT

package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/minifleet/minifleet/secret"
)

// fuzzJIT is a JIT config as GitHub writes one: base64 of a JSON object.
const fuzzJIT = "eyIucnVubmVyIjoiZTMwPSIsIi5jcmVkZW50aWFscyI6ImUzMD0ifQ=="

func fuzzAgent(t *testing.T) *Agent {
	t.Helper()
	a, err := New(Config{RunnerDir: filepath.Join(t.TempDir(), "no-runner-here")})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// FuzzOutput lets a listener print anything, pad bytes before it, and exit with any
// code: what the guest makes of it never contradicts itself, is believed by the host,
// and holds nothing of the JIT config.
func FuzzOutput(f *testing.F) {
	f.Fuzz(func(t *testing.T, output []byte, pad uint32, code int, relaunches uint8, ended bool) {
		a := fuzzAgent(t)
		a.update(func(s *Status) { s.HasConfig, s.Phase = true, PhaseStarting })
		h := history{relaunches: int(relaunches)}
		output = append(bytes.Repeat([]byte{'p'}, int(pad%(2*maxLine))), output...)
		readLines(bytes.NewReader(output), a.follow(secret.New(fuzzJIT), &h))
		h.end(launchEnd{code: code})
		h.ended = ended
		running, _ := a.Status()
		if err := running.check(); err != nil {
			t.Fatalf("before the end: %v: %+v", err, running)
		}
		v := judge(h, 3)
		switch {
		case v.reason == "":
			t.Fatalf("no reason: %+v", v)
		case v.again != againNo && (h.seen.running || h.ended || h.relaunches >= 3 || v.outcome != "" || v.result != ""):
			t.Fatalf("started again: %+v after %+v", v, h)
		case v.again == againNo && (v.outcome == OutcomeJob) != (v.result != ""):
			t.Fatalf("outcome %s with result %q", v.outcome, v.result)
		case v.outcome == OutcomeJob && !h.seen.running && (code < exitResult || code >= exitResult+len(exitResults)):
			t.Fatalf("a job that never ran: %+v", v)
		}
		if v.again == againNo {
			a.finish(h, v)
			last, _ := a.Status()
			wire, err := json.Marshal(last)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := decodeStatus(wire); err != nil {
				t.Fatalf("the host does not believe %s: %v", wire, err)
			}
			if (running.Phase == PhaseBusy) != !last.Runner.BusyAt.IsZero() {
				t.Fatalf("busy, and then %+v", last)
			}
		}
		// A part of a secret is as bad as the whole where it is long enough to tell.
		text := a.tail.bytes()
		if i := bytes.LastIndexByte(text[:max(len(text)-1, 0)], '\n'); bytes.Contains(text, []byte(fuzzJIT)) ||
			len(text) > maxLine && bytes.HasSuffix(text[i+1:], []byte(fuzzJIT[:20]+"\n")) {
			t.Fatalf("the tail shows the JIT config: %q", text[max(0, len(text)-200):])
		}
	})
}

// FuzzRun gives the guest any request for a run: what it refuses changes nothing and is
// not quoted, what it takes is fit for a process's environment.
func FuzzRun(f *testing.F) {
	f.Fuzz(func(t *testing.T, body []byte) {
		a := fuzzAgent(t)
		w := ask(a, "run", body)
		var req runRequest
		known := json.Unmarshal(body, &req) == nil
		s, _ := a.Status()
		switch w.Code {
		case http.StatusAccepted:
			if !known || checkJIT(req.JITConfig) != nil || checkEnv(req.Env) != nil || !s.HasConfig {
				t.Fatalf("taken: %+v", s)
			}
			for _, kv := range a.environ(secret.New(req.JITConfig), req.Env) {
				if strings.ContainsRune(kv, 0) || !strings.Contains(kv, "=") {
					t.Fatalf("environment has %q", kv)
				}
			}
			if again := ask(a, "run", body); again.Code != http.StatusConflict {
				t.Fatalf("taken twice: %d", again.Code)
			}
		case http.StatusBadRequest:
			if s.HasConfig || s.Revision != 1 || s.Phase != PhaseReady {
				t.Fatalf("refused, but %+v", s)
			}
			if said := refusalOf(t, w); known && len(req.JITConfig) > 12 && strings.Contains(said, req.JITConfig) && strings.Count(string(body), req.JITConfig) == 1 {
				t.Fatalf("the refusal shows the config: %s", said)
			}
		default:
			t.Fatalf("answer %d", w.Code)
		}
		a.close()
		if s, _ := a.Status(); s.check() != nil || s.HasConfig != (s.Phase == PhaseFinished) {
			t.Fatalf("at the end: %+v", s)
		}
	})
}

// FuzzAsk gives the guest any other request; none of them changes a guest without a
// runner, and none makes it wait for longer than it may.
func FuzzAsk(f *testing.F) {
	f.Fuzz(func(t *testing.T, query string, body []byte) {
		a := fuzzAgent(t)
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/status", nil)
		r.URL.RawQuery = query
		if _, wait, err := parseWait(r); wait < 0 || wait > maxWait || err != nil && len(err.Error()) > maxReasonBytes {
			t.Fatalf("wait of %v, %v", wait, err)
		}
		var end endRequest
		w := ask(a, "end", body)
		if good := w.Code == http.StatusAccepted; good && (json.Unmarshal(body, &end) != nil || end.GraceSeconds < 0) {
			t.Fatalf("taken: %s", body)
		} else if !good {
			refusalOf(t, w)
		}
		if asked, _, _ := a.ending.get(); asked {
			t.Fatal("an end before the config is remembered")
		}
		if s, _ := a.Status(); s.Revision != 1 {
			t.Fatalf("changed: %+v", s)
		}
		a.close()
	})
}

func ask(a *Agent, path string, body []byte) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	a.handler().ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/v1/"+path, bytes.NewReader(body)))
	return w
}

func refusalOf(t *testing.T, w *httptest.ResponseRecorder) string {
	t.Helper()
	var e errorBody
	if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || w.Code != http.StatusBadRequest || e.Error == "" || len(e.Error) > maxReasonBytes {
		t.Fatalf("refused with %d: %s (%v)", w.Code, w.Body, err)
	}
	return e.Error
}

// FuzzAnswer lets a guest answer each question of the host with any bytes on the
// connection: what comes back to the caller is bounded, printable and consistent.
func FuzzAnswer(f *testing.F) {
	f.Fuzz(func(t *testing.T, raw []byte) {
		c := NewClient(func(context.Context) (net.Conn, error) { return newReplay(raw), nil })
		defer c.Close()
		ctx := t.Context()
		health, err := c.Health(ctx)
		said(t, err)
		if err == nil && (checkGreeting(health.Protocol, health.Instance) != nil || health.Version != printable(health.Version, 64, false)) {
			t.Fatalf("health %+v", health)
		}
		status, err := c.Status(ctx, 0, 0)
		said(t, err)
		if err == nil && (status.check() != nil || status.Runner.Reason != printable(status.Runner.Reason, maxReasonBytes, false)) {
			t.Fatalf("status %+v", status)
		}
		tail, err := c.Tail(ctx)
		said(t, err)
		if tail != printable(tail, maxTailBytes, true) {
			t.Fatalf("tail %q", tail)
		}
		var diag bytes.Buffer
		said(t, c.Diag(ctx, &diag))
		if diag.Len() > len(raw) {
			t.Fatalf("%d bytes became %d", len(raw), diag.Len())
		}
		err = c.Run(ctx, secret.New(fuzzJIT), nil, nil)
		said(t, err)
		if err != nil && strings.Contains(err.Error(), fuzzJIT) && !bytes.Contains(raw, []byte(fuzzJIT)) {
			t.Fatalf("the error shows the JIT config: %v", err)
		}
		said(t, c.End(ctx, time.Second))
		said(t, c.Shutdown(ctx))
	})
}

// said checks that an error is fit for a line in a log, for the guest can choose words in it.
func said(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	text := err.Error()
	if len(text) > 4*maxReasonBytes || !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
		t.Fatalf("error of %d bytes: %.200q", len(text), text)
	}
}

// replay is a connection to a guest that answers whatever is asked with the same bytes,
// and hangs up.
type replay struct {
	answer io.Reader
	asked  chan struct{}
	once   sync.Once
}

func newReplay(raw []byte) *replay {
	return &replay{answer: bytes.NewReader(raw), asked: make(chan struct{})}
}

func (r *replay) Read(p []byte) (int, error) {
	<-r.asked
	return r.answer.Read(p)
}

func (r *replay) Write(p []byte) (int, error) {
	r.once.Do(func() { close(r.asked) })
	return len(p), nil
}

func (r *replay) Close() error {
	r.once.Do(func() { close(r.asked) })
	return nil
}

func (*replay) LocalAddr() net.Addr { return &net.UnixAddr{Name: "guest.sock", Net: "unix"} }

func (*replay) RemoteAddr() net.Addr             { return &net.UnixAddr{Name: "guest.sock", Net: "unix"} }
func (*replay) SetDeadline(time.Time) error      { return nil }
func (*replay) SetReadDeadline(time.Time) error  { return nil }
func (*replay) SetWriteDeadline(time.Time) error { return nil }
