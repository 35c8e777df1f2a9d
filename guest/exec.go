// SPDX-License-Identifier: MIT

package guest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	maxCommands    = 8 // at once
	maxArgs        = 1024
	maxStdinBytes  = 128 << 10
	maxExecTimeout = 24 * time.Hour
	lastWords      = 5 * time.Second // for the rest of an answer whose command was ended
)

// execRequest is the body of POST exec.
type execRequest struct {
	Argv           []string          `json:"argv"`
	Env            map[string]string `json:"env,omitempty"`
	Dir            string            `json:"dir,omitempty"`
	User           string            `json:"user,omitempty"`
	Stdin          []byte            `json:"stdin,omitempty"`
	TimeoutSeconds float64           `json:"timeout_seconds"`
}

func (r execRequest) check() error {
	total := 0
	for _, arg := range r.Argv {
		total += len(arg)
		if strings.ContainsRune(arg, 0) {
			return errors.New("argv: an argument has a NUL byte")
		}
	}
	switch {
	case len(r.Argv) == 0 || r.Argv[0] == "":
		return errors.New("argv is empty: name a program")
	case len(r.Argv) > maxArgs || total > 128<<10:
		return fmt.Errorf("argv: at most %d arguments of 128 KiB together are taken", maxArgs)
	case r.Dir != "" && !filepath.IsAbs(r.Dir) || strings.ContainsRune(r.Dir, 0):
		return fmt.Errorf("dir %q: give an absolute path", clip(r.Dir, 128))
	case strings.ContainsRune(r.User, 0) || len(r.User) > 64:
		return errors.New("user is not a name")
	case len(r.Stdin) > maxStdinBytes:
		return fmt.Errorf("stdin: at most %d bytes are taken; put the rest into a file", maxStdinBytes)
	case !(r.TimeoutSeconds > 0) || r.TimeoutSeconds > maxExecTimeout.Seconds():
		return fmt.Errorf("timeout_seconds: give more than 0 and at most %.0f", maxExecTimeout.Seconds())
	}
	return checkEnv(r.Env)
}

// commands are what the host had run besides the runner.
type commands struct {
	life context.Context //nolint:containedctx // ends with the program
	end  context.CancelCauseFunc
	room chan struct{} // one for each that runs

	mu     sync.Mutex // guards closed, and the beginning of work
	closed bool
	work   sync.WaitGroup
}

func newCommands() *commands {
	life, end := context.WithCancelCause(context.Background())
	return &commands{life: life, end: end, room: make(chan struct{}, maxCommands)}
}

var errManyCommands = fmt.Errorf("%d commands run already: wait for one to end", maxCommands)

// begin takes room for one command, which ends with done.
func (c *commands) begin() (done func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errClosed
	}
	select {
	case c.room <- struct{}{}:
	default:
		return nil, errManyCommands
	}
	c.work.Add(1)
	return func() {
		<-c.room
		c.work.Done()
	}, nil
}

// close ends all commands and waits for them.
func (c *commands) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.end(errClosed)
	c.work.Wait()
}

func (a *Agent) serveExec(w http.ResponseWriter, r *http.Request) {
	var req execRequest
	if err := decode(w, r, &req); err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	if err := req.check(); err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	done, err := a.commands.begin()
	if err != nil {
		fail(w, http.StatusServiceUnavailable, err)
		return
	}
	defer done()
	timeout := toDuration(req.TimeoutSeconds, maxExecTimeout)
	ctx, cancel := context.WithTimeoutCause(r.Context(), timeout, fmt.Errorf("it did not end within %v", timeout))
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	defer context.AfterFunc(a.commands.life, func() { stop(context.Cause(a.commands.life)) })()

	rc := http.NewResponseController(w)
	// A host that reads nothing must not keep the command's place.
	defer context.AfterFunc(ctx, func() { rc.SetWriteDeadline(time.Now().Add(lastWords)) })() //nolint:errcheck // a bound, no need
	frames := &frameWriter{w: w, flush: rc.Flush}
	w.Header().Set("Content-Type", "application/octet-stream")
	end, err := a.execute(ctx, req, frames)
	kind, last := byte(frameExit), []byte(nil)
	if err != nil {
		kind, last = frameError, []byte(clip(err.Error(), maxReasonBytes))
	} else if last, err = json.Marshal(end); err != nil {
		panic(err) // our own types always marshal
	}
	if err := frames.write(kind, last); err != nil {
		a.cfg.Log.Debug("end of a command not sent", slog.Any("error", err))
	}
}

// execMark names the variable that tells which processes a command left behind: unlike
// their group it stays with them.
const execMark = "MINIFLEET_EXEC"

// execute runs one command to its end, or to that of ctx, and ends all that it started.
func (a *Agent) execute(ctx context.Context, req execRequest, frames *frameWriter) (execEnd, error) {
	// The command may be bound to the life of the thread that starts it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	mark := execMark + "=" + rand.Text()
	cmd, err := a.command(req, mark)
	if err != nil {
		return execEnd{}, err
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		return execEnd{}, err
	}
	defer outR.Close()
	errR, errW, err := os.Pipe()
	if err != nil {
		outW.Close()
		return execEnd{}, err
	}
	defer errR.Close()
	cmd.Stdout, cmd.Stderr = outW, errW
	err = a.family.start(cmd)
	outW.Close()
	errW.Close()
	if err != nil {
		return execEnd{}, fmt.Errorf("start %s: %w", clip(req.Argv[0], 128), err)
	}
	a.cfg.Log.Info("command started", slog.String("program", clip(req.Argv[0], 128)), slog.Int("pid", cmd.Process.Pid))

	var draining sync.WaitGroup
	draining.Go(func() { io.Copy(output{frames, frameStdout}, outR) }) //nolint:errcheck // what is not sent is lost with the answer
	draining.Go(func() { io.Copy(output{frames, frameStderr}, errR) }) //nolint:errcheck // as above
	exited := make(chan error, 1)
	go func() { exited <- a.family.wait(cmd) }()
	var ended error
	select {
	case err = <-exited:
	case <-ctx.Done():
		ended = fmt.Errorf("the command was ended: %w", context.Cause(ctx))
		if err := killGroup(cmd.Process.Pid); err != nil {
			a.cfg.Log.Warn("command's group not ended", slog.Any("error", err))
		}
		err = <-exited
	}
	if killErr := errors.Join(killGroup(cmd.Process.Pid), a.family.killMarked(mark)); killErr != nil {
		a.cfg.Log.Warn("command's leftovers not ended", slog.Any("error", killErr))
	}
	outR.SetReadDeadline(time.Now().Add(drainWait))
	errR.SetReadDeadline(time.Now().Add(drainWait))
	draining.Wait()
	if errors.Is(err, exec.ErrWaitDelay) { // it ended well, and has not read all of its input
		err = nil
	}
	code, sig, err := exitOf(err)
	if ended != nil {
		return execEnd{}, ended
	}
	return execEnd{Code: code, Signal: sig}, err
}

// command prepares what a request asks for.
func (a *Agent) command(req execRequest, mark string) (*exec.Cmd, error) {
	cmd := exec.Command(req.Argv[0], req.Argv[1:]...) //nolint:gosec,noctx // running what the host wants is the request; execute ends it
	cmd.Dir = req.Dir
	cmd.Env = a.baseEnviron()
	cmd.WaitDelay = drainWait
	if req.User != "" {
		who, err := lookupAccount(req.User)
		if err != nil {
			return nil, err
		}
		cred, err := who.credential()
		if err != nil {
			return nil, err
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
		cmd.Env = append(cmd.Env, who.environ()...)
	}
	for name, value := range req.Env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	cmd.Env = append(cmd.Env, mark)
	if len(req.Stdin) > 0 {
		cmd.Stdin = bytes.NewReader(req.Stdin)
	}
	return cmd, nil
}
