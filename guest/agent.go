// SPDX-License-Identifier: MIT

package guest

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/minifleet/minifleet/secret"
	"github.com/minifleet/minifleet/trust"
)

// Config says what a guest program runs and how patient it is.
type Config struct {
	// RunnerDir is the runner's folder; the listener is bin/Runner.Listener
	// in it. It is required.
	RunnerDir string
	// WorkDir is the listener's working directory. Empty means RunnerDir.
	WorkDir string
	// Env is added to the listener's otherwise minimal environment. What
	// comes with the JIT config wins over it.
	Env map[string]string
	// Environ is where the few variables that every program needs (PATH,
	// HOME and the like) are taken from, as NAME=value. Empty means none.
	Environ []string
	// Version of the guest program, for health answers. It may be empty.
	Version string
	// MaxRelaunches bounds how often a listener that asks for it (an update,
	// a passing error before any job) is started again. Zero means 3.
	MaxRelaunches int
	// RelaunchDelay is the pause before such a start. Zero means 5 s.
	RelaunchDelay time.Duration
	// UpdateWait bounds how long the runner's own update may take after the
	// listener made room for it. Zero means 60 s.
	UpdateWait time.Duration
	// StopGrace is what the listener gets to end gently when the guest
	// program itself ends. Zero means 5 s.
	StopGrace time.Duration
	// AdoptOrphans makes this process adopt everything the listener leaves
	// behind, and kill every child that it did not start itself, so that
	// nothing outlives the listener by leaving its process group. Set it only
	// where the whole process belongs to the guest. It needs Linux; elsewhere
	// New refuses it.
	AdoptOrphans bool
	// User is as whom the listener runs, which needs root. Empty means as whom
	// the guest program does. On a Mac the listener is started within the GUI
	// session of the user.
	User string
	// SessionUser is the user whose GUI session must be there before health
	// says that the session is ready, on a Mac. Empty waits for none.
	SessionUser string
	// Machine is the machine that the guest program runs in. Nil means that it
	// has none for itself: what concerns a whole machine is refused.
	Machine Machine
	// Log receives what happens, never what the runner prints. Nil means
	// nowhere.
	Log *slog.Logger
}

func (c Config) withDefaults() Config {
	c.WorkDir = cmp.Or(c.WorkDir, c.RunnerDir)
	c.MaxRelaunches = cmp.Or(c.MaxRelaunches, 3)
	c.RelaunchDelay = cmp.Or(c.RelaunchDelay, 5*time.Second)
	c.UpdateWait = cmp.Or(c.UpdateWait, time.Minute)
	c.StopGrace = cmp.Or(c.StopGrace, 5*time.Second)
	if c.Machine == nil {
		c.Machine = sharedMachine{}
	}
	c.Log = cmp.Or(c.Log, slog.New(slog.DiscardHandler))
	return c
}

// Validate returns everything that is wrong with the configuration.
func (c Config) Validate() error {
	var errs []error
	if c.RunnerDir == "" {
		errs = append(errs, errors.New("no runner folder: name the one that has bin/Runner.Listener in it"))
	}
	if c.MaxRelaunches < 0 || c.RelaunchDelay < 0 || c.UpdateWait < 0 || c.StopGrace < 0 {
		errs = append(errs, errors.New("relaunches, delays and graces cannot be negative"))
	}
	if err := checkEnv(c.Env); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Agent is the guest program's core: it owns the one runner of this VM and its
// status. Serve lets a host speak with it.
type Agent struct {
	cfg    Config
	family *family
	tail   tail
	ending ending

	commands *commands
	session  session
	user     *account // of the listener; nil: whoever runs this program

	hooks      bool           // the runner has a job-started hook of ours; set before it starts
	supervisor sync.WaitGroup // the goroutine that runs the listener
	shutdown   chan struct{}  // closed once, when a host asks the program to end
	stopOnce   sync.Once

	mu      sync.Mutex // guards the rest
	status  Status
	changed chan struct{} // closed and replaced at every change of status
	closed  bool          // no runner is started any more
	renewed bool          // a runner is being installed: none is started
}

// New returns a guest that is ready to take a JIT config.
func New(cfg Config) (*Agent, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("guest configuration: %w", err)
	}
	cfg = cfg.withDefaults()
	var err error
	if cfg.RunnerDir, err = filepath.Abs(cfg.RunnerDir); err != nil {
		return nil, fmt.Errorf("runner folder %s: %w", cfg.RunnerDir, err)
	}
	if cfg.WorkDir, err = filepath.Abs(cfg.WorkDir); err != nil {
		return nil, fmt.Errorf("work folder %s: %w", cfg.WorkDir, err)
	}
	a := &Agent{}
	if cfg.User != "" {
		who, err := lookupAccount(cfg.User)
		if err == nil {
			_, err = who.credential()
		}
		if err != nil {
			return nil, fmt.Errorf("guest configuration: %w", err)
		}
		a.user = &who
	}
	if cfg.SessionUser != "" {
		who, err := lookupAccount(cfg.SessionUser)
		if err != nil {
			return nil, fmt.Errorf("guest configuration: %w", err)
		}
		a.session.look = sessionLook(who)
	}
	fam, err := newFamily(cfg.AdoptOrphans)
	if err != nil {
		return nil, err
	}
	var id [16]byte
	rand.Read(id[:])
	a.cfg, a.family, a.commands = cfg, fam, newCommands()
	a.ending.changed = make(chan struct{})
	a.shutdown, a.changed = make(chan struct{}), make(chan struct{})
	a.status = Status{
		Protocol: Protocol,
		Instance: hex.EncodeToString(id[:]),
		Revision: 1,
		Phase:    PhaseReady,
	}
	return a, nil
}

// Status returns the status as it is, and a channel that is closed when it has
// changed.
func (a *Agent) Status() (Status, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.status, a.changed
}

// update changes the status under the lock and wakes who waits for it.
func (a *Agent) update(change func(*Status)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.updateLocked(change)
}

func (a *Agent) updateLocked(change func(*Status)) {
	before := a.status
	change(&a.status)
	if a.status == before {
		return
	}
	a.status.Revision++
	close(a.changed)
	a.changed = make(chan struct{})
}

// errClosed is the answer to a JIT config that comes while the program ends.
var errClosed = errors.New("the guest program is ending")

// errHook is the answer where the runner's job-started hook cannot be made.
var errHook = errors.New("the job-started hook, by which refused jobs are ended, cannot be made")

// start takes the JIT config, once in the guest's life, and starts the
// supervision of its runner.
func (a *Agent) start(jit secret.Text, env map[string]string, policy *trust.Policy) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return errClosed
	}
	if a.status.HasConfig {
		return ErrHasConfig
	}
	if a.renewed {
		return errInstalling
	}
	var hook *jobHook
	if policy != nil {
		var err error
		if hook, err = a.newJobHook(*policy, env); err != nil {
			return fmt.Errorf("%w: %w", errHook, err)
		}
	}
	a.updateLocked(func(s *Status) {
		s.HasConfig = true
		s.Phase = PhaseStarting
		s.Runner.StartedAt = now()
	})
	merged := maps.Clone(a.cfg.Env)
	if merged == nil {
		merged = map[string]string{}
	}
	maps.Copy(merged, env)
	if hook != nil {
		a.hooks, merged[hookVariable] = true, hook.script
	}
	a.supervisor.Go(func() { a.hooked(hook, func() { a.supervise(jit, merged) }) })
	return nil
}

// hooked supervises a runner whose hook, if there is one, is answered meanwhile.
func (a *Agent) hooked(hook *jobHook, supervise func()) {
	if hook == nil {
		supervise()
		return
	}
	hook.serve(a.told, func() { a.end(refusedGrace) })
	supervise()
	hook.close()
}

// told takes in what the hook has told of its job, and why that is refused, if it is.
func (a *Agent) told(job jobAsk, refused string) {
	if refused != "" {
		a.cfg.Log.Warn("job refused", slog.String("repository", job.Repository), slog.Int64("run", job.Run), slog.String("reason", refused))
	}
	a.update(func(s *Status) {
		s.Runner.Job = JobHook{AskedAt: now(), Run: max(job.Run, 0), Refused: printable(refused, maxReasonBytes, false)}
		if repositoryPattern.MatchString(job.Repository) {
			s.Runner.Job.Repository = job.Repository
		}
	})
}

// end asks for the runner's end within grace. Without a runner it does nothing.
func (a *Agent) end(grace time.Duration) {
	if s, _ := a.Status(); s.HasConfig {
		a.ending.ask(grace)
	}
}

// stop asks the whole program to end.
func (a *Agent) stop() { a.stopOnce.Do(func() { close(a.shutdown) }) }

// close ends the runner, if there is one, and waits for it; no other is started.
func (a *Agent) close() {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	a.end(a.cfg.StopGrace)
	a.commands.close()
	a.supervisor.Wait()
	a.family.close()
}

func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)

// inputPrefix marks variables that the listener reads as its own arguments.
const inputPrefix = "ACTIONS_RUNNER_INPUT_"

// checkEnv refuses variables that could not be passed on as they are, or that
// would change what the listener is told to do.
func checkEnv(env map[string]string) error {
	if len(env) > 256 {
		return fmt.Errorf("%d environment variables: at most 256 are taken", len(env))
	}
	total := 0
	for name, value := range env {
		total += len(name) + len(value)
		switch {
		case !envName.MatchString(name):
			return fmt.Errorf("environment variable %q: a name has letters, digits and underscores only", clip(name, 64))
		case strings.HasPrefix(strings.ToUpper(name), inputPrefix):
			return fmt.Errorf("environment variable %s: names that begin with %s are the listener's own arguments", name, inputPrefix)
		case strings.ContainsRune(value, 0):
			return fmt.Errorf("environment variable %s: the value has a NUL byte", name)
		}
	}
	if total > 128<<10 {
		return errors.New("environment variables: at most 128 KiB together are taken")
	}
	return nil
}
