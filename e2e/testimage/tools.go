// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
)

// missingError says that this machine cannot build the images, and what to do about it.
type missingError struct{ text string }

func (e *missingError) Error() string { return e.text }

// tool is a program and the Debian package that brings it.
type tool struct{ program, debian string }

// tools are the programs that are called. The compressions of a kernel and its modules
// follow Debian's release.
var tools = []tool{
	{"apt-get", "apt"},
	{"dpkg-deb", "dpkg"},
	{"mkfs.ext4", "e2fsprogs"},
	{"debugfs", "e2fsprogs"},
	{"e2fsck", "e2fsprogs"},
	{"lz4", "lz4"},
	{"xz", "xz-utils"},
	{"zstd", "zstd"},
	{"ssh-keygen", "openssh-client"},
}

// checkMachine reports as *missingError why the images cannot be built here, or which of
// more tools is not there.
func checkMachine(more ...tool) error {
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		return &missingError{fmt.Sprintf("the test guest is one of amd64, built from Debian's packages on Linux on amd64, and this is %s/%s: build it there and copy e2e/bin/images and e2e/bin/image-keys", runtime.GOOS, runtime.GOARCH)}
	}
	var programs, packages []string
	for _, t := range slices.Concat(tools, more) {
		if _, ok := find(t.program); ok {
			continue
		}
		programs = append(programs, t.program)
		if len(packages) == 0 || packages[len(packages)-1] != t.debian {
			packages = append(packages, t.debian)
		}
	}
	if len(programs) > 0 {
		return &missingError{fmt.Sprintf("%s not found (Debian: apt-get install %s)", strings.Join(programs, ", "), strings.Join(packages, " "))}
	}
	return nil
}

// find looks for a program also where only root has it in its PATH.
func find(program string) (string, bool) {
	for _, name := range []string{program, "/usr/sbin/" + program, "/sbin/" + program} {
		if path, err := exec.LookPath(name); err == nil {
			return path, true
		}
	}
	return program, false
}

// command prepares a call of a tool that does not depend on the caller's language or
// time zone, nor on the clock where e2fsprogs would write it down.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	path, _ := find(name)
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC", fmt.Sprintf("E2FSPROGS_FAKE_TIME=%d", epoch))
	return cmd
}

// output runs a tool and returns what it prints. An error has its complaint.
func output(cmd *exec.Cmd) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, toolError(cmd, err, stderr.String())
	}
	return stdout.Bytes(), nil
}

func toolError(cmd *exec.Cmd, err error, complaint string) error {
	return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(complaint))
}
