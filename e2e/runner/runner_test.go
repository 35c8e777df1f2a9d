// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/golang-jwt/jwt"

	"github.com/minifleet/minifleet/githubapp/githubsim"
	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/internal/leakcheck"
	"github.com/minifleet/minifleet/secret"
)

// asRunner makes the test's own binary the runner.
const asRunner = "MINIFLEET_TEST_AS_RUNNER"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == guest.JobStartedCommand { // as the guest program, by the runner's hook
		if guest.JobStarted(os.Args[2:], os.Getenv, os.Stdout) != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv(asRunner) != "" {
		os.Exit(run(os.Args[1:], os.Stdout))
	}
	leakcheck.Main(m)
}

const patience = 3 * time.Minute

type github struct {
	*githubsim.Sim
	t     *testing.T
	token string
}

func newGitHub(t *testing.T, flow githubsim.Flow) *github {
	t.Helper()
	s, err := githubsim.New(githubsim.Options{Kind: true, Flow: flow, KeyPool: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	id, err := s.AddInstallation(githubsim.Installation{Account: "octo", Repositories: []string{"demo"}})
	if err != nil {
		t.Fatal(err)
	}
	key, err := jwt.ParseRSAPrivateKeyFromPEM([]byte(s.PrivateKeyPEM().Reveal()))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	app, err := jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.StandardClaims{
		Issuer: strconv.FormatInt(s.AppID(), 10), IssuedAt: now.Add(-time.Minute).Unix(), ExpiresAt: now.Add(5 * time.Minute).Unix(),
	}).SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	g := &github{Sim: s, t: t, token: app}
	var out struct{ Token string }
	g.post(fmt.Sprintf("/app/installations/%d/access_tokens", id), "", &out)
	g.token = out.Token
	return g
}

func (g *github) post(path, body string, out any) {
	g.t.Helper()
	req, err := http.NewRequestWithContext(g.t.Context(), http.MethodPost, g.URL()+path, strings.NewReader(body))
	if err != nil {
		g.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+g.token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusCreated || json.Unmarshal(text, out) != nil {
		g.t.Fatalf("%s: %d %s %v", path, resp.StatusCode, text, err)
	}
}

func (g *github) register(name string) string {
	g.t.Helper()
	var out struct {
		Config string `json:"encoded_jit_config"`
	}
	g.post("/repos/octo/demo/actions/runners/generate-jitconfig", fmt.Sprintf(`{"name":%q,"runner_group_id":1,"labels":["self-hosted","mini"]}`, name), &out)
	return out.Config
}

func (g *github) queue(spec githubsim.JobSpec) int64 {
	g.t.Helper()
	spec.Name, spec.Labels = "build", []string{"self-hosted", "mini"}
	if _, err := g.QueueRun(githubsim.Workflow{Repo: "octo/demo", Jobs: []githubsim.JobSpec{spec}}); err != nil {
		g.t.Fatal(err)
	}
	jobs := g.Jobs()
	return jobs[len(jobs)-1].ID
}

// process is a running runner.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	done chan struct{}

	mu   sync.Mutex // guards text
	text bytes.Buffer
	news chan struct{}
}

func (c *process) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case c.news <- struct{}{}:
	default:
	}
	return c.text.Write(p)
}

func (c *process) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}

func start(t *testing.T, jit string) *process {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := &process{t: t, cmd: exec.Command(exe, "run"), done: make(chan struct{}), news: make(chan struct{}, 1)}
	c.cmd.Dir = t.TempDir()
	c.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "GORACE=atexit_sleep_ms=0", asRunner + "=1", jitInput + "=" + jit}
	c.cmd.Stdout, c.cmd.Stderr = c, c
	c.cmd.WaitDelay = patience
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(c.done)
		c.cmd.Wait()
	}()
	t.Cleanup(func() {
		c.cmd.Process.Kill()
		<-c.done
	})
	return c
}

func (c *process) exit() int {
	c.t.Helper()
	select {
	case <-c.done:
		return c.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		c.t.Fatalf("the runner does not end:\n%s", c)
		return 0
	}
}

func (c *process) until(text string) {
	c.t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for !strings.Contains(c.String(), text) {
		select {
		case <-c.news:
		case <-timer.C:
			c.t.Fatalf("%q is not printed:\n%s", text, c)
		}
	}
}

func eachFlow(t *testing.T, f func(*testing.T, *github)) {
	for _, flow := range []githubsim.Flow{githubsim.FlowV1, githubsim.FlowMigrate} {
		t.Run(string(flow), func(t *testing.T) {
			t.Parallel()
			f(t, newGitHub(t, flow))
		})
	}
}

func TestJobs(t *testing.T) {
	tests := []struct {
		name       string
		spec       githubsim.JobSpec
		conclusion string
		status     string
		steps      []string
		logs       []string // in the log, or with a ! not in it
	}{
		{
			"succeeds",
			githubsim.JobSpec{
				Env:     map[string]string{"GREETING": "hello", "WHO": "nobody"},
				Secrets: map[string]secret.Text{"TOKEN": secret.New("s3cr3t-value")},
				Steps: []githubsim.Step{
					{Run: `echo "$GREETING $WHO"; echo x s3cr3t-value y; echo "config:$ACTIONS_RUNNER_INPUT_JITCONFIG."`, Env: map[string]string{"WHO": "world"}},
					{Name: "Second", Run: "echo ::add-mask::hidden; echo so hidden; printf 'no line break' >&2"},
					{Run: "pwd; echo $GITHUB_WORKSPACE $WHO"},
				},
			},
			"success", "Succeeded",
			[]string{"success", "success", "success"},
			[]string{" hello world\n", " x *** y\n", " config:.\n", " so ***\n", " no line break\n", "/_work/job-", " nobody\n", "!s3cr3t", "!hidden"},
		},
		{
			"fails",
			githubsim.JobSpec{Steps: []githubsim.Step{{Run: "echo before; false; echo after"}, {Run: "echo never"}}},
			"failure", "Failed",
			[]string{"failure", "skipped"},
			[]string{" before\n", "##[error]exit status 1\n", "!after", "!never"},
		},
		{
			"leaves a process behind that holds its output",
			githubsim.JobSpec{Steps: []githubsim.Step{{Run: "(trap '' TERM HUP; sleep 100000) & echo started"}}},
			"success", "Succeeded",
			[]string{"success"},
			[]string{" started\n"},
		},
	}
	eachFlow(t, func(t *testing.T, g *github) {
		for i, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				c := start(t, g.register("vm-"+strconv.Itoa(i)))
				id := g.queue(tt.spec)
				if code := c.exit(); code != 0 {
					t.Errorf("exit code %d\n%s", code, c)
				}
				job, err := g.WaitJob(t.Context(), id, githubsim.Job.Done)
				if err != nil || job.Conclusion != tt.conclusion {
					t.Fatalf("job: %q, %v; want %s\n%s", job.Conclusion, err, tt.conclusion, c)
				}
				var steps []string
				for _, s := range job.Steps {
					if s.Name != "Set up Worker" {
						steps = append(steps, s.Conclusion)
					}
				}
				if strings.Join(steps, " ") != strings.Join(tt.steps, " ") {
					t.Errorf("steps: %v; want %v", steps, tt.steps)
				}
				for _, want := range tt.logs {
					unwanted, no := strings.CutPrefix(want, "!")
					if strings.Contains(job.Logs, unwanted) == no {
						t.Errorf("log, want %q:\n%s", want, job.Logs)
					}
				}
				for _, want := range []string{"Listening for Jobs: vm-", "): Running Job 'build'\n", "): Finished Job 'build' with Status " + tt.status + "\n"} {
					if !strings.Contains(c.String(), want) {
						t.Errorf("%q is not printed:\n%s", want, c)
					}
				}
			})
		}
	})
}

func TestCancel(t *testing.T) {
	cancels := map[string]func(*github, int64, *process) error{
		"by the service": func(g *github, job int64, _ *process) error { return g.CancelJob(job) },
		"by SIGTERM":     func(_ *github, _ int64, c *process) error { return c.cmd.Process.Signal(syscall.SIGTERM) },
		"by SIGINT":      func(_ *github, _ int64, c *process) error { return c.cmd.Process.Signal(os.Interrupt) },
	}
	eachFlow(t, func(t *testing.T, g *github) {
		for name, cancel := range cancels {
			t.Run(name, func(t *testing.T) {
				c := start(t, g.register("vm "+name))
				// The grandchild ignores what ends its parent and holds the output.
				id := g.queue(githubsim.JobSpec{Steps: []githubsim.Step{{Run: "(trap '' TERM; sleep 100000) & sleep 100000"}, {Run: "true"}}})
				running := func(j githubsim.Job) bool {
					return len(j.Steps) > 1 && j.Steps[1].Status == "in_progress"
				}
				if _, err := g.WaitJob(t.Context(), id, running); err != nil {
					t.Fatal(err)
				}
				if err := cancel(g, id, c); err != nil {
					t.Fatal(err)
				}
				if code := c.exit(); code != 0 {
					t.Errorf("exit code %d\n%s", code, c)
				}
				job, err := g.WaitJob(t.Context(), id, githubsim.Job.Done)
				if err != nil || job.Conclusion != "cancelled" || job.Reason != "" {
					t.Errorf("job: %q %s, %v\n%s", job.Conclusion, job.Reason, err, c)
				}
			})
		}
	})
}

func TestEndsWhileIdle(t *testing.T) {
	eachFlow(t, func(t *testing.T, g *github) {
		for _, sig := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
			c := start(t, g.register("vm "+sig.String()))
			c.until("Listening for Jobs")
			if err := c.cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if code := c.exit(); code != 0 {
				t.Errorf("%s: exit code %d\n%s", sig, code, c)
			}
		}
	})
}

func TestCommandLine(t *testing.T) {
	for name, tt := range map[string]struct {
		args []string
		jit  string
		code int
		out  string
	}{
		"version":   {[]string{"--version"}, "", 0, "github-act-runner v0."},
		"nothing":   {nil, "", 1, "usage"},
		"unknown":   {[]string{"configure"}, "", 1, "usage"},
		"no config": {[]string{"run"}, "", 1, jitInput},
		"bad one":   {[]string{"run"}, "bm8=", 1, jitInput},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(jitInput, tt.jit)
			var out bytes.Buffer
			if code := run(tt.args, &out); code != tt.code || !strings.Contains(out.String(), tt.out) {
				t.Errorf("exit code %d: %s", code, &out)
			}
		})
	}
}

func TestWanted(t *testing.T) {
	for _, tt := range []struct {
		condition, result string
		want              bool
	}{
		{"", succeeded, true},
		{"success()", succeeded, true},
		{"success()", failed, false},
		{"always()", failed, true},
		{"always( )", canceled, false},
		{"failure()", failed, true},
		{"failure()", succeeded, false},
		{"github.ref == 'x'", failed, false},
	} {
		if got := wanted(tt.condition, tt.result); got != tt.want {
			t.Errorf("wanted(%q, %s) = %t", tt.condition, tt.result, got)
		}
	}
}
