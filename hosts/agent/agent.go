// SPDX-License-Identifier: MIT

package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/imagecache/archives"
	"github.com/minifleet/minifleet/secret"
)

// stopTime is how long Run waits for work under way when it ends. VMs need none of
// it: they run on.
const stopTime = 4 * time.Second

// Agent is one host's agent. Make it with New and run it once.
type Agent struct {
	cfg   Config
	log   *slog.Logger
	slots slots

	// Set by Run before anything else starts.
	state      *state
	client     *client
	credential secret.Text
	identity   identity
	instance   string
	machine    string // of the hardware
	clock      exchangeClock
	archives   *archives.Cache // nil without a state folder: a host without VMs
	peers      *peers          // nil where nothing is shared
	prefetch   *prefetches     // nil where no images are fetched

	lives      sync.WaitGroup // one for each runner
	pruning    sync.Mutex     // one at a time clears the failures folder
	forgetting sync.Mutex     // one at a time forgets runners
	wake       chan struct{}  // holds one token while a report is due
	relook     chan struct{}  // holds one token while the list of images is to be looked at
	unfit      atomic.Int64   // saved states that were of no use, in this agent's life

	mu       sync.Mutex // guards the rest, and what runner.go says it guards
	obeyed   obeyed
	revision int64 // of the newest desired that was acted on
	runners  map[string]*runner
	lease    leaseStage
	images   []string          // newest list
	troubles map[string]string // what is wrong with the host, by what it concerns
	welcome  protocol.Welcome
}

// New returns an agent.
func New(cfg Config) (*Agent, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	return &Agent{
		cfg: cfg, log: cfg.Log, slots: newSlots(cfg.Slots),
		wake: make(chan struct{}, 1), relook: make(chan struct{}, 1), runners: map[string]*runner{}, troubles: map[string]string{},
		instance: rand.Text(), clock: exchangeClock{wall: cfg.Wall},
	}, nil
}

// errStopped is the cause with which everything ends when Run's context does.
var errStopped = errors.New("the agent is stopping")

// Run serves the controller until ctx ends, which is no error, or until the
// controller refuses this agent for good. The VMs run on; the next agent with the
// same state folder adopts them.
func (a *Agent) Run(ctx context.Context) (err error) {
	if a.state, err = openState(a.cfg.StateDir, a.cfg.OtherUser); err != nil {
		return err
	}
	if err := a.state.probe(); err != nil {
		a.trouble("state", a.unwritable(err).Error())
	}
	if a.cfg.StateDir != "" {
		if a.archives, err = archives.Open(archives.Config{Dir: filepath.Join(a.cfg.StateDir, dirArchives), Log: a.log}); err != nil {
			return errors.Join(err, a.state.close())
		}
	}
	if a.peers, err = a.openPeers(); err != nil {
		return errors.Join(err, a.state.close())
	}
	if store, ok := a.cfg.Machines.(ImageStore); ok {
		a.prefetch = newPrefetches(a, store)
	}
	defer a.peers.close()
	defer a.slots.stop()
	inner, cancel := context.WithCancelCause(ctx)
	err = a.serve(inner)
	cancel(errStopped)
	if ctx.Err() != nil {
		err = nil
	}
	err = errors.Join(err, a.awaitLives())
	if a.client != nil {
		a.client.close()
	}
	return errors.Join(err, a.state.close())
}

// serve is what Run does until something ends it.
func (a *Agent) serve(ctx context.Context) error {
	if err := a.prepare(ctx); err != nil {
		return err
	}
	if err := a.adopt(ctx); err != nil {
		return err
	}
	return a.speak(ctx)
}

// prepare loads or makes all that identifies this host.
func (a *Agent) prepare(ctx context.Context) (err error) {
	a.machine = a.cfg.Machine
	if a.machine == "" {
		if a.machine, err = hardwareID(ctx); err != nil {
			return err
		}
	}
	if a.credential, err = a.state.credential(); err != nil {
		return err
	}
	if a.obeyed, err = a.state.obeyed(); err != nil {
		return err
	}
	known := false
	if a.identity, known, err = a.state.identity(); err != nil {
		return err
	}
	if known {
		a.client, err = newClient(a.cfg, a.identity.Pin)
		return err
	}
	return a.enrol(ctx)
}

// speak runs the loops until one of them knows that the agent must stop.
func (a *Agent) speak(ctx context.Context) error {
	a.clock.exchanged()
	watchCtx, stopWatches := context.WithCancel(ctx)
	var watches sync.WaitGroup
	listed := make(chan struct{})
	watches.Go(func() { a.watchLease(watchCtx) })
	if a.peers != nil {
		watches.Go(func() { a.peers.run(watchCtx) })
	}
	if a.prefetch != nil {
		watches.Go(func() { a.prefetch.run(watchCtx) })
	}
	watches.Go(func() { a.watchImages(watchCtx, sync.OnceFunc(func() { close(listed) })) })
	defer func() { stopWatches(); watches.Wait() }()
	a.awaitImages(ctx, listed)

	if err := a.greet(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(errStopped)
	var loops sync.WaitGroup
	for _, loop := range []func(context.Context) error{a.followDesired, a.sendReports} {
		loops.Go(func() { cancel(loop(ctx)) })
	}
	loops.Wait()
	return context.Cause(ctx)
}

// awaitLives waits for the runners' goroutines, which all heed their context. One
// that hangs in the file system must not keep the agent from ending: it ends with the
// process.
func (a *Agent) awaitLives() error {
	done := make(chan struct{})
	go func() { a.lives.Wait(); close(done) }()
	t := time.NewTimer(stopTime)
	defer t.Stop()
	select {
	case <-done:
		return nil
	case <-t.C:
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	var names []string
	for id, r := range a.runners {
		if r.living {
			names = append(names, id)
		}
	}
	slices.Sort(names)
	return fmt.Errorf("work on these runners did not stop within %s: %s", stopTime, strings.Join(names, ", "))
}

// changed makes a report due.
func (a *Agent) changed() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// trouble notes what is wrong with the host, or with an empty text that it is not.
func (a *Agent) trouble(concern, text string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	before := a.troubles[concern]
	if text == before {
		return
	}
	if text == "" {
		delete(a.troubles, concern)
		a.log.Info("host trouble is over", slog.String("concern", concern))
	} else {
		a.troubles[concern] = text
		a.log.Error("host trouble", slog.String("concern", concern), slog.String("trouble", text))
	}
	a.changed()
}

// facts describe the host as it is now.
func (a *Agent) facts() protocol.Facts {
	a.mu.Lock()
	defer a.mu.Unlock()
	f := protocol.Facts{
		Slots: a.cfg.Slots, Backends: a.cfg.Backends, Images: a.images,
		OS: runtime.GOOS, Arch: runtime.GOARCH, AgentVersion: a.cfg.Version,
	}
	concerns := make([]string, 0, len(a.troubles))
	for c := range a.troubles {
		concerns = append(concerns, c)
	}
	slices.Sort(concerns)
	for _, c := range concerns {
		if f.Degraded != "" {
			f.Degraded += "; "
		}
		f.Degraded += a.troubles[c]
	}
	f.Degraded = cut(f.Degraded, protocol.MaxText)
	a.peers.facts(&f)
	return f
}

// adopt finds what an earlier agent left and gives each VM its owner again.
func (a *Agent) adopt(ctx context.Context) error {
	graves, err := a.state.tombstones()
	if err != nil {
		return fmt.Errorf("tombstones: %w", err)
	}
	dead := map[string]tombstone{}
	for _, t := range graves {
		dead[t.Report.ID] = t
		a.restoreGone(t)
	}
	found, err := a.cfg.Machines.Scan(ctx)
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, f := range found {
		if !validID(f.ID) {
			a.log.Error("a VM with an impossible name is left alone", slog.String("runner", cut(f.ID, 60)))
			continue
		}
		there[f.ID] = true
		rec, _, err := a.state.record(f.ID)
		if err != nil {
			a.log.Warn("the record of a VM cannot be read; its guest knows the rest", slog.String("runner", f.ID), slog.Any("error", err))
			rec = record{Given: true} // the careful guess
		}
		if rec.Desire.Pool == "" {
			rec.Desire.Pool = f.Pool
		}
		if !fleet.ValidName(rec.Desire.Pool) {
			// A guest without isolation can write there, and one name that is none would
			// have the controller refuse whole reports.
			rec.Desire.Pool = "unknown"
		}
		_, buried := dead[f.ID]
		a.takeOver(ctx, f, rec, buried)
	}
	return a.mournRecords(dead, there)
}

// mournRecords buries runners that have a record and no VM: the agent ended between
// the two, before the VM was made or after it was deleted.
func (a *Agent) mournRecords(dead map[string]tombstone, there map[string]bool) error {
	ids, err := a.state.records()
	if err != nil {
		return fmt.Errorf("records: %w", err)
	}
	for _, id := range ids {
		if there[id] {
			continue
		}
		if _, ok := dead[id]; !ok {
			rec, _, _ := a.state.record(id)
			t := tombstone{At: time.Now(), Report: protocol.RunnerReport{
				ID: id, Observed: string(fleet.ObservedGone), HasConfig: rec.Given, RunnerName: rec.RunnerName,
				Pool: rec.Desire.Pool, Scope: rec.Desire.Scope,
				Failure: "the agent ended before the VM was made",
			}}
			if err := a.state.bury(t); err != nil {
				return fmt.Errorf("tombstone of runner %s: %w", id, err)
			}
			crashpoint.Reached(crashpoint.RecordMourned)
			a.restoreGone(t)
		}
		if err := a.state.dropRecord(id); err != nil {
			return fmt.Errorf("record of runner %s: %w", id, err)
		}
	}
	return nil
}
