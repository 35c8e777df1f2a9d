// SPDX-License-Identifier: MIT

//go:build linux

package qemu

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// HandOver gives this process's standard input, a connection of the guest, to the machine's
// vmm, which listens at the socket, for the forward of this number. QEMU can only start a
// process for a connection; this one need not last.
func HandOver(socket, forward string) error {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(handOverLimit)); err != nil {
		return err
	}
	_, _, err = c.WriteMsgUnix([]byte(forward), unix.UnixRights(int(os.Stdin.Fd())), nil)
	return err
}

// onlyFile returns the one file that came with a message.
func onlyFile(oob []byte) (*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("take a connection over: %w", err)
	}
	var all []int
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // no files
		}
		all = append(all, fds...)
	}
	if len(all) != 1 {
		for _, fd := range all {
			unix.Close(fd)
		}
		return nil, errors.New("take a connection over: none came")
	}
	return os.NewFile(uintptr(all[0]), "forwarded"), nil
}
