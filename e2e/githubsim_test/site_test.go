// SPDX-License-Identifier: MIT

package githubsim_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minifleet/minifleet/githubapp/githubsim"
	"github.com/minifleet/minifleet/secret"
)

// patience is far more than anything here takes; it only ends a test that hangs.
const patience = 3 * time.Minute

// site is a simulated GitHub with a receiver, both held to the schemas.
type site struct {
	t       *testing.T
	sim     *githubsim.Sim
	rec     *recorder
	url     string
	install int64
	key     *rsa.PrivateKey
	token   string
}

func newSite(t *testing.T, opt githubsim.Options) *site {
	t.Helper()
	rules := loadSchemas(t)
	sim, err := githubsim.New(opt)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, sim: sim, rec: newRecorder(rules, sim.Handler())}
	server, receiver := httptest.NewServer(s.rec), httptest.NewServer(http.HandlerFunc(s.rec.receive))
	t.Cleanup(func() {
		server.CloseClientConnections()
		if err := sim.Close(); err != nil {
			t.Errorf("close the simulator: %v", err)
		}
		server.Close()
		receiver.Close()
	})
	s.url = server.URL
	sim.SetBaseURL(server.URL)
	if err := sim.SetWebhook(receiver.URL, secret.Text{}); err != nil {
		t.Fatal(err)
	}
	s.install, err = sim.AddInstallation(githubsim.Installation{Account: "octo", Repositories: []string{"demo", "other"}})
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(sim.PrivateKeyPEM().Reveal()))
	if s.key, err = x509.ParsePKCS1PrivateKey(block.Bytes); err != nil {
		t.Fatal(err)
	}
	s.token = s.newToken()
	return s
}

// jwt signs a JWT of the App; claims overrides what is in it.
func (s *site) jwt(claims map[string]any) string {
	now := time.Now()
	all := map[string]any{"iss": fmt.Sprint(s.sim.AppID()), "iat": now.Add(-time.Minute).Unix(), "exp": now.Add(5 * time.Minute).Unix(), "jti": rand.Text()}
	for k, v := range claims {
		all[k] = v
	}
	b, err := json.Marshal(all)
	if err != nil {
		s.t.Fatal(err)
	}
	signed := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"RS256","typ":"JWT"}`)) + "." + base64.RawURLEncoding.EncodeToString(b)
	sum := sha256.Sum256([]byte(signed))
	sig, err := rsa.SignPKCS1v15(nil, s.key, crypto.SHA256, sum[:])
	if err != nil {
		s.t.Fatal(err)
	}
	return signed + "." + base64.RawURLEncoding.EncodeToString(sig)
}

func (s *site) newToken() string {
	s.t.Helper()
	out := s.do("POST", fmt.Sprintf("/app/installations/%d/access_tokens", s.install), s.jwt(nil), nil, http.StatusCreated)
	return out["token"].(string)
}

// do makes a call, demands a status, and returns the answer if it is an object.
func (s *site) do(method, path, token string, in any, want int) map[string]any {
	s.t.Helper()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			s.t.Fatal(err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, body)
	if err != nil {
		s.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	if resp.StatusCode != want {
		s.t.Fatalf("%s %s: status %d, want %d: %s", method, path, resp.StatusCode, want, b)
	}
	var out map[string]any
	if json.Unmarshal(b, &out) != nil {
		return nil
	}
	return out
}

// mint registers a runner of the repository octo/demo.
func (s *site) mint(name string, labels ...string) (id int64, jit string) {
	s.t.Helper()
	out := s.do("POST", "/repos/octo/demo/actions/runners/generate-jitconfig", s.token,
		map[string]any{"name": name, "runner_group_id": 1, "labels": labels}, http.StatusCreated)
	return int64(out["runner"].(map[string]any)["id"].(float64)), out["encoded_jit_config"].(string)
}

// client is a running runner client.
type client struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error

	mu    sync.Mutex // guards everything below
	out   bytes.Buffer
	watch string        // a text to look for
	found chan struct{} // closed when it comes
}

func (c *client) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out.Write(b)
	if c.found != nil && strings.Contains(c.out.String(), c.watch) {
		close(c.found)
		c.found = nil
	}
	return len(b), nil
}

func (c *client) output() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.String()
}

// startRunner starts the client with a JIT config in its environment, in a folder of its own.
func (s *site) startRunner(jit string) *client {
	s.t.Helper()
	return s.startRunnerWatched(jit, "", nil)
}

// startRunnerWatched closes found when the client says what is watched for.
func (s *site) startRunnerWatched(jit, watch string, found chan struct{}) *client {
	s.t.Helper()
	dir := s.t.TempDir()
	c := &client{done: make(chan struct{}), watch: watch, found: found}
	c.cmd = exec.Command(os.Getenv(runnerEnv), "run")
	c.cmd.Dir = dir
	c.cmd.Env = []string{
		"HOME=" + dir, "XDG_CACHE_HOME=" + filepath.Join(dir, ".cache"), "PATH=" + os.Getenv("PATH"), "ACTIONS_RUNNER_INPUT_JITCONFIG=" + jit,
	}
	c.cmd.Stdout, c.cmd.Stderr = c, c
	c.cmd.WaitDelay = patience
	if err := c.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go func() {
		c.err = c.cmd.Wait()
		close(c.done)
	}()
	s.t.Cleanup(func() {
		_ = c.cmd.Process.Kill() // it has normally ended by itself
		<-c.done
		if s.t.Failed() {
			s.t.Logf("runner client %d said:\n%s", c.cmd.Process.Pid, c.output())
		}
	})
	return c
}

// exit waits for the end of a client and returns its exit code.
func (s *site) exit(c *client) int {
	s.t.Helper()
	select {
	case <-c.done:
		return c.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		s.t.Fatalf("the runner client does not end:\n%s", c.output())
		return -1
	}
}

func (s *site) wait(job int64, ok func(githubsim.Job) bool) githubsim.Job {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	j, err := s.sim.WaitJob(ctx, job, ok)
	if err != nil {
		s.t.Fatalf("%v; it is %+v", err, j)
	}
	return j
}

func (s *site) queue(jobs ...githubsim.JobSpec) []int64 {
	s.t.Helper()
	run, err := s.sim.QueueRun(githubsim.Workflow{Repo: "octo/demo", Jobs: jobs})
	if err != nil {
		s.t.Fatal(err)
	}
	return run.JobIDs
}

func (s *site) delivered() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	if err := s.sim.WaitDelivered(ctx); err != nil {
		s.t.Fatal(err)
	}
}

// serveOnce sends one call through a recorder.
func (s *site) serveOnce(rec *recorder, path string) {
	rec.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(s.t.Context(), http.MethodGet, path, nil))
}
