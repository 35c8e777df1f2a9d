// SPDX-License-Identifier: MIT

package vz

import (
	"debug/macho"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
)

// entitlement is what a program must be signed with to have machines. Without it the
// framework says only that a configuration is not valid.
const entitlement = "com.apple.security.virtualization"

// entitled reports whether the program file is signed with the entitlement. It reads the
// signature itself, whose seal the kernel has checked when the program was started.
func entitled(program string) (bool, error) {
	f, err := macho.Open(program)
	if err != nil {
		return false, fmt.Errorf("read the signature of %s: %w", program, err)
	}
	defer f.Close()
	const loadCodeSignature = 0x1d // LC_CODE_SIGNATURE of <mach-o/loader.h>
	for _, l := range f.Loads {
		raw := l.Raw()
		if len(raw) < 16 || f.ByteOrder.Uint32(raw) != loadCodeSignature {
			continue
		}
		at, size := f.ByteOrder.Uint32(raw[8:]), f.ByteOrder.Uint32(raw[12:])
		file, err := os.Open(program)
		if err != nil {
			return false, err
		}
		defer file.Close()
		b := make([]byte, min(size, maxSignature))
		if _, err := file.ReadAt(b, int64(at)); err != nil && !errors.Is(err, io.EOF) {
			return false, fmt.Errorf("read the signature of %s: %w", program, err)
		}
		return grants(signedEntitlements(b)), nil
	}
	return false, nil // not signed at all
}

const maxSignature = 16 << 20

// signedEntitlements finds the entitlements, a property list in XML, in a code signature:
// a list of blobs, numbers in network order, as <kern/cs_blobs.h> has them.
func signedEntitlements(b []byte) []byte {
	const superBlob, entitlements = 0xfade0cc0, 0xfade7171
	be := binary.BigEndian
	if len(b) < 12 || be.Uint32(b) != superBlob {
		return nil
	}
	for i := range min(int(be.Uint32(b[8:])), (len(b)-12)/8) {
		at := uint64(be.Uint32(b[12+8*i+4:]))
		if at+8 > uint64(len(b)) || be.Uint32(b[at:]) != entitlements {
			continue
		}
		if size := uint64(be.Uint32(b[at+4:])); size >= 8 && at+size <= uint64(len(b)) {
			return b[at+8 : at+size]
		}
	}
	return nil
}

// grants reports whether the entitlement is set to true.
func grants(xml []byte) bool {
	return regexp.MustCompile(`<key>\s*` + regexp.QuoteMeta(entitlement) + `\s*</key>\s*<true\s*/>`).Match(xml)
}
