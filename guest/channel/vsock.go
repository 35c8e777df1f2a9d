// SPDX-License-Identifier: MIT

package channel

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// VsockPort is the port that the host dials unless told otherwise. Ports below 1024 need
// root in the guest: no job can take this one while the guest program restarts.
const VsockPort = 1023

// Vsock listens on a vsock port, on macOS and Linux alike. Only the host is let in: a
// process of the guest itself could dial the port too.
func Vsock(port uint32, log *slog.Logger) (net.Listener, error) {
	f, err := listenVsock(port)
	if err != nil {
		return nil, fmt.Errorf("vsock port %d: %w", port, err)
	}
	l := newListener(addr{"vsock", strconv.FormatUint(uint64(port), 10)}, log)
	l.work.Go(func() {
		<-l.life.Done()
		f.Close()
	})
	l.work.Go(func() {
		l.follow(func() (net.Conn, error) { return l.accept(f) })
	})
	return l, nil
}

func listenVsock(port uint32) (*os.File, error) {
	fd, err := closedOnExec(func() (int, error) { return unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0) })
	if err != nil {
		return nil, fmt.Errorf("%w: this system has no vsock; on Linux load the module vmw_vsock_virtio_transport", err)
	}
	if err = unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port}); err == nil {
		if err = unix.Listen(fd, 16); err == nil {
			// Before NewFile, which gives to the poller only what does not block.
			err = unix.SetNonblock(fd, true)
		}
	}
	if err != nil {
		unix.Close(fd)
		if errors.Is(err, unix.EACCES) {
			err = fmt.Errorf("%w: a port below 1024 needs root", err)
		}
		return nil, err
	}
	return os.NewFile(uintptr(fd), "vsock"), nil
}

// accept returns the next connection of the host.
func (l *listener) accept(f *os.File) (net.Conn, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	for {
		var conn int
		var peer unix.Sockaddr
		var acceptErr error
		err := raw.Read(func(fd uintptr) bool {
			conn, acceptErr = closedOnExec(func() (int, error) {
				c, from, err := unix.Accept(int(fd))
				peer = from
				return c, err
			})
			return !errors.Is(acceptErr, unix.EAGAIN)
		})
		switch {
		case err != nil:
			return nil, err
		case errors.Is(acceptErr, unix.ECONNABORTED) || errors.Is(acceptErr, unix.EINTR):
			continue // a process of the guest that dialled its own machine causes it
		case errors.Is(acceptErr, unix.EMFILE) || errors.Is(acceptErr, unix.ENFILE) || errors.Is(acceptErr, unix.ENOBUFS) || errors.Is(acceptErr, unix.ENOMEM):
			l.log.Warn("connection of the host not taken", slog.Any("error", acceptErr))
			if !l.sleep(time.Second) {
				return nil, net.ErrClosed
			}
			continue
		case acceptErr != nil:
			return nil, os.NewSyscallError("accept", acceptErr)
		}
		if err := admit(conn, peer); err != nil {
			unix.Close(conn)
			l.log.Warn("connection refused", slog.Any("error", err))
			continue
		}
		return fileConn{os.NewFile(uintptr(conn), "vsock connection"), l.address}, nil
	}
}

// admit makes a connection of the host ready for the poller, and refuses any other.
func admit(fd int, peer unix.Sockaddr) error {
	vm, ok := peer.(*unix.SockaddrVM)
	if !ok {
		return fmt.Errorf("it comes from a %T", peer)
	}
	if vm.CID != unix.VMADDR_CID_HOST {
		return fmt.Errorf("it comes from CID %d: only the host (CID %d) is let in", vm.CID, unix.VMADDR_CID_HOST)
	}
	return unix.SetNonblock(fd, true)
}

// closedOnExec keeps a new descriptor from the children that others start meanwhile.
func closedOnExec(open func() (int, error)) (int, error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fd, err := open()
	if err == nil {
		unix.CloseOnExec(fd)
	}
	return fd, err
}
