// SPDX-License-Identifier: MIT

package guest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// OwnMachine is the machine that this program runs in, and has for itself.
func OwnMachine() Machine { return linuxMachine{} }

type linuxMachine struct{}

func (linuxMachine) SetClock(to time.Time) error {
	ts := unix.NsecToTimespec(to.UnixNano())
	err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts)
	if errors.Is(err, unix.EPERM) {
		return errNoRoot
	}
	return err
}

func (linuxMachine) Resize() error {
	if err := needRoot(); err != nil {
		return err
	}
	disk, err := findRoot(os.DirFS("/proc"), os.DirFS("/sys"))
	if err != nil {
		return err
	}
	steps, err := disk.plan(func(program string) bool {
		_, err := exec.LookPath(program)
		return err == nil
	})
	if err != nil {
		return err
	}
	return runSteps(steps)
}

func (linuxMachine) CanPowerOff() error { return needRoot() }

// termGrace is what processes get to end before the machine is switched off.
const termGrace = 200 * time.Millisecond

// PowerOff leaves the end to systemd where that runs. Elsewhere it ends the processes,
// writes everything to disk, makes the file systems read-only and switches off: busybox'
// own way sleeps for two seconds.
func (linuxMachine) PowerOff() error {
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		if out, err := exec.Command("systemctl", "poweroff", "--no-block").CombinedOutput(); err != nil { //nolint:noctx // it does not wait
			return fmt.Errorf("systemctl poweroff: %w: %s", err, clip(string(out), 512))
		}
		return nil
	}
	unix.Kill(-1, unix.SIGTERM) //nolint:errcheck // all but init and this process, if there are others
	time.Sleep(termGrace)
	unix.Sync()
	os.WriteFile("/proc/sysrq-trigger", []byte("u"), 0) //nolint:errcheck // what is synced is safe without it
	return os.NewSyscallError("reboot", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}
