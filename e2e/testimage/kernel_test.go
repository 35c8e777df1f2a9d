// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"strings"
	"testing"
)

// bzImage is the header of one with two setup sectors, and a payload.
func bzImage(payload string) []byte {
	image := make([]byte, 3*512+16)
	image[0x1f1] = 2
	copy(image[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(image[0x206:], 0x20f)
	binary.LittleEndian.PutUint32(image[0x248:], 16)
	binary.LittleEndian.PutUint32(image[0x24c:], uint32(len(payload)))
	return append(image, payload...)
}

func TestPayloadOf(t *testing.T) {
	const lz4 = "\x02\x21\x4c\x18data"
	got, err := payloadOf(append(bzImage(lz4+"size"), "what follows"...))
	if err != nil || string(got) != lz4 {
		t.Errorf("payload %q, %v", got, err)
	}
	old := bzImage(lz4 + "size")
	old[0x206] = 0x07
	for name, tt := range map[string]struct {
		image []byte
		says  string
	}{
		"nothing":                 {nil, "no bzImage"},
		"another file":            {make([]byte, 4096), "no bzImage"},
		"too old to have a field": {append(old[:0x207], append([]byte{2}, old[0x208:]...)...), "no bzImage"},
		"cut short":               {bzImage(lz4 + "size")[:3*512+20], "outside"},
		"compressed otherwise":    {bzImage("BZh9 and so on"), "425a683920616e64"},
	} {
		if _, err := payloadOf(tt.image); err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: error %v; want one with %q", name, err, tt.says)
		}
	}
}

// moduleOf is an ELF file with nothing but a section .modinfo.
func moduleOf(t *testing.T, info string) packed {
	t.Helper()
	names := "\x00.modinfo\x00.shstrtab\x00"
	const head, section = 64, 64
	var b bytes.Buffer
	put := func(v any) {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			t.Fatal(err)
		}
	}
	put(elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Shoff: head, Ehsize: head, Shentsize: section, Shnum: 3, Shstrndx: 2,
	})
	put(elf.Section64{})
	put(elf.Section64{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: head + 3*section, Size: uint64(len(info))})
	put(elf.Section64{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: head + 3*section + uint64(len(info)), Size: uint64(len(names))})
	b.WriteString(info + names)
	return packed{base: "m.ko", data: b.Bytes()}
}

func TestLoadOrder(t *testing.T) {
	available := map[string]packed{
		"net":    moduleOf(t, "license=GPL\x00depends=ring,fail-over\x00name=net\x00"),
		"ring":   moduleOf(t, "depends=\x00"),
		"blk":    moduleOf(t, "depends=ring,core\x00"),
		"orphan": moduleOf(t, "depends=gone\x00"),
		// A name has - or _ in a file's name, but never a - for the kernel.
		moduleName("fail-over.ko.xz"): moduleOf(t, "license=GPL\x00"),
	}
	builtin := map[string]bool{"core": true, "rng": true}
	order, err := loadOrder(t.Context(), []string{"rng", "net", "blk"}, available, builtin)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range order {
		names = append(names, m.name)
	}
	if got := strings.Join(names, " "); got != "ring fail_over net blk" {
		t.Errorf("order %s", got)
	}
	if _, err := loadOrder(t.Context(), []string{"orphan"}, available, builtin); err == nil || !strings.Contains(err.Error(), "no module gone, which orphan needs") {
		t.Errorf("error %v", err)
	}
}
