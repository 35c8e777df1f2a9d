// SPDX-License-Identifier: MIT

// Package options is what a spec's options mean to each backend, and what the files of an
// image are called: data that the agent writes and the vmm reads. It has no code of any
// hypervisor, so that every program can import it.
package options

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// What an image of a hypervisor brings, at the top of the bundle.
const (
	FileDisk          = "disk.img"           // raw
	FileNVRAM         = "nvram.bin"          // auxiliary storage of a Mac, or EFI's variables
	FileHardwareModel = "hardware-model.bin" // of a Mac
	FileKernel        = "kernel"             // Linux without EFI
	FileInitrd        = "initrd"             // beside it, if it needs one
	FileCommandLine   = "cmdline"            // beside it
)

// FileMachineID is a Linux machine's identifier on a Mac, which its first boot makes in the
// bundle. It is the machine's and not the image's.
const FileMachineID = "machine-id.bin"

// decode reads options strictly into o.
func decode(b []byte, o any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(o); err != nil {
		return fmt.Errorf("options: %w", err)
	}
	return nil
}
