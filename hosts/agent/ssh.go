// SPDX-License-Identifier: MIT

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"

	"github.com/minifleet/minifleet/guest/remote"
	"github.com/minifleet/minifleet/vm"
	"github.com/minifleet/minifleet/vm/address"
	"github.com/minifleet/minifleet/vm/options"
)

// dirHostKeys is the folder of the images' host keys, in the state folder.
const dirHostKeys = "hostkeys"

// sshPort is where a guest's sshd listens.
const sshPort = 22

// SSHConfig is how guests of images that have only SSH are reached. Without a user this
// host has no such guests.
type SSHConfig struct {
	remote.Credentials
	// GuestsDir has a minifleet-guest for each system that guests have (remote.Programs).
	GuestsDir string
	// RunnerDir is the runner's folder in the guest; a relative one is in the user's folder.
	RunnerDir string
}

// Validate returns what is wrong with the configuration.
func (c SSHConfig) Validate() error {
	if c.User == "" && c.Key.Empty() && c.Password.Empty() {
		return nil
	}
	if c.RunnerDir == "" {
		return errors.New("runner_dir is empty: give the runner's folder in the guest")
	}
	return c.Credentials.Validate()
}

// checkGuest refuses a way to the guest program that this host does not have.
func (v *VMs) checkGuest(o Order) error {
	switch {
	case o.Guest == "":
		return nil
	case o.Guest != GuestSSH:
		return fmt.Errorf("pool %s reaches its guests by %.40q, which this agent cannot: upgrade it, or put minifleet-guest into the image", o.Pool, o.Guest)
	case v.cfg.Backend == vm.BackendProcess:
		return fmt.Errorf("pool %s reaches its guests by SSH and those of the backend %s have none: remove guest: ssh from the pool", o.Pool, v.cfg.Backend)
	case v.cfg.SSH.User == "":
		return fmt.Errorf("pool %s reaches its guests by SSH and this host has no way to log in: set ssh.user with ssh.key_file or ssh.password_file in the agent's configuration", o.Pool)
	}
	return nil
}

// overSSH is the way to the guest program of m, whose image has that digest.
func (v *VMs) overSSH(m *vmMachine, digest string) func(context.Context) (net.Conn, error) {
	way, err := remote.New(remote.Config{
		Address: m.sshAddress, Credentials: v.cfg.SSH.Credentials,
		HostKeys: remote.HostKeys{Dir: filepath.Join(filepath.Dir(v.cfg.Dir), dirHostKeys)}, Image: digest,
		Programs: remote.Programs{Dir: v.cfg.SSH.GuestsDir}, RunnerDir: v.cfg.SSH.RunnerDir,
		Log: v.cfg.Log.With(slog.String("runner", filepath.Base(m.dir))),
	})
	if err != nil { // a VM of an earlier agent, which was configured otherwise
		err = fmt.Errorf("a guest that is reached over SSH: %w", err)
		return func(context.Context) (net.Conn, error) { return nil, err }
	}
	m.way = way
	return way.Dial
}

// sshAddress finds the guest's sshd: where the vmm forwards it, or in the network that a Mac
// has for its VMs.
func (m *vmMachine) sshAddress(ctx context.Context) (string, error) {
	machine, _ := m.current()
	if machine == nil {
		return "", errNotStarted
	}
	spec := machine.Spec()
	if spec.Backend == vm.BackendVZ {
		o, err := options.ParseVZ(spec.Options)
		if err != nil {
			return "", err
		}
		mac, err := net.ParseMAC(o.MAC)
		if err != nil {
			return "", err
		}
		a, err := address.Find(ctx, mac)
		return netip.AddrPortFrom(a, sshPort).String(), err
	}
	state, err := machine.State(ctx, 0, 0)
	if err != nil {
		return "", err
	}
	if state.SSHAddress == "" {
		return "", fmt.Errorf("the VM's owner (minifleet-vmm) tells no address of the guest's sshd yet: the VM is %s", state.Phase)
	}
	return state.SSHAddress, nil
}
