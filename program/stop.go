// SPDX-License-Identifier: MIT

package program

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Stop says how a program stops when it is told to.
type Stop struct {
	// Finishing says for the log what is still done, and what is left to whom.
	Finishing string
	// Within is how long it takes at most. Work that is not over then is given up.
	Within time.Duration
	// Log receives that the program stops. Nil means nowhere.
	Log *slog.Logger
}

// Run calls work, which must return soon after ctx has ended. Where it does not, Run
// returns an error that names the parts of it that go on: the caller's process must
// end then, and they end with it.
func (s Stop) Run(ctx context.Context, work func(context.Context, *Parts) error) error {
	log := s.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	parts := &Parts{running: map[string]int{}}
	done := make(chan error, 1)
	go func() { done <- work(ctx, parts) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	began := time.Now()
	log.Info("stopping: signal again to end at once", slog.String("cause", context.Cause(ctx).Error()),
		slog.String("finishing", s.Finishing), slog.Duration("at_most", s.Within))
	late := time.NewTimer(s.Within)
	defer late.Stop()
	select {
	case err := <-done:
		if err == nil {
			log.Info("stopped", slog.Duration("took", time.Since(began)))
		}
		return err
	case <-late.C:
		return fmt.Errorf("the stop was given up after %s: not finished: %s", s.Within, parts)
	}
}

// Parts knows which parts of a program's work go on.
type Parts struct {
	mu      sync.Mutex // guards running
	running map[string]int
}

// Do calls f, which is known by name while it runs.
func (p *Parts) Do(name string, f func() error) error {
	p.add(name, 1)
	defer p.add(name, -1)
	return f()
}

func (p *Parts) add(name string, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running[name] += n; p.running[name] == 0 {
		delete(p.running, name)
	}
}

// String names the parts that go on.
func (p *Parts) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.running) == 0 {
		return "its last steps"
	}
	return strings.Join(slices.Sorted(maps.Keys(p.running)), ", ")
}
