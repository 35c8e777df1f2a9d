// SPDX-License-Identifier: MIT

package vm

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"time"
)

// hypervisorProcess begins the name of the process that runs a machine,
// com.apple.Virtualization.VirtualMachine: the kernel keeps 16 bytes of it.
const hypervisorProcess = "com.apple.Virtua"

// listTime bounds how long lsof may take.
const listTime = 10 * time.Second

// hypervisorFiles returns the open files of each machine's process of a user.
func hypervisorFiles(ctx context.Context, uid int) (map[int][]string, error) {
	ctx, cancel := context.WithTimeout(ctx, listTime)
	defer cancel()
	lsof := exec.CommandContext(ctx, "/usr/sbin/lsof", "-w", "-n", "-P", "-a", "-u", strconv.Itoa(uid), "-c", hypervisorProcess, "-Fpn")
	lsof.Env = []string{"LANG=C"}
	text, err := lsof.Output()
	// It ends with 1 where it finds nothing.
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || exit.ExitCode() != 1) {
		return nil, fmt.Errorf("lsof: %w", err)
	}
	return parseOpenFiles(text), nil
}
