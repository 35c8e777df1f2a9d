// SPDX-License-Identifier: MIT

package vm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
)

// Account is another user than this process's own, as whom a machine's vmm runs. It is for
// an agent that is root: on a Mac such an agent is spared the questions of local network
// privacy, but macOS guests need the unlocked keychain of a user who is logged in.
type Account struct {
	Name     string
	UID, GID int
	// Groups are those that a vmm keeps. On Linux all of the user's, one of which may be
	// needed for /dev/kvm; on a Mac the first only, for there are more than the kernel takes.
	Groups []int
	Home   string
}

// LookUpAccount returns the account of a user other than root.
func LookUpAccount(name string) (Account, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return Account{}, fmt.Errorf("look up user %.60q: %w", name, err)
	}
	uid, uidErr := strconv.Atoi(u.Uid)
	gid, gidErr := strconv.Atoi(u.Gid)
	if err := errors.Join(uidErr, gidErr); err != nil {
		return Account{}, fmt.Errorf("look up user %.60q: %w", name, err)
	}
	if uid <= 0 {
		return Account{}, fmt.Errorf("user %.60q is root: name an ordinary user", name)
	}
	a := Account{Name: u.Username, UID: uid, GID: gid, Groups: []int{gid}, Home: u.HomeDir}
	if runtime.GOOS == "linux" {
		ids, err := u.GroupIds()
		if err != nil {
			return Account{}, fmt.Errorf("look up the groups of user %.60q: %w", name, err)
		}
		for _, id := range ids {
			if n, err := strconv.Atoi(id); err == nil && n != gid {
				a.Groups = append(a.Groups, n)
			}
		}
	}
	return a, nil
}

// Assume makes this process, which must be root's, the account's for good. A process that is
// the account's already stays as it is.
func (a Account) Assume() error {
	if os.Getuid() == a.UID && os.Geteuid() == a.UID {
		return nil
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("become user %s: only root can, and this process has the user id %d", a.Name, os.Geteuid())
	}
	// The user last: without root the groups cannot be changed any more.
	for _, step := range []error{syscall.Setgroups(a.Groups), syscall.Setgid(a.GID), syscall.Setuid(a.UID)} {
		if step != nil {
			return fmt.Errorf("become user %s: %w", a.Name, step)
		}
	}
	if os.Getuid() != a.UID || os.Geteuid() != a.UID || os.Getegid() != a.GID || syscall.Setuid(0) == nil {
		return fmt.Errorf("become user %s: the system kept root's rights", a.Name)
	}
	return nil
}

// command is the vmm's command line for this account. On a Mac launchctl first enters the
// user's login session, which root alone can; it changes neither user nor environment, and
// descriptors stay open (launchctl(1), asuser), so the vmm gives root's rights up itself.
// sudo would do that, but closes descriptors.
func (a Account) command(system string, vmm []string) []string {
	vmm = append(vmm, "--as", a.Name)
	if system == "darwin" {
		return append([]string{"/bin/launchctl", "asuser", strconv.Itoa(a.UID)}, vmm...)
	}
	return vmm
}

// variables are what the account's own login would set.
func (a Account) variables() map[string]string {
	return map[string]string{"HOME": a.Home, "USER": a.Name, "LOGNAME": a.Name}
}

// take gives the bundle dir, which nothing uses yet, to the account. The folder itself comes
// last: until then nobody but root can put anything in the way.
func (a Account) take(dir string) error {
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		return os.Lchown(path, a.UID, a.GID)
	})
	if err == nil {
		err = os.Lchown(dir, a.UID, a.GID)
	}
	if err != nil {
		return fmt.Errorf("give the bundle to user %s: %w", a.Name, err)
	}
	return nil
}

// vmmCommand is the command line of a vmm that runs as this process's user, or as another.
func vmmCommand(program, dir string, as *Account) []string {
	vmm := []string{program, "run", "--bundle", dir, "--ready-fd", "3"}
	if as == nil {
		return vmm
	}
	return as.command(runtime.GOOS, vmm)
}
