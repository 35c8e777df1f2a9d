// SPDX-License-Identifier: MIT

package standin_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bradleyfalzon/ghinstallation/v2"
	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/githubapp/githubsim"
	"github.com/minifleet/minifleet/githubapp/standin"
	"github.com/minifleet/minifleet/internal/leakcheck"
	"github.com/minifleet/minifleet/secret"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

const patience = 3 * time.Minute

// sim starts a GitHub with one repository.
func sim(t *testing.T, flow githubsim.Flow) (*githubsim.Sim, *http.Client) {
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
	base := http.DefaultTransport.(*http.Transport).Clone()
	t.Cleanup(base.CloseIdleConnections)
	app, err := ghinstallation.New(base, s.AppID(), id, []byte(s.PrivateKeyPEM().Reveal()))
	if err != nil {
		t.Fatal(err)
	}
	app.BaseURL = s.URL()
	return s, &http.Client{Transport: app}
}

// register mints a JIT config.
func register(t *testing.T, s *githubsim.Sim, c *http.Client, name string) (jit string, id int64) {
	t.Helper()
	body := fmt.Sprintf(`{"name":%q,"runner_group_id":1,"labels":["self-hosted","mini"],"work_folder":"_work"}`, name)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL()+"/repos/octo/demo/actions/runners/generate-jitconfig", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var out struct {
		Runner  struct{ ID int64 }
		Config  string `json:"encoded_jit_config"`
		Message string
	}
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil || resp.StatusCode != http.StatusCreated {
		t.Fatalf("generate-jitconfig: %d %s %v", resp.StatusCode, out.Message, err)
	}
	return out.Config, out.Runner.ID
}

func queue(t *testing.T, s *githubsim.Sim, spec githubsim.JobSpec) int64 {
	t.Helper()
	spec.Name, spec.Labels = "build", []string{"self-hosted", "mini"}
	if _, err := s.QueueRun(githubsim.Workflow{Repo: "octo/demo", Jobs: []githubsim.JobSpec{spec}}); err != nil {
		t.Fatal(err)
	}
	jobs := s.Jobs()
	return jobs[len(jobs)-1].ID
}

// screen is what a stand-in prints.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
	news chan struct{}
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case s.news <- struct{}{}:
	default:
	}
	return s.text.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func (s *screen) until(t *testing.T, text string) {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for !strings.Contains(s.String(), text) {
		select {
		case <-s.news:
		case <-timer.C:
			t.Fatalf("%q is not printed:\n%s", text, s)
		}
	}
}

// start runs a stand-in; the channel gives its exit code.
func start(ctx context.Context, t *testing.T, jit string) (*screen, chan int) {
	t.Helper()
	out := &screen{news: make(chan struct{}, 1)}
	code := make(chan int, 1)
	dir := t.TempDir()
	getenv := func(name string) string {
		switch {
		case name == "ACTIONS_RUNNER_INPUT_JITCONFIG":
			return jit
		case strings.HasPrefix(name, "ACTIONS_"): // what is meant for a runner whose job this test is
			return ""
		}
		return os.Getenv(name)
	}
	go func() {
		code <- standin.Run(ctx, standin.Options{Getenv: getenv, Stdout: out, Stderr: out, Dir: dir})
	}()
	return out, code
}

func exit(t *testing.T, out *screen, code chan int) int {
	t.Helper()
	select {
	case c := <-code:
		return c
	case <-time.After(patience):
		t.Fatalf("the stand-in does not end:\n%s", out)
		return 0
	}
}

func TestJobs(t *testing.T) {
	t.Parallel()
	s, c := sim(t, githubsim.FlowV1)
	tests := []struct {
		name       string
		spec       githubsim.JobSpec
		conclusion string
		result     string
		steps      []string
		logs       []string // in the log, or with a ! not in it
	}{
		{
			"succeeds",
			githubsim.JobSpec{
				Env:     map[string]string{"GREETING": "hello", "WHO": "nobody"},
				Secrets: map[string]secret.Text{"TOKEN": secret.New("s3cr3t-value")},
				Steps: []githubsim.Step{
					{Run: `echo "$GREETING $WHO"; echo s3cr3t-value; [ -z "$ACTIONS_RUNNER_INPUT_JITCONFIG" ]`, Env: map[string]string{"WHO": "world"}},
					{Name: "Second", Run: "echo again >&2; pwd"},
				},
			},
			"success", "Succeeded",
			[]string{"completed success", "completed success"},
			[]string{"hello world\n", "***\n", "again\n", "/_work/job-", "!s3cr3t"},
		},
		{
			"fails",
			githubsim.JobSpec{Steps: []githubsim.Step{{Run: "echo before; false; echo after"}, {Run: "echo never"}}},
			"failure", "Failed",
			[]string{"completed failure", "completed skipped"},
			[]string{"before\n", "##[error]exit status 1\n", "!after", "!never"},
		},
		{
			"leaves a process behind that holds its output",
			githubsim.JobSpec{Steps: []githubsim.Step{{Run: "(trap '' TERM HUP; sleep 100000) & echo started"}}},
			"success", "Succeeded",
			[]string{"completed success"},
			[]string{"started\n"},
		},
		{
			"prints more than is kept",
			githubsim.JobSpec{Steps: []githubsim.Step{{Run: "yes | head -c 10000000"}}},
			"success", "Succeeded",
			[]string{"completed success"},
			nil,
		},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			jit, _ := register(t, s, c, "vm-"+strconv.Itoa(i))
			id := queue(t, s, tt.spec)
			out, code := start(t.Context(), t, jit)
			if got := exit(t, out, code); got != 0 {
				t.Errorf("exit code %d", got)
			}
			job, err := s.WaitJob(t.Context(), id, githubsim.Job.Done)
			if err != nil {
				t.Fatal(err)
			}
			if job.Conclusion != tt.conclusion || job.RunnerName != "vm-"+strconv.Itoa(i) || job.Renewals == 0 {
				t.Errorf("job: %s by %s, %d renewals; want %s\n%s", job.Conclusion, job.RunnerName, job.Renewals, tt.conclusion, out)
			}
			var steps []string
			for _, st := range job.Steps {
				steps = append(steps, st.Status+" "+st.Conclusion)
			}
			if diff := cmp.Diff(tt.steps, steps); diff != "" {
				t.Errorf("steps (-want +got):\n%s", diff)
			}
			for _, want := range tt.logs {
				unwanted, no := strings.CutPrefix(want, "!")
				if strings.Contains(job.Logs, unwanted) == no {
					t.Errorf("log, want %q:\n%s", want, job.Logs)
				}
			}
			for _, want := range []string{"√ Connected to GitHub\n", "Current runner version: '0.0.0-standin'\n", "Z: Listening for Jobs\n", "Z: Running job: build\n", "Z: Job build completed with result: " + tt.result + "\n"} {
				if !strings.Contains(out.String(), want) {
					t.Errorf("%q is not printed:\n%s", want, out)
				}
			}
		})
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	cancels := map[string]func(*githubsim.Sim, int64, context.CancelFunc) error{
		"by the service": func(s *githubsim.Sim, job int64, _ context.CancelFunc) error { return s.CancelJob(job) },
		"by its context": func(_ *githubsim.Sim, _ int64, stop context.CancelFunc) error { stop(); return nil },
	}
	for name, cancel := range cancels {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, c := sim(t, githubsim.FlowV1)
			jit, _ := register(t, s, c, "vm")
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			out, code := start(ctx, t, jit)
			id := queue(t, s, githubsim.JobSpec{Steps: []githubsim.Step{{Run: "sleep 100000 & sleep 100000"}, {Run: "true"}}})
			running := func(j githubsim.Job) bool { return len(j.Steps) > 0 && j.Steps[0].Status == "in_progress" }
			if _, err := s.WaitJob(t.Context(), id, running); err != nil {
				t.Fatal(err)
			}
			if err := cancel(s, id, stop); err != nil {
				t.Fatal(err)
			}
			if got := exit(t, out, code); got != 0 {
				t.Errorf("exit code %d", got)
			}
			job, err := s.WaitJob(t.Context(), id, githubsim.Job.Done)
			if err != nil || job.Conclusion != "cancelled" || job.Reason != "" {
				t.Errorf("job: %s %s, %v", job.Conclusion, job.Reason, err)
			}
			if !strings.Contains(out.String(), "completed with result: Canceled\n") {
				t.Errorf("printed:\n%s", out)
			}
		})
	}
}

func TestEndsWithoutAJob(t *testing.T) {
	t.Parallel()
	t.Run("context ends while idle", func(t *testing.T) {
		t.Parallel()
		s, c := sim(t, githubsim.FlowV1)
		jit, _ := register(t, s, c, "vm")
		ctx, stop := context.WithCancel(t.Context())
		out, code := start(ctx, t, jit)
		out.until(t, "Listening for Jobs\n")
		stop()
		if got := exit(t, out, code); got != 0 {
			t.Errorf("exit code %d", got)
		}
		if _, err := s.WaitRunner(t.Context(), "vm", func(r githubsim.Runner) bool { return r.Status == "offline" && !r.OnlineAt.IsZero() }); err != nil {
			t.Error(err)
		}
	})
	t.Run("removed while idle", func(t *testing.T) {
		t.Parallel()
		s, c := sim(t, githubsim.FlowV1)
		jit, id := register(t, s, c, "vm")
		out, code := start(t.Context(), t, jit)
		out.until(t, "Listening for Jobs\n")
		remove(t, s, c, id)
		if got := exit(t, out, code); got != 0 || !strings.Contains(out.String(), "The runner no longer exists on the server.") {
			t.Errorf("exit code %d:\n%s", got, out)
		}
	})
	t.Run("removed before it starts", func(t *testing.T) {
		t.Parallel()
		s, c := sim(t, githubsim.FlowV1)
		jit, id := register(t, s, c, "vm")
		remove(t, s, c, id)
		out, code := start(t.Context(), t, jit)
		if got := exit(t, out, code); got != 1 || !strings.Contains(out.String(), "registration has been deleted") {
			t.Errorf("exit code %d:\n%s", got, out)
		}
	})
	t.Run("second session", func(t *testing.T) {
		t.Parallel()
		s, c := sim(t, githubsim.FlowV1)
		jit, _ := register(t, s, c, "vm")
		ctx, stop := context.WithCancel(t.Context())
		first, firstCode := start(ctx, t, jit)
		first.until(t, "Listening for Jobs\n")
		out, code := start(t.Context(), t, jit)
		if got := exit(t, out, code); got != 5 || !strings.Contains(out.String(), "A session for this runner already exists.") {
			t.Errorf("exit code %d:\n%s", got, out)
		}
		stop()
		exit(t, first, firstCode)
	})
	t.Run("service of the newer kind", func(t *testing.T) {
		t.Parallel()
		s, c := sim(t, githubsim.FlowMigrate)
		jit, _ := register(t, s, c, "vm")
		out, code := start(t.Context(), t, jit)
		if got := exit(t, out, code); got != 1 || !strings.Contains(out.String(), "broker") {
			t.Errorf("exit code %d:\n%s", got, out)
		}
	})
	t.Run("service that is not there", func(t *testing.T) {
		t.Parallel()
		s, c := sim(t, githubsim.FlowV1)
		jit, _ := register(t, s, c, "vm")
		s.Close()
		out, code := start(t.Context(), t, jit)
		if got := exit(t, out, code); got != 2 || !strings.Contains(out.String(), "Runner connect error") {
			t.Errorf("exit code %d:\n%s", got, out)
		}
	})
	for name, jit := range map[string]string{"no config": "", "config that is none": "!!", "config without files": "e30=", "config without a key": "eyIucnVubmVyIjoiZTMwPSIsIi5jcmVkZW50aWFscyI6ImUzMD0iLCIuY3JlZGVudGlhbHNfcnNhcGFyYW1zIjoiZTMwPSJ9"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, code := start(t.Context(), t, jit)
			if got := exit(t, out, code); got != 1 || !strings.Contains(out.String(), "ACTIONS_RUNNER_INPUT_JITCONFIG") {
				t.Errorf("exit code %d:\n%s", got, out)
			}
		})
	}
}

func remove(t *testing.T, s *githubsim.Sim, c *http.Client, id int64) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, fmt.Sprintf("%s/repos/octo/demo/actions/runners/%d", s.URL(), id), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		t.Fatalf("delete runner: %d", resp.StatusCode)
	}
}
