// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"time"

	"github.com/minifleet/minifleet/githubapp/githubsim"
	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/secret"
)

// listen plays the listener.
func (v *dayVM) listen(config secret.Text) {
	if !v.sleep(between(v.rng, 2*time.Second, 9*time.Second)) {
		return
	}
	switch v.flaw {
	case noListener:
		v.finish(guest.OutcomeRefused, "", "simulated: the runner is refused")
		return
	case noSession:
		v.stay()
		return
	}
	if v.flaw == expired {
		v.host.day.expire(config)
	}
	l, err := v.host.day.sim.Listen(config)
	if err != nil {
		v.finish(guest.OutcomeNoJob, "", err.Error())
		return
	}
	v.mu.Lock()
	v.agent = agentNameOf(config)
	v.mu.Unlock()
	v.say(func(s *guest.Status) { s.Phase, s.Runner.IdleAt = guest.PhaseIdle, time.Now() })
	ctx, cancel := context.WithCancel(v.life)
	defer cancel()
	go func() {
		select {
		case <-v.told:
			cancel()
		case <-ctx.Done():
		}
	}()
	job, err := l.Next(ctx)
	if err == nil {
		reaction := between(v.rng, 100*time.Millisecond, 2*time.Second)
		if v.flaw == tooLate {
			reaction = 90 * time.Second
		}
		if err = ctx.Err(); pauseFor(ctx, reaction) {
			err = l.Take()
		}
	}
	switch {
	case v.life.Err() != nil: // the power is off
		l.Abandon()
	case ctx.Err() != nil:
		l.Close()
		v.finish(guest.OutcomeEnded, "", "ended on request before it had a job")
	case err != nil && (v.flaw == ghost || v.flaw == tooLate):
		l.Abandon()
		v.stay()
	case err != nil:
		l.Close()
		v.finish(guest.OutcomeNoJob, "", err.Error())
	default:
		v.work(l, job.ID)
	}
}

// stay listens to nobody until it is told to end.
func (v *dayVM) stay() {
	select {
	case <-v.told:
		v.finish(guest.OutcomeEnded, "", "ended on request before it had a job")
	case <-v.life.Done():
	}
}

// work plays the job.
func (v *dayVM) work(l *githubsim.Listener, id int64) {
	takes, result := v.host.day.script(id)
	v.mu.Lock()
	v.running = id
	if v.flaw == deaf {
		v.deafTill = time.Now().Add(between(v.rng, 5*time.Minute, 8*time.Minute))
	}
	v.mu.Unlock()
	v.host.day.ran(v, id)
	v.say(func(s *guest.Status) { s.Phase, s.Runner.BusyAt = guest.PhaseBusy, time.Now() })
	if v.flaw == crash {
		if !errors.Is(l.Work(v.life, takes/2), githubsim.ErrOver) {
			v.host.day.lose(id, "its VM crashed")
		}
		l.Abandon()
		go v.end("simulated: the VM crashed")
		return
	}
	err := l.Work(v.life, takes)
	switch {
	case v.life.Err() != nil:
		l.Abandon()
		return
	case errors.Is(err, githubsim.ErrCancelled):
		result = "canceled"
	case err != nil:
		result = "failed"
	}
	if err := l.Finish(result); err != nil {
		result = "failed" // GitHub has ended it
	}
	l.Abandon()
	v.mu.Lock()
	v.running = 0
	v.mu.Unlock()
	said := map[string]guest.Result{"succeeded": guest.ResultSucceeded, "failed": guest.ResultFailed, "canceled": guest.ResultCanceled}[result]
	v.finish(guest.OutcomeJob, said, "the job ended: "+result)
}

func (v *dayVM) finish(o guest.Outcome, r guest.Result, reason string) {
	v.say(func(s *guest.Status) {
		if s.Phase != guest.PhaseFinished {
			s.Phase, s.Runner.Outcome, s.Runner.Result, s.Runner.Reason = guest.PhaseFinished, o, r, reason
			s.Runner.FinishedAt = time.Now()
		}
	})
}

func (v *dayVM) End(ctx context.Context, _ time.Duration) error {
	if err := v.answers(ctx); err != nil {
		return err
	}
	v.spare("its listener is told to end")
	v.tell()
	v.mu.Lock()
	config, id := v.status.HasConfig, v.running
	v.mu.Unlock()
	if !config {
		v.finish(guest.OutcomeEnded, "", "ended on request")
	}
	if id != 0 { // it gives up the job, whose end GitHub knows already
		go v.end("ended on request")
	}
	return nil
}

// agentNameOf reads the name of the registration in a JIT config.
func agentNameOf(config secret.Text) string {
	var files map[string][]byte
	var runner struct{ AgentName string }
	raw, err := base64.StdEncoding.DecodeString(config.Reveal())
	if err != nil || json.Unmarshal(raw, &files) != nil || json.Unmarshal(files[".runner"], &runner) != nil {
		return ""
	}
	return runner.AgentName
}
