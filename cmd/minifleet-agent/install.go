// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/minifleet/minifleet/hosts/install"
	"github.com/minifleet/minifleet/vm"
)

// serviceFlags are those that installing and uninstalling have in common.
type serviceFlags struct {
	Variant string `enum:"daemon,agent" default:"daemon" help:"daemon: a service of the machine, by root (on Linux by --user); agent: on a Mac, a part of your login session."`
	DryRun  bool   `help:"Change nothing; print what would be done."`
}

type installCommand struct {
	Config string `required:"" placeholder:"FILE" help:"Configuration file (YAML) with which the service runs."`
	serviceFlags
	User string `default:"minifleet" placeholder:"NAME" help:"User as whom the service runs, on Linux."`
}

// Help tells what happens.
func (installCommand) Help() string {
	return "Writes the description of the service, checks it and loads it: launchd's on a Mac, systemd's on Linux. " +
		"The programs stay where they are. Repeated, it changes only what differs; VMs and their jobs go on meanwhile. " +
		"Not yet verified on a Mac."
}

type uninstallCommand struct {
	serviceFlags
}

// Run installs the service.
func (c installCommand) Run(s *surroundings) error {
	path, err := filepath.Abs(c.Config)
	if err != nil {
		return err
	}
	cfg, err := load(path, s.getenv)
	if err != nil {
		return err
	}
	in, err := c.describe(s)
	if err != nil {
		return err
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	in.Service.Program, in.Service.Config, in.Service.User = program, path, c.User
	in.Programs = []string{program, cfg.VMM}
	if cfg.backend() == vm.BackendProcess {
		in.Programs = append(in.Programs, cfg.Guest)
	}
	switch {
	case in.System == "linux":
		if _, err := user.Lookup(c.User); err != nil && !c.DryRun {
			return fmt.Errorf("user %s: %w: make it with `useradd --system --home-dir /var/lib/minifleet %s`, or name another with --user", c.User, err, c.User)
		}
	case in.Variant == install.VariantDaemon && cfg.SessionUser == "":
		fmt.Fprintln(s.stdout, "note  session_user is not set: VMs will run as root, for whom macOS starts no guests of version 15 and later")
	case in.Variant == install.VariantAgent && cfg.SessionUser != "":
		return errors.New("session_user is set, which needs root: remove it from the configuration, or install the variant daemon")
	}
	return install.Install(s.ctx, in)
}

// Run takes the service away.
func (c uninstallCommand) Run(s *surroundings) error {
	in, err := c.describe(s)
	if err != nil {
		return err
	}
	if err := install.Uninstall(s.ctx, in); err != nil {
		return err
	}
	_, err = fmt.Fprintln(s.stdout, "The agent is no service of this host. VMs that run go on; state_dir, images and programs stay.")
	return err
}

// describe says on which host this is.
func (f serviceFlags) describe(s *surroundings) (install.Config, error) {
	home, err := os.UserHomeDir()
	if err != nil && f.Variant == string(install.VariantAgent) {
		return install.Config{}, err
	}
	log := "/var/log/minifleet-agent.log"
	if f.Variant == string(install.VariantAgent) {
		log = filepath.Join(home, "Library/Logs/minifleet-agent.log")
	}
	return install.Config{
		Variant: install.Variant(f.Variant), Service: install.Service{Log: log},
		System: runtime.GOOS, UID: os.Geteuid(), Home: home,
		Run: runProgram, DryRun: f.DryRun, Out: s.stdout,
	}, nil
}

// commandPatience bounds each program that is asked something.
const commandPatience = time.Minute

// runProgram runs a program and returns what it printed. The error says it too.
func runProgram(ctx context.Context, command ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	text := strings.TrimSpace(out.String())
	if err != nil && text != "" {
		err = fmt.Errorf("%w: %.500s", err, text)
	}
	return text, err
}
