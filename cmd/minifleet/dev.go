// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/mattn/go-isatty"

	"github.com/minifleet/minifleet/dev"
	"github.com/minifleet/minifleet/githubapp/githubsim"
	"github.com/minifleet/minifleet/githubapp/standin"
	"github.com/minifleet/minifleet/program"
)

type devCommand struct {
	Runner string `type:"path" help:"Runner client: a program that behaves as the runner's bin/Runner.Listener. Without it a small stand-in is used."`
	Image  string `type:"path" placeholder:"DIR" help:"Folder of an image with a runner in it, of which VMs are booted under QEMU. Without it runners are ordinary processes."`
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
		"With --image each runner has a VM of its own, under QEMU. Without it the agents use the process backend: no isolation, no VM, so that it works on any machine."
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
	log, err := program.NewLog(s.stderr, "info", "text")
	if err != nil {
		return err
	}
	stop := program.Stop{
		Finishing: "all processes are ended, all VMs and the folder removed; a second signal kills the processes, a third one this program too",
		Within:    dev.StopTime, Log: log,
	}
	return stop.Run(s.ctx, func(ctx context.Context, parts *program.Parts) error {
		return parts.Do("the site", func() error {
			return dev.Run(ctx, dev.Options{
				Programs: filepath.Dir(self), Runner: c.Runner, Image: c.Image, Agents: c.Agents, Slots: c.Slots, Seed: c.Seed, Kind: c.Kind,
				Demo: c.Demo, Keep: c.Keep, CI: s.getenv("CI") == "true", Out: s.stdout, Terminal: terminal(s.stdout),
			})
		})
	})
}

func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && isatty.IsTerminal(f.Fd()) && os.Getenv("TERM") != "dumb"
}

type githubsimCommand struct {
	Listen  string `default:"127.0.0.1:0" help:"Loopback address."`
	Seed    uint64 `default:"1" help:"Seed of all randomness."`
	Kind    bool   `help:"No misbehaviour."`
	Prompt  bool   `help:"Answer at once: runners share one key, and no rate limit refuses a call."`
	OneKey  bool   `help:"Answer sooner: runners share one key."`
	Acquire bool   `help:"Scale sets have to ask for jobs, as on older servers."`
	Flow    string `default:"v1" enum:"v1,migrate" help:"Actions service offered to runners."`

	Enterprise string        `placeholder:"VERSION" help:"Be an Enterprise Server of that version, below /api/v3 and without rate limits."`
	Latency    time.Duration `help:"Added to every answer."`

	RunnerURL string `placeholder:"URL" help:"How runners reach it, where that differs from the address it listens on: from inside a VM."`

	Lease time.Duration `default:"10m" help:"Time until a job fails whose runner is silent."`
}

// Run simulates GitHub until the context ends.
func (c githubsimCommand) Run(s *surroundings) error {
	log, err := program.NewLog(s.stderr, "debug", "text")
	if err != nil {
		return err
	}
	settings := githubsim.Settings{
		Listen: c.Listen, Seed: c.Seed, Kind: c.Kind, Prompt: c.Prompt, OneKey: c.OneKey, Acquire: c.Acquire, Enterprise: c.Enterprise, Latency: c.Latency, Flow: githubsim.Flow(c.Flow),
		RunnerURL: c.RunnerURL, Timing: githubsim.Timing{Lease: c.Lease},
	}
	stop := program.Stop{Finishing: "requests under way; its state is forgotten", Within: 10 * time.Second, Log: log}
	return stop.Run(s.ctx, func(ctx context.Context, parts *program.Parts) error {
		return parts.Do("requests of clients", func() error {
			return githubsim.Serve(ctx, settings, log, func(url string) error {
				_, err := fmt.Fprintf(s.stdout, "github %s\n", url)
				return err
			})
		})
	})
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
	log, err := program.NewLog(s.stderr, "info", "text")
	if err != nil {
		return err
	}
	stop := program.Stop{Finishing: "a job is cancelled and that is reported; the session is deleted", Within: 30 * time.Second, Log: log}
	return stop.Run(s.ctx, func(ctx context.Context, parts *program.Parts) error {
		return parts.Do("the last words to the service", func() error {
			if code := standin.Run(ctx, standin.Options{Getenv: s.getenv, Stdout: s.stdout, Stderr: s.stderr, Dir: dir}); code != 0 {
				return program.Exit(code)
			}
			return nil
		})
	})
}
