// SPDX-License-Identifier: MIT

package guest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/minifleet/minifleet/trust"
)

// hookVariable names the script that the runner runs before a job's first step. Where it
// ends other than with 0 the job fails, and yet a step of it runs whose condition is always():
// so our script does not end where the job is refused, and the listener is ended under it. A
// runner that is told to end begins no further step, whatever its condition.
const hookVariable = "ACTIONS_RUNNER_HOOK_JOB_STARTED"

const (
	maxAskBytes   = 64 << 10
	maxSocketPath = 100 // what every system takes
	askTimeout    = 30 * time.Second
	// The listener of a refused job has so long to report it, and is then killed.
	refusedGrace = 30 * time.Second
	// toldTimeout is how long the hook may take to say why in the job's log.
	toldTimeout = 5 * time.Second
)

// jobAsk is what the hook tells of the runner's job.
type jobAsk struct {
	Repository      string           `json:"repository"`
	Visibility      trust.Visibility `json:"visibility,omitempty"`
	Event           string           `json:"event"`
	Head            string           `json:"head,omitempty"`
	Actor           string           `json:"actor,omitempty"`
	TriggeringActor string           `json:"triggering_actor,omitempty"`
	Run             int64            `json:"run"`
	// Unread says why the event that began the run could not be read.
	Unread string `json:"unread,omitempty"`
}

type jobAnswer struct {
	Refused string `json:"refused,omitempty"`
}

// jobHook answers the runner's job-started hook. The hook runs before any step of the job,
// as the runner's user; it is a messenger, and the judgement is made here.
type jobHook struct {
	policy  trust.Policy
	dir     string
	script  string
	l       net.Listener
	log     *slog.Logger
	serving sync.WaitGroup
}

// newJobHook writes the script and opens what it asks through. A hook that the image has of
// its own runs after ours, for jobs that are allowed.
func (a *Agent) newJobHook(policy trust.Policy, env map[string]string) (_ *jobHook, err error) {
	h := &jobHook{policy: policy, log: a.cfg.Log}
	if h.dir, err = a.hookDir(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			h.close()
		}
	}()
	h.script = filepath.Join(h.dir, "job-started.sh")
	own, err := takeOwnHook(filepath.Join(a.cfg.RunnerDir, ".env"), h.script)
	if err != nil {
		return nil, err
	}
	for _, from := range []map[string]string{env, a.cfg.Env} {
		if own == "" {
			own = from[hookVariable]
		}
	}
	if own != "" && !strings.HasSuffix(own, ".sh") {
		return nil, fmt.Errorf("the image sets %s to %s, and only a script whose name ends with .sh can follow Minifleet's own", hookVariable, clip(own, 200))
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(h.dir, "ask")
	if h.l, err = net.Listen("unix", socket); err != nil { //nolint:noctx // nothing is waited for
		return nil, err
	}
	if err := os.WriteFile(h.script, hookScript(self, socket, own), 0o755); err != nil {
		return nil, err
	}
	for _, path := range []string{h.dir, socket, h.script} {
		if err := errors.Join(os.Chmod(path, 0o700), a.give(path)); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// give makes the runner's user the owner of a file.
func (a *Agent) give(path string) error {
	if a.user == nil {
		return nil
	}
	return os.Chown(path, int(a.user.uid), int(a.user.gid))
}

// hookDir makes a folder whose path leaves room for a socket's name, and which the runner's
// user can reach.
func (a *Agent) hookDir() (string, error) {
	for _, parent := range []string{os.TempDir(), "/tmp"} {
		if a.user != nil && parent != "/tmp" {
			continue // ours may be nobody else's to pass through
		}
		dir, err := os.MkdirTemp(parent, "mfj")
		if err != nil {
			return "", err
		}
		if len(dir)+len("/ask") <= maxSocketPath {
			return dir, nil
		}
		if err := os.Remove(dir); err != nil {
			return "", err
		}
	}
	return "", errors.New("no folder for temporary files has a path short enough for a socket")
}

// hookScript is what the runner runs.
func hookScript(self, socket, own string) []byte {
	text := "#!/bin/bash\n# Made by minifleet-guest: asks it whether this machine runs the job.\n" +
		quote(self) + " " + JobStartedCommand + " " + quote(socket) + " || exit 1\n"
	if own != "" {
		text += "# What the image has for this moment.\nexec \"${BASH:-sh}\" -e " + quote(own) + "\n"
	}
	return []byte(text)
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// takeOwnHook puts our script in the place of one that the runner's own file of variables
// names, which wins over its environment, and returns the one that was there.
func takeOwnHook(path, script string) (own string, err error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	name := []byte(hookVariable + "=")
	lines := bytes.Split(text, []byte("\n"))
	for i, line := range lines {
		if value, ok := bytes.CutPrefix(line, name); ok {
			own = strings.TrimRight(string(value), "\r")
			lines[i] = append(slices.Clone(name), script...)
		}
	}
	if own == "" || own == script {
		return "", nil
	}
	return own, os.WriteFile(path, bytes.Join(lines, []byte("\n")), 0o644)
}

// serve answers until the hook has its one answer, or close. Of a refusal it calls end once
// the hook has said so in the job's log.
func (h *jobHook) serve(decided func(jobAsk, string), end func()) {
	h.serving.Go(func() {
		for {
			conn, err := h.l.Accept()
			if err != nil {
				return
			}
			refused, done := h.answer(conn, decided)
			if refused {
				if conn.SetReadDeadline(time.Now().Add(toldTimeout)) == nil {
					conn.Read(make([]byte, 1)) //nolint:errcheck // with or without its word
				}
				end()
			}
			conn.Close()
			if done {
				h.l.Close()
				return
			}
		}
	})
}

// answer judges one question. It reports whether it refuses the job, and whether it was
// asked at all.
func (h *jobHook) answer(conn net.Conn, decided func(jobAsk, string)) (refused, done bool) {
	var ask jobAsk
	err := conn.SetDeadline(time.Now().Add(askTimeout))
	if err == nil {
		err = json.NewDecoder(io.LimitReader(conn, maxAskBytes)).Decode(&ask)
	}
	if err != nil {
		h.log.Warn("the job-started hook was not understood", slog.Any("error", err))
		return false, false
	}
	why := h.judge(ask)
	decided(ask, why)
	if err := json.NewEncoder(conn).Encode(jobAnswer{Refused: why}); err != nil {
		h.log.Warn("the job-started hook did not take its answer", slog.Any("error", err)) // without one it allows nothing
	}
	return why != "", true
}

// judge returns why the job is refused, "" if it is not. Some events do not say whether the
// repository is public; none of them brings code of others, and such a job is taken as one
// of a private repository. All else that is not known is refused.
func (h *jobHook) judge(ask jobAsk) string {
	f := trust.Facts{
		Repository: ask.Repository, Visibility: ask.Visibility, Origin: ask.Unread == "",
		Event: ask.Event, Head: ask.Head, Actor: ask.Actor, TriggeringActor: ask.TriggeringActor,
	}
	if f.Visibility == trust.Unknown && f.Origin {
		f.Visibility = trust.Private
	}
	v := h.policy.Judge(f)
	if v.Pending && ask.Unread != "" {
		return v.Reason + ": " + ask.Unread
	}
	return v.Reason
}

// close ends the answering and removes all traces.
func (h *jobHook) close() {
	if h.l != nil {
		h.l.Close()
	}
	h.serving.Wait()
	if err := os.RemoveAll(h.dir); err != nil {
		h.log.Warn("the job-started hook's folder is left", slog.Any("error", err))
	}
}
