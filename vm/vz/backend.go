// SPDX-License-Identifier: MIT

package vz

import (
	"context"
	"fmt"

	"github.com/minifleet/minifleet/vm"
)

// Config says how the backend is used.
type Config struct {
	// Window shows the machine's screen. Nil means that none is shown.
	Window *Window
}

// Backend returns the backend on Virtualization.framework. Where a build has none of it,
// Open says so.
func Backend(cfg Config) vm.Backend { return newBackend(cfg, apple{}) }

// platform is the system below: Apple's, none, or a test's.
type platform interface {
	host() (host, error)
	// open makes the plan's machine and starts nothing.
	open(plan) (framework, error)
}

type backend struct {
	platform platform
	host     host
	hostErr  error
	window   *Window
	plug     plug // one for all machines of the process: they share its descriptors
}

func newBackend(cfg Config, p platform) vm.Backend {
	b := &backend{platform: p, window: cfg.Window}
	b.host, b.hostErr = p.host()
	return vm.Backend{
		Name: vm.BackendVZ, Isolation: vm.IsolationVM,
		SavesState: b.hostErr == nil && b.host.version.AtLeast(14),
		Open:       b.open,
	}
}

func (b *backend) open(_ context.Context, cfg vm.OpenConfig) (vm.Instance, error) {
	if b.hostErr != nil {
		return nil, vm.WithReason(vm.ReasonBadConfiguration, b.hostErr)
	}
	p, err := newPlan(cfg.Dir, cfg.Spec, b.host)
	if err != nil {
		return nil, err
	}
	fw, err := b.platform.open(p)
	if err != nil {
		if reason := reasonOf(err); reason != vm.ReasonBackendFailed {
			return nil, vm.WithReason(reason, fmt.Errorf("configure the machine: %w", err))
		}
		// What goes wrong before anything runs is what the machine is made of.
		return nil, vm.WithReason(vm.ReasonBadConfiguration, fmt.Errorf("configure the machine: %w", err))
	}
	return newMachine(cfg, p, fw, b), nil
}
