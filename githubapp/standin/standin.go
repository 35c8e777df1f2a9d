// SPDX-License-Identifier: MIT

// Package standin is a runner of our own, deliberately small: it speaks just
// enough of the older Actions service to take one job with a JIT config, run
// its script steps and report them, and it prints what the official runner
// prints. It exists so that a development fleet can show a job with nothing to
// download. It is no runner for real work: it evaluates no expressions and runs
// no actions.
package standin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// Options are what a stand-in needs of the process around it.
type Options struct {
	Getenv func(string) string // default os.Getenv
	Stdout io.Writer           // default: nowhere
	Stderr io.Writer           // default: nowhere
	Dir    string              // jobs run in _work below it; default: the working directory
}

// Version is what the stand-in says of itself, to the service and in its output.
const Version = "0.0.0-standin"

const (
	retryDelay = 2 * time.Second
	renewEvery = time.Minute
)

// Run takes one job and returns the official runner's exit code: 0 after a job,
// whatever its result, and when there is none to wait for any more; 1 when
// the config is of no use; 2 when another start may help; 5 when it is in use. When ctx ends, an
// idle stand-in leaves and a busy one cancels its job and reports that.
func Run(ctx context.Context, o Options) int {
	if o.Getenv == nil {
		o.Getenv = os.Getenv
	}
	if o.Stdout == nil {
		o.Stdout = io.Discard
	}
	if o.Stderr == nil {
		o.Stderr = io.Discard
	}
	cfg, err := parseJIT(o.Getenv("ACTIONS_RUNNER_INPUT_JITCONFIG"))
	if err != nil {
		fmt.Fprintln(o.Stderr, "An error occurred:", err)
		return 1
	}
	l := &listener{Options: o, service: newService(cfg)}
	defer l.service.http.CloseIdleConnections()
	switch err := l.service.createSession(ctx); {
	case err == nil:
		defer l.service.deleteSession(context.WithoutCancel(ctx))
		return l.listen(ctx)
	case ctx.Err() != nil:
		return 0
	case errors.Is(err, errGone):
		fmt.Fprintln(o.Stdout, "Failed to create a session. The runner registration has been deleted from the server.")
		return 1
	case errors.Is(err, errConflict):
		fmt.Fprintln(o.Stdout, "A session for this runner already exists.")
		return 5
	case errors.Is(err, errProtocol):
		fmt.Fprintln(o.Stderr, "An error occurred:", err)
		return 1
	default: // whoever started it may do so again
		l.say("Runner connect error: %v", err)
		return 2
	}
}

type listener struct {
	Options
	service *service
}

// say prints a line with the time, as the official runner does.
func (l *listener) say(format string, args ...any) {
	fmt.Fprintln(l.Stdout, time.Now().UTC().Format("2006-01-02 15:04:05Z:"), fmt.Sprintf(format, args...))
}

// listen waits for the one job and runs it.
func (l *listener) listen(ctx context.Context) int {
	fmt.Fprintf(l.Stdout, "\n√ Connected to GitHub\n\nCurrent runner version: '%s'\n", Version)
	l.say("Listening for Jobs")
	for ctx.Err() == nil {
		kind, body, err := l.service.poll(ctx, "Online")
		switch {
		case errors.Is(err, errGone):
			fmt.Fprintln(l.Stdout, "The runner no longer exists on the server. Cleaning up local configuration.")
			return 0
		case err != nil && ctx.Err() == nil:
			l.say("Runner connect error: %v. Retrying until reconnected.", err)
			pause(ctx, retryDelay)
		case strings.EqualFold(kind, "PipelineAgentJobRequest"):
			var req jobRequest
			if err := json.Unmarshal(body, &req); err != nil {
				fmt.Fprintln(l.Stderr, "An error occurred: the job cannot be read:", err)
				return 1
			}
			l.take(ctx, req)
			return 0
		}
	}
	return 0
}

// take runs a job once its lock is renewed, as the official runner does, goes on renewing
// it, and listens for its cancellation meanwhile.
func (l *listener) take(ctx context.Context, req jobRequest) {
	l.say("Running job: %s", req.JobDisplayName)
	l.service.renew(ctx, req.RequestID)
	job, cancel := context.WithCancel(ctx)
	defer cancel()
	over, done := context.WithCancel(context.WithoutCancel(ctx))
	results := make(chan string, 1)
	go func() {
		defer done()
		results <- l.runJob(job, req)
	}()
	renewed := make(chan struct{})
	renewer := *l.service // with a token of its own
	go func() {
		defer close(renewed)
		for {
			pause(over, renewEvery)
			if over.Err() != nil {
				return
			}
			renewer.renew(over, req.RequestID)
		}
	}()
	for over.Err() == nil {
		kind, _, err := l.service.poll(over, "Busy")
		if err != nil {
			pause(over, retryDelay)
		} else if strings.EqualFold(kind, "JobCancellation") {
			cancel()
		}
	}
	<-renewed
	l.say("Job %s completed with result: %s", req.JobDisplayName, <-results)
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
