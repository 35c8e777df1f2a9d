// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ChristopherHX/github-act-runner/actionsrunner"
	"github.com/ChristopherHX/github-act-runner/protocol"
)

// Results in the service's words.
const (
	succeeded = "Succeeded"
	failed    = "Failed"
	canceled  = "Canceled"
	skipped   = "Skipped"
)

// killDelay is what a canceled step gets between SIGTERM and SIGKILL, and for
// how long a process that a step left behind can hold up the step's end.
const killDelay = time.Second

// ExecWorker executes a job and reports it.
func (w worker) ExecWorker(_ *actionsrunner.RunRunner, wc actionsrunner.WorkerContext, req *protocol.AgentJobRequestMessage, _ []byte) error {
	job, err := newJob(req, w.environ)
	if err != nil {
		return err // the listener reports the job as failed
	}
	defer job.killAll()
	log := wc.Logger()
	out := &maskedLog{log: log, mask: job.mask}
	log.Current().Complete(succeeded) // the listener's "Set up Worker"
	result := succeeded
	if w.hook != "" {
		rec := protocol.CreateTimelineEntry(req.JobID, "hook", "Set up runner")
		entry := log.Append(&rec)
		log.MoveNext()
		if result = job.runHook(wc.JobExecCtx(), w.hook, req, out); result != succeeded {
			fmt.Fprint(out, "##[error]Process completed with an error.\n")
		}
		out.flush()
		entry.Complete(result)
	}
	records := make([]*protocol.TimelineRecord, len(req.Steps))
	for i, step := range req.Steps {
		rec := protocol.CreateTimelineEntry(req.JobID, step.ContextName, stepName(step))
		if step.ID != "" {
			rec.ID = step.ID
		}
		records[i] = log.Append(&rec)
	}
	for i, step := range req.Steps {
		if !wanted(step.Condition, result) {
			log.MoveNextExt(false)
			records[i].Complete(skipped)
			continue
		}
		log.MoveNext()
		_ = log.Update() // show it as running; the next update repeats what is lost
		stepResult := job.runStep(wc.JobExecCtx(), step, out)
		out.flush()
		records[i].Complete(stepResult)
		if stepResult != succeeded && result == succeeded {
			result = stepResult
		}
	}
	if wc.JobExecCtx().Err() != nil {
		result = canceled
	}
	log.MoveNext()
	log.TimelineRecords.Value[0].Complete(result)
	_ = log.Logger.Close()
	log.Finish()
	wc.FinishJob(result, nil)
	return nil
}

// wanted says whether a step with this condition runs after result so far.
// Conditions other than the plain functions count as success().
func wanted(condition, result string) bool {
	switch strings.ReplaceAll(condition, " ", "") {
	case "always()":
		return result != canceled // nothing runs in a canceled context
	case "failure()":
		return result == failed
	}
	return result == succeeded
}

// job is what its steps share.
type job struct {
	dir    string
	env    []string
	mask   *mask
	groups []int    // process groups of the steps
	given  []string // to this program, which the hook gets instead of what the job has
}

func newJob(req *protocol.AgentJobRequestMessage, environ []string) (*job, error) {
	if err := os.MkdirAll("_work", 0o755); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("_work", "job-")
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	m, err := newMask(req)
	if err != nil {
		return nil, err
	}
	j := &job{dir: dir, mask: m, given: environ}
	j.env = append(environ, "CI=true", "GITHUB_ACTIONS=true", "GITHUB_WORKSPACE="+dir, "RUNNER_OS="+runtime.GOOS, "RUNNER_ARCH="+runtime.GOARCH)
	j.env = append(j.env, githubEnv(req.ContextData["github"])...)
	for _, token := range req.EnvironmentVariables {
		env, err := mapping(&token)
		if err != nil {
			return nil, fmt.Errorf("the job's environment: %w", err)
		}
		for name, value := range env {
			j.env = append(j.env, name+"="+value)
		}
	}
	return j, nil
}

// githubEnv gives the plain strings of the github context as GITHUB_ variables.
func githubEnv(data protocol.PipelineContextData) []string {
	var env []string
	values, _ := data.ToRawObject().(map[string]any)
	for name, value := range values {
		if s, ok := value.(string); ok && name != "token" {
			env = append(env, "GITHUB_"+strings.ToUpper(name)+"="+s)
		}
	}
	return env
}

// runHook executes the job-started hook: with what this program was given and what is known
// of the job, and with nothing that the workflow's author chose.
func (j *job) runHook(ctx context.Context, path string, req *protocol.AgentJobRequestMessage, out *maskedLog) string {
	data := req.ContextData["github"]
	env := append(slices.Clone(j.given), githubEnv(data)...)
	values, _ := data.ToRawObject().(map[string]any)
	if event, ok := values["event"]; ok {
		text, err := json.Marshal(event)
		file := filepath.Join(j.dir, ".event.json")
		if err == nil {
			err = os.WriteFile(file, text, 0o600)
		}
		if err != nil {
			fmt.Fprintf(out, "##[error]%v\n", err)
			return failed
		}
		env = append(env, "GITHUB_EVENT_PATH="+file)
	}
	fmt.Fprintln(out, "A job started hook has been configured by the self-hosted runner administrator")
	shell, err := exec.LookPath("bash")
	if err != nil {
		shell = "sh"
	}
	cmd := exec.CommandContext(ctx, shell, "-e", path)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = j.dir, env, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = killDelay
	switch err := cmd.Run(); {
	case ctx.Err() != nil:
		return canceled
	case err != nil:
		return failed
	}
	return succeeded
}

// runStep executes one step and returns its result.
func (j *job) runStep(ctx context.Context, step protocol.ActionStep, out *maskedLog) string {
	if err := j.script(ctx, step, out); err != nil && ctx.Err() == nil {
		fmt.Fprintf(out, "\n##[error]%v\n", err)
		return failed
	}
	if ctx.Err() != nil {
		fmt.Fprint(out, "\n##[error]The operation was canceled.\n")
		return canceled
	}
	return succeeded
}

func (j *job) script(ctx context.Context, step protocol.ActionStep, out *maskedLog) error {
	if step.Reference.Type != "" && !strings.EqualFold(step.Reference.Type, "script") {
		return fmt.Errorf("this runner executes run: steps only, not %s", step.Reference.Type)
	}
	inputs, err := mapping(step.Inputs)
	if err != nil {
		return fmt.Errorf("the step's inputs: %w", err)
	}
	env, err := mapping(step.Environment)
	if err != nil {
		return fmt.Errorf("the step's environment: %w", err)
	}
	cmd := exec.CommandContext(ctx, "sh", "-e", "-c", inputs["script"])
	cmd.Dir = filepath.Join(j.dir, inputs["workingDirectory"])
	cmd.Env = j.env
	for name, value := range env {
		cmd.Env = append(cmd.Env[:len(cmd.Env):len(cmd.Env)], name+"="+value)
	}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = killDelay
	err = cmd.Run()
	if cmd.Process != nil {
		j.groups = append(j.groups, cmd.Process.Pid)
		if ctx.Err() != nil {
			j.killAll()
		}
	}
	if errors.Is(err, exec.ErrWaitDelay) { // it ended well, and left a process that holds its output
		return nil
	}
	return err
}

// killAll ends what the steps left in their process groups.
func (j *job) killAll() {
	for _, pgid := range j.groups {
		_ = syscall.Kill(-pgid, syscall.SIGKILL)
	}
	j.groups = nil
}

func stepName(step protocol.ActionStep) string {
	if name, err := text(step.DisplayNameToken); err == nil && name != "" {
		return name
	}
	inputs, _ := mapping(step.Inputs)
	first, _, _ := strings.Cut(strings.TrimSpace(inputs["script"]), "\n")
	return "Run " + first
}

// mapping reads a template token that maps names to plain values. None is empty.
func mapping(token *protocol.TemplateToken) (map[string]string, error) {
	values := map[string]string{}
	if token == nil {
		return values, nil
	}
	if token.Type != protocol.TokenTypeMapping || token.Map == nil {
		return nil, errors.New("it is not a mapping")
	}
	for _, entry := range *token.Map {
		key, err := text(entry.Key)
		if err != nil {
			return nil, err
		}
		if values[key], err = text(entry.Value); err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
	}
	return values, nil
}

// text reads a template token that is one plain value.
func text(token *protocol.TemplateToken) (string, error) {
	switch {
	case token == nil || token.Type == protocol.TokenTypeNull:
		return "", nil
	case token.Type == protocol.TokenTypeExpression:
		return "", errors.New("this runner evaluates no expressions")
	case token.Lit != nil:
		return *token.Lit, nil
	case token.Bool != nil:
		return fmt.Sprint(*token.Bool), nil
	case token.Num != nil:
		return fmt.Sprint(*token.Num), nil
	}
	return "", nil
}
