// SPDX-License-Identifier: MIT

package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/hosts/protocol"
)

// service is the part of a life in which a VM runs: from its start, or its adoption,
// to the reason why it is torn down. One goroutine holds it; helpers send it news.
type service struct {
	*runner
	guest Guest

	news  chan guestNews  // of the guest
	exit  chan string     // the VM has ended by itself, and why
	mints chan mintAnswer // of the mint that is under way
	steps chan readied    // of the way to a standby, whichever is over

	seen    guest.Status // newest; Protocol 0 if none came yet
	silence time.Time    // since when the guest does not answer; zero if it does
	started time.Time    // of the boot, or of the adoption

	given     bool // the guest holds, or may hold, a JIT config
	inherited bool // that it may is known from an earlier agent's books only

	checks  bool // the guest can check jobs
	ready   bool // all is done between the guest's first answer and a standby
	readies bool // it is under way

	unsure    bool      // a config was handed over, and no answer says that it arrived
	unsureAt  time.Time // when to ask next
	lost      bool      // the guest program has forgotten a config that it had taken
	lastErr   error     // of the guest's silence
	minting   bool
	mintNever bool      // this VM gets no other config
	mintAfter int64     // do not ask again before a desired newer than this
	mintAt    time.Time // nor before this
	refusedAt int64     // but at once under a newer revision than that, if it is set
	mintPause backoff

	told     bool // of the policy, in the log
	watch    stopwatch
	relapses int // from idle back to starting, which a listener that restarts itself does

	endAsked bool      // the guest was told to end its listener
	endBy    time.Time // and the VM is stopped then at the latest
	endAt    time.Time // the next try to tell it
}

// guestNews is one answer of the guest, or its absence.
type guestNews struct {
	status guest.Status
	err    error
}

// Pauses in the service of a VM.
const (
	guestCall    = 30 * time.Second // how long any other call to a guest may take
	drainRecheck = 5 * time.Second  // pause until a guest that did not say whether it is busy is asked again
	endMargin    = 5 * time.Second  // given to a guest beyond its grace, which is its own to keep
	maxRelapses  = 10               // far more than a listener restarts itself
	newsBurst    = 20               // changes of status taken at once
	newsEvery    = 200 * time.Millisecond
)

// serve follows a running VM until it has to be torn down.
func (r *runner) serve(ctx context.Context) ending {
	s := &service{
		runner: r, guest: r.machine.Guest(), started: time.Now(),
		given: r.record.Given, inherited: r.record.Given,
		news: make(chan guestNews), exit: make(chan string), mints: make(chan mintAnswer, 1), steps: make(chan readied),
		mintPause: backoff{first: mintFirstWait, most: mintMostWait},
	}
	s.watch = stopwatch{restore: cmp.Or(r.restored, r.machine.Took().Restore)}
	if !r.started.IsZero() {
		s.watch.started = r.started.Add(r.saving)
	}
	if s.guest == nil {
		return ending{failure: "the VM runs but there is no way to its guest"}
	}
	ctx, cancel := context.WithCancel(ctx)
	var helpers sync.WaitGroup
	helpers.Go(func() { s.follow(ctx) })
	helpers.Go(func() { s.awaitExit(ctx) })
	defer func() { cancel(); helpers.Wait() }()

	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		o, changed := s.orders()
		if end, done := s.step(ctx, o, &helpers); done {
			return end
		}
		timer.Reset(s.nextLook(o))
		select {
		case <-ctx.Done():
			return ending{}
		case <-changed:
		case <-timer.C:
		case n := <-s.news:
			s.take(n)
		case why := <-s.exit:
			return s.exited(why)
		case step := <-s.steps:
			if end, done := s.readied(step); done {
				return end
			}
		case m := <-s.mints:
			if end, done := s.minted(ctx, m); done {
				return end
			}
		}
	}
}

// step does what the newest orders and the newest status ask for, and reports whether
// the VM's service is over.
func (s *service) step(ctx context.Context, o orders, helpers *sync.WaitGroup) (ending, bool) {
	if s.seen.Phase == guest.PhaseFinished {
		return s.finished(o), true
	}
	if s.lost {
		return ending{failure: "the guest program was started anew and has lost its runner"}, true
	}
	s.makeSure(ctx)
	if o.desire.Wanted != protocol.WantGone {
		// A drain that was taken back leaves nothing behind for the next one.
		s.endAsked, s.endBy, s.endAt = false, time.Time{}, time.Time{}
	}
	at := stageBooting
	switch {
	case s.given:
		at = stageGiven
	case s.ready:
		at = stageStandby
	}
	if gone, failure := o.leave(at); gone {
		return ending{failure: failure}, true
	}
	if at == stageBooting && s.booted() && !s.readies {
		s.makeReady(ctx, o, helpers)
	}
	now := time.Now()
	switch {
	case at == stageGiven && o.desire.Wanted == protocol.WantGone:
		return s.end(ctx, o)
	case at == stageBooting && !s.booted() && now.Sub(s.started) >= s.agent.cfg.BootTimeout:
		return ending{failure: fmt.Sprintf("the guest did not answer within %s of the VM's start%s", s.agent.cfg.BootTimeout, s.why())}, true
	case at == stageStandby && !s.silence.IsZero() && now.Sub(s.silence) >= s.agent.cfg.GuestTimeout:
		return ending{failure: fmt.Sprintf("the guest of a standby stopped answering for %s%s", s.agent.cfg.GuestTimeout, s.why())}, true
	case at == stageStandby && o.desire.Wanted == protocol.WantArmed && s.mayMint(o, now):
		s.startMint(ctx, o, helpers)
	}
	return ending{}, false
}

func (s *service) booted() bool { return s.seen.Protocol != 0 }

// why adds what is known of the guest's silence to a sentence.
func (s *service) why() string {
	if s.lastErr == nil {
		return ""
	}
	return ": " + cut(s.lastErr.Error(), 300)
}

// nextLook returns how long to wait for news before the clock alone asks for a step.
func (s *service) nextLook(o orders) time.Duration {
	next := time.Now().Add(s.agent.cfg.LookEvery)
	sooner := func(t time.Time) {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	switch {
	case s.given:
	case !s.booted():
		sooner(s.started.Add(s.agent.cfg.BootTimeout))
	case !s.silence.IsZero():
		sooner(s.silence.Add(s.agent.cfg.GuestTimeout))
	}
	if !s.given && o.desire.Wanted == protocol.WantArmed && s.mayMint(o, s.mintAt) {
		sooner(s.mintAt)
	}
	if s.unsure {
		sooner(s.unsureAt)
	}
	sooner(s.endBy)
	sooner(s.endAt)
	return max(time.Until(next), 10*time.Millisecond)
}

// take believes one answer of the guest as far as it can be.
func (s *service) take(n guestNews) {
	if n.err != nil {
		if s.silence.IsZero() {
			s.silence = time.Now()
			if errors.Is(n.err, context.DeadlineExceeded) {
				s.silence = s.silence.Add(-guestCall) // so late is the answer already
			}
			s.log.Debug("the guest does not answer", slog.Any("error", n.err))
		}
		s.lastErr = n.err
		if s.given && time.Since(s.silence) >= s.agent.cfg.GuestTimeout {
			// Its job may well run on: losing the channel is not losing the job.
			s.show(fleet.ObservedNone, func(v *protocol.RunnerReport) {
				v.Progress = "the guest has not answered since " + s.silence.UTC().Format(time.RFC3339)
			})
		}
		return
	}
	if s.seen.Phase == guest.PhaseIdle && n.status.Phase == guest.PhaseStarting {
		if s.relapses++; s.relapses > maxRelapses {
			n.status.Phase = guest.PhaseIdle // one that goes back and forth makes no more news
		}
	}
	if s.seen.Phase == guest.PhaseBusy && n.status.Phase != guest.PhaseBusy && !s.endAsked {
		s.endAt = time.Time{} // a drain that waited for its job goes on
	}
	s.lost = s.lost || s.given && s.forgetful(n.status)
	s.seen, s.silence, s.lastErr = n.status, time.Time{}, nil
	switch {
	case n.status.HasConfig:
		s.given, s.record.Guest = true, n.status.Instance
	case s.inherited && !s.lost: // the earlier agent ended between its note and the delivery
		s.notGiven()
	}
	s.inherited = false
	s.measure(n.status.Phase)
	s.showSeen()
	s.tellOfJob(n.status.Runner.Job)
}

// tellOfJob logs, once, what the guest made of the policy.
func (s *service) tellOfJob(job guest.JobHook) {
	if s.told {
		return
	}
	switch {
	case job.Refused != "":
		s.log.Warn("the guest ended a job that its pool's policy refuses", slog.String("repository", job.Repository), slog.Int64("run", job.Run), slog.String("reason", job.Refused))
	case job.Unasked:
		s.log.Warn("a job ran unchecked: the runner knows no job-started hook")
	default:
		return
	}
	s.told = true
}

// showSeen shows what the guest has said last.
func (s *service) showSeen() {
	observed := observedOf(s.seen.Phase, s.given)
	if observed == fleet.ObservedStandby && !s.ready {
		observed = fleet.ObservedBooting
	}
	s.show(observed, func(v *protocol.RunnerReport) {
		v.HasConfig = s.given
		if observed != fleet.ObservedBooting {
			v.Progress = ""
		}
		s.watch.onto(&v.Took)
		job := s.seen.Runner.Job
		v.JobRepository, v.JobRun, v.JobRefused = job.Repository, job.Run, job.Refused
		v.RunnerVersion = s.seen.Runner.Version
		v.RunnerRefused = s.seen.Runner.Outcome == guest.OutcomeRefused
		if s.seen.Runner.Result != "" {
			v.Result = string(s.seen.Runner.Result)
		}
	})
}

// measure notes which steps a guest in this phase has behind it.
func (s *service) measure(p guest.Phase) {
	s.watch.answered()
	switch p {
	case guest.PhaseIdle:
		s.watch.listens()
	case guest.PhaseBusy:
		s.watch.works()
	}
}

// forgetful reports whether the guest program was started anew since a config was minted
// for it, and has none. Whether the earlier one took it, nobody knows any more, and its
// listener may run: this VM is given nothing else.
func (s *service) forgetful(status guest.Status) bool {
	return !status.HasConfig && s.record.Guest != "" && s.record.Guest != status.Instance
}

// observedOf puts a guest's phase into the word of the protocol.
func observedOf(p guest.Phase, given bool) fleet.Observed {
	switch p {
	case guest.PhaseStarting:
		return fleet.ObservedRegistering
	case guest.PhaseIdle:
		return fleet.ObservedIdle
	case guest.PhaseBusy:
		return fleet.ObservedBusy
	case guest.PhaseFinished:
		return fleet.ObservedFinished
	}
	if given {
		return fleet.ObservedRegistering // the config is on its way in
	}
	return fleet.ObservedStandby
}

// finished turns the end of a listener into the end of its VM.
func (s *service) finished(o orders) ending {
	run := s.seen.Runner
	end := ending{result: string(run.Result)}
	wanted := o.desire.Wanted != protocol.WantGone
	switch run.Outcome {
	case guest.OutcomeJob:
	case guest.OutcomeNoJob:
		if wanted {
			end.failure = "the runner ended without a job: " + run.Reason
		}
	case guest.OutcomeEnded:
		if wanted && !s.endAsked && run.Job.Refused == "" {
			end.failure = "the runner was ended from inside its VM: " + run.Reason
		}
	default:
		if wanted {
			end.failure = fmt.Sprintf("the runner failed (%s): %s", run.Outcome, run.Reason)
		}
	}
	return end
}

// exited turns the end of a VM that nobody stopped into a failure, unless the runner
// was to go anyway.
func (s *service) exited(why string) ending {
	o, _ := s.orders()
	if s.seen.Phase == guest.PhaseFinished {
		return s.finished(o)
	}
	if o.desire.Wanted == protocol.WantGone {
		return ending{}
	}
	return ending{failure: "the VM ended by itself: " + why}
}

// end brings a runner that holds a config to its end: the guest ends the listener,
// gently and then by force, and only then the VM goes. A runner that is to go unless
// it is busy is asked first, and left alone as long as it works or does not say.
func (s *service) end(ctx context.Context, o orders) (ending, bool) {
	now := time.Now()
	if s.endAsked && !now.Before(s.endBy) {
		return ending{}, true
	}
	if now.Before(s.endAt) || s.endAsked && s.endAt.IsZero() {
		return ending{}, false
	}
	s.endAt = time.Time{}
	if o.desire.UnlessBusy && !s.endAsked {
		ask, cancel := context.WithTimeout(ctx, guestCall)
		status, err := s.guest.Status(ask, 0, 0)
		cancel()
		s.take(guestNews{status, err})
		switch {
		case err != nil:
			s.endAt = now.Add(around(drainRecheck))
			return ending{}, false
		case status.Phase == guest.PhaseBusy: // the end of its job tells of itself, see take
			s.endAt = now.Add(around(s.agent.cfg.LookEvery))
			return ending{}, false
		case status.Phase == guest.PhaseFinished:
			return s.finished(o), true
		}
	}
	grace := s.agent.cfg.EndGrace
	if n := o.desire.EndGraceSeconds; n > 0 {
		grace = time.Duration(n) * time.Second
	}
	if !s.endAsked {
		s.endAsked, s.endBy = true, now.Add(grace+endMargin)
	}
	ask, cancel := context.WithTimeout(ctx, min(guestCall, grace+endMargin))
	err := s.guest.End(ask, max(s.endBy.Sub(now)-endMargin, 0))
	cancel()
	if err != nil {
		s.log.Warn("the guest could not be told to end; it is tried again", slog.Any("error", err))
		s.endAt = time.Now().Add(time.Second)
		return ending{}, false
	}
	crashpoint.Reached(crashpoint.EndTold)
	return ending{}, false
}

// follow asks the guest for its status, over and over. How fast it may change is
// bounded: a guest is not to be trusted with that.
func (s *service) follow(ctx context.Context) {
	after, look := uint64(0), s.agent.cfg.LookEvery
	pause := backoff{first: 50 * time.Millisecond, most: 2 * time.Second}
	allowed, refill := newsBurst, time.Now()
	for {
		ask, cancel := context.WithTimeout(ctx, look+guestCall)
		status, err := s.guest.Status(ask, after, look)
		cancel()
		select {
		case <-ctx.Done():
			return
		case s.news <- guestNews{status, err}:
		}
		wait := time.Duration(0)
		if err != nil {
			after, wait = 0, pause.next()
		} else {
			after = status.Revision
			pause.reset()
			allowed = min(newsBurst, allowed+int(time.Since(refill)/newsEvery)) - 1
			refill = time.Now()
			if allowed <= 0 {
				allowed, wait = 0, newsEvery
			}
		}
		if wait > 0 && !sleep(ctx, wait) {
			return
		}
	}
}

// awaitExit tells when the VM ends by itself.
func (s *service) awaitExit(ctx context.Context) {
	why, err := s.machine.Wait(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return
		}
		why = err.Error()
	}
	select {
	case <-ctx.Done():
	case s.exit <- why:
	}
}
