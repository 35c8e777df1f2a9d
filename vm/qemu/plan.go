// SPDX-License-Identifier: MIT

//go:build linux

package qemu

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/minifleet/minifleet/vm"
	"github.com/minifleet/minifleet/vm/options"
)

const (
	fileLog     = "qemu.log"   // what QEMU itself prints, in the bundle
	fileForward = "fwd.sock"   // where forwarded connections are handed over, in the bundle
	fileState   = "state.qemu" // the one file of a saved state

	maxCommandLine = 4096
)

// Ids of what the machine has, as QMP names it.
const (
	idPort     = "guest"
	idPortChar = "guest-channel"
	idNet      = "net"
)

// plan is what a machine is made of, checked as far as that goes without QEMU.
type plan struct {
	dir         string
	program     string // QEMU
	passt       string // "" with the network isolated
	handOver    []string
	cpus        int
	memoryMiB   int
	options     options.QEMU
	disk        string
	kernel      string // "" boots from the disk
	initrd      string
	commandLine string
	firmware    string // EFI's code; "" without it
	nvram       string // and its variables
	roomTime    time.Duration
}

func newPlan(cfg Config, dir string, spec vm.Spec) (plan, error) {
	o, err := options.ParseQEMU(spec.Options)
	if err != nil {
		return plan{}, err
	}
	p := plan{
		dir: dir, cpus: spec.CPUs, memoryMiB: spec.MemoryMiB, options: o, handOver: cfg.HandOver,
		roomTime: cmp.Or(cfg.RoomTime, 30*time.Second),
		disk:     filepath.Join(dir, options.FileDisk),
	}
	if p.program, err = lookUp(cfg.Program, options.QEMUProgram, "qemu-system-x86"); err != nil {
		return plan{}, err
	}
	if o.Network == options.NetworkNAT {
		if o.SSH { // Debian's passt of 2023 leaves such connections without an answer
			return plan{}, errors.New("options: ssh is set, but the network is nat: guests that are reached by SSH need the network isolated")
		}
		if p.passt, err = lookUp(cfg.Passt, "passt", "passt"); err != nil {
			return plan{}, fmt.Errorf("the network nat: %w, or give the pool the network isolated", err)
		}
	}
	if len(o.Forwards) > 0 && len(cfg.HandOver) == 0 {
		return plan{}, errors.New("options: forwards are given: this program has no part that hands them over")
	}
	if err := regular(p.disk); err != nil {
		return plan{}, err
	}
	return p, p.boot()
}

// lookUp finds a program of another package.
func lookUp(program, name, debian string) (string, error) {
	if program == "" {
		program = name
	}
	path, err := exec.LookPath(program)
	if err != nil {
		return "", fmt.Errorf("%s is not installed (%w): install it, on Debian with apt-get install %s", program, err, debian)
	}
	return filepath.Abs(path)
}

// boot plans a boot from a kernel if the image has one, by EFI if it has its variables, and
// from the disk by BIOS else.
func (p *plan) boot() error {
	kernel := filepath.Join(p.dir, options.FileKernel)
	err := regular(kernel)
	if errors.Is(err, fs.ErrNotExist) {
		return p.bootDisk()
	}
	if err != nil {
		return err
	}
	p.kernel = kernel
	initrd := filepath.Join(p.dir, options.FileInitrd)
	if err := regular(initrd); err == nil {
		p.initrd = initrd
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	file := filepath.Join(p.dir, options.FileCommandLine)
	info, err := os.Lstat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || !info.Mode().IsRegular() || info.Size() > maxCommandLine {
		return fmt.Errorf("%s is no regular file of at most %d bytes: make the image anew (%w)", file, maxCommandLine, err)
	}
	line, err := os.ReadFile(file)
	p.commandLine = strings.TrimSpace(string(line))
	return err
}

// firmwares are where Debian's package ovmf has EFI's code, by the size of the variables
// that belong to it.
var firmwares = map[int64]string{
	540672: "/usr/share/OVMF/OVMF_CODE_4M.fd",
	131072: "/usr/share/OVMF/OVMF_CODE.fd",
}

func (p *plan) bootDisk() error {
	nvram := filepath.Join(p.dir, options.FileNVRAM)
	err := regular(nvram)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	info, err := os.Stat(nvram)
	if err != nil {
		return err
	}
	firmware, ok := firmwares[info.Size()]
	if !ok {
		return fmt.Errorf("%s has %d bytes, which are no variables of OVMF: make the image anew", nvram, info.Size())
	}
	if _, err := os.Stat(firmware); err != nil {
		return fmt.Errorf("the image boots by EFI, which this host lacks (%w): install it, on Debian with apt-get install ovmf", err)
	}
	p.firmware, p.nvram = firmware, nvram
	return nil
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

// descriptors are the numbers that files have in QEMU.
type descriptors struct {
	monitor int
	console int // 0 without it
	net     int // 0 with the network isolated
}

// arguments are QEMU's. Nothing in them is secret: everyone on the host can read them.
func (p plan) arguments(accelerator string, fd descriptors, incoming bool) []string {
	a := []string{"-accel", "tcg,thread=multi", "-cpu", "qemu64,+rdrand,+aes,+ssse3,+sse4.1,+sse4.2,+popcnt"}
	if accelerator == acceleratorKVM {
		a = []string{"-accel", "kvm", "-cpu", "host"}
	}
	add := func(args ...string) { a = append(a, args...) }
	add("-name", "minifleet,process=minifleet-qemu", "-machine", "q35,usb=off,vmport=off,graphics=off", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot")
	add("-smp", strconv.Itoa(p.cpus), "-m", strconv.Itoa(p.memoryMiB)+"M")
	// A forwarded connection takes a process, which begins a session of its own: that is among
	// what elevateprivileges denies. No process gets more rights than QEMU in any case.
	sandbox := "on,obsolete=deny,resourcecontrol=deny,elevateprivileges=deny,spawn=deny"
	if len(p.options.Forwards) > 0 {
		sandbox = "on,obsolete=deny,resourcecontrol=deny"
	}
	add("-sandbox", sandbox)
	add("-S") // until its writer is noted
	add("-chardev", fmt.Sprintf("socket,id=monitor,fd=%d", fd.monitor), "-mon", "chardev=monitor,mode=control")
	if fd.console > 0 {
		add("-add-fd", fmt.Sprintf("fd=%d,set=1", fd.console))
		add("-chardev", "file,id=console,append=on,path=/dev/fdset/1", "-serial", "chardev:console")
	}
	switch {
	case p.kernel != "":
		add("-kernel", p.kernel)
		if p.initrd != "" {
			add("-initrd", p.initrd)
		}
		if p.commandLine != "" {
			add("-append", p.commandLine)
		}
	case p.firmware != "":
		add("-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+quote(p.firmware))
		add("-drive", "if=pflash,unit=1,format=raw,file="+quote(p.nvram))
	}
	cache := "unsafe" // a clone is thrown away with its machine: what the guest flushes needs no disk
	if p.options.Durable {
		cache = "writeback"
	}
	add("-drive", "if=none,id=disk,format=raw,cache="+cache+",discard=unmap,file="+quote(p.disk))
	add("-device", "virtio-blk-pci,drive=disk,bootindex=1")
	add("-netdev", p.netdev(fd), "-device", "virtio-net-pci,netdev="+idNet+",romfile=,mac="+p.options.MAC)
	add("-device", "virtio-serial-pci,id=serial0,max_ports=4")
	add("-chardev", "socket,id="+idPortChar+",server=on,wait=off,path="+quote(p.channel()))
	add("-device", "virtserialport,id="+idPort+",bus=serial0.0,nr=1,chardev="+idPortChar+",name="+options.GuestPortName)
	add("-object", "rng-builtin,id=rng", "-device", "virtio-rng-pci,rng=rng")
	// Tells a guest that was restored that it is another now.
	add("-device", "vmgenid,guid=auto")
	if incoming {
		add("-incoming", "defer")
	}
	return a
}

// channel is the socket of the guest's port.
func (p plan) channel() string { return filepath.Join(p.dir, vm.FileInnerSocket) }

func (p plan) netdev(fd descriptors) string {
	if p.options.Network == options.NetworkNAT {
		return fmt.Sprintf("stream,id=%s,server=off,addr.type=fd,addr.str=%d", idNet, fd.net)
	}
	n := "user,id=" + idNet + ",restrict=on,ipv6=off"
	if p.options.SSH {
		n += ",hostfwd=tcp:127.0.0.1:0-:22"
	}
	for i, f := range p.options.Forwards {
		words := append(slices.Clone(p.handOver), filepath.Join(p.dir, fileForward), strconv.Itoa(i))
		for i, word := range words { // as a shell reads them
			words[i] = "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
		}
		n += fmt.Sprintf(",guestfwd=tcp:%v-cmd:%s", f.Guest, quote(strings.Join(words, " ")))
	}
	return n
}

// quote has a comma taken for itself and not for the end of an option.
func quote(s string) string { return strings.ReplaceAll(s, ",", ",,") }
