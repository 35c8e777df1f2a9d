// SPDX-License-Identifier: MIT

package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Variant says as whose service the agent runs.
type Variant string

// The variants.
const (
	VariantDaemon Variant = "daemon" // the machine's: from the boot on, by root on a Mac
	VariantAgent  Variant = "agent"  // a user's login session's; on a Mac only
)

// Config says what to install and on which host.
type Config struct {
	Variant Variant
	Service Service
	// Programs are all that the service starts, the agent itself included. Where root
	// runs them, nobody else may be able to change them.
	Programs []string

	System string // runtime.GOOS
	UID    int    // of whoever installs
	Home   string // of the same, for VariantAgent
	// Root is put before all paths that are written; "" for the real ones.
	Root string
	// Run runs a program and returns what it printed. Its error contains that too.
	Run func(ctx context.Context, command ...string) (string, error)
	// DryRun changes nothing and prints what would be done.
	DryRun bool
	// Out receives a line for each thing done.
	Out io.Writer
}

// Patience with launchd, which takes a service away some time after it was told to.
const (
	goneWithin = (stopSeconds + 10) * time.Second
	lookAgain  = 250 * time.Millisecond
)

// Install makes the agent a service and starts it. Repeated with the same description it
// only sees to it that the service runs; with another one the agent is restarted.
func Install(ctx context.Context, cfg Config) error {
	if err := cfg.check(); err != nil {
		return err
	}
	if err := cfg.checkPrograms(); err != nil {
		return err
	}
	if cfg.System == "linux" {
		return cfg.installSystemd(ctx)
	}
	return cfg.installLaunchd(ctx)
}

// Uninstall stops the agent and takes its service away. VMs, their jobs and the state folder
// stay. What is not installed is no error.
func Uninstall(ctx context.Context, cfg Config) error {
	if err := cfg.check(); err != nil {
		return err
	}
	if cfg.System == "linux" {
		return cfg.uninstallSystemd(ctx)
	}
	return cfg.uninstallLaunchd(ctx)
}

func (c Config) check() error {
	switch {
	case c.System != "darwin" && c.System != "linux":
		return fmt.Errorf("there is no service manager that this program knows on %s", c.System)
	case c.Variant != VariantDaemon && c.Variant != VariantAgent:
		return fmt.Errorf("variant is %.40q: want %s or %s", c.Variant, VariantDaemon, VariantAgent)
	case c.Variant == VariantAgent && c.System == "linux":
		return fmt.Errorf("the variant %s is for Macs, whose login sessions hold keychains: use %s here", VariantAgent, VariantDaemon)
	case c.DryRun:
		return nil
	case c.Variant == VariantDaemon && c.UID != 0:
		return fmt.Errorf("only root can change the services of this machine: run this with sudo, or see with --dry-run what it would do")
	case c.Variant == VariantAgent && c.UID == 0:
		return errors.New("the agent is to be part of a user's login session and root has none: run this as that user, without sudo")
	}
	return nil
}

// checkPrograms refuses programs, and folders on the way to them, that somebody other than
// root could change and so become root.
func (c Config) checkPrograms() error {
	if c.Variant != VariantDaemon {
		return nil
	}
	var errs []error
	seen := map[string]bool{}
	for _, p := range append([]string{c.Service.Config}, c.Programs...) {
		if c.System == "linux" && c.Service.User != "root" {
			break
		}
		errs = append(errs, rootsWay(filepath.Clean(p), seen))
	}
	return errors.Join(errs...)
}

// rootsWay goes the way of a path as the system does, through links and what they lead to:
// who can replace a link decides what root runs.
func rootsWay(path string, seen map[string]bool) error {
	if seen[path] {
		return nil
	}
	seen[path] = true
	folder := filepath.Dir(path)
	if folder != path {
		if err := rootsWay(folder, seen); err != nil {
			return err
		}
	}
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if err := rootsOnly(path, info); err != nil || info.Mode()&fs.ModeSymlink == 0 {
		return err
	}
	target, err := os.Readlink(path)
	if err != nil {
		return err
	}
	if !filepath.IsAbs(target) {
		// Its ".." leads up from where the folder really is.
		if folder, err = filepath.EvalSymlinks(folder); err != nil {
			return err
		}
		target = filepath.Join(folder, target)
	}
	return rootsWay(filepath.Clean(target), seen)
}

func rootsOnly(path string, info fs.FileInfo) error {
	owner := 0
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		owner = int(s.Uid)
	}
	// A link has no mode of its own; in a folder like /tmp only its owner can replace it.
	shared := info.Mode().Perm()&0o022 != 0 && info.Mode()&(fs.ModeSticky|fs.ModeSymlink) == 0
	if shared || owner != 0 && owner != os.Geteuid() {
		return fmt.Errorf("%s can be changed by others than root (owner %d, mode %v), and root runs what is there: chown root it and chmod go-w it, or install elsewhere", path, owner, info.Mode().Perm())
	}
	return nil
}

func (c Config) say(format string, args ...any) { fmt.Fprintf(c.Out, format+"\n", args...) }

// do runs a command that changes something.
func (c Config) do(ctx context.Context, command ...string) error {
	if c.DryRun {
		c.say("would run   %s", strings.Join(command, " "))
		return nil
	}
	c.say("run   %s", strings.Join(command, " "))
	if _, err := c.Run(ctx, command...); err != nil {
		return fmt.Errorf("%s: %w", strings.Join(command, " "), err)
	}
	return nil
}

// holds reports whether a command that only asks says yes.
func (c Config) holds(ctx context.Context, command ...string) bool {
	_, err := c.Run(ctx, command...)
	return err == nil
}

// put writes a file, whole or not at all, unless it is there already. With the new one under
// a temporary name, before is called: what it does is then never left undone by a put that
// was cut short and repeated.
func (c Config) put(path string, content []byte, before func(path string) error) error {
	path = filepath.Join(c.Root, path)
	old, err := os.ReadFile(path)
	if err == nil && bytes.Equal(old, content) {
		c.say("keep  %s", path)
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !c.DryRun {
		return err
	}
	if c.DryRun {
		c.say("would write %s:\n\n%s", path, content)
		return before(path)
	}
	c.say("write %s", path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".new-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // which fails after the rename
	_, err = f.Write(content)
	if err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := before(f.Name()); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.Rename(f.Name(), path)
}

// take removes a file that may be missing.
func (c Config) take(path string) error {
	path = filepath.Join(c.Root, path)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if c.DryRun {
		c.say("would remove %s", path)
		return nil
	}
	c.say("remove %s", path)
	return os.Remove(path)
}

// launchd's programs.
const (
	launchctl = "/bin/launchctl"
	plutil    = "/usr/bin/plutil"
)

// place returns launchd's domain for the variant, and where it looks for descriptions.
func (c Config) place() (domain, path string) {
	if c.Variant == VariantAgent {
		return "gui/" + strconv.Itoa(c.UID), filepath.Join(c.Home, "Library/LaunchAgents", Label+".plist")
	}
	return "system", filepath.Join("/Library/LaunchDaemons", Label+".plist")
}

func (c Config) installLaunchd(ctx context.Context) error {
	domain, path := c.place()
	service := domain + "/" + Label
	if c.Variant == VariantAgent && !c.DryRun && !c.holds(ctx, launchctl, "print", domain) {
		return fmt.Errorf("the user %d has no login session on this Mac: log in at its screen first, or turn automatic login on and restart", c.UID)
	}
	content := Daemon(c.Service)
	if c.Variant == VariantAgent {
		content = LoginAgent(c.Service)
	}
	if err := Check(content); err != nil {
		return err
	}
	loaded := c.holds(ctx, launchctl, "print", service)
	err := c.put(path, content, func(path string) error {
		if err := c.do(ctx, plutil, "-lint", path); err != nil || !loaded {
			return err
		}
		loaded = false
		return c.bootOut(ctx, service)
	})
	if err != nil {
		return err
	}
	if !loaded {
		// Enabled first: one that was once disabled is refused, with an input/output error.
		for _, command := range [][]string{{"enable", service}, {"bootstrap", domain, filepath.Join(c.Root, path)}} {
			if err := c.do(ctx, append([]string{launchctl}, command...)...); err != nil {
				return err
			}
		}
	}
	return c.do(ctx, launchctl, "kickstart", service)
}

// bootOut has launchd let go of a service, and waits until it has.
func (c Config) bootOut(ctx context.Context, service string) error {
	if err := c.do(ctx, launchctl, "bootout", service); err != nil || c.DryRun {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, goneWithin)
	defer cancel()
	again := time.NewTicker(lookAgain)
	defer again.Stop()
	for c.holds(ctx, launchctl, "print", service) {
		select {
		case <-again.C:
		case <-ctx.Done():
			return fmt.Errorf("launchd still has %s: look at launchctl print %s, and try again", service, service)
		}
	}
	return ctx.Err()
}

func (c Config) uninstallLaunchd(ctx context.Context) error {
	domain, path := c.place()
	service := domain + "/" + Label
	if c.holds(ctx, launchctl, "print", service) {
		if err := c.bootOut(ctx, service); err != nil {
			return err
		}
	}
	return c.take(path)
}

const unitPath = "/etc/systemd/system/" + Unit

func (c Config) installSystemd(ctx context.Context) error {
	err := c.put(unitPath, Systemd(c.Service), func(string) error {
		if !c.holds(ctx, "systemctl", "is-active", "--quiet", Unit) {
			return nil
		}
		return c.do(ctx, "systemctl", "stop", Unit)
	})
	if err != nil {
		return err
	}
	for _, command := range [][]string{{"daemon-reload"}, {"enable", "--now", Unit}} {
		if err := c.do(ctx, append([]string{"systemctl"}, command...)...); err != nil {
			return err
		}
	}
	return nil
}

func (c Config) uninstallSystemd(ctx context.Context) error {
	if _, err := os.Lstat(filepath.Join(c.Root, unitPath)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := c.do(ctx, "systemctl", "disable", "--now", Unit); err != nil {
		return err
	}
	if err := c.take(unitPath); err != nil {
		return err
	}
	return c.do(ctx, "systemctl", "daemon-reload")
}
