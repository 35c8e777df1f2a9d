// SPDX-License-Identifier: MIT

package vm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// lookUp reads /proc/PID/stat; its start time (field 22) counts ticks since boot.
func lookUp(pid int) (procInfo, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return procInfo{}, err
	}
	return parseStat(b)
}

func parseStat(b []byte) (procInfo, error) {
	// The command's name, in parentheses, can contain anything: fields count from its end.
	end := bytes.LastIndexByte(b, ')')
	fields := strings.Fields(string(b[end+1:]))
	if end < 0 || len(fields) < 20 {
		return procInfo{}, errors.New("process status not understood")
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return procInfo{}, err
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	return procInfo{start: start, parent: parent, zombie: fields[0] == "Z" || fields[0] == "X"}, err
}

// userOf returns the user who started the process: its real one, and not whose rights it has.
func userOf(pid int) (uint32, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	return parseUser(b)
}

func parseUser(b []byte) (uint32, error) {
	for line := range bytes.Lines(b) {
		// The command's name comes first, with its newlines escaped.
		if ids, ok := bytes.CutPrefix(line, []byte("Uid:")); ok {
			if fields := bytes.Fields(ids); len(fields) > 0 {
				n, err := strconv.ParseUint(string(fields[0]), 10, 32)
				return uint32(n), err
			}
		}
	}
	return 0, errors.New("process status not understood")
}

// kill ends exactly this process. One that has already ended is no error. The pidfd is
// opened before the start time is compared: then the signal can reach no other process.
func (p ProcessID) kill() error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", p.PID, err)
	}
	defer unix.Close(fd)
	if !p.Alive() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", p.PID, err)
	}
	return nil
}
