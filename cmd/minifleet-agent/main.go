// SPDX-License-Identifier: MIT

// Command minifleet-agent makes a host's VMs match what its controller wants.
package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/alecthomas/kong"

	"github.com/minifleet/minifleet/program"
)

func main() {
	program.Main("minifleet-agent", func(ctx context.Context) error {
		return run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv)
	})
}

type commands struct {
	Run       runCommand       `cmd:"" help:"Serve a controller with this host's VMs."`
	Doctor    doctorCommand    `cmd:"" help:"Look this host over and say what would keep VMs from running."`
	Cache     cacheCommand     `cmd:"" help:"Look after the images that were fetched to this host."`
	Install   installCommand   `cmd:"" help:"Make the agent a service of this host, and start it."`
	Uninstall uninstallCommand `cmd:"" help:"Stop the agent and take its service away. VMs and state stay."`
	Simulate  simulateCommand  `cmd:"" help:"Be many hosts without VMs, to load a controller."`
	Config    configCommand    `cmd:"" help:"Check a configuration file, or list its keys."`
	Version   versionCommand   `cmd:"" help:"Print the version."`
}

// surroundings are what a command needs beside its flags.
type surroundings struct {
	ctx            context.Context
	stdout, stderr io.Writer
	getenv         func(string) string
}

// run is the whole program, so that tests can start it in process.
func run(ctx context.Context, args []string, _ io.Reader, stdout, stderr io.Writer, getenv func(string) string) error {
	var c commands
	printed := false
	parser, err := kong.New(&c,
		kong.Name("minifleet-agent"),
		kong.Description("Runs the VMs of one host. `minifleet-agent run --help` lists all keys of its configuration."),
		kong.Writers(stdout, stderr),
		kong.Exit(func(int) { printed = true }),
	)
	if err != nil {
		return err
	}
	command, err := parser.Parse(args)
	if printed { // the help
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w (see minifleet-agent --help)", err)
	}
	return command.Run(&surroundings{ctx: ctx, stdout: stdout, stderr: stderr, getenv: getenv})
}

type versionCommand struct{}

// Run prints the version.
func (versionCommand) Run(s *surroundings) error {
	_, err := fmt.Fprintln(s.stdout, "minifleet-agent", program.Version())
	return err
}
