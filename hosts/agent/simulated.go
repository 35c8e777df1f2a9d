// SPDX-License-Identifier: MIT

package agent

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/secret"
	"github.com/minifleet/minifleet/trust"
)

// SimulatedConfig says how VMs behave that do not exist. They take their configs
// through the real protocol and play a runner's life by the clock; nobody listens at
// GitHub.
type SimulatedConfig struct {
	// How long each step takes.
	Prepare, Boot, Register, Idle, Job, Stop time.Duration
	// Fetch is how long it takes to fetch an image that is published somewhere.
	Fetch time.Duration
	// Jitter lets each time vary by up to this part of it, 0 to 1.
	Jitter float64
	// FailRate is the part of VMs that fail somewhere on their way, 0 to 1.
	FailRate float64
	// Images that the host claims to have.
	Images []string
	// Seed makes the chances repeatable.
	Seed uint64
	// Counts, if set, are raised as things happen. Several hosts may share one.
	Counts *SimulatedCounts
	// Receipt, if set, is called at each step of a VM, at once and from many goroutines.
	Receipt func(Receipt)
}

// Receipt is a step of a simulated VM and its time: what is measured from outside.
type Receipt struct {
	At     time.Time `json:"at"`
	Host   string    `json:"host"`
	Runner string    `json:"runner"`
	Step   string    `json:"step"`           // assigned, booted, config, idle, busy, finished, ended
	Name   string    `json:"name,omitempty"` // of its registration, from the config on
}

// Validate returns everything that is wrong with the configuration.
func (c SimulatedConfig) Validate() error {
	var errs []error
	for _, d := range []time.Duration{c.Prepare, c.Boot, c.Register, c.Idle, c.Job, c.Stop, c.Fetch} {
		if d < 0 {
			errs = append(errs, fmt.Errorf("the time %s is negative", d))
		}
	}
	if c.Jitter < 0 || c.Jitter > 1 {
		errs = append(errs, fmt.Errorf("jitter is %v: want 0 to 1", c.Jitter))
	}
	if c.FailRate < 0 || c.FailRate > 1 {
		errs = append(errs, fmt.Errorf("fail rate is %v: want 0 to 1", c.FailRate))
	}
	return errors.Join(errs...)
}

// SimulatedCounts tell what simulated VMs have done.
type SimulatedCounts struct {
	Created, Booted, Configs, Jobs, Failures, Running atomic.Int64
}

// Simulated are Machines without VMs.
type Simulated struct {
	cfg    SimulatedConfig
	images simulatedImages

	mu     sync.Mutex // guards chance
	chance *rand.Rand
}

// NewSimulated returns a host of simulated VMs.
func NewSimulated(cfg SimulatedConfig) (*Simulated, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Counts == nil {
		cfg.Counts = &SimulatedCounts{}
	}
	if cfg.Receipt == nil {
		cfg.Receipt = func(Receipt) {}
	}
	return &Simulated{cfg: cfg, images: simulatedImages{takes: cfg.Fetch, byID: map[string]*simulatedImage{}}, chance: rand.New(rand.NewPCG(cfg.Seed, cfg.Seed))}, nil
}

// flaw is how a simulated VM fails.
type flaw int

const (
	flawless     flaw = iota
	flawCreate        // its clone cannot be made
	flawBoot          // it does not start
	flawListener      // its runner is refused
	flawCrash         // it ends during its job
	flaws
)

func (s *Simulated) draw() flaw {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.chance.Float64() >= s.cfg.FailRate {
		return flawless
	}
	return 1 + flaw(s.chance.IntN(int(flaws)-1))
}

// vary returns d with jitter.
func (s *Simulated) vary(d time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return d + time.Duration((2*s.chance.Float64()-1)*s.cfg.Jitter*float64(d))
}

// Scan finds nothing: simulated VMs do not outlive their process.
func (s *Simulated) Scan(context.Context) ([]Found, error) { return nil, nil }

// IsMac knows no macOS guests.
func (s *Simulated) IsMac(context.Context, string) (bool, error) { return false, nil }

// EndLeftovers finds none.
func (s *Simulated) EndLeftovers(context.Context) (int, error) { return 0, nil }

// Create takes its time.
func (s *Simulated) Create(ctx context.Context, order Order, progress func(string)) (Machine, error) {
	m := &simulatedVM{host: s, id: order.ID, changed: make(chan struct{}), ended: make(chan struct{})}
	m.step("assigned")
	var err error
	if m.took.Image, err = s.fetchFor(ctx, order.Image, progress); err != nil {
		return nil, err
	}
	progress("pretending to clone")
	cloning := time.Now()
	if !sleep(ctx, s.vary(s.cfg.Prepare)) {
		return nil, context.Cause(ctx)
	}
	if m.flaw = s.draw(); m.flaw == flawCreate {
		s.cfg.Counts.Failures.Add(1)
		return nil, errors.New("simulated failure: the clone cannot be made")
	}
	m.took.Clone = time.Since(cloning)
	s.cfg.Counts.Created.Add(1)
	m.status = guest.Status{Protocol: guest.Protocol, Instance: strings.Repeat("0", 32), Revision: 1, Phase: guest.PhaseReady}
	m.life, m.kill = context.WithCancel(context.WithoutCancel(ctx))
	return m, nil
}

// simulatedVM is a VM and its guest.
type simulatedVM struct {
	host *Simulated
	id   string
	flaw flaw
	took Took
	life context.Context // of the goroutine that plays the runner; it outlives every call
	kill context.CancelFunc
	play sync.WaitGroup

	bootedOnce sync.Once

	mu      sync.Mutex // guards the rest
	status  guest.Status
	changed chan struct{}
	booted  time.Time
	started bool
	name    string // of its registration
	why     string
	ended   chan struct{}
}

// step tells whoever measures.
func (m *simulatedVM) step(what string) {
	now := time.Now()
	m.mu.Lock()
	r := Receipt{At: now, Runner: m.id, Step: what, Name: m.name}
	m.mu.Unlock()
	m.host.cfg.Receipt(r)
}

func (m *simulatedVM) Start(context.Context) error {
	if m.flaw == flawBoot {
		m.host.cfg.Counts.Failures.Add(1)
		return errors.New("simulated failure: the VM does not start")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.started, m.booted = true, time.Now().Add(m.host.vary(m.host.cfg.Boot))
	m.host.cfg.Counts.Running.Add(1)
	return nil
}

func (m *simulatedVM) Took() Took { return m.took }

func (m *simulatedVM) Guest() Guest { return m }

func (m *simulatedVM) Wait(ctx context.Context) (string, error) {
	select {
	case <-m.ended:
		return m.why, nil
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// end ends the VM, once.
func (m *simulatedVM) end(why string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.ended:
	default:
		m.why = why
		close(m.ended)
		if m.started {
			m.host.cfg.Counts.Running.Add(-1)
		}
	}
}

func (m *simulatedVM) Stop(ctx context.Context) error {
	select {
	case <-m.ended:
	default:
		if !sleep(ctx, m.host.vary(m.host.cfg.Stop)) {
			return context.Cause(ctx)
		}
	}
	m.kill()
	m.play.Wait()
	m.end("stopped")
	m.step("ended")
	return nil
}

func (m *simulatedVM) Keep(string) error            { return nil }
func (m *simulatedVM) Remove(context.Context) error { return nil }

// Release ends the VM: nobody could adopt it.
func (m *simulatedVM) Release() {
	m.kill()
	m.play.Wait()
	m.end("released")
}

func (m *simulatedVM) say(change func(*guest.Status)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(&m.status)
	m.status.Revision++
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *simulatedVM) Status(ctx context.Context, after uint64, wait time.Duration) (guest.Status, error) {
	m.mu.Lock()
	boot := time.Until(m.booted)
	m.mu.Unlock()
	if boot > 0 && !sleep(ctx, boot) {
		return guest.Status{}, context.Cause(ctx)
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	for over := false; ; {
		m.mu.Lock()
		status, changed := m.status, m.changed
		m.mu.Unlock()
		if over || after == 0 || status.Revision != after {
			if after == 0 {
				m.bootedOnce.Do(func() {
					m.host.cfg.Counts.Booted.Add(1)
					m.step("booted")
				})
			}
			return status, nil
		}
		select {
		case <-changed:
		case <-t.C:
			over = true
		case <-m.ended:
			return guest.Status{}, errNotStarted
		case <-ctx.Done():
			return guest.Status{}, context.Cause(ctx)
		}
	}
}

func (m *simulatedVM) Health(context.Context) (guest.Health, error) {
	return guest.Health{Protocol: guest.Protocol, SessionReady: true, JobHook: true}, nil
}

func (m *simulatedVM) InstallRunner(context.Context, int64, []byte, io.Reader) error { return nil }

func (m *simulatedVM) Run(_ context.Context, config secret.Text, _ map[string]string, _ *trust.Policy) error {
	taken := false
	m.say(func(s *guest.Status) {
		if taken = s.HasConfig; !taken {
			s.HasConfig, s.Phase, s.Runner.StartedAt = true, guest.PhaseStarting, time.Now()
		}
	})
	if taken {
		return guest.ErrHasConfig
	}
	m.host.cfg.Counts.Configs.Add(1)
	m.mu.Lock()
	m.name = registeredName(config)
	m.mu.Unlock()
	m.step("config")
	m.play.Go(m.runner)
	return nil
}

// registeredName reads a JIT config as far as a listener needs it to know who it is.
func registeredName(config secret.Text) string {
	var files map[string][]byte
	var runner struct{ AgentName string }
	raw, err := base64.StdEncoding.DecodeString(config.Reveal())
	if err != nil || json.Unmarshal(raw, &files) != nil || json.Unmarshal(files[".runner"], &runner) != nil {
		return "" // a config of a controller that is simulated too
	}
	return runner.AgentName
}

// runner plays the listener.
func (m *simulatedVM) runner() {
	times := m.host.cfg
	if !sleep(m.life, m.host.vary(times.Register)) {
		return
	}
	if m.flaw == flawListener {
		times.Counts.Failures.Add(1)
		m.finish(guest.OutcomeRefused, "", "simulated failure: the runner is refused")
		return
	}
	m.say(func(s *guest.Status) { s.Phase, s.Runner.IdleAt = guest.PhaseIdle, time.Now() })
	m.step("idle")
	if !sleep(m.life, m.host.vary(times.Idle)) {
		return
	}
	m.step("busy")
	m.say(func(s *guest.Status) { s.Phase, s.Runner.BusyAt = guest.PhaseBusy, time.Now() })
	if !sleep(m.life, m.host.vary(times.Job)) {
		return
	}
	if m.flaw == flawCrash {
		times.Counts.Failures.Add(1)
		m.end("simulated failure: the VM crashed")
		return
	}
	times.Counts.Jobs.Add(1)
	m.step("finished")
	m.finish(guest.OutcomeJob, guest.ResultSucceeded, "the job ended: succeeded")
}

func (m *simulatedVM) finish(o guest.Outcome, r guest.Result, reason string) {
	m.say(func(s *guest.Status) {
		if s.Phase != guest.PhaseFinished {
			s.Phase, s.Runner.Outcome, s.Runner.Result, s.Runner.Reason = guest.PhaseFinished, o, r, reason
			s.Runner.FinishedAt = time.Now()
		}
	})
}

func (m *simulatedVM) End(context.Context, time.Duration) error {
	m.kill()
	m.play.Wait()
	m.finish(guest.OutcomeEnded, "", "ended on request")
	return nil
}

func (m *simulatedVM) Tail(context.Context) (string, error)  { return "", nil }
func (m *simulatedVM) Diag(context.Context, io.Writer) error { return nil }
