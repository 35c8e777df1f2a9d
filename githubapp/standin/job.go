// SPDX-License-Identifier: MIT

package standin

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

type jobRequest struct {
	RequestID             int64
	JobID, JobDisplayName string
	Plan                  struct{ ScopeIdentifier, PlanID, PlanType string }
	Timeline              struct{ ID string }
	Resources             struct {
		Endpoints []struct {
			Name, URL     string
			Authorization struct{ Parameters map[string]string }
		}
	}
	Variables map[string]struct {
		Value    string
		IsSecret bool
	}
	EnvironmentVariables []token
	ContextData          map[string]contextData
	Steps                []struct {
		ID                                    string
		DisplayNameToken, Environment, Inputs token
		Reference                             struct{ Type string }
	}
}

// token is a plain value of a workflow, or a mapping of names to plain values.
type token struct {
	text    string
	mapping map[string]string
}

// UnmarshalJSON keeps the source of an expression, for nothing here evaluates it.
func (t *token) UnmarshalJSON(b []byte) error {
	var o struct {
		Expr string
		Map  []struct{ Key, Value token }
	}
	if json.Unmarshal(b, &t.text) == nil {
		return nil
	}
	if json.Unmarshal(b, &o) != nil {
		t.text = string(b) // a number or a truth value
		return nil
	}
	t.text, t.mapping = o.Expr, map[string]string{}
	for _, e := range o.Map {
		t.mapping[e.Key.text] = e.Value.text
	}
	return nil
}

// contextData is a value of the job's context: a mapping of names to values, or one of them.
type contextData struct{ value any }

// UnmarshalJSON reads the encoding in which the service sends it.
func (c *contextData) UnmarshalJSON(b []byte) error {
	var dict struct {
		T int
		D []struct {
			K string
			V contextData
		}
	}
	if json.Unmarshal(b, &dict) != nil || dict.T != 2 {
		return json.Unmarshal(b, &c.value)
	}
	values := map[string]any{}
	for _, pair := range dict.D {
		values[pair.K] = pair.V.value
	}
	c.value = values
	return nil
}

// runHook runs the script that ACTIONS_RUNNER_HOOK_JOB_STARTED names, as the official runner
// does before the first step, and returns what it printed. The workflow's own variables are
// not for it.
func (l *listener) runHook(ctx context.Context, dir string, req jobRequest) ([]byte, error) {
	path := l.Getenv("ACTIONS_RUNNER_HOOK_JOB_STARTED")
	if path == "" {
		return nil, nil
	}
	env := l.baseEnviron(dir)
	values, _ := req.ContextData["github"].value.(map[string]any)
	for name, value := range values {
		if text, ok := value.(string); ok && name != "token" {
			env = append(env, "GITHUB_"+strings.ToUpper(name)+"="+text)
		}
	}
	if event, ok := values["event"]; ok {
		text, err := json.Marshal(event)
		file := filepath.Join(dir, ".event.json")
		if err == nil {
			err = os.WriteFile(file, text, 0o600)
		}
		if err != nil {
			return nil, err
		}
		env = append(env, "GITHUB_EVENT_PATH="+file)
	}
	var out beginning
	shell, err := exec.LookPath("bash")
	if err != nil {
		shell = "sh"
	}
	cmd := exec.CommandContext(ctx, shell, "-e", path)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = env, dir, &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	return out.Bytes(), err
}

// baseEnviron is what every program of a job gets.
func (l *listener) baseEnviron(dir string) []string {
	env := []string{"CI=true", "GITHUB_ACTIONS=true", "GITHUB_WORKSPACE=" + dir}
	for _, name := range []string{"PATH", "HOME", "USER", "LANG", "TMPDIR"} {
		env = append(env, name+"="+l.Getenv(name))
	}
	return env
}

// runJob executes the job's steps, reports them, and returns the result. The
// reports go on when the job is canceled; those that fail are lost, but for the
// job's completion.
func (l *listener) runJob(ctx context.Context, req jobRequest) string {
	reports := context.WithoutCancel(ctx)
	job := object{"id": req.JobID, "type": "Job", "name": req.JobDisplayName, "state": "InProgress", "startTime": stamp()}
	records := []object{job}
	for i, s := range req.Steps {
		name := cmp.Or(s.DisplayNameToken.text, "Run "+s.Inputs.mapping["script"])
		records = append(records, object{"id": s.ID, "parentId": req.JobID, "type": "Task", "name": name, "order": i + 1, "state": "Pending"})
	}
	show := func() {
		path := "/timelines/" + req.Timeline.ID + "/records?api-version=5.1-preview"
		_ = l.report(reports, req, http.MethodPatch, path, object{"count": len(records), "value": records}, nil)
	}
	finish := func(rec object, result string) {
		rec["state"], rec["result"], rec["finishTime"] = "Completed", result, stamp()
	}
	var log []byte
	result := "Succeeded"
	dir, err := l.workDir()
	if err == nil {
		var out []byte
		if out, err = l.runHook(ctx, dir, req); err != nil {
			if result = "Failed"; ctx.Err() != nil {
				result = "Canceled"
			}
			log = fmt.Appendf(out, "##[error]the job-started hook: %v\n", err)
		}
	}
	for i := range req.Steps {
		if result != "Succeeded" {
			finish(records[i+1], "Skipped")
			continue
		}
		records[i+1]["state"], records[i+1]["startTime"] = "InProgress", stamp()
		show()
		var out []byte
		if err == nil {
			out, err = l.runStep(ctx, dir, req, i)
		}
		if ctx.Err() != nil {
			result, err = "Canceled", errors.New("the operation was canceled")
		} else if err != nil {
			result = "Failed"
		}
		if err != nil {
			out = fmt.Appendf(out, "##[error]%v\n", err)
		}
		finish(records[i+1], result)
		log = append(log, out...)
	}
	finish(job, result)
	if id := l.upload(reports, req, log); id != 0 {
		job["log"] = object{"id": id}
	}
	show()
	done := object{"name": "JobCompleted", "jobId": req.JobID, "requestId": req.RequestID, "result": result}
	for range 5 {
		err := l.report(reports, req, http.MethodPost, "/events?api-version=2.0-preview.1", done, nil)
		if err == nil {
			break
		}
		fmt.Fprintln(l.Stderr, "the job's completion is not taken:", err)
		pause(reports, retryDelay)
	}
	return result
}

func stamp() string { return time.Now().UTC().Format(time.RFC3339Nano) }

func (l *listener) workDir() (string, error) {
	base, err := filepath.Abs(filepath.Join(l.Dir, "_work"))
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(base, 0o755); err != nil {
		return "", err
	}
	return os.MkdirTemp(base, "job-")
}

// runStep runs a script in a process group of its own, which ends with it. It
// returns the output's beginning, without the job's secrets.
func (l *listener) runStep(ctx context.Context, dir string, req jobRequest, i int) ([]byte, error) {
	s := req.Steps[i]
	if kind := s.Reference.Type; kind != "" && !strings.EqualFold(kind, "script") {
		return nil, fmt.Errorf("this runner runs scripts only, not %s", kind)
	}
	cmd := exec.CommandContext(ctx, "sh", "-e", "-c", s.Inputs.mapping["script"])
	cmd.Env = l.baseEnviron(dir)
	for _, env := range append(slices.Clone(req.EnvironmentVariables), s.Environment) {
		for name, value := range env.mapping {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	var out beginning
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // for what the script leaves with its output open
	err := cmd.Run()
	if cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	text := out.Bytes()
	for _, v := range req.Variables {
		if v.IsSecret && v.Value != "" {
			text = bytes.ReplaceAll(text, []byte(v.Value), []byte("***"))
		}
	}
	return text, err
}

// beginning keeps the first 4 MiB of what is written to it.
type beginning struct{ bytes.Buffer }

func (b *beginning) Write(p []byte) (int, error) {
	b.Buffer.Write(p[:min(len(p), 4<<20-b.Len())])
	return len(p), nil
}

// upload sends a log and returns its number, or 0.
func (l *listener) upload(ctx context.Context, req jobRequest, text []byte) int {
	var log struct{ ID int }
	if len(text) == 0 || l.report(ctx, req, http.MethodPost, "/logs?api-version=5.1-preview", object{"path": `logs\` + req.JobID}, &log) != nil {
		return 0
	}
	if l.report(ctx, req, http.MethodPost, fmt.Sprintf("/logs/%d?api-version=5.1-preview", log.ID), text, nil) != nil {
		return 0
	}
	return log.ID
}

// report tells the service about the job, with the job's own token: text as it
// stands, anything else as JSON.
func (l *listener) report(ctx context.Context, req jobRequest, method, path string, in, out any) error {
	body, isText := in.([]byte)
	kind := "application/octet-stream"
	if !isText {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
		kind = "application/json"
	}
	for _, e := range req.Resources.Endpoints {
		if strings.EqualFold(e.Name, "SystemVssConnection") {
			base := strings.TrimSuffix(e.URL, "/") + "/" + req.Plan.ScopeIdentifier + "/_apis/distributedtask/hubs/" + cmp.Or(req.Plan.PlanType, "actions")
			return l.service.send(ctx, method, base+"/plans/"+req.Plan.PlanID+path, e.Authorization.Parameters["AccessToken"], kind, body, out)
		}
	}
	return errors.New("the job names no service to report to")
}
