// SPDX-License-Identifier: MIT

//go:build arm64 && cgo

package vz

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"github.com/Code-Hex/vz/v3"

	"github.com/minifleet/minifleet/vm/options"
)

// configure makes the framework's objects of a plan. The devices are the same at every
// boot, or a saved state would not fit.
func configure(p plan) (*vz.VirtualMachineConfiguration, error) {
	boot, platform := bootMac, platformMac
	if p.guest == options.GuestLinux {
		boot, platform = bootLinux, platformLinux
	}
	loader, err := boot(p)
	if err != nil {
		return nil, fmt.Errorf("boot loader: %w", err)
	}
	c, err := vz.NewVirtualMachineConfiguration(loader, p.cpus, p.memory)
	if err != nil {
		return nil, err
	}
	id, err := platform(p)
	if err != nil {
		return nil, fmt.Errorf("platform: %w", err)
	}
	c.SetPlatformVirtualMachineConfiguration(id)
	for _, device := range []struct {
		name string
		set  func(*vz.VirtualMachineConfiguration, plan) error
	}{
		{"disk", setDisk},
		{"network", setNetwork},
		{"display", setDisplay},
		{"keyboard and pointer", setInput},
		{"socket", setSocket},
		{"console", setLinuxOnly},
	} {
		if err := device.set(c, p); err != nil {
			return nil, fmt.Errorf("%s: %w", device.name, err)
		}
	}
	return c, valid(c.Validate())
}

func bootMac(plan) (vz.BootLoader, error) { return vz.NewMacOSBootLoader() }

func bootLinux(p plan) (vz.BootLoader, error) {
	if p.kernel != "" {
		options := []vz.LinuxBootLoaderOption{vz.WithCommandLine(p.commandLine)}
		if p.initrd != "" {
			options = append(options, vz.WithInitrd(p.initrd))
		}
		return vz.NewLinuxBootLoader(p.kernel, options...)
	}
	var options []vz.NewEFIVariableStoreOption
	if p.newNVRAM { // only then: the option overwrites what is there
		options = append(options, vz.WithCreatingEFIVariableStore())
	}
	variables, err := vz.NewEFIVariableStore(p.nvram, options...)
	if err != nil {
		return nil, err
	}
	return vz.NewEFIBootLoader(vz.WithEFIVariableStore(variables))
}

func platformMac(p plan) (vz.PlatformConfiguration, error) {
	model, err := vz.NewMacHardwareModelWithData(p.hardwareModel)
	if err != nil {
		return nil, err
	}
	if !model.Supported() { // also what does not decode
		return nil, fmt.Errorf("%s: this host does not support the image's hardware model: update its macOS, or use an older image", options.FileHardwareModel)
	}
	id, err := vz.NewMacMachineIdentifierWithData(p.machineID)
	if err != nil {
		return nil, err
	}
	if len(id.DataRepresentation()) == 0 { // no object, and no error of the bindings
		return nil, errors.New("the machine identifier is refused")
	}
	// Without an option, which would make it anew and wipe it.
	storage, err := vz.NewMacAuxiliaryStorage(p.nvram)
	if err != nil {
		return nil, err
	}
	return vz.NewMacPlatformConfiguration(vz.WithMacHardwareModel(model), vz.WithMacMachineIdentifier(id), vz.WithMacAuxiliaryStorage(storage))
}

func platformLinux(p plan) (vz.PlatformConfiguration, error) {
	if p.machineID != nil {
		id, err := vz.NewGenericMachineIdentifierWithData(p.machineID)
		if err != nil {
			return nil, err
		}
		return vz.NewGenericPlatformConfiguration(vz.WithGenericMachineIdentifier(id))
	}
	id, err := vz.NewGenericMachineIdentifier()
	if err != nil {
		return nil, err
	}
	// Copied: the bytes are the framework's. Kept, since a saved state asks for them.
	if err := os.WriteFile(p.machineIDFile, bytes.Clone(id.DataRepresentation()), 0o600); err != nil {
		return nil, err
	}
	return vz.NewGenericPlatformConfiguration(vz.WithGenericMachineIdentifier(id))
}

func setDisk(c *vz.VirtualMachineConfiguration, p plan) error {
	sync := vz.DiskImageSynchronizationModeNone
	if p.durable {
		sync = vz.DiskImageSynchronizationModeFull
	}
	file, err := vz.NewDiskImageStorageDeviceAttachmentWithCacheAndSync(p.disk, false, vz.DiskImageCachingModeAutomatic, sync)
	if err != nil {
		return err
	}
	disk, err := vz.NewVirtioBlockDeviceConfiguration(file)
	if err != nil {
		return err
	}
	c.SetStorageDevicesVirtualMachineConfiguration([]vz.StorageDeviceConfiguration{disk})
	return nil
}

func setNetwork(c *vz.VirtualMachineConfiguration, p plan) error {
	nat, err := vz.NewNATNetworkDeviceAttachment()
	if err != nil {
		return err
	}
	card, err := vz.NewVirtioNetworkDeviceConfiguration(nat)
	if err != nil {
		return err
	}
	mac, err := vz.NewMACAddress(p.mac)
	if err != nil {
		return err
	}
	card.SetMACAddress(mac)
	c.SetNetworkDevicesVirtualMachineConfiguration([]*vz.VirtioNetworkDeviceConfiguration{card})
	return nil
}

func setDisplay(c *vz.VirtualMachineConfiguration, p plan) error {
	if p.guest == options.GuestLinux {
		screen, err := vz.NewVirtioGraphicsScanoutConfiguration(p.display.width, p.display.height)
		if err != nil {
			return err
		}
		card, err := vz.NewVirtioGraphicsDeviceConfiguration()
		if err != nil {
			return err
		}
		card.SetScanouts(screen)
		c.SetGraphicsDevicesVirtualMachineConfiguration([]vz.GraphicsDeviceConfiguration{card})
		return nil
	}
	screen, err := vz.NewMacGraphicsDisplayConfiguration(p.display.width, p.display.height, p.display.density)
	if err != nil {
		return err
	}
	card, err := vz.NewMacGraphicsDeviceConfiguration()
	if err != nil {
		return err
	}
	card.SetDisplays(screen)
	c.SetGraphicsDevicesVirtualMachineConfiguration([]vz.GraphicsDeviceConfiguration{card})
	return nil
}

func setInput(c *vz.VirtualMachineConfiguration, p plan) (err error) {
	var keyboard vz.KeyboardConfiguration
	if p.macKeyboard {
		keyboard, err = vz.NewMacKeyboardConfiguration()
	} else {
		keyboard, err = vz.NewUSBKeyboardConfiguration()
	}
	if err != nil {
		return err
	}
	var pointer vz.PointingDeviceConfiguration
	if p.macTrackpad {
		pointer, err = vz.NewMacTrackpadConfiguration()
	} else {
		pointer, err = vz.NewUSBScreenCoordinatePointingDeviceConfiguration()
	}
	if err != nil {
		return err
	}
	c.SetKeyboardsVirtualMachineConfiguration([]vz.KeyboardConfiguration{keyboard})
	c.SetPointingDevicesVirtualMachineConfiguration([]vz.PointingDeviceConfiguration{pointer})
	return nil
}

func setSocket(c *vz.VirtualMachineConfiguration, _ plan) error {
	socket, err := vz.NewVirtioSocketDeviceConfiguration()
	if err != nil {
		return err
	}
	c.SetSocketDevicesVirtualMachineConfiguration([]vz.SocketDeviceConfiguration{socket})
	return nil
}

// setLinuxOnly adds what only a Linux guest needs: entropy, and its console if asked for.
func setLinuxOnly(c *vz.VirtualMachineConfiguration, p plan) error {
	if p.guest != options.GuestLinux {
		return nil
	}
	entropy, err := vz.NewVirtioEntropyDeviceConfiguration()
	if err != nil {
		return err
	}
	c.SetEntropyDevicesVirtualMachineConfiguration([]*vz.VirtioEntropyDeviceConfiguration{entropy})
	if p.console == "" {
		return nil
	}
	file, err := vz.NewFileSerialPortAttachment(p.console, true)
	if err != nil {
		return err
	}
	port, err := vz.NewVirtioConsoleDeviceSerialPortConfiguration(file)
	if err != nil {
		return err
	}
	c.SetSerialPortsVirtualMachineConfiguration([]*vz.VirtioConsoleDeviceSerialPortConfiguration{port})
	return nil
}
