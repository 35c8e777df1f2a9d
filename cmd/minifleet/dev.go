// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/mattn/go-isatty"

	"github.com/minifleet/minifleet/dev"
	"github.com/minifleet/minifleet/githubapp/githubsim"
	"github.com/minifleet/minifleet/githubapp/standin"
)

type devCommand struct {
	Runner string `type:"path" help:"Runner client: a program that behaves as the runner's bin/Runner.Listener. Without it a small stand-in is used."`
	Agents int    `default:"2" help:"Agents to run."`
	Slots  int    `default:"2" help:"Slots of each agent."`
	Seed   uint64 `default:"1" help:"Seed of GitHub's misbehaviour."`
	Kind   bool   `help:"A GitHub that does not misbehave: webhooks in order, at once, once."`
	Demo   bool   `help:"Run the demo's workflow, account for it and end."`
	Keep   bool   `help:"After the demo, leave the site running and print its addresses."`
}

// Help says what dev is.
func (devCommand) Help() string {
	return "Starts a simulated GitHub, the controller and agents as processes of their own on loopback, in a folder that is removed at the end. " +
		"The agents use the process backend: no isolation, no VM, so that it works on any machine."
}

// Run runs a site.
func (c devCommand) Run(s *surroundings) error {
	if c.Agents < 1 || c.Slots < 1 {
		return errors.New("dev: at least one agent with one slot is needed")
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return dev.Run(s.ctx, dev.Options{
		Programs: filepath.Dir(self), Runner: c.Runner, Agents: c.Agents, Slots: c.Slots, Seed: c.Seed, Kind: c.Kind,
		Demo: c.Demo, Keep: c.Keep, CI: s.getenv("CI") == "true", Out: s.stdout, Terminal: terminal(s.stdout),
	})
}

func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && isatty.IsTerminal(f.Fd()) && os.Getenv("TERM") != "dumb"
}

type githubsimCommand struct {
	Listen string `default:"127.0.0.1:0" help:"Loopback address."`
	Seed   uint64 `default:"1" help:"Seed of all randomness."`
	Kind   bool   `help:"No misbehaviour."`
	Flow   string `default:"v1" enum:"v1,migrate" help:"Actions service offered to runners."`
}

// Run simulates GitHub until the context ends.
func (c githubsimCommand) Run(s *surroundings) error {
	log, err := logger(s.stderr, "debug", "text")
	if err != nil {
		return err
	}
	sim, err := githubsim.New(githubsim.Options{Listen: c.Listen, Seed: c.Seed, Kind: c.Kind, Flow: githubsim.Flow(c.Flow), Log: log})
	if err != nil {
		return err
	}
	if err := sim.Start(); err != nil {
		return errors.Join(err, sim.Close())
	}
	fmt.Fprintf(s.stdout, "github %s\n", sim.URL())
	<-s.ctx.Done()
	return sim.Close()
}

type standinCommand struct {
	Args []string `arg:"" optional:"" passthrough:"" help:"run"`
}

// Run is a runner's listener.
func (c standinCommand) Run(s *surroundings) error {
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	if code := standin.Run(context.WithoutCancel(s.ctx), standin.Options{Getenv: s.getenv, Stdout: s.stdout, Stderr: s.stderr, Dir: dir}); code != 0 {
		return exitCode(code)
	}
	return nil
}
