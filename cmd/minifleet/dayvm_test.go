// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/secret"
	"github.com/minifleet/minifleet/trust"
)

// flaw is what goes wrong with a VM or with the listener in it.
type flaw int

const (
	flawless   flaw = iota
	noClone         // its clone cannot be made
	noBoot          // it does not start
	noAnswer        // its guest program never answers
	noListener      // its listener is refused
	noSession       // its listener never gets online
	crash           // it ends in the middle of its job
	ghost           // its listener goes on when its registration is gone
	tooLate         // its listener takes no job in time, and goes on (actions/runner#4617)
	deaf            // its guest does not answer while a job begins
	expired         // GitHub has removed its registration before it listens (actions/runner#4726)
	flaws
)

func (f flaw) String() string {
	return [...]string{
		"no flaw", "no clone", "no boot", "no answer", "no listener", "no session", "a crash", "a ghost", "a listener that is too late", "a deaf guest",
		"a registration that is removed early",
	}[f]
}

// dayVM is a VM that exists in memory alone. It outlives the agent, not its host.
type dayVM struct {
	host *dayHost
	id   string
	pool string
	slot int
	flaw flaw
	rng  *rand.Rand
	life context.Context
	kill context.CancelFunc
	play sync.WaitGroup
	told chan struct{} // closed when the listener shall end
	tell func()

	mu       sync.Mutex // guards the rest
	status   guest.Status
	changed  chan struct{}
	started  bool
	booted   time.Time
	deafTill time.Time
	why      string
	ended    chan struct{}
	running  int64  // the job that its listener has taken
	agent    string // its registration's name
}

func (v *dayVM) sleep(d time.Duration) bool { return pauseFor(v.life, d) }

// pauseFor reports whether it was not cut short.
func pauseFor(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// between returns a duration from a to b.
func between(r *rand.Rand, a, b time.Duration) time.Duration {
	return a + time.Duration(r.Int64N(int64(b-a)+1))
}

func (v *dayVM) Start(context.Context) error {
	if v.flaw == noBoot {
		return errors.New("simulated: the VM does not start")
	}
	if v.host.start(v) > v.host.slots {
		v.host.day.broken("invariant 5: host %s runs more VMs than its %d slots", v.host.name, v.host.slots)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.started, v.booted = true, time.Now().Add(between(v.rng, 8*time.Second, 25*time.Second))
	return nil
}

func (v *dayVM) Took() agent.Took   { return agent.Took{} }
func (v *dayVM) Guest() agent.Guest { return v }

func (v *dayVM) Wait(ctx context.Context) (string, error) {
	select {
	case <-v.ended:
		return v.why, nil
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// end ends the VM: whatever runs in it is gone.
func (v *dayVM) end(why string) {
	v.kill()
	v.play.Wait()
	v.host.stopped(v)
	v.mu.Lock()
	defer v.mu.Unlock()
	select {
	case <-v.ended:
	default:
		v.why = why
		close(v.ended)
	}
}

// Stop powers it off, which must not cost a job.
func (v *dayVM) Stop(ctx context.Context) error {
	select {
	case <-v.ended:
		return nil
	default:
	}
	v.spare("its VM is stopped")
	if !pauseFor(ctx, time.Second) {
		return context.Cause(ctx)
	}
	v.end("stopped")
	return nil
}

// spare complains if the job that runs inside is one that goes on for GitHub.
func (v *dayVM) spare(what string) {
	v.mu.Lock()
	id := v.running
	v.mu.Unlock()
	if id == 0 {
		return
	}
	if j, _ := v.host.day.sim.Job(id); j.Running() && !v.host.day.mayEnd(id) {
		v.host.day.broken("invariant 6: job %d runs in %s and %s", id, v.id, what)
	}
}

func (v *dayVM) Keep(string) error { return nil }

func (v *dayVM) Remove(context.Context) error {
	v.host.forget(v)
	return nil
}

func (v *dayVM) Release() {}

func (v *dayVM) say(change func(*guest.Status)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	change(&v.status)
	v.status.Revision++
	close(v.changed)
	v.changed = make(chan struct{})
}

func (v *dayVM) Status(ctx context.Context, after uint64, wait time.Duration) (guest.Status, error) {
	if err := v.answers(ctx); err != nil {
		return guest.Status{}, err
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	for over := false; ; {
		v.mu.Lock()
		status, changed := v.status, v.changed
		v.mu.Unlock()
		if over || after == 0 || status.Revision != after {
			if err := v.answers(ctx); err != nil {
				return guest.Status{}, err
			}
			return status, nil
		}
		select {
		case <-changed:
		case <-t.C:
			over = true
		case <-v.ended:
			return guest.Status{}, errNoGuest
		case <-ctx.Done():
			return guest.Status{}, context.Cause(ctx)
		}
	}
}

var errNoGuest = errors.New("simulated: no guest answers")

// answers returns when the guest program does.
func (v *dayVM) answers(ctx context.Context) error {
	v.mu.Lock()
	till := v.booted
	if v.deafTill.After(till) {
		till = v.deafTill
	}
	started := v.started
	v.mu.Unlock()
	if !started {
		return errNoGuest
	}
	if v.flaw == noAnswer {
		till = time.Now().Add(24 * time.Hour)
	}
	wait := time.Until(till)
	if wait <= 0 {
		return nil
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-v.ended:
		return errNoGuest
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (v *dayVM) Health(ctx context.Context) (guest.Health, error) {
	return guest.Health{Protocol: guest.Protocol, Instance: v.instance(), SessionReady: true}, v.answers(ctx)
}

func (v *dayVM) instance() string { return strings.Repeat("0", 32) }

func (v *dayVM) InstallRunner(context.Context, int64, []byte, io.Reader) error { return nil }

func (v *dayVM) Run(ctx context.Context, config secret.Text, _ map[string]string, _ *trust.Policy) error {
	if err := v.answers(ctx); err != nil {
		return err
	}
	taken := false
	v.say(func(s *guest.Status) {
		if taken = s.HasConfig; !taken {
			s.HasConfig, s.Phase, s.Runner.StartedAt = true, guest.PhaseStarting, time.Now()
		}
	})
	if taken {
		return guest.ErrHasConfig
	}
	v.play.Go(func() { v.listen(config) })
	return nil
}

func (v *dayVM) Tail(context.Context) (string, error)  { return "", nil }
func (v *dayVM) Diag(context.Context, io.Writer) error { return nil }

func (v *dayVM) String() string {
	return fmt.Sprintf("%s of pool %s on %s (%s)", v.id, v.pool, v.host.name, v.status.Phase)
}
