// SPDX-License-Identifier: MIT

package leakcheck

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// supervise runs the tests in a process of their own and adopts what their processes
// leave behind: it is released when it ends, as init would, and named when it does not.
func supervise(interface{ Run() int }) (code int, leaks []string) {
	runtime.LockOSThread() // the tests end with the thread that started them
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 1, []string{"cannot adopt processes: " + err.Error()}
	}
	self, err := os.Executable()
	if err != nil {
		return 1, []string{err.Error()}
	}
	os.Setenv(marker, tests) // of two in an environment the first would count
	pid, err := syscall.ForkExec(self, os.Args, &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{0, 1, 2},
		Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		return 1, []string{"start the tests: " + err.Error()}
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	go func() {
		for s := range signals {
			syscall.Kill(pid, s.(syscall.Signal)) //nolint:errcheck // they may be over
		}
	}()
	code = waitFor(pid)
	left := awaitNone(func() []string {
		reap()
		return children()
	})
	for _, c := range left {
		leaks = append(leaks, "process "+c)
	}
	endAll()
	return code, leaks
}

// waitFor releases whatever ends until the process pid has, and returns its exit code.
func waitFor(pid int) int {
	for {
		var status syscall.WaitStatus
		got, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			fmt.Fprintln(os.Stderr, "leakcheck: wait for the tests:", err)
			return 1
		case got == pid && status.Signaled():
			fmt.Fprintln(os.Stderr, "leakcheck: the tests were ended by signal", status.Signal())
			return 1
		case got == pid:
			return status.ExitStatus()
		}
	}
}

// reap releases the children that have ended.
func reap() {
	for {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if !errors.Is(err, syscall.EINTR) && pid <= 0 {
			return
		}
	}
}

// endAll ends what was left behind, and what comes to us of it.
func endAll() {
	awaitNone(func() []string {
		reap()
		left := children()
		for _, c := range left {
			if pid, err := strconv.Atoi(strings.Fields(c)[0]); err == nil {
				syscall.Kill(pid, syscall.SIGKILL) //nolint:errcheck // it may be gone
			}
		}
		return left
	})
}

// children lists the processes whose parent is this one.
func children() []string {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return []string{err.Error()}
	}
	self := strconv.Itoa(os.Getpid())
	var out []string
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		end := strings.LastIndexByte(string(stat), ')')
		if err != nil || end < 0 {
			continue // it is gone
		}
		if fields := strings.Fields(string(stat[end+1:])); len(fields) > 1 && fields[1] == self {
			line, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
			out = append(out, fmt.Sprintf("%s (state %s) %.300s", filepath.Base(filepath.Dir(path)), fields[0], strings.ReplaceAll(string(line), "\x00", " ")))
		}
	}
	return out
}

// descriptors lists what this process has open, by number.
func descriptors() map[string]string {
	out := map[string]string{}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return out
	}
	for _, e := range entries {
		// The one with which the folder was read is closed by now.
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			out[e.Name()] = target
		}
	}
	return out
}
