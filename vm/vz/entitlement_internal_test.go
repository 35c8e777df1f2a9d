// SPDX-License-Identifier: MIT

package vz

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

const entitlementsFile = "../../deploy/vmm.entitlements"

// signature builds a code signature of these blobs.
func signature(blobs ...[]byte) []byte {
	be := binary.BigEndian
	at := 12 + 8*len(blobs)
	b := be.AppendUint32(be.AppendUint32(be.AppendUint32(nil, 0xfade0cc0), 0), uint32(len(blobs)))
	for i, blob := range blobs {
		b = be.AppendUint32(be.AppendUint32(b, uint32(i)), uint32(at))
		at += len(blob)
	}
	for _, blob := range blobs {
		b = append(b, blob...)
	}
	be.PutUint32(b[4:], uint32(len(b)))
	return b
}

func blob(magic uint32, text string) []byte {
	b := binary.BigEndian.AppendUint32(nil, magic)
	return append(binary.BigEndian.AppendUint32(b, uint32(8+len(text))), text...)
}

// TestEntitlements finds what deploy/vmm.entitlements grants in a signature, and nothing
// in one without it.
func TestEntitlements(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(entitlementsFile)
	if err != nil {
		t.Fatal(err)
	}
	code := blob(0xfade0c02, "the code's hashes")
	good := signature(code, blob(0xfade7171, string(text)))
	if !grants(signedEntitlements(good)) {
		t.Error("the entitlement is not found")
	}
	for name, b := range map[string][]byte{
		"nothing":         nil,
		"no entitlements": signature(code),
		"another":         signature(blob(0xfade7171, "<key>com.apple.security.network.client</key><true/>")),
		"set to false":    signature(blob(0xfade7171, "<key>"+entitlement+"</key>\n<false/>")),
		"cut off":         good[:len(good)-10],
		"no signature":    []byte("this is no signature at all"),
	} {
		if grants(signedEntitlements(b)) {
			t.Errorf("%s: granted", name)
		}
	}
}

// TestUnsignedProgram reads a real Mach-O program, which Go's linker signs without
// entitlements, and one that is none.
func TestUnsignedProgram(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	source, program := filepath.Join(dir, "main.go"), filepath.Join(dir, "program")
	if err := os.WriteFile(source, []byte("package main\n\nfunc main() {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", program, source)
	cmd.Env = append(os.Environ(), "GOOS=darwin", "GOARCH=arm64", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if ok, err := entitled(program); ok || err != nil {
		t.Errorf("a program without entitlements: %v, %v", ok, err)
	}
	if ok, err := entitled(source); ok || err == nil {
		t.Errorf("a text: %v, %v", ok, err)
	}
}

func FuzzSignedEntitlements(f *testing.F) {
	f.Add(signature(blob(0xfade0c02, "x"), blob(0xfade7171, "<plist/>")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got := signedEntitlements(b); len(got) > len(b) {
			t.Errorf("%d bytes of %d", len(got), len(b))
		}
	})
}
