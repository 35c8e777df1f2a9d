// SPDX-License-Identifier: MIT

package admin_test

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/go-chi/chi/v5"

	"github.com/minifleet/minifleet/admin"
	"github.com/minifleet/minifleet/admin/admintest"
	"github.com/minifleet/minifleet/secret"
)

const operatorToken = "operator-token-of-the-tests"

// logBuffer collects what the server logs.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

type harness struct {
	url   string
	store *admintest.Store
	log   *logBuffer
}

// start serves the API beside another route, as a controller may.
func start(t testing.TB, store *admintest.Store, change ...func(*admin.Config)) harness {
	t.Helper()
	h := harness{store: store, log: &logBuffer{}}
	cfg := admin.Config{
		Token: secret.New(operatorToken), Store: store, Explainer: store, Enroller: store, Roller: store, Runners: store,
		Pools: admintest.Pools(), Version: "v0.1.0", Now: admintest.Now, Log: slog.New(slog.NewTextHandler(h.log, nil)),
	}
	for _, c := range change {
		c(&cfg)
	}
	server, err := admin.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	router := chi.NewRouter()
	router.Get("/other", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "other") })
	server.Routes(router)
	listener := httptest.NewServer(router)
	t.Cleanup(listener.Close)
	h.url = listener.URL
	return h
}

type answer struct {
	status int
	header http.Header
	body   string
}

// errorText returns the sentence of an error, "" for an answer that is none.
func (a answer) errorText() string {
	var e struct{ Error string }
	if json.Unmarshal([]byte(a.body), &e) != nil {
		return ""
	}
	return e.Error
}

// send makes one request with the operator's token, unless the headers have
// another.
func (h harness) send(t testing.TB, method, path, body string, header ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, h.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+operatorToken)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
		if header[i+1] == "" {
			req.Header.Del(header[i])
		}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(text)}
}

func (h harness) get(t testing.TB, path string) answer {
	t.Helper()
	return h.send(t, http.MethodGet, path, "")
}
