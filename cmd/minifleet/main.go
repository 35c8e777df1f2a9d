// SPDX-License-Identifier: MIT

// Command minifleet is the controller (serve, dev) and the operator's CLI.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	go func() {
		<-ctx.Done()
		stop() // a second signal kills
	}()
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv)
	stop()
	var code exitCode
	switch {
	case err == nil:
	case errors.As(err, &code):
		os.Exit(int(code))
	default:
		fmt.Fprintln(os.Stderr, "minifleet:", err)
		os.Exit(1)
	}
}

// exitCode ends the program with a status and no further words.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit status %d", int(c)) }

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
	Host   hostCommand   `cmd:"" help:"Add hosts to the site and remove them."`
	Config configCommand `cmd:"" help:"Check a configuration file, or list its keys."`

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
		kong.Exit(func(code int) { exited = code; panic(exitCode(code)) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.Vars{"version": version(), "config_keys": configKeys()},
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
		case exitCode:
			if r != 0 {
				err = r
			}
		default:
			panic(r)
		}
	}()
	return parser.Parse(args)
}

// version is what the build recorded of itself.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && !strings.Contains(v, s.Value[:min(12, len(s.Value))]) {
			v += " " + s.Value[:min(12, len(s.Value))]
		}
	}
	return v
}

// logger writes to stderr: a handler per format, from level up.
func logger(w io.Writer, level, format string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log_level %q: want debug, info, warn or error", level)
	}
	options := &slog.HandlerOptions{Level: l}
	switch format {
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	default:
		return nil, fmt.Errorf("log_format %q: want text or json", format)
	}
}
