// SPDX-License-Identifier: MIT

package main

import (
	"log/slog"
	"path/filepath"
	"strings"

	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/vm"
)

type runCommand struct {
	Config string `required:"" placeholder:"FILE" help:"Configuration file (YAML)."`
}

// Help lists the keys of the configuration.
func (runCommand) Help() string {
	// Indented lines are left as they are.
	table := "    " + strings.ReplaceAll(strings.TrimSpace(configKeys()), "\n", "\n    ")
	return "The configuration's keys; a variable " + envPrefix + "_<KEY> wins over the file:\n\n" + table
}

// Run serves the controller until the context ends. The VMs outlive it.
func (c runCommand) Run(s *surroundings) error {
	cfg, err := load(c.Config, s.getenv)
	if err != nil {
		return err
	}
	log, err := newLog(s.stderr, cfg.LogLevel, cfg.LogFormat)
	if err != nil {
		return err
	}
	log = log.With(slog.String("host", cfg.Name))
	machines, err := agent.NewVMs(agent.VMsConfig{
		Dir: filepath.Join(cfg.StateDir, agent.DirVMs), ImagesDir: cfg.ImagesDir, Backend: vm.BackendName(cfg.Backend),
		VMMProgram: cfg.VMM, GuestProgram: cfg.Guest, AllowCopy: cfg.AllowCopy, BootDelay: cfg.BootDelay, MaxLife: cfg.MaxLife, Log: log,
	})
	if err != nil {
		return err
	}
	setup := cfg.agentConfig(log)
	setup.Machines = machines
	a, err := agent.New(setup)
	if err != nil {
		return err
	}
	return a.Run(s.ctx)
}
