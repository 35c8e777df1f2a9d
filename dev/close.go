// SPDX-License-Identifier: MIT

package dev

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/minifleet/minifleet/vm"
)

// What each step of a site's end gets; each program gives up by itself before.
const (
	agentGrace  = 15 * time.Second
	sweepGrace  = 30 * time.Second
	serverGrace = 25 * time.Second
	githubGrace = 15 * time.Second
)

// StopTime is how long a site takes to end at most.
const StopTime = agentGrace + sweepGrace + serverGrace + githubGrace + 5*time.Second

// hurry kills every process at the next signal, the one that ended the site apart.
// One more then ends this program too, whatever it leaves.
func (s *site) hurry(ended bool, signals chan os.Signal, over <-chan struct{}) {
	wanted := 1
	if ended {
		wanted = 2
	}
	for range wanted {
		select {
		case <-over:
			return
		case <-signals:
		}
	}
	signal.Stop(signals)
	for _, p := range append(slices.Clone(s.agents), s.server, s.github) {
		if p != nil {
			p.cmd.Process.Kill() //nolint:errcheck // it may be gone
		}
	}
}

// close ends every process, removes every VM, and the folder unless its logs are
// wanted to find out what went wrong.
func (s *site) close(failed bool) error {
	errs := make([]error, len(s.agents))
	var stopping sync.WaitGroup
	for i, a := range s.agents {
		stopping.Go(func() { errs[i] = a.stop(agentGrace) })
	}
	stopping.Wait()
	// The runners before GitHub, which waits for its clients to hang up.
	ctx, cancel := context.WithTimeoutCause(context.Background(), sweepGrace, fmt.Errorf("VMs could not be ended within %s", sweepGrace))
	defer cancel()
	for i := range s.agents {
		errs = append(errs, sweep(ctx, filepath.Join(s.agentDir(i), "vms")))
	}
	// A server that stops gives a connection without a request yet five seconds; the
	// calls that were interrupted have left such ones.
	http.DefaultClient.CloseIdleConnections()
	errs = append(errs, s.server.stop(serverGrace), s.github.stop(githubGrace))
	started := s.github != nil // or there are no logs
	if err := errors.Join(errs...); err != nil || (failed && started) {
		fmt.Fprintln(s.Out, "everything is kept in", s.dir)
		return err
	}
	return os.RemoveAll(s.dir)
}

// sweep ends and removes the VMs of an agent that is not there any more.
func sweep(ctx context.Context, vms string) error {
	if _, err := os.Stat(vms); err != nil {
		return nil
	}
	found, err := vm.Scan(ctx, vms)
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range found {
		errs = append(errs, end(ctx, f), vm.Remove(ctx, f.Dir))
	}
	return errors.Join(errs...)
}

// end ends a VM that was found. It may have ended since.
func end(ctx context.Context, f vm.Found) error {
	switch f.Condition {
	case vm.Running:
		m, err := vm.Adopt(ctx, f.Dir)
		if errors.Is(err, vm.ErrNotRunning) {
			return vm.EndWriter(ctx, f.Dir)
		}
		if err != nil {
			return err
		}
		return m.Stop(ctx)
	case vm.Orphaned:
		return vm.EndWriter(ctx, f.Dir)
	}
	return nil
}
