// SPDX-License-Identifier: MIT

// Command minifleet-guest runs inside a VM: it takes one JIT config from the
// host, runs the runner's listener with it, and reports what becomes of it. The
// work is package guest's; this program reads flags, opens the socket and ends
// everything when it is told to.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/guest/channel"
	"github.com/minifleet/minifleet/program"
)

func main() {
	program.Main("minifleet-guest", func(ctx context.Context) error {
		return run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Environ())
	})
}

type flags struct {
	Listen        string            `required:"" placeholder:"unix:PATH|vsock:PORT|serial:NAME" help:"Where the host reaches this guest: a socket, a vsock port (1023 is what the host dials), or a virtio-serial port by its name (minifleet.guest)."`
	RunnerDir     string            `required:"" placeholder:"DIR" help:"Folder of the runner; the listener is bin/Runner.Listener in it."`
	WorkDir       string            `placeholder:"DIR" help:"Working directory of the listener. Default: the runner's folder."`
	Env           map[string]string `placeholder:"NAME=VALUE" mapsep:"none" help:"Variable added to the listener's environment. May be repeated."`
	StopGrace     time.Duration     `default:"5s" help:"What the listener gets to end gently when this program ends."`
	User          string            `placeholder:"NAME" help:"User as whom the listener runs; this program must then run as root. On a Mac the listener starts within the user's GUI session."`
	SessionUser   string            `placeholder:"NAME" help:"User whose GUI session must be there before this guest counts as ready, on a Mac."`
	OwnMachine    bool              `help:"This program has the machine for itself: it may set the clock, resize the root file system and power off. Implied by a vsock or serial port."`
	ExitWithStdin bool              `help:"End everything when standard input ends, so that this program dies with the one that started it."`
	Version       kong.VersionFlag  `help:"Print the version and exit."`
}

// run is the program. It returns when a host asked for shutdown, when ctx ends,
// or, where wanted, when stdin does.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, environ []string) error {
	if len(args) > 0 && args[0] == guest.BecomeCommand {
		return guest.Become(stdin, args[1:])
	}
	if len(args) > 0 && args[0] == guest.JobStartedCommand {
		return guest.JobStarted(args[1:], os.Getenv, stdout)
	}
	var f flags
	done := false
	parser, err := kong.New(&f,
		kong.Name("minifleet-guest"),
		kong.Description("Runs one GitHub Actions runner inside a VM and reports what becomes of it."),
		kong.Vars{"version": program.Version()},
		kong.Writers(stdout, stderr),
		kong.Exit(func(int) { done = true }),
	)
	if err != nil {
		return fmt.Errorf("command line: %w", err)
	}
	_, err = parser.Parse(args)
	if done { // help or the version was printed
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w (--help lists the flags)", err)
	}

	log := slog.New(slog.NewTextHandler(stderr, nil))
	var machine guest.Machine // on a socket others may share it
	if f.OwnMachine || !strings.HasPrefix(f.Listen, "unix:") {
		machine = guest.OwnMachine()
	}
	agent, err := guest.New(guest.Config{
		RunnerDir:    f.RunnerDir,
		WorkDir:      f.WorkDir,
		Env:          f.Env,
		Environ:      environ,
		Version:      program.Version(),
		StopGrace:    f.StopGrace,
		AdoptOrphans: runtime.GOOS == "linux",
		User:         f.User,
		SessionUser:  f.SessionUser,
		Machine:      machine,
		Log:          log,
	})
	if err != nil {
		return err
	}
	l, err := listen(ctx, f.Listen, log)
	if err != nil {
		return err
	}
	if f.ExitWithStdin {
		var cancel context.CancelCauseFunc
		ctx, cancel = context.WithCancelCause(ctx)
		defer cancel(nil)
		// Nothing can interrupt this read; it ends with the process at the latest.
		go func() {
			io.Copy(io.Discard, stdin) //nolint:errcheck // an error is an end too
			cancel(errors.New("standard input has ended"))
		}()
	}
	stop := program.Stop{
		Finishing: "the runner is told to end, gently for its grace, then its processes are killed",
		Within:    f.StopGrace + 10*time.Second, Log: log,
	}
	return stop.Run(ctx, func(ctx context.Context, parts *program.Parts) error {
		return parts.Do("the runner", func() error { return agent.Serve(ctx, l) })
	})
}

// listen opens where the host reaches this guest.
func listen(ctx context.Context, address string, log *slog.Logger) (net.Listener, error) {
	kind, where, _ := strings.Cut(address, ":")
	if where == "" {
		kind = ""
	}
	var l net.Listener
	var err error
	switch kind {
	case "unix":
		l, err = listenUnix(ctx, where)
	case "vsock":
		port, portErr := strconv.ParseUint(where, 10, 32)
		if portErr != nil {
			return nil, fmt.Errorf("--listen=%s: the port is not a number", address)
		}
		l, err = channel.Vsock(uint32(port), log)
	case "serial":
		l, err = channel.Serial(where, log)
	default:
		err = errors.New("give unix: and the path of a socket, vsock: and a port, or serial: and the name of a port")
	}
	if err != nil {
		return nil, fmt.Errorf("--listen=%s: %w", address, err)
	}
	return l, nil
}

// listenUnix opens a socket, for this user only. A socket that nobody listens on any
// more is replaced; one that answers is not.
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	// Between bind and chmod the socket would be open to others if the umask is.
	old := syscall.Umask(0o177)
	defer syscall.Umask(old)
	return (&net.ListenConfig{}).Listen(ctx, "unix", path)
}

func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("the path exists and is not a socket: choose another")
	}
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", path)
	if err == nil {
		conn.Close()
		return errors.New("another program listens there: end it or choose another path")
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}
