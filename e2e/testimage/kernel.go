// SPDX-License-Identifier: MIT

package main

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
)

// wantedModules are the drivers of a QEMU machine's devices; what they need is found. The
// root file system's own driver is part of Debian's kernel.
var wantedModules = []string{
	"virtio_pci", "virtio_blk", "virtio_console", "virtio_net", "virtio_rng",
	"vmw_vsock_virtio_transport",
	"button", "evdev", // the power button, and how programs hear of it
}

// module is a driver to load.
type module struct {
	name string
	data []byte
}

// writeKernel writes the kernel as an ELF file, which QEMU enters without having it
// decompress itself, and returns its version and the wanted modules in the order in
// which they load.
func writeKernel(ctx context.Context, set packageSet, to string) (version string, modules []module, err error) {
	i := slices.IndexFunc(set.Debs, func(d deb) bool { return d.Kernel })
	if i < 0 {
		return "", nil, fmt.Errorf("%s names no kernel: delete the folder, and the packages are fetched again", set.dir)
	}
	var image []byte
	available := map[string]packed{}
	builtin := map[string]bool{}
	err = set.read(ctx, set.Debs[i], func(name string, h *tar.Header, r io.Reader) error {
		base := path.Base(name)
		isModule := strings.Contains(base, ".ko")
		if h.Typeflag != tar.TypeReg || !isModule && base != "modules.builtin" && !strings.HasPrefix(name, "boot/vmlinuz-") {
			return nil
		}
		data, err := io.ReadAll(r)
		switch {
		case err != nil:
			return err
		case isModule:
			available[moduleName(base)] = packed{base: base, data: data}
		case base == "modules.builtin":
			for line := range strings.Lines(string(data)) {
				builtin[moduleName(path.Base(strings.TrimSpace(line)))] = true
			}
		default:
			version, image = strings.TrimPrefix(base, "vmlinuz-"), data
		}
		return nil
	})
	if err != nil {
		return "", nil, err
	}
	if image == nil {
		return "", nil, fmt.Errorf("%s has no boot/vmlinuz", set.Debs[i].File)
	}
	if modules, err = loadOrder(ctx, wantedModules, available, builtin); err != nil {
		return "", nil, err
	}
	payload, err := payloadOf(image)
	if err != nil {
		return "", nil, fmt.Errorf("kernel %s: %w", version, err)
	}
	data, err := decompress(ctx, payload)
	if err != nil {
		return "", nil, fmt.Errorf("kernel %s: %w", version, err)
	}
	if _, err := elf.NewFile(bytes.NewReader(data)); err != nil {
		return "", nil, fmt.Errorf("kernel %s, decompressed: %w", version, err)
	}
	return version, modules, os.WriteFile(to, data, 0o644)
}

// payloadOf returns the compressed kernel inside a bzImage. The header is described in
// the kernel's Documentation/arch/x86/boot.rst: setup_sects at 0x1f1, the magic at 0x202,
// the protocol's version at 0x206, payload_offset and payload_length at 0x248.
func payloadOf(image []byte) ([]byte, error) {
	if len(image) < 0x250 || string(image[0x202:0x206]) != "HdrS" || binary.LittleEndian.Uint16(image[0x206:]) < 0x208 {
		return nil, errors.New("this is no bzImage")
	}
	sectors := uint64(image[0x1f1])
	if sectors == 0 {
		sectors = 4
	}
	start := (sectors+1)*512 + uint64(binary.LittleEndian.Uint32(image[0x248:]))
	length := uint64(binary.LittleEndian.Uint32(image[0x24c:]))
	if length < 8 || start+length > uint64(len(image)) {
		return nil, errors.New("the bzImage's payload lies outside of it")
	}
	payload := image[start : start+length]
	if _, err := compressionOf(payload); err != nil {
		return nil, err
	}
	return payload[:length-4], nil // the last four bytes are the size when decompressed
}

// compressionOf returns the program that decompresses to its standard output what begins
// like this.
func compressionOf(data []byte) (string, error) {
	for magic, program := range map[string]string{
		"\x02\x21\x4c\x18":     "lz4",
		"\x28\xb5\x2f\xfd":     "zstd",
		"\xfd\x37\x7a\x58\x5a": "xz",
	} {
		if bytes.HasPrefix(data, []byte(magic)) {
			return program, nil
		}
	}
	return "", fmt.Errorf("it is compressed in a way that is not known here (it begins with %x)", data[:min(8, len(data))])
}

func decompress(ctx context.Context, data []byte) ([]byte, error) {
	program, err := compressionOf(data)
	if err != nil {
		return nil, err
	}
	cmd := command(ctx, program, "-dc")
	cmd.Stdin = bytes.NewReader(data)
	return output(cmd)
}
