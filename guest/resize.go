// SPDX-License-Identifier: MIT

package guest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// resizeLimit bounds each step of a resize.
const resizeLimit = 5 * time.Minute

// rootDisk is where the root file system lies, as Linux tells.
type rootDisk struct {
	fstype    string
	device    string // below /dev
	disk      string // of which the device is a partition; empty where it is a whole disk
	partition string // its number
}

// findRoot reads which block device the root file system is on, from /proc and /sys.
func findRoot(proc, sys fs.FS) (rootDisk, error) {
	mounts, err := fs.ReadFile(proc, "self/mountinfo")
	if err != nil {
		return rootDisk{}, err
	}
	number, fstype := "", ""
	for line := range strings.Lines(string(mounts)) {
		// ID parent major:minor root mountpoint options [tags] - type source options
		left, right, ok := strings.Cut(line, " - ")
		fields, kind := strings.Fields(left), strings.Fields(right)
		if ok && len(fields) > 5 && len(kind) > 1 && fields[4] == "/" {
			number, fstype = fields[2], kind[0] // the last mount on / is the one that shows
		}
	}
	if number == "" {
		return rootDisk{}, errors.New("no mount on / is listed")
	}
	device := func(dir string) (string, error) {
		text, err := fs.ReadFile(sys, dir+"/uevent")
		for line := range strings.Lines(string(text)) {
			if name, ok := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME="); ok && fs.ValidPath(name) {
				return name, nil
			}
		}
		return "", errors.Join(fmt.Errorf("the root file system (%s) is on no disk of its own", fstype), err)
	}
	dir := "dev/block/" + number
	d := rootDisk{fstype: fstype}
	if d.device, err = device(dir); err != nil {
		return rootDisk{}, err
	}
	part, err := fs.ReadFile(sys, dir+"/partition")
	if errors.Is(err, fs.ErrNotExist) {
		return d, nil
	}
	if err != nil {
		return rootDisk{}, err
	}
	d.partition = strings.TrimSpace(string(part))
	// A partition is named after its disk: vda1 of vda, nvme0n1p1 of nvme0n1.
	disk, ok := strings.CutSuffix(d.device, d.partition)
	if _, err := strconv.Atoi(d.partition); err != nil || !ok {
		return rootDisk{}, fmt.Errorf("partition %q of %s is not understood", d.partition, d.device)
	}
	if short, ok := strings.CutSuffix(disk, "p"); ok && short != "" && short[len(short)-1] >= '0' && short[len(short)-1] <= '9' {
		disk = short
	}
	d.disk = disk
	return d, nil
}

// step is one command of a resize.
type step struct {
	argv   []string
	noWork int // exit code that says that nothing was to be done
}

// plan returns what makes the file system fill its disk; has reports whether a program
// is installed.
func (d rootDisk) plan(has func(string) bool) ([]step, error) {
	var steps []step
	if d.disk != "" {
		if !has("growpart") {
			return nil, fmt.Errorf("/dev/%s is a partition and growpart is not installed: install cloud-guest-utils in the image, or put the file system on the whole disk", d.device)
		}
		steps = append(steps, step{[]string{"growpart", "/dev/" + d.disk, d.partition}, 1})
	}
	var last []string
	switch d.fstype {
	case "ext2", "ext3", "ext4":
		last = []string{"resize2fs", "/dev/" + d.device}
	case "xfs":
		last = []string{"xfs_growfs", "/"}
	case "btrfs":
		last = []string{"btrfs", "filesystem", "resize", "max", "/"}
	default:
		return nil, fmt.Errorf("a root file system of type %q cannot be resized while it is mounted: use ext4, xfs or btrfs", clip(d.fstype, 32))
	}
	if !has(last[0]) {
		return nil, fmt.Errorf("%s is not installed: install it in the image", last[0])
	}
	return append(steps, step{argv: last}), nil
}

func runSteps(steps []step) error {
	for _, s := range steps {
		ctx, cancel := context.WithTimeout(context.Background(), resizeLimit)
		out, err := exec.CommandContext(ctx, s.argv[0], s.argv[1:]...).CombinedOutput() //nolint:gosec // from the plan
		cancel()
		if ee, ok := errors.AsType[*exec.ExitError](err); ok && s.noWork != 0 && ee.ExitCode() == s.noWork {
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(s.argv, " "), err, clip(strings.TrimSpace(string(out)), 512))
		}
	}
	return nil
}
