// SPDX-License-Identifier: MIT

// Command minifleet-vmm owns one virtual machine for its whole life. The agent starts
// one for each machine; it can also be run by hand on a bundle.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/alecthomas/kong"
	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/program"
	"github.com/minifleet/minifleet/vm"
	"github.com/minifleet/minifleet/vm/process"
	"github.com/minifleet/minifleet/vm/qemu"
	"github.com/minifleet/minifleet/vm/vmm"
	"github.com/minifleet/minifleet/vm/vz"
)

func main() {
	// macOS shows windows on the process's first thread only, which runs this function.
	runtime.LockOSThread()
	program.Main("minifleet-vmm", func(ctx context.Context) error {
		return run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv)
	})
}

type commands struct {
	Run     runCommand     `cmd:"" help:"Run the machine of a bundle until it ends."`
	Probe   probeCommand   `cmd:"" help:"Try on this Mac what Virtualization.framework does here: boot, save and restore."`
	Version versionCommand `cmd:"" help:"Print the version."`

	HandOver handOverCommand `cmd:"" hidden:"" help:"Hand standard input over to a machine's vmm; QEMU runs it for a forward."`
}

type runCommand struct {
	Bundle  string `required:"" placeholder:"DIR" help:"The bundle's folder. It is run once only."`
	ReadyFD int    `name:"ready-fd" placeholder:"N" help:"Write a line to this descriptor when the sockets are open (for the agent)."`
	As      string `placeholder:"USER" help:"Become this user for good before anything else; only root can (for the agent)."`
	Window  bool   `help:"Show the machine's screen, for debugging (vz only). Closing the window ends nothing."`
}

type probeCommand struct {
	Image     string        `placeholder:"DIR" help:"Image to boot clones of; its guest agent must answer. Without it only the host is looked at."`
	Dir       string        `default:"/tmp" placeholder:"DIR" help:"Folder for the clones, on the image's volume, with a short path."`
	AllowCopy bool          `help:"Copy the image where copy-on-write does not work."`
	Patience  time.Duration `default:"2m" help:"Longest time of each step."`
}

type versionCommand struct{}

type handOverCommand struct {
	Socket  string `arg:"" help:"Where the vmm listens."`
	Forward string `arg:"" help:"The forward's number."`
}

func run(ctx context.Context, args []string, _ io.Reader, stdout, stderr io.Writer, _ func(string) string) error {
	var cli commands
	printed := false
	parser, err := kong.New(&cli, kong.Name("minifleet-vmm"),
		kong.Description("Owns one virtual machine for its whole life."),
		kong.Writers(stdout, stderr),
		kong.Exit(func(int) { printed = true }))
	if err != nil {
		return err
	}
	command, err := parser.Parse(args)
	if printed { // the help
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w (see minifleet-vmm --help)", err)
	}
	switch command.Selected().Name {
	case "version":
		_, err := fmt.Fprintln(stdout, "minifleet-vmm", program.Version())
		return err
	case "probe":
		return cli.Probe.run(ctx, stdout)
	case "hand-over":
		return qemu.HandOver(cli.HandOver.Socket, cli.HandOver.Forward)
	}
	var window *vz.Window
	if cli.Run.Window {
		window = vz.NewWindow()
	}
	return showing(ctx, window, func() error {
		return cli.Run.run(ctx, stderr, process.Backend(), qemu.Backend(qemuConfig()), vz.Backend(vz.Config{Window: window}))
	})
}

// qemuConfig has this program hand over a machine's forwards.
func qemuConfig() qemu.Config {
	var cfg qemu.Config
	if self, err := os.Executable(); err == nil {
		cfg.HandOver = []string{self, "hand-over"}
	}
	if dir, err := os.UserCacheDir(); err == nil {
		cfg.CacheDir = filepath.Join(dir, "minifleet")
	}
	return cfg
}

// showing runs a machine and, if there is a window, shows it meanwhile on this thread.
func showing(ctx context.Context, window *vz.Window, run func() error) error {
	if window == nil {
		return run()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- run()
		cancel()
	}()
	shown := window.Show(ctx)
	return errors.Join(<-ended, shown)
}

func (c probeCommand) run(ctx context.Context, stdout io.Writer) error {
	image := c.Image
	if image != "" {
		var err error
		if image, err = filepath.Abs(image); err != nil {
			return err
		}
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return err
	}
	return vz.Probe(ctx, vz.ProbeConfig{ImageDir: image, Dir: dir, AllowCopy: c.AllowCopy, Patience: c.Patience}, stdout)
}

func (c runCommand) run(ctx context.Context, stderr io.Writer, backends ...vm.Backend) error {
	if c.As != "" {
		account, err := vm.LookUpAccount(c.As)
		if err == nil {
			err = account.Assume()
		}
		if err != nil {
			return fmt.Errorf("--as: %w", err)
		}
	}
	bundle, err := filepath.Abs(c.Bundle)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	cfg := vmm.Config{
		Bundle:   bundle,
		Backends: backends,
		Log:      log,
	}
	if c.ReadyFD > 0 {
		if cfg.Ready, err = readyOn(c.ReadyFD); err != nil {
			return err
		}
	}
	stop := program.Stop{
		Finishing: "the machine is powered off and its files are let go; removing them is the agent's",
		Within:    vmm.DefaultStopTimeout + 5*time.Second, Log: log,
	}
	return stop.Run(ctx, func(ctx context.Context, parts *program.Parts) error {
		return parts.Do("the machine of "+bundle, func() error { return vmm.Run(ctx, cfg) })
	})
}

// readyOn returns a function that tells the agent that the sockets are open.
func readyOn(fd int) (func() error, error) {
	if fd < 3 {
		return nil, fmt.Errorf("--ready-fd is %d: give a descriptor of 3 or above", fd)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
		return nil, fmt.Errorf("--ready-fd %d is not an open descriptor: %w", fd, err)
	}
	// The guest must not inherit it: the agent waits for its end.
	unix.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), "ready")
	return func() error {
		_, err := io.WriteString(f, vm.ReadyLine)
		return errors.Join(err, f.Close())
	}, nil
}
