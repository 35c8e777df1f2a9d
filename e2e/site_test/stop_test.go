// SPDX-License-Identifier: MIT

package site_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
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

	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/secret"
)

// stopping waits until a program that was told to stop says that it does so.
func (p *program) stopping() {
	p.t.Helper()
	p.await("it says that it stops", func(out string) bool { return strings.Contains(out, `msg="stopping: signal again to end at once"`) })
}

// TestSecondSignal holds every program but the vmm (see its own tests) up in the middle of its graceful stop and
// tells it again: it is gone, and its exit status says by which signal.
func TestSecondSignal(t *testing.T) {
	turn(t)
	for name, hold := range map[string]func(*testing.T) *program{
		"controller":      heldController,
		"agent":           heldAgent,
		"simulated hosts": heldSimulation,
		"guest":           heldGuest,
		"githubsim":       heldGitHub,
		"standin":         heldStandin,
	} {
		t.Run(name, func(t *testing.T) {
			p := hold(t)
			p.signal(syscall.SIGTERM)
			p.stopping()
			p.signal(syscall.SIGINT)
			_, _ = p.exit()
			if status := p.cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGINT {
				t.Errorf("it ended with %v, not by the second signal", p.cmd.ProcessState)
			}
		})
	}
}

// openRequest begins a request whose body does not come, and returns when its handler
// waits for it.
func openRequest(t *testing.T, url, path string, length int) net.Conn {
	t.Helper()
	host := strings.TrimPrefix(url, "http://")
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"+
		"X-GitHub-Event: ping\r\nX-GitHub-Delivery: 0b5a5c1e-4b57-4f0e-9c3a-8a8a8a8a8a8a\r\nX-Hub-Signature-256: sha256=%064d\r\nExpect: 100-continue\r\n\r\n",
		path, host, length, 0)
	line, err := bufio.NewReader(io.LimitReader(c, 25)).ReadString('\n')
	if err != nil || !strings.Contains(line, "100 Continue") {
		t.Fatalf("the server answers %q, %v", line, err)
	}
	return c
}

func heldController(t *testing.T) *program {
	s := newSite(t)
	p := s.startController()
	openRequest(t, s.webhook, "/webhook", 100)
	return p
}

// A request that is under way when the controller is told to stop is answered.
func TestControllerFinishesRequests(t *testing.T) {
	turn(t)
	s := newSite(t)
	p := s.startController()
	c := openRequest(t, s.webhook, "/webhook", 2)
	p.signal(syscall.SIGTERM)
	p.stopping()
	fmt.Fprint(c, "{}")
	answers := bufio.NewReader(c)
	var res *http.Response
	for res == nil || res.StatusCode == http.StatusContinue {
		var err error
		if res, err = http.ReadResponse(answers, nil); err != nil {
			t.Fatal(err)
		}
	}
	if res.StatusCode != http.StatusUnauthorized {
		t.Errorf("the delivery with a bad signature is answered with %s", res.Status)
	}
	if code, out := p.exit(); code != 0 || !strings.Contains(out, "msg=stopped") {
		t.Errorf("exit status %d", code)
	}
}

// fifo makes a file that keeps everyone waiting who opens it.
func fifo(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// opened waits until somebody has opened the other end of a fifo.
func opened(t *testing.T, path string) {
	t.Helper()
	eventually(t, "the fifo is being read", func() bool {
		f, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NONBLOCK, 0)
		if err == nil {
			t.Cleanup(func() { f.Close() }) // open and silent: the reader waits
		}
		return err == nil
	})
}

// heldAgent is an agent that hangs in the file system.
func heldAgent(t *testing.T) *program {
	dir := folder(t)
	pipe := fifo(t, dir)
	images := filepath.Join(dir, "images")
	if err := os.Mkdir(images, 0o700); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "agent.yaml")
	text := fmt.Sprintf("controller: https://127.0.0.1:1\nname: mini-1\nstate_dir: %s\nenrolment_token: mfe1.eyJ0IjoiYSJ9\nca_file: %s\nimages_dir: %s\nbackend: process\nallow_copy: true\n",
		filepath.Join(dir, "state"), pipe, images)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := launch(t, dir, "minifleet-agent", nil, "run", "--config", config)
	opened(t, pipe)
	return p
}

// TestStopIsGivenUp: a program that hangs ends by itself, and says what hung.
func TestStopIsGivenUp(t *testing.T) {
	turn(t)
	p := heldAgent(t)
	p.signal(syscall.SIGTERM)
	if code, out := p.exit(); code != 1 || !strings.Contains(out, "minifleet-agent: the stop was given up after 10s: not finished: ") {
		t.Errorf("exit status %d:\n%s", code, out)
	}
}

func heldSimulation(t *testing.T) *program {
	dir := folder(t)
	pipe := fifo(t, dir)
	p := launch(t, dir, "minifleet-agent", []string{"MINIFLEET_AGENT_ENROLMENT_TOKEN=mfe1.eyJ0IjoiYSJ9"},
		"simulate", "--controller", "https://127.0.0.1:1", "--ca-file", pipe, "--log-level", "info")
	opened(t, pipe)
	return p
}

// heldGuest is a guest whose listener does not heed SIGTERM, with a long grace.
func heldGuest(t *testing.T) *program {
	dir := folder(t)
	bin := filepath.Join(dir, "runner", "bin")
	if err := os.MkdirAll(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	listener := "#!/bin/sh\ntrap '' TERM\necho Listening for Jobs\nexec sleep 100000\n"
	if err := os.WriteFile(filepath.Join(bin, "Runner.Listener"), []byte(listener), 0o700); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "guest.sock")
	p := launch(t, dir, "minifleet-guest", nil, "--listen=unix:"+socket, "--runner-dir="+filepath.Dir(bin), "--stop-grace=1h")
	p.await("it serves", func(out string) bool { return strings.Contains(out, "guest serves") })
	c := guest.NewClient(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	})
	t.Cleanup(c.Close)
	if err := c.Run(t.Context(), secret.New("abc"), nil, nil); err != nil {
		t.Fatal(err)
	}
	p.await("its listener runs", func(out string) bool { return strings.Contains(out, "listener started") })
	return p
}

func heldGitHub(t *testing.T) *program {
	p := launch(t, folder(t), "minifleet", nil, "githubsim")
	openRequest(t, p.announced("github"), "/_sim/runs", 100)
	return p
}

// heldStandin is a runner whose service does not answer that it ends its session.
func heldStandin(t *testing.T) *program {
	listening, held := make(chan struct{}, 1), make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("POST /token", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"access_token": "t"}`) })
	mux.HandleFunc("POST /_apis/distributedtask/pools/1/sessions", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"sessionId": "s"}`)
	})
	mux.HandleFunc("GET /_apis/distributedtask/pools/1/messages", func(_ http.ResponseWriter, r *http.Request) {
		select {
		case listening <- struct{}{}:
		default:
		}
		_, _ = io.Copy(io.Discard, r.Body) // the context ends with the connection only then
		<-r.Context().Done()
	})
	mux.HandleFunc("DELETE /_apis/distributedtask/pools/1/sessions/s", func(http.ResponseWriter, *http.Request) { <-held })
	service := httptest.NewServer(mux)
	t.Cleanup(service.Close)
	t.Cleanup(func() { close(held) })
	p := launch(t, folder(t), "minifleet", []string{"ACTIONS_RUNNER_INPUT_JITCONFIG=" + jitConfig(t, service.URL)}, "standin", "run")
	select {
	case <-listening:
	case <-time.After(patience):
		t.Fatal("the stand-in does not listen")
	}
	return p
}

// jitConfig is one for a runner of a service.
func jitConfig(t *testing.T, url string) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	text := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	return base64.StdEncoding.EncodeToString(text(map[string][]byte{
		".runner":      text(map[string]string{"AgentId": "1", "AgentName": "r", "PoolId": "1", "ServerUrl": url}),
		".credentials": text(map[string]any{"Data": map[string]string{"ClientId": "c", "AuthorizationUrl": url + "/token"}}),
		".credentials_rsaparams": text(map[string][]byte{
			"Modulus": key.N.Bytes(), "Exponent": {1, 0, 1}, "D": key.D.Bytes(), "P": key.Primes[0].Bytes(), "Q": key.Primes[1].Bytes(),
		}),
	}))
}

// A site that is told twice kills its processes, and leaves nothing all the same.
func TestSecondSignalToASite(t *testing.T) {
	turn(t)
	dir := folder(t)
	p := launch(t, dir, "minifleet", nil, "dev", "--agents", "1", "--slots", "1", "--kind")
	url := p.announced("simulated GitHub")
	p.announced("Press")
	openRequest(t, url, "/_sim/runs", 100) // holds the simulated GitHub up
	p.signal(syscall.SIGTERM)
	p.stopping()
	p.signal(syscall.SIGTERM)
	if code, out := p.exit(); code != 1 || !strings.Contains(out, "signal: killed") {
		t.Errorf("exit status %d:\n%s", code, out)
	}
}
