// SPDX-License-Identifier: MIT

// Command minifleet is the controller (serve, dev) and the operator's CLI.
package main

import (
	"context"
	"io"
	"os"

	"github.com/alecthomas/kong"

	"github.com/minifleet/minifleet/program"
)

func main() {
	program.Main("minifleet", func(ctx context.Context) error {
		return run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv)
	})
}

// surroundings are what a command needs beside its flags.
type surroundings struct {
	ctx            context.Context
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
}

type commands struct {
	Serve  serveCommand  `cmd:"" help:"Run the controller."`
	Dev    devCommand    `cmd:"" help:"Run a whole site on this machine: simulated GitHub, controller and agents."`
	Get    getCommand    `cmd:"" help:"List jobs, runners, hosts, pools or deliveries."`
	Pool   poolCommand   `cmd:"" help:"Roll out the images of pools, and go back."`
	Host   hostCommand   `cmd:"" help:"Add hosts to the site and remove them."`
	Backup backupCommand `cmd:"" help:"Copy the database while the controller runs."`
	Setup  setupCommand  `cmd:"" help:"Make a GitHub App for this site, or verify one."`
	Config configCommand `cmd:"" help:"Check a configuration file, or list its keys."`
	Image  imageCommand  `cmd:"" help:"Publish images to a bucket or a folder, and look after them."`

	Version kong.VersionFlag `help:"Print the version."`

	Githubsim githubsimCommand `cmd:"" hidden:"" help:"Run the simulated GitHub (used by dev)."`
	Standin   standinCommand   `cmd:"" hidden:"" help:"Be a small runner listener (used by dev)."`
}

// run is the whole program, so that tests can start it in process.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, getenv func(string) string) error {
	var c commands
	exited := -1
	parser, err := kong.New(&c,
		kong.Name("minifleet"),
		kong.Description("Ephemeral GitHub Actions runners on your own Macs."),
		kong.UsageOnError(),
		kong.Writers(stdout, stderr),
		kong.Exit(func(code int) { exited = code; panic(program.Exit(code)) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.Vars{"version": program.Version()},
	)
	if err != nil {
		return err
	}
	parsed, err := parse(parser, args)
	if err != nil || exited == 0 {
		return err
	}
	return parsed.Run(&surroundings{ctx: ctx, stdin: stdin, stdout: stdout, stderr: stderr, getenv: getenv})
}

// parse turns the library's exit, as after --help, into a return.
func parse(parser *kong.Kong, args []string) (parsed *kong.Context, err error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case program.Exit:
			if r != 0 {
				err = r
			}
		default:
			panic(r)
		}
	}()
	return parser.Parse(args)
}
