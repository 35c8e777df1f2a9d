// SPDX-License-Identifier: MIT

package guest

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/secret"
)

// drainWait is for how long output is still read once the listener and its
// group are gone: a process outside the group may hold the pipe for ever.
const drainWait = time.Second

// supervise runs the listener until its end is final, and reports it.
func (a *Agent) supervise(jit secret.Text, env map[string]string) {
	// The listener may be bound to the life of the thread that starts it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	h := history{}
	for {
		h.end(a.launch(jit, env, &h))
		h.ended, _, _ = a.ending.get()
		v := judge(h, a.cfg.MaxRelaunches)
		if v.again == againNo {
			a.finish(h, v)
			return
		}
		a.cfg.Log.Info("listener will be started again", slog.String("reason", v.reason), slog.Int("relaunches", h.relaunches+1))
		if v.again == againAfterUpdate && a.awaitUpdate() {
			h.pgid = 0 // its updater was the last of the group
		}
		a.clean(h.pgid)
		h.pgid = 0
		if !a.ending.sleep(a.cfg.RelaunchDelay) {
			h.ended = true
			a.finish(h, judge(h, a.cfg.MaxRelaunches))
			return
		}
		h.relaunches++
		a.update(func(s *Status) {
			s.Phase = PhaseStarting
			s.Runner.Relaunches = h.relaunches
		})
	}
}

func (a *Agent) finish(h history, v verdict) {
	a.clean(h.pgid)
	a.update(func(s *Status) {
		s.Phase = PhaseFinished
		s.Runner.FinishedAt = now()
		s.Runner.Outcome = v.outcome
		s.Runner.Result = v.result
		s.Runner.Reason = printable(v.reason, maxReasonBytes, false)
		s.Runner.Job.Unasked = h.seen.running && a.hooks && s.Runner.Job.AskedAt.IsZero()
		if h.startErr == nil {
			s.Runner.ExitCode = new(h.code)
		}
	})
	crashpoint.Reached(crashpoint.GuestFinished)
	a.cfg.Log.Info("runner finished", slog.String("outcome", string(v.outcome)), slog.String("result", string(v.result)), slog.String("reason", v.reason))
}

// clean ends what the listener left behind, its group only if pgid is not zero.
func (a *Agent) clean(pgid int) {
	if pgid != 0 {
		if err := killGroup(pgid); err != nil {
			a.cfg.Log.Warn("listener's group not ended", slog.Any("error", err))
		}
	}
	if err := a.family.killOrphans(); err != nil {
		a.cfg.Log.Warn("listener's orphans not ended", slog.Any("error", err))
	}
}

// launch runs the listener once and follows it to its exit.
func (a *Agent) launch(jit secret.Text, env map[string]string, h *history) launchEnd {
	path := filepath.Join(a.cfg.RunnerDir, "bin", "Runner.Listener")
	r, w, err := os.Pipe()
	if err != nil {
		return launchEnd{startErr: err}
	}
	defer r.Close()
	cmd := exec.Command(path, "run") //nolint:noctx // it is ended step by step, see await
	cmd.Dir = a.cfg.WorkDir
	cmd.Env = a.environ(jit, env)
	cmd.Stdout, cmd.Stderr = w, w
	if err = a.asUser(cmd); err == nil {
		err = a.family.start(cmd)
	}
	w.Close()
	if err != nil {
		return launchEnd{startErr: startError(path, a.cfg.WorkDir, err)}
	}
	crashpoint.Reached(crashpoint.ListenerStarted)
	a.cfg.Log.Info("listener started", slog.Int("pid", cmd.Process.Pid))

	drained := make(chan struct{})
	go func() {
		defer close(drained)
		readLines(r, a.follow(jit, h))
	}()
	err = a.await(cmd)
	crashpoint.Reached(crashpoint.ListenerExited)
	end := launchEnd{pgid: cmd.Process.Pid}
	end.code, end.signal, end.waitErr = exitOf(err)
	if !updating(end.code) { // the runner's updater is in the group
		a.clean(end.pgid)
		end.pgid = 0
	}
	r.SetReadDeadline(time.Now().Add(drainWait))
	<-drained
	return end
}

// await waits for the listener's exit. When the end is asked for it sends
// SIGTERM, to the listener alone so that it can end its worker in order, and
// kills the group when the grace is over.
func (a *Agent) await(cmd *exec.Cmd) error {
	exited := make(chan error, 1)
	go func() { exited <- a.family.wait(cmd) }()
	timer := time.NewTimer(0)
	defer timer.Stop()
	told := false
	for {
		asked, deadline, changed := a.ending.get()
		var expired <-chan time.Time
		if asked {
			if !told {
				told = true
				cmd.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it may be gone
				crashpoint.Reached(crashpoint.ListenerTold)
			}
			timer.Reset(time.Until(deadline))
			expired = timer.C
		}
		select {
		case err := <-exited:
			return err
		case <-changed:
		case <-expired:
			a.cfg.Log.Warn("listener does not end in time: killing its group")
			if err := killGroup(cmd.Process.Pid); err != nil {
				a.cfg.Log.Warn("listener's group not ended", slog.Any("error", err))
			}
			return <-exited
		}
	}
}

// follow returns what is done with each line: keep it, read it, report it.
func (a *Agent) follow(jit secret.Text, h *history) func([]byte, bool) {
	h.seen.launch()
	hidden := []byte(jit.Reveal())
	return func(line []byte, cut bool) {
		if cut { // perhaps in the middle of what is hidden
			line = withoutBegun(line, hidden)
		}
		a.tail.add(bytes.ReplaceAll(line, hidden, []byte("[redacted]")))
		if cut { // its end, where a job's result would be, is not known
			return
		}
		e := parseLine(string(line))
		if e.kind == eventNone {
			return
		}
		if e.kind == eventRunning {
			crashpoint.Reached(crashpoint.ListenerBusy)
		}
		h.seen.take(e)
		a.update(func(s *Status) { report(s, e) })
	}
}

// withoutBegun returns the line without the beginning of the secret that it ends with.
func withoutBegun(line, secret []byte) []byte {
	for n := min(len(line), len(secret)-1); n > 0; n-- {
		if bytes.HasSuffix(line, secret[:n]) {
			return line[:len(line)-n]
		}
	}
	return line
}

// report shows a line's meaning in the status. A job, once begun, is never
// taken back by a later line.
func report(s *Status, e event) {
	r := &s.Runner
	switch e.kind {
	case eventVersion:
		if r.Version == "" {
			r.Version = e.text
		}
	case eventListening:
		if s.Phase == PhaseStarting {
			s.Phase = PhaseIdle
			r.IdleAt = now()
		}
	case eventRunning:
		if s.Phase == PhaseStarting || s.Phase == PhaseIdle {
			s.Phase = PhaseBusy
			r.BusyAt = now()
		}
	case eventResult:
		if s.Phase == PhaseBusy && r.Result == "" {
			r.Result = e.result
		}
	}
}

// baseEnviron is what every program needs.
func (a *Agent) baseEnviron() []string {
	var out []string
	for _, kv := range a.cfg.Environ {
		name, _, _ := strings.Cut(kv, "=")
		switch name {
		case "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TMPDIR", "TZ", "__CF_USER_TEXT_ENCODING":
			out = append(out, kv)
		}
	}
	return out
}

// environ is the listener's environment: what any program needs, what the
// operator and the host added, the two switches that make the official runner
// tell more by its exit code, and the JIT config.
func (a *Agent) environ(jit secret.Text, env map[string]string) []string {
	out := a.baseEnviron()
	if a.user != nil {
		out = append(out, a.user.environ()...)
	}
	if os.Geteuid() == 0 && (a.user == nil || a.user.uid == 0) {
		out = append(out, "RUNNER_ALLOW_RUNASROOT=1")
	}
	for name, value := range env {
		out = append(out, name+"="+value)
	}
	return append(out,
		"ACTIONS_RUNNER_RETURN_JOB_RESULT_FOR_HOSTED=true",
		"ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE=1",
		inputPrefix+"JITCONFIG="+jit.Reveal(),
	)
}

// updateDone is the file by which the runner's updater says that it is done.
const updateDone = "update.finished"

// awaitUpdate waits until the runner's own update is done, for a bounded time,
// and reports whether it is: what starts then is whatever lies there.
func (a *Agent) awaitUpdate() bool {
	deadline := time.Now().Add(a.cfg.UpdateWait)
	for time.Now().Before(deadline) {
		for _, dir := range []string{a.cfg.RunnerDir, a.cfg.WorkDir} {
			if os.Remove(filepath.Join(dir, updateDone)) == nil {
				return true
			}
		}
		if !a.ending.sleep(100 * time.Millisecond) {
			return false
		}
	}
	a.cfg.Log.Warn("runner's update did not finish in time", slog.Duration("waited", a.cfg.UpdateWait))
	return false
}

// startError says what to do about a listener that could not be started.
func startError(path, workDir string, err error) error {
	if _, dirErr := os.Stat(workDir); dirErr != nil {
		return fmt.Errorf("the work folder cannot be used: %w", dirErr)
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("there is no listener at %s: install the runner there, or name its folder with --runner-dir", path)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("the listener %s may not be executed: check its mode and owner", path)
	case errors.Is(err, syscall.ENOEXEC):
		return fmt.Errorf("the listener %s is not a program for this system: install the runner built for it", path)
	}
	return fmt.Errorf("start listener %s: %w", path, err)
}

// exitOf takes an exit apart: the code, or -1 and the signal's name.
func exitOf(err error) (code int, signal string, other error) {
	if err == nil {
		return 0, "", nil
	}
	ee, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return -1, "", err
	}
	if ws, ok := ee.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return -1, ws.Signal().String() + " (" + strconv.Itoa(int(ws.Signal())) + ")", nil
	}
	return ee.ExitCode(), "", nil
}
