// SPDX-License-Identifier: MIT

package keepport

import (
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// keep binds a socket that never listens. Whoever binds a socket to the same port may, as
// both may reuse the address, which Go's listeners say of themselves; a port that the system
// chooses is one that nobody has.
func keep() (address string, release func(), err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", nil, os.NewSyscallError("socket", err)
	}
	release = func() { unix.Close(fd) }
	defer func() {
		if err != nil {
			release()
		}
	}()
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return "", nil, os.NewSyscallError("setsockopt", err)
	}
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: loopback.As4()}); err != nil {
		return "", nil, os.NewSyscallError("bind", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return "", nil, os.NewSyscallError("getsockname", err)
	}
	return netip.AddrPortFrom(loopback, uint16(name.(*unix.SockaddrInet4).Port)).String(), release, nil
}
