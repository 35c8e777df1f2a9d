// SPDX-License-Identifier: MIT

package vmm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/vm"
)

// Config says which machine to run and with what.
type Config struct {
	// Bundle is the bundle's absolute path.
	Bundle string
	// Backends are those that this vmm has; the spec names one.
	Backends []vm.Backend
	// Ready, if set, is called once, when the lock is held and both sockets are open.
	// That it fails ends nothing: then there is nobody to hear it.
	Ready func() error
	// StopTimeout bounds how long the backend has to power off; 0 means
	// DefaultStopTimeout.
	StopTimeout time.Duration
	// Log defaults to none.
	Log *slog.Logger
}

// DefaultStopTimeout is how long a backend has to power off.
const DefaultStopTimeout = 20 * time.Second

// Run runs the machine of one bundle until it ends. Cancelling ctx powers the machine
// off at once. It returns nil if the machine was stopped, its guest ended, or its time
// was over, and otherwise the error that the final status also tells. When it returns,
// the process must end: only then is the lock free.
func Run(ctx context.Context, cfg Config) error {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.StopTimeout <= 0 {
		cfg.StopTimeout = DefaultStopTimeout
	}
	dir := filepath.Clean(cfg.Bundle)
	if err := vm.CheckPath(filepath.Dir(dir), filepath.Base(dir)); err != nil {
		return fmt.Errorf("run bundle %s: %w", dir, err)
	}
	lock, err := vm.AcquireLock(ctx, dir)
	if err != nil {
		return fmt.Errorf("run bundle %s: %w", dir, err)
	}
	// Closed, never unlocked: a writer that inherited the descriptor keeps the lock.
	defer lock.Close()
	crashpoint.Reached(crashpoint.VMMLocked)
	st, err := openStatus(dir, cfg.Log)
	if err != nil {
		return fmt.Errorf("run bundle %s: %w", dir, err)
	}
	defer st.close()
	crashpoint.Reached(crashpoint.VMMStatusOpened)
	s := &supervisor{
		cfg: cfg, dir: dir, lock: lock, status: st,
		log: cfg.Log.With("vm", filepath.Base(dir)),
	}
	return s.run(ctx)
}

// ending is why the machine's life ends, as the cause of a context.
type ending struct {
	reason vm.Reason
	detail string
}

func (e *ending) Error() string { return string(e.reason) + ": " + e.detail }

// supervisor is one run of a machine.
type supervisor struct {
	cfg    Config
	dir    string
	lock   *vm.Lock
	status *status
	log    *slog.Logger

	spec    vm.Spec
	backend vm.Backend
	end     context.CancelCauseFunc // ends the life; the first cause counts
	ended   chan struct{}           // closed by the backend's Ended
	over    <-chan struct{}         // closed when the life ends
	saves   chan saveOrder          // to operate
	saved   bool                    // a save was begun; only operate's
}

// run has the machine live, writes its last word, and only then lets the clients go.
func (s *supervisor) run(parent context.Context) error {
	life, end := context.WithCancelCause(context.WithoutCancel(parent))
	defer end(nil)
	s.end, s.ended = end, make(chan struct{})
	s.over, s.saves = life.Done(), make(chan saveOrder)
	stop := context.AfterFunc(parent, func() {
		end(&ending{vm.ReasonStopped, "a signal told the vmm to end"})
	})
	defer stop()

	fin, srv := s.live(life)
	s.log.Info("machine ended", "reason", string(fin.reason), "detail", fin.detail)
	crashpoint.Reached(crashpoint.VMMEnded)
	err := s.status.update(func(st *vm.State) {
		st.Phase, st.GuestReady, st.Reason, st.Detail = vm.PhaseFinal, false, fin.reason, fin.detail
	})
	crashpoint.Reached(crashpoint.VMMFinal)
	if srv != nil {
		srv.close()
	}
	if fin.reason.Failed() {
		return errors.Join(fin, err)
	}
	return err
}

// live brings the machine up, waits for the end of its life and takes it down. The
// server that it returns, if any, still answers: clients shall learn the last state.
func (s *supervisor) live(life context.Context) (*ending, *server) {
	if err := s.prepare(); err != nil {
		return failure(err, vm.ReasonVMMFailed), nil
	}
	overtime := time.AfterFunc(s.spec.MaxLife, func() {
		s.end(&ending{vm.ReasonMaxLife, fmt.Sprintf("the machine reached its maximum life of %v", s.spec.MaxLife)})
	})
	defer overtime.Stop()
	srv, err := s.listen()
	if err != nil {
		return failure(err, vm.ReasonVMMFailed), nil
	}
	crashpoint.Reached(crashpoint.VMMListening)
	if s.cfg.Ready != nil {
		if err := s.cfg.Ready(); err != nil {
			// The agent has ended, and the next one will find this machine.
			s.log.Warn("nobody hears that the vmm is ready", "error", err)
		}
	}
	crashpoint.Reached(crashpoint.VMMAnnounced)
	inst, err := s.backend.Open(life, s.openConfig())
	if err != nil {
		return s.causeOr(life, failure(err, vm.ReasonBackendFailed)), srv
	}
	crashpoint.Reached(crashpoint.VMMOpened)
	p := newProxy(srv.guest, inst.Connect, s.log)
	defer p.close()
	return s.operate(life, inst), srv
}

// prepare reads what the machine is to be.
func (s *supervisor) prepare() error {
	self, err := vm.IdentifyProcess(os.Getpid())
	if err != nil {
		return err
	}
	if err := vm.WriteIdentity(s.dir, vm.FileVMM, self); err != nil {
		return err
	}
	crashpoint.Reached(crashpoint.VMMIdentified)
	spec, specErr := vm.ReadSpec(s.dir)
	i := slices.IndexFunc(s.cfg.Backends, func(b vm.Backend) bool { return b.Name == spec.Backend })
	if specErr == nil && i < 0 {
		specErr = fmt.Errorf("this minifleet-vmm has no backend %q: use one that was built with it, or another backend in the pool", spec.Backend)
	}
	if i >= 0 {
		s.spec, s.backend = spec, s.cfg.Backends[i]
	}
	err = s.status.update(func(st *vm.State) {
		st.Phase, st.StartedAt = vm.PhaseStarting, time.Now()
		st.Backend, st.Isolation = spec.Backend, s.backend.Isolation
	})
	crashpoint.Reached(crashpoint.VMMStarting)
	if specErr != nil {
		return vm.WithReason(vm.ReasonBadConfiguration, specErr)
	}
	if err != nil {
		return err
	}
	if s.backend.Isolation == vm.IsolationNone {
		s.log.Warn("NO ISOLATION: the guest is an ordinary process of this host and can do what its user can; for development only",
			"backend", string(s.backend.Name))
	}
	return nil
}

func (s *supervisor) openConfig() vm.OpenConfig {
	return vm.OpenConfig{
		Dir:  s.dir,
		Spec: s.spec,
		Lock: s.lock.File(),
		RecordWriter: func(pid int) error {
			id, err := vm.IdentifyProcess(pid)
			if err != nil {
				return err
			}
			return vm.WriteIdentity(s.dir, vm.FileWriter, id)
		},
		Publish: func(f vm.Facts) {
			s.noteStatus(func(st *vm.State) {
				if st.Accelerator = f.Accelerator; f.SSHAddress.IsValid() {
					st.SSHAddress = f.SSHAddress.String()
				}
			})
		},
		Ended: func(e vm.Ending) {
			s.end(&ending{e.Reason, e.Detail})
			close(s.ended)
		},
		Log: s.log,
	}
}

// operate starts the opened machine and ends it when its life is over. It makes all calls
// to the instance but Connect, one after the other.
func (s *supervisor) operate(life context.Context, inst vm.Instance) *ending {
	err := s.restore(life, inst)
	if err == nil {
		err = inst.Start(life)
	}
	started := err == nil
	var greeted chan struct{}
	if started {
		crashpoint.Reached(crashpoint.VMMStarted)
		s.noteStatus(func(st *vm.State) { st.Phase, st.RunningAt = vm.PhaseRunning, time.Now() })
		crashpoint.Reached(crashpoint.VMMRunning)
		greeted = make(chan struct{})
		go func() {
			defer close(greeted)
			s.greet(life, inst)
		}()
		for life.Err() == nil {
			select {
			case <-life.Done():
			case order := <-s.saves:
				order.done <- s.save(life, inst, order)
			}
		}
		<-greeted
	}
	fin := s.causeOr(life, failure(err, vm.ReasonBackendFailed))
	crashpoint.Reached(crashpoint.VMMEnding)
	s.noteStatus(func(st *vm.State) {
		st.Phase, st.StoppingAt, st.Reason, st.Detail = vm.PhaseStopping, time.Now(), fin.reason, fin.detail
	})
	crashpoint.Reached(crashpoint.VMMStopping)
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(life), s.cfg.StopTimeout,
		fmt.Errorf("the machine did not stop within %v", s.cfg.StopTimeout))
	defer cancel()
	err = inst.Stop(ctx)
	if err == nil && started {
		select {
		case <-s.ended:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	if err != nil {
		// The lock goes on with whatever could not be ended, and the agent sees that.
		return &ending{vm.ReasonBackendFailed, fmt.Sprintf("the machine could not be stopped: %v (it was to end because of %s)", err, fin)}
	}
	return fin
}

// greet waits until the guest agent answers, which completes the boot.
func (s *supervisor) greet(life context.Context, inst vm.Instance) {
	c, err := inst.Connect(life)
	if err != nil {
		if life.Err() == nil {
			s.log.Warn("guest not reached", "error", err)
		}
		return
	}
	c.Close()
	s.noteStatus(func(st *vm.State) { st.GuestReady, st.GuestReadyAt = true, time.Now() })
	crashpoint.Reached(crashpoint.VMMGuestReady)
}

// noteStatus changes the state. That the file cannot be written, on a full disk for
// one, is no reason to end a machine with a job in it: the sockets still tell.
func (s *supervisor) noteStatus(change func(*vm.State)) {
	if err := s.status.update(change); err != nil {
		s.log.Error("status not written", "error", err)
	}
}

// causeOr returns why the life ended, or fallback if it has not.
func (s *supervisor) causeOr(life context.Context, fallback *ending) *ending {
	if e, ok := errors.AsType[*ending](context.Cause(life)); ok {
		return e
	}
	return fallback
}

func failure(err error, fallback vm.Reason) *ending {
	if err == nil {
		return &ending{fallback, "no cause"}
	}
	return &ending{vm.ReasonOf(err, fallback), err.Error()}
}
