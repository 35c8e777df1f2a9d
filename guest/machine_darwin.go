// SPDX-License-Identifier: MIT

package guest

import (
	"errors"
	"fmt"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// OwnMachine is the machine that this program runs in, and has for itself. On macOS it is
// not yet verified on hardware.
func OwnMachine() Machine { return mac{} }

type mac struct{}

func (mac) SetClock(to time.Time) error {
	tv := unix.NsecToTimeval(to.UnixNano())
	err := unix.Settimeofday(&tv)
	if errors.Is(err, unix.EPERM) {
		return errNoRoot
	}
	return err
}

func (mac) Resize() error {
	if err := needRoot(); err != nil {
		return err
	}
	// The container of the system volume is the disk's second partition.
	return runSteps([]step{{argv: []string{"/usr/sbin/diskutil", "apfs", "resizeContainer", "disk0s2", "0"}}})
}

func (mac) CanPowerOff() error { return needRoot() }

func (mac) PowerOff() error {
	if out, err := exec.Command("/sbin/shutdown", "-h", "now").CombinedOutput(); err != nil { //nolint:noctx // it does not wait
		return fmt.Errorf("shutdown: %w: %s", err, clip(string(out), 512))
	}
	return nil
}
