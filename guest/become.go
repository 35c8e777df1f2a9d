// SPDX-License-Identifier: MIT

package guest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// BecomeCommand is the argument with which the guest program starts itself to become
// another user within that user's GUI session: launchctl puts a process into a session
// and leaves it root. What follows is the user's name, the program and its arguments.
const BecomeCommand = "become"

// maxEnviron bounds what Become reads: more than a process can be given anyway.
const maxEnviron = 1 << 20

// Become reads the environment from stdin, each variable with a NUL behind it, becomes
// the user that args begin with and turns this process into the program that they go on
// with. The environment holds a secret: it is neither in the arguments nor in the
// environment of any process between the guest program and the listener. It returns only
// on errors.
func Become(stdin io.Reader, args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("%s: give a user, a program and its arguments: the guest program starts this itself", BecomeCommand)
	}
	text, err := io.ReadAll(io.LimitReader(stdin, maxEnviron))
	if err != nil {
		return fmt.Errorf("%s: read the environment: %w", BecomeCommand, err)
	}
	environ, err := splitEnviron(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", BecomeCommand, err)
	}
	who, err := lookupAccount(args[0])
	if err != nil {
		return fmt.Errorf("%s: %w", BecomeCommand, err)
	}
	cred, err := who.credential()
	if err != nil {
		return fmt.Errorf("%s: %w", BecomeCommand, err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	if err := unix.Dup2(int(null.Fd()), 0); err != nil {
		return os.NewSyscallError("dup2", err)
	}
	if cred != nil {
		if err := assume(cred); err != nil {
			return fmt.Errorf("%s %s: %w", BecomeCommand, who.name, err)
		}
	}
	return fmt.Errorf("%s: %w", args[1], syscall.Exec(args[1], args[1:], environ))
}

// assume gives this process the credentials, for good.
func assume(c *syscall.Credential) error {
	groups := make([]int, len(c.Groups))
	for i, g := range c.Groups {
		groups[i] = int(g)
	}
	if runtime.GOOS == "darwin" && len(groups) > 16 {
		groups = groups[:16] // the kernel's limit
	}
	if err := syscall.Setgroups(groups); err != nil {
		return os.NewSyscallError("setgroups", err)
	}
	if err := syscall.Setgid(int(c.Gid)); err != nil {
		return os.NewSyscallError("setgid", err)
	}
	return os.NewSyscallError("setuid", syscall.Setuid(int(c.Uid)))
}

func splitEnviron(text string) ([]string, error) {
	if text == "" {
		return nil, nil
	}
	text, ended := strings.CutSuffix(text, "\x00")
	if !ended {
		return nil, errors.New("the environment is not whole")
	}
	environ := strings.Split(text, "\x00")
	for _, kv := range environ {
		if i := strings.IndexByte(kv, '='); i <= 0 {
			return nil, errors.New("the environment has something without a name")
		}
	}
	return environ, nil
}

// inSession makes cmd start within the user's GUI session of a Mac: launchctl puts this
// very program there, which becomes the user and then the listener.
func inSession(cmd *exec.Cmd, self string, who account) {
	cmd.Stdin = strings.NewReader(strings.Join(cmd.Env, "\x00") + "\x00")
	cmd.Env = []string{"PATH=/usr/bin:/bin:/usr/sbin:/sbin"}
	cmd.Args = append([]string{"/bin/launchctl", "asuser", strconv.FormatUint(uint64(who.uid), 10), self, BecomeCommand, who.name, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/launchctl"
}

// asUser makes cmd run as the listener's user.
func (a *Agent) asUser(cmd *exec.Cmd) error {
	if a.user == nil {
		return nil
	}
	cred, err := a.user.credential()
	if err != nil || cred == nil {
		return err
	}
	if runtime.GOOS == "darwin" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		inSession(cmd, self, *a.user)
		return nil
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	return nil
}
