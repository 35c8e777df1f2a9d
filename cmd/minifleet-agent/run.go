// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"log/slog"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/program"
)

// stopWithin is longer than what an agent itself waits for its runners' work.
const stopWithin = 10 * time.Second

// memoryLimit has garbage collected more often from there on, so that an agent that fetches an
// image and gives it to other hosts meanwhile stays below 200 MiB. GOMEMLIMIT sets another.
const memoryLimit = 176 << 20

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
	log, err := program.NewLog(s.stderr, cfg.LogLevel, cfg.LogFormat)
	if err != nil {
		return err
	}
	if s.getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	log = log.With(slog.String("host", cfg.Name))
	qemu, err := cfg.QEMU.config()
	if err != nil {
		return err
	}
	account, err := cfg.account()
	if err != nil {
		return err
	}
	machines, err := agent.NewVMs(agent.VMsConfig{
		Dir: filepath.Join(cfg.StateDir, agent.DirVMs), ImagesDir: cfg.ImagesDir, Cache: cfg.cacheConfig(), Backend: cfg.backend(), QEMU: qemu, SSH: cfg.ssh(),
		VMMProgram: cfg.VMM, GuestProgram: cfg.Guest, Account: account, AllowCopy: cfg.AllowCopy, DiskReserve: int64(cfg.DiskReserve) << 20,
		SavedStates: cfg.SavedStates.bytes(),
		BootDelay:   cfg.BootDelay, MaxLife: cfg.MaxLife, Log: log,
	})
	if err != nil {
		return err
	}
	defer machines.Close()
	setup := cfg.agentConfig(log)
	setup.Machines = machines
	a, err := agent.New(setup)
	if err != nil {
		return err
	}
	stop := program.Stop{
		Finishing: "calls under way are ended; VMs and their jobs go on, and the next agent adopts them",
		Within:    stopWithin, Log: log,
	}
	return stop.Run(s.ctx, func(ctx context.Context, parts *program.Parts) error {
		return parts.Do("the agent's work on its state folder and images", func() error { return a.Run(ctx) })
	})
}
