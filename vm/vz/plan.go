// SPDX-License-Identifier: MIT

package vz

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/minifleet/minifleet/vm"
	"github.com/minifleet/minifleet/vm/options"
)

// host is what the backend needs to know of the Mac that it runs on.
type host struct {
	version                 Version
	minCPUs, maxCPUs        uint
	minMemory, maxMemory    uint64 // bytes
	hypervisor, entitlement bool
}

// plan is what a machine is made of, checked as far as that goes without the framework.
type plan struct {
	guest         string
	cpus          uint
	memory        uint64 // bytes
	disk          string
	durable       bool
	nvram         string // auxiliary storage, or EFI's variables; "" with a kernel
	newNVRAM      bool   // EFI's variables have to be made
	hardwareModel []byte
	machineID     []byte // nil: a Linux machine's has to be made
	machineIDFile string // where a Linux machine's is kept
	mac           net.HardwareAddr
	kernel        string
	initrd        string
	commandLine   string
	console       string
	port          uint32
	// Every machine has a display, shown or not: without one macOS boots and its window
	// server crashes, and what needs a session does not work.
	display screen
	// Mac input devices are the ones that every macOS from 14 on can save. The older ones
	// have USB's, which all guests know.
	macKeyboard, macTrackpad bool
	// saves says that the host's macOS knows saved states at all. Below 14 asking whether
	// a configuration can be saved would end the process with an exception.
	saves bool
}

// screen is a display in pixels, and pixels for each inch.
type screen struct{ width, height, density int64 }

func newPlan(dir string, spec vm.Spec, h host) (plan, error) {
	if err := h.check(); err != nil {
		return plan{}, err
	}
	p, err := checkBundle(dir, spec)
	if err != nil {
		return plan{}, vm.WithReason(vm.ReasonBadConfiguration, err)
	}
	if p.guest == options.GuestMacOS {
		err = h.checkModel(p.hardwareModel)
	} else if !h.version.AtLeast(13) {
		err = fmt.Errorf("this host has macOS %s: Linux guests need macOS 13", h.version)
	}
	if err != nil {
		return plan{}, vm.WithReason(vm.ReasonBadConfiguration, err)
	}
	p.cpus = clamp(uint(spec.CPUs), h.minCPUs, h.maxCPUs)
	p.memory = clamp(uint64(spec.MemoryMiB)<<20, h.minMemory, h.maxMemory) &^ (1<<20 - 1)
	p.display = screen{1920, 1200, 80}
	p.saves = h.version.AtLeast(14)
	p.macKeyboard = p.guest == options.GuestMacOS && h.version.AtLeast(14)
	p.macTrackpad = p.guest == options.GuestMacOS && h.version.AtLeast(13)
	return p, nil
}

// check says what keeps any machine from running here.
func (h host) check() error {
	switch {
	case !h.version.AtLeast(12):
		return vm.WithReason(vm.ReasonBadConfiguration, fmt.Errorf("this host has macOS %s: machines need macOS 12, and macOS 14 for saved states", h.version))
	case !h.hypervisor:
		return vm.WithReason(vm.ReasonBadConfiguration, errors.New("this host has no hypervisor (kern.hv_support is 0): it is itself a virtual machine, and those have none inside"))
	case !h.entitlement:
		return vm.WithReason(vm.ReasonNoEntitlement, fmt.Errorf("this minifleet-vmm lacks the entitlement %s: sign it with `make sign`, or codesign --force --sign - --entitlements deploy/vmm.entitlements PROGRAM", entitlement))
	}
	return nil
}

// checkModel says whether the host is new enough for the hardware model, before the
// framework says only that it is not.
func (h host) checkModel(b []byte) error {
	m, err := ParseHardwareModel(b)
	if err != nil {
		return fmt.Errorf("%s: %w: take the image's from where it was installed", options.FileHardwareModel, err)
	}
	if m.MinimumOS.compare(h.version) > 0 {
		return fmt.Errorf("the image's hardware model needs macOS %s and this host has %s: update the host or use an older image", m.MinimumOS, h.version)
	}
	return nil
}

// clamp keeps a value within what the framework takes; beyond it a machine is refused.
func clamp[T uint | uint64](v, least, most T) T { return min(max(v, least), most) }

// checkBundle reads the options and finds the image's files.
func checkBundle(dir string, spec vm.Spec) (plan, error) {
	o, err := options.ParseVZ(spec.Options)
	if err != nil {
		return plan{}, err
	}
	p := plan{guest: o.Guest, durable: o.Durable, port: o.Port, disk: filepath.Join(dir, options.FileDisk)}
	p.mac, _ = net.ParseMAC(o.MAC) // validated
	if o.Console {
		p.console = filepath.Join(dir, vm.FileConsole)
	}
	if err := regular(p.disk); err != nil {
		return plan{}, err
	}
	if o.Guest == options.GuestLinux {
		return p, p.linux(dir)
	}
	p.machineID = MachineIdentifier(o.ECID)
	p.nvram = filepath.Join(dir, options.FileNVRAM)
	if err := regular(p.nvram); err != nil {
		return plan{}, err
	}
	p.hardwareModel, err = readSmall(filepath.Join(dir, options.FileHardwareModel))
	return p, err
}

// linux plans a boot from a kernel if the image has one, and else with EFI.
func (p *plan) linux(dir string) error {
	var err error
	p.machineIDFile = filepath.Join(dir, options.FileMachineID)
	if p.machineID, err = readOptional(p.machineIDFile); err != nil {
		return err
	}
	kernel := filepath.Join(dir, options.FileKernel)
	if err := regular(kernel); errors.Is(err, fs.ErrNotExist) {
		p.nvram = filepath.Join(dir, options.FileNVRAM)
		err := regular(p.nvram)
		if p.newNVRAM = errors.Is(err, fs.ErrNotExist); p.newNVRAM {
			return nil
		}
		return err
	} else if err != nil {
		return err
	}
	p.kernel = kernel
	initrd := filepath.Join(dir, options.FileInitrd)
	if err := regular(initrd); err == nil {
		p.initrd = initrd
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	line, err := readOptional(filepath.Join(dir, options.FileCommandLine))
	p.commandLine = strings.TrimSpace(string(line))
	return err
}

// regular refuses what is no file of the image's own: a link would lead out of the bundle.
func regular(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("the image lacks a file: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() == 0 {
		return fmt.Errorf("%s is empty or no regular file: make the image anew", path)
	}
	return nil
}

func readSmall(path string) ([]byte, error) {
	if err := regular(path); err != nil {
		return nil, err
	}
	if info, err := os.Stat(path); err != nil || info.Size() > maxPlistBytes {
		return nil, fmt.Errorf("%s has more than %d bytes: make the image anew", path, maxPlistBytes)
	}
	return os.ReadFile(path)
}

func readOptional(path string) ([]byte, error) {
	b, err := readSmall(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}
