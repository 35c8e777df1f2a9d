// SPDX-License-Identifier: MIT

package guest_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/secret"
)

func TestStatusOnTheWire(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 21, 20, 42, 41, 500e6, time.UTC)
	tests := []struct {
		name   string
		status guest.Status
		want   string
	}{
		{
			"ready",
			guest.Status{Protocol: 1, Instance: strings.Repeat("0a", 16), Revision: 1, Phase: guest.PhaseReady},
			`{"protocol":1,"instance":"0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a","revision":1,"phase":"ready","has_config":false}`,
		},
		{
			"finished",
			guest.Status{
				Protocol: 1, Instance: strings.Repeat("0a", 16), Revision: 9, Phase: guest.PhaseFinished, HasConfig: true,
				Runner: guest.Runner{
					StartedAt: at, IdleAt: at, BusyAt: at, FinishedAt: at, Result: guest.ResultFailed, ExitCode: new(0),
					Outcome: guest.OutcomeJob, Reason: "the job ended: failed", Relaunches: 1, Version: "2.336.0",
				},
			},
			`{"protocol":1,"instance":"0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a","revision":9,"phase":"finished","has_config":true,` +
				`"runner":{"started_at":"2026-11-21T20:42:41.5Z","idle_at":"2026-11-21T20:42:41.5Z","busy_at":"2026-11-21T20:42:41.5Z","finished_at":"2026-11-21T20:42:41.5Z",` +
				`"result":"failed","exit_code":0,"outcome":"job","reason":"the job ended: failed","relaunches":1,"runner_version":"2.336.0"}}`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := json.Marshal(tt.status)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, string(got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			back, err := answering(t, http.StatusOK, tt.want).Status(t.Context(), 0, 0)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.status, back); diff != "" {
				t.Errorf("back (-want +got):\n%s", diff)
			}
		})
	}
}

// answering returns a client of a guest that gives every request one answer.
func answering(t *testing.T, code int, body string) *guest.Client {
	t.Helper()
	return clientOf(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		io.WriteString(w, body)
	})
}

func clientOf(t *testing.T, h http.HandlerFunc) *guest.Client {
	t.Helper()
	srv := httptest.NewServer(h)
	c := guest.NewClient(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", srv.Listener.Addr().String())
	})
	t.Cleanup(func() {
		c.Close()
		srv.Close()
	})
	return c
}

func TestClientRefusesStatus(t *testing.T) {
	t.Parallel()
	const good = `{"protocol":1,"instance":"0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a","revision":2,"phase":"busy","has_config":true,"runner":{"relaunches":1}}`
	if _, err := answering(t, http.StatusOK, good).Status(t.Context(), 0, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := answering(t, http.StatusOK, strings.Replace(good, `"phase"`, `"news":{},"phase"`, 1)).Status(t.Context(), 0, 0); err != nil {
		t.Errorf("a field of a newer guest: %v", err)
	}
	tests := []struct{ name, old, new string }{
		{"no JSON", good, "hello"},
		{"nothing", good, ""},
		{"more than one", good, good + good},
		{"other protocol", `"protocol":1`, `"protocol":2`},
		{"instance of another form", "0a0a", "../.."},
		{"no revision", `"revision":2`, `"revision":0`},
		{"negative revision", `"revision":2`, `"revision":-2`},
		{"unknown phase", "busy", "dancing"},
		{"no phase", "busy", ""},
		{"busy without a config", `"has_config":true`, `"has_config":false`},
		{"ready with a config", "busy", "ready"},
		{"unknown result", `"relaunches":1`, `"result":"fine"`},
		{"outcome before the end", `"relaunches":1`, `"outcome":"job"`},
		{"end without an outcome", "busy", "finished"},
		{"end with an unknown outcome", `"phase":"busy","has_config":true,"runner":{`, `"phase":"finished","has_config":true,"runner":{"outcome":"fine",`},
		{"job without a result", `"phase":"busy","has_config":true,"runner":{`, `"phase":"finished","has_config":true,"runner":{"outcome":"job",`},
		{"relaunches below nothing", `"relaunches":1`, `"relaunches":-1`},
		{"relaunches beyond belief", `"relaunches":1`, `"relaunches":100000`},
		{"version that is none", `"relaunches":1`, `"runner_version":"<script>"`},
		{"time that is none", `"relaunches":1`, `"busy_at":"yesterday"`},
		{"too large", `"relaunches":1`, `"reason":"` + strings.Repeat("x", 70<<10) + `"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			body := strings.Replace(good, tt.old, tt.new, 1)
			if body == good {
				t.Fatal("nothing was replaced")
			}
			s, err := answering(t, http.StatusOK, body).Status(t.Context(), 0, 0)
			if err == nil {
				t.Errorf("taken: %+v", s)
			}
			if err != nil && len(err.Error()) > 400 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
		})
	}
}

func TestClientCleansText(t *testing.T) {
	t.Parallel()
	c := clientOf(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/tail"):
			io.WriteString(w, "a\x1b[2Jb\tc\r\n\xff\u202ed\n")
		case strings.HasSuffix(r.URL.Path, "/status"):
			reason, _ := json.Marshal("line\none\x1b]0;title\x07" + strings.Repeat("ü", 4000))
			fmt.Fprintf(w, `{"protocol":1,"instance":"0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a","revision":2,"phase":"finished","has_config":true,"runner":{"outcome":"crashed","reason":%s}}`, reason)
		default:
			w.WriteHeader(http.StatusTeapot)
			io.WriteString(w, `{"error":"no\u001b[31m tea"}`)
		}
	})
	tail, err := c.Tail(t.Context())
	if want := "a[2Jb\tc\n\uFFFDd\n"; err != nil || tail != want {
		t.Errorf("tail %q, %v; want %q", tail, err, want)
	}
	s, err := c.Status(t.Context(), 0, 0)
	if err != nil || !strings.HasPrefix(s.Runner.Reason, "lineone]0;titleü") || len(s.Runner.Reason) > 1024 {
		t.Errorf("reason %q, %v", s.Runner.Reason, err)
	}
	err = c.End(t.Context(), 0)
	if re, ok := errors.AsType[*guest.ResponseError](err); !ok || re.Code != http.StatusTeapot || re.Message != "no[31m tea" {
		t.Errorf("error %#v", err)
	}
}

func TestClientAgainstHostileAnswers(t *testing.T) {
	t.Parallel()
	endless := func(w http.ResponseWriter, _ *http.Request) {
		for {
			if _, err := w.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	}
	redirect := func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://127.0.0.1:1/elsewhere", http.StatusTemporaryRedirect)
	}
	calls := map[string]func(context.Context, *guest.Client) error{
		"health": func(ctx context.Context, c *guest.Client) error { _, err := c.Health(ctx); return err },
		"status": func(ctx context.Context, c *guest.Client) error { _, err := c.Status(ctx, 0, 0); return err },
		"tail":   func(ctx context.Context, c *guest.Client) error { _, err := c.Tail(ctx); return err },
		"diag":   func(ctx context.Context, c *guest.Client) error { return c.Diag(ctx, io.Discard) },
		"run":    func(ctx context.Context, c *guest.Client) error { return c.Run(ctx, secret.New(jit), nil, nil) },
		"end":    func(ctx context.Context, c *guest.Client) error { return c.End(ctx, 0) },
		"exec": func(ctx context.Context, c *guest.Client) error {
			_, err := c.Exec(ctx, guest.ExecRequest{Argv: []string{"true"}, Env: map[string]string{"SECRET": jit}}, io.Discard, io.Discard)
			return err
		},
		"get": func(ctx context.Context, c *guest.Client) error {
			_, err := c.GetFile(ctx, "/x", 1<<20, io.Discard)
			return err
		},
		"shutdown": func(ctx context.Context, c *guest.Client) error { return c.Shutdown(ctx) },
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := call(t.Context(), clientOf(t, endless)); err == nil {
				t.Error("an endless answer is taken")
			}
			err := call(t.Context(), clientOf(t, redirect))
			if re, ok := errors.AsType[*guest.ResponseError](err); !ok || re.Code != http.StatusTemporaryRedirect {
				t.Errorf("a redirect is followed: %v", err)
			}
			if err != nil && strings.Contains(err.Error(), jit) {
				t.Errorf("the error tells the JIT config: %v", err)
			}
		})
	}
}

func TestServerRefusesRequests(t *testing.T) {
	t.Parallel()
	h := startGuest(t, officialIdle+waitForever)
	raw := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return h.dial(ctx) },
	}}
	t.Cleanup(raw.CloseIdleConnections)
	tests := []struct {
		name, method, path, body string
		code                     int
		want                     string
	}{
		{"nothing there", "GET", "/v1/nothing", "", 404, "protocol 1"},
		{"other protocol", "GET", "/v2/health", "", 404, "protocol 1"},
		{"other method", "GET", "/v1/run", "", 404, "no GET"},
		{"no body", "POST", "/v1/run", "", 400, "request body"},
		{"no JSON", "POST", "/v1/run", jit, 400, "request body"},
		{"unknown field", "POST", "/v1/run", `{"jit_config":"abc","more":1}`, 400, "unknown field"},
		{"two values", "POST", "/v1/run", `{"jit_config":"abc"}{}`, 400, "more than one"},
		{"no config", "POST", "/v1/run", `{}`, 400, "jit_config is missing"},
		{"config of another type", "POST", "/v1/run", `{"jit_config":{"a":"` + jit + `"}}`, 400, "wrong type"},
		{"config with spaces", "POST", "/v1/run", `{"jit_config":"` + jit + ` ` + jit + `"}`, 400, "not base64"},
		{"config with NUL", "POST", "/v1/run", `{"jit_config":"` + jit + `\u0000"}`, 400, "not base64"},
		{"config too long", "POST", "/v1/run", `{"jit_config":"` + strings.Repeat("A", 97<<10) + `"}`, 400, "at most"},
		{"body too long", "POST", "/v1/run", `{"jit_config":"` + strings.Repeat("A", 400<<10) + `"}`, 400, "too large"},
		{"variable without a name", "POST", "/v1/run", `{"jit_config":"abc","env":{"":"x"}}`, 400, "name"},
		{"variable with a wrong name", "POST", "/v1/run", `{"jit_config":"abc","env":{"A=B":"x"}}`, 400, "name"},
		{"variable with NUL", "POST", "/v1/run", `{"jit_config":"abc","env":{"A":"\u0000"}}`, 400, "NUL"},
		{"variable that is an argument", "POST", "/v1/run", `{"jit_config":"abc","env":{"Actions_Runner_Input_URL":"x"}}`, 400, "arguments"},
		{"grace below nothing", "POST", "/v1/end", `{"grace_seconds":-1}`, 400, "negative"},
		{"grace that is none", "POST", "/v1/end", `{"grace_seconds":"long"}`, 400, "wrong type"},
		{"revision that is none", "GET", "/v1/status?after=x", "", 400, "after"},
		{"wait that is none", "GET", "/v1/status?after=1&wait=NaN", "", 400, "wait"},
		{"wait below nothing", "GET", "/v1/status?after=1&wait=-1", "", 400, "wait"},
		{"shutdown with arguments", "POST", "/v1/shutdown", `{"now":true}`, 400, "unknown field"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), tt.method, "http://guest"+tt.path, strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := raw.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			var e struct {
				Error string `json:"error"`
			}
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(body, &e); err != nil {
				t.Fatalf("answer %q: %v", body, err)
			}
			if resp.StatusCode != tt.code || !strings.Contains(e.Error, tt.want) {
				t.Errorf("%d %q; want %d and %q", resp.StatusCode, e.Error, tt.code, tt.want)
			}
			if strings.Contains(e.Error, jit) {
				t.Errorf("the answer tells the JIT config: %q", e.Error)
			}
		})
	}
	if s, err := h.client.Status(h.ctx(), 0, 0); err != nil || s.Phase != guest.PhaseReady || s.Revision != 1 {
		t.Errorf("after refused requests: %+v, %v", s, err)
	}
}

func TestDiag(t *testing.T) {
	t.Parallel()
	h := startGuest(t, "exit 0")
	fetch := func() map[string]int {
		t.Helper()
		var buf bytes.Buffer
		if err := h.client.Diag(h.ctx(), &buf); err != nil {
			t.Fatal(err)
		}
		files := map[string]int{}
		for r := tar.NewReader(&buf); ; {
			f, err := r.Next()
			if errors.Is(err, io.EOF) {
				return files
			}
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			files[f.Name] = len(data)
		}
	}
	if got := fetch(); len(got) != 0 {
		t.Errorf("without a _diag folder: %v", got)
	}

	diag := filepath.Join(h.dir, "_diag")
	h.must(os.MkdirAll(filepath.Join(diag, "pages"), 0o755))
	write(t, filepath.Join(diag, "Runner_1.log"), "listener", 0o644)
	write(t, filepath.Join(diag, "pages", "p.1"), "", 0o644)
	write(t, filepath.Join(h.dir, ".credentials"), "secret", 0o600)
	h.must(os.Symlink("../.credentials", filepath.Join(diag, "Worker_link.log")))
	h.must(os.Symlink("/etc", filepath.Join(diag, "etc")))
	h.must(syscall.Mkfifo(filepath.Join(diag, "pipe.log"), 0o600))
	h.must(os.WriteFile(filepath.Join(diag, "Worker_big.log"), nil, 0o600))
	h.must(os.Truncate(filepath.Join(diag, "Worker_big.log"), 1<<30))
	want := map[string]int{"_diag/Runner_1.log": 8, "_diag/pages/p.1": 0, "_diag/Worker_big.log": 4 << 20}
	if diff := cmp.Diff(want, fetch()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	// More than fits: the newest, and no error.
	for i := range 20 {
		name := filepath.Join(diag, fmt.Sprintf("Worker_%02d.log", i))
		h.must(os.WriteFile(name, nil, 0o600))
		h.must(os.Truncate(name, 4<<20))
		at := time.Now().Add(time.Duration(i) * time.Minute)
		h.must(os.Chtimes(name, at, at))
	}
	got := fetch()
	if _, newest := got["_diag/Worker_19.log"]; !newest || len(got) >= 10 {
		t.Errorf("of too many files these were sent: %v", got)
	}

	// A folder that is a link out of the runner's is not followed.
	h.must(os.RemoveAll(diag))
	h.must(os.Symlink("/etc", diag))
	if err := h.client.Diag(h.ctx(), io.Discard); err == nil {
		t.Error("a _diag that leads elsewhere was sent")
	}
}

func TestConfigValidate(t *testing.T) {
	t.Parallel()
	err := guest.Config{StopGrace: -1, Env: map[string]string{"ACTIONS_RUNNER_INPUT_URL": "x"}}.Validate()
	if err == nil {
		t.Fatal("taken")
	}
	for _, want := range []string{"no runner folder", "negative", "ACTIONS_RUNNER_INPUT_URL"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	if _, err := guest.New(guest.Config{}); err == nil {
		t.Error("New takes it")
	}
}
