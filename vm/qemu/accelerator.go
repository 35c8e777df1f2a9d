// SPDX-License-Identifier: MIT

//go:build linux

package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// The accelerators.
const (
	acceleratorKVM = "kvm"
	acceleratorTCG = "tcg" // emulation
)

const (
	fileAccelerator = "qemu-accelerator.json"
	deviceKVM       = "/dev/kvm"
	probeLimit      = 5 * time.Second
	// probeCode is what bootSector ends QEMU with, by way of isa-debug-exit: 2*42 + 1.
	probeCode = 85
)

// bootSector counts 2^28 steps, which take a processor a tenth of a second and one that is
// emulated below KVM minutes, and ends its machine with probeCode. Real mode, from which
// every PC boots, is what a KVM that works for some guests only fails at first.
var bootSector = []byte{
	0x66, 0xb9, 0x00, 0x00, 0x00, 0x10, // mov ecx, 1<<28
	0x66, 0x49, // again: dec ecx
	0x75, 0xfc, // jnz again
	0xb0, 0x2a, // mov al, 42
	0xe6, 0xf4, // out 0xf4, al
	0xf4,       // hlt
	0xeb, 0xfd, // jmp to it
}

// found is an accelerator that was found to work, until the host boots anew.
type found struct {
	Boot        string `json:"boot"`
	Program     string `json:"program"`
	Accelerator string `json:"accelerator"`
	Because     string `json:"because"`
}

// accelerator says which accelerator works on this host, and why. That KVM can be opened
// proves nothing: a machine has to boot on it.
func (c Config) accelerator(ctx context.Context, program string) (accelerator, because string, err error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", "", err
	}
	f := found{Boot: strings.TrimSpace(string(boot)), Program: program}
	if known, ok := c.remembered(); ok && known.Boot == f.Boot && known.Program == f.Program {
		return known.Accelerator, known.Because, nil
	}
	f.Accelerator, f.Because = acceleratorKVM, "a machine booted on KVM"
	if err := probeKVM(ctx, program, probeLimit); err != nil {
		if ctx.Err() != nil {
			return "", "", fmt.Errorf("try KVM: %w", context.Cause(ctx))
		}
		f.Accelerator, f.Because = acceleratorTCG, "KVM does not work here: "+err.Error()
	}
	c.remember(f) // the next one finds out by itself if it cannot be
	return f.Accelerator, f.Because, nil
}

func (c Config) remembered() (found, bool) {
	if c.CacheDir == "" {
		return found{}, false
	}
	b, err := os.ReadFile(filepath.Join(c.CacheDir, fileAccelerator))
	var f found
	ok := err == nil && json.Unmarshal(b, &f) == nil && (f.Accelerator == acceleratorKVM || f.Accelerator == acceleratorTCG)
	return f, ok
}

func (c Config) remember(f found) {
	if c.CacheDir == "" || os.MkdirAll(c.CacheDir, 0o700) != nil {
		return
	}
	b, err := json.Marshal(f)
	if err != nil {
		return
	}
	t, err := os.CreateTemp(c.CacheDir, fileAccelerator+".*")
	if err != nil {
		return
	}
	_, err = t.Write(b)
	if errors.Join(err, t.Close()) != nil || os.Rename(t.Name(), filepath.Join(c.CacheDir, fileAccelerator)) != nil {
		os.Remove(t.Name())
	}
}

// probeKVM boots a machine on KVM that ends by itself.
func probeKVM(ctx context.Context, program string, limit time.Duration) error {
	f, err := os.OpenFile(deviceKVM, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("it cannot be opened: %w", err)
	}
	f.Close()
	dir, err := os.MkdirTemp("", "minifleet-kvm")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	sector := make([]byte, 512)
	copy(sector, bootSector)
	sector[510], sector[511] = 0x55, 0xaa
	disk := filepath.Join(dir, "disk")
	if err := os.WriteFile(disk, sector, 0o600); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return boot(ctx, program, "kvm", "host", disk)
}

// boot runs bootSector's machine to its end.
func boot(ctx context.Context, program, accelerator, cpu, disk string) error {
	cmd := exec.CommandContext(ctx, program, "-accel", accelerator, "-machine", "q35", "-cpu", cpu, "-m", "64M",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-drive", "if=none,id=disk,format=raw,read-only=on,file="+quote(disk), "-device", "virtio-blk-pci,drive=disk",
		"-device", "isa-debug-exit,iobase=0xf4,iosize=1")
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	exit, ok := errors.AsType[*exec.ExitError](err)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("a machine does not boot on it within %v", probeLimit)
	case ok && exit.ExitCode() == probeCode:
		return nil
	case err == nil:
		return errors.New("a machine ends on it before it has booted")
	}
	return fmt.Errorf("a machine does not boot on it: %w: %.200q", err, strings.TrimSpace(string(out)))
}
