// SPDX-License-Identifier: MIT

package guest

import (
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// account is the user as whom a program runs.
type account struct {
	name, home string
	uid, gid   uint32
	groups     []uint32
}

// lookupAccount finds a user of this system by name.
func lookupAccount(name string) (account, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return account{}, fmt.Errorf("user %q: %w", clip(name, 64), err)
	}
	ids, err := u.GroupIds()
	if err != nil {
		return account{}, fmt.Errorf("groups of user %s: %w", name, err)
	}
	a := account{name: u.Username, home: u.HomeDir}
	for _, id := range append([]string{u.Uid, u.Gid}, ids...) {
		n, err := strconv.ParseUint(id, 10, 32)
		if err != nil {
			return account{}, fmt.Errorf("user %s: %q is no number of a user or group", name, id)
		}
		a.groups = append(a.groups, uint32(n))
	}
	a.uid, a.gid, a.groups = a.groups[0], a.groups[1], a.groups[2:]
	return a, nil
}

// credential is what makes a child run as the account; nil where this program does
// already. Only root can become somebody else.
func (a account) credential() (*syscall.Credential, error) {
	switch {
	case uint32(os.Geteuid()) == a.uid:
		return nil, nil //nolint:nilnil // no change is a change too
	case os.Geteuid() != 0:
		return nil, fmt.Errorf("run as user %s: the guest program runs as uid %d, and only root can: run it as root or as %s", a.name, os.Geteuid(), a.name)
	}
	return &syscall.Credential{Uid: a.uid, Gid: a.gid, Groups: a.groups}, nil
}

// environ is what a login gives its programs.
func (a account) environ() []string {
	return []string{"HOME=" + a.home, "USER=" + a.name, "LOGNAME=" + a.name}
}
