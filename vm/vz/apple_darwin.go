// SPDX-License-Identifier: MIT

//go:build arm64 && cgo

package vz

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/Code-Hex/vz/v3"
	"golang.org/x/sys/unix"
)

// apple is Virtualization.framework.
type apple struct{}

func (apple) host() (host, error) {
	text, err := unix.Sysctl("kern.osproductversion")
	if err != nil {
		return host{}, fmt.Errorf("version of macOS: %w", err)
	}
	version, err := ParseVersion(text)
	if err != nil {
		return host{}, err
	}
	hypervisor, err := unix.SysctlUint32("kern.hv_support")
	if err != nil {
		return host{}, fmt.Errorf("kern.hv_support: %w", err)
	}
	program, err := os.Executable()
	if err != nil {
		return host{}, err
	}
	signed, err := entitled(program)
	return host{
		version: version, hypervisor: hypervisor != 0, entitlement: signed,
		minCPUs:   vz.VirtualMachineConfigurationMinimumAllowedCPUCount(),
		maxCPUs:   vz.VirtualMachineConfigurationMaximumAllowedCPUCount(),
		minMemory: vz.VirtualMachineConfigurationMinimumAllowedMemorySize(),
		maxMemory: vz.VirtualMachineConfigurationMaximumAllowedMemorySize(),
	}, err
}

func (apple) open(p plan) (framework, error) {
	config, err := configure(p)
	if err != nil {
		return nil, plain(err)
	}
	machine, err := vz.NewVirtualMachine(config)
	if err != nil {
		return nil, plain(err)
	}
	// Both are kept: what is collected releases the framework's objects.
	return &appleMachine{vm: machine, config: config, display: p.display}, nil
}

// appleMachine passes calls on.
type appleMachine struct {
	vm      *vz.VirtualMachine
	config  *vz.VirtualMachineConfiguration
	display screen
}

func (m *appleMachine) state() state   { return state(m.vm.State()) }
func (m *appleMachine) start() error   { return plain(m.vm.Start()) }
func (m *appleMachine) stop() error    { return plain(m.vm.Stop()) }
func (m *appleMachine) pause() error   { return plain(m.vm.Pause()) }
func (m *appleMachine) resume() error  { return plain(m.vm.Resume()) }
func (m *appleMachine) savable() error { return valid(m.config.ValidateSaveRestoreSupport()) }

func (m *appleMachine) save(path string) error { return plain(m.vm.SaveMachineStateToPath(path)) }

// restore takes a path, in spite of the name of what it calls.
func (m *appleMachine) restore(path string) error {
	return plain(m.vm.RestoreMachineStateFromURL(path))
}

func (m *appleMachine) next(quit <-chan struct{}) (state, bool) {
	select {
	case s := <-m.vm.StateChangedNotify():
		return state(s), true
	case <-quit:
		return 0, false
	}
}

func (m *appleMachine) dial(port uint32) (net.Conn, error) {
	devices := m.vm.SocketDevices()
	if len(devices) != 1 {
		return nil, fmt.Errorf("the machine has %d socket devices instead of one", len(devices))
	}
	c, err := devices[0].Connect(port)
	if err != nil {
		return nil, plain(err)
	}
	return c, nil
}

func (m *appleMachine) show(title string) error {
	return plain(m.vm.StartGraphicApplication(float64(m.display.width), float64(m.display.height), vz.WithWindowTitle(title)))
}

// The states that this package names have the framework's numbers.
var _ = map[bool]struct{}{
	false: {},
	stateStopped == state(vz.VirtualMachineStateStopped) && stateRunning == state(vz.VirtualMachineStateRunning) &&
		statePaused == state(vz.VirtualMachineStatePaused) && stateError == state(vz.VirtualMachineStateError): {},
}

// plain takes the bindings' type from an error.
func plain(err error) error {
	e, ok := errors.AsType[*vz.NSError](err)
	if !ok {
		return err
	}
	return &nsError{Domain: e.Domain, Code: e.Code, Text: e.LocalizedDescription, Info: e.UserInfo}
}

// valid makes an error of a check that failed without one.
func valid(ok bool, err error) error {
	if err == nil && !ok {
		return errors.New("the framework refuses the configuration without saying why")
	}
	return plain(err)
}
