// SPDX-License-Identifier: MIT

package vm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// endWriters kills every process that holds the lock of dir, and the session of the
// noted writer, as far as they are of the user who owns dir. A process that may not be
// looked at is none of ours.
func endWriters(dir string) error {
	lock, err := os.Stat(filepath.Join(dir, FileLock))
	if err != nil {
		return err
	}
	owner, err := ownerOf(dir)
	if err != nil {
		return err
	}
	session := 0
	if w, err := ReadIdentity(dir, FileWriter); err == nil && w.Alive() {
		session, _ = unix.Getsid(w.PID)
		if session != w.PID {
			session = 0 // it shares a session, perhaps with strangers
		}
		err = w.kill()
		if err != nil {
			return err
		}
	}
	pids, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range pids {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		// The identity first: what is then found out is true of it, or of nobody any more.
		id, err := IdentifyProcess(pid)
		if err != nil {
			continue
		}
		if user, err := userOf(pid); err != nil || user != owner {
			continue // the owner can pass the lock on to others, and to root's processes too
		}
		sid, _ := unix.Getsid(pid)
		if (session != 0 && sid == session) || holdsLock(pid, lock) {
			errs = append(errs, id.kill())
		}
	}
	return errors.Join(errs...)
}

// holdsLock reports whether a descriptor of the process is the locked one: the same file,
// and with the lock on it. Someone who has the file open only to look has no such lock.
func holdsLock(pid int, lock os.FileInfo) bool {
	fds := fmt.Sprintf("/proc/%d/fd", pid)
	list, err := os.ReadDir(fds)
	if err != nil {
		return false
	}
	for _, fd := range list {
		info, err := os.Stat(filepath.Join(fds, fd.Name()))
		if err != nil || !os.SameFile(info, lock) {
			continue
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", pid, fd.Name()))
		if err != nil {
			continue
		}
		for line := range bytes.Lines(b) {
			if bytes.HasPrefix(line, []byte("lock:")) && bytes.Contains(line, []byte("FLOCK")) && bytes.Contains(line, []byte("WRITE")) {
				return true
			}
		}
	}
	return false
}
