// SPDX-License-Identifier: MIT

package layout

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/vm/options"
)

// The files of a VM of tart's. What else may lie there (a control socket, where the VM was
// pulled from) is no part of an image.
const (
	tartConfig = "config.json"
	tartDisk   = "disk.img"
	tartNVRAM  = "nvram.bin"
	tartState  = "state.vzvmsave"
)

const (
	maxTartBytes  = 256 << 10
	maxTartMemory = 1 << 50 // bytes, so that no sum overflows
)

// ParseTart reads the configuration of one of tart's VMs, which is also the first layer of
// its images in registries. Machine identifier and MAC address are not taken: here they
// belong to a slot of a host, and never to an image.
func ParseTart(b []byte) (manifest.Manifest, error) {
	m, err := parseTart(b)
	if err != nil {
		return manifest.Manifest{}, fmt.Errorf("%s of tart: %w", tartConfig, short{err})
	}
	return m, nil
}

func parseTart(b []byte) (manifest.Manifest, error) {
	if len(b) > maxTartBytes {
		return manifest.Manifest{}, fmt.Errorf("it has more than %d bytes", maxTartBytes)
	}
	// Newer versions add keys, which are no business of ours: the version would change.
	var c struct {
		Version       int     `json:"version"`
		OS            *string `json:"os"`
		Arch          *string `json:"arch"`
		HardwareModel []byte  `json:"hardwareModel"`
		CPUCountMin   int     `json:"cpuCountMin"`
		MemorySizeMin int64   `json:"memorySizeMin"`
		Display       *struct {
			Width  int `json:"width"`
			Height int `json:"height"`
		} `json:"display"`
		DiskFormat *string `json:"diskFormat"`
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&c); err != nil {
		return manifest.Manifest{}, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return manifest.Manifest{}, errors.New("something follows the object")
	}
	if c.Version != 1 {
		return manifest.Manifest{}, fmt.Errorf("its version is %d and this program reads version 1", c.Version)
	}
	if format := or(c.DiskFormat, "raw"); format != "raw" {
		return manifest.Manifest{}, fmt.Errorf("its disk has the format %.40q and only raw disks can be used: make the VM anew with a raw disk", format)
	}
	if c.MemorySizeMin < 0 || c.MemorySizeMin > maxTartMemory {
		return manifest.Manifest{}, fmt.Errorf("memorySizeMin is %d bytes, which no machine has", c.MemorySizeMin)
	}
	m := manifest.Manifest{
		Schema: manifest.Schema, GuestOS: or(c.OS, guestDarwin), Arch: or(c.Arch, archARM),
		MinCPUs: c.CPUCountMin, MinMemoryMiB: int((c.MemorySizeMin + 1<<20 - 1) >> 20),
	}
	if m.GuestOS == guestDarwin {
		if len(c.HardwareModel) == 0 {
			return manifest.Manifest{}, errors.New("hardwareModel is missing, without which a macOS guest does not start")
		}
		m.HardwareModel = c.HardwareModel
	}
	if c.Display != nil {
		m.Display = &manifest.Display{Width: c.Display.Width, Height: c.Display.Height}
	}
	if err := validate(m); err != nil {
		return manifest.Manifest{}, err
	}
	return m, nil
}

func or(s *string, otherwise string) string {
	if s == nil {
		return otherwise
	}
	return *s
}

func openTart(root string, has func(name string) bool) (*Template, error) {
	if has(tartState) {
		return nil, fmt.Errorf("it is a suspended VM of tart (%s): start it and shut the guest down, so that its disk is complete", tartState)
	}
	config := filepath.Join(root, tartConfig)
	b, err := readSmall(config, maxTartBytes)
	if err != nil {
		return nil, err
	}
	m, err := ParseTart(b)
	if err != nil {
		return nil, err
	}
	if err := checkStopped(config); err != nil {
		return nil, err
	}
	disk, err := source(root, tartDisk, options.FileDisk)
	nvram, err2 := source(root, tartNVRAM, options.FileNVRAM)
	if err := errors.Join(err, err2); err != nil {
		return nil, fmt.Errorf("it is an incomplete VM of tart: %w", err)
	}
	t := &Template{Manifest: m, Files: []File{disk, nvram}}
	if m.HardwareModel != nil {
		t.Files = append(t.Files, modelFile(m.HardwareModel))
	}
	return t, nil
}

// checkStopped asks for the lock that tart has on a VM's configuration while it runs.
func checkStopped(config string) error {
	f, err := os.OpenFile(config, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_RDLCK}
	for {
		if err = unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lock); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("ask for the lock of %s: %w", tartConfig, err)
	}
	if lock.Type != unix.F_UNLCK {
		return fmt.Errorf("it is a VM of tart that runs (process %d): shut it down first", lock.Pid)
	}
	return nil
}
