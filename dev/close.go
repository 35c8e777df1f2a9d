// SPDX-License-Identifier: MIT

package dev

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/minifleet/minifleet/vm"
)

// hurry kills every process at the next signal, the one that ended the site apart.
func (s *site) hurry(ended bool, signals <-chan os.Signal, over <-chan struct{}) {
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
	for _, p := range append(slices.Clone(s.agents), s.server, s.github) {
		if p != nil {
			p.cmd.Process.Kill() //nolint:errcheck // it may be gone
		}
	}
}

// close ends every process, removes every VM, and the folder unless its logs are
// wanted to find out what went wrong.
func (s *site) close(failed bool) error {
	var errs []error
	for _, a := range s.agents {
		errs = append(errs, a.stop(10*time.Second))
	}
	// The runners before GitHub, which waits for its clients to hang up.
	ctx, cancel := context.WithTimeoutCause(context.Background(), 20*time.Second, errors.New("VMs could not be ended within 20 s"))
	defer cancel()
	for i := range s.agents {
		errs = append(errs, sweep(ctx, filepath.Join(s.agentDir(i), "vms")))
	}
	// A server that stops gives a connection without a request yet five seconds; the
	// calls that were interrupted have left such ones.
	http.DefaultClient.CloseIdleConnections()
	errs = append(errs, s.server.stop(20*time.Second), s.github.stop(10*time.Second))
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
		switch f.Condition {
		case vm.Running:
			m, err := vm.Adopt(ctx, f.Dir)
			if err == nil {
				err = m.Stop(ctx)
			}
			errs = append(errs, err)
		case vm.Orphaned:
			errs = append(errs, vm.EndWriter(ctx, f.Dir))
		}
		errs = append(errs, vm.Remove(ctx, f.Dir))
	}
	return errors.Join(errs...)
}
