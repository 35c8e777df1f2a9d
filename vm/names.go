// SPDX-License-Identifier: MIT

package vm

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// The names of everything in a bundle. What an image brings in lies beside
// them and may use none of these names.
const (
	FileSpec        = "spec.json"    // what the machine is; written once, by Create
	FileLock        = "lock"         // flocked by the vmm and by whatever writes to the disk
	FileVMM         = "vmm.json"     // the vmm's process: pid and start time
	FileWriter      = "writer.json"  // the process that writes to the disk, if it is not the vmm
	FileStatus      = "status.jsonl" // one line per change; the last one is the final reason
	FileVMMSocket   = "vmm.sock"     // commands to the vmm
	FileGuestSocket = "guest.sock"   // a connection to it is a connection to the guest agent
	FileInnerSocket = "inner.sock"   // the backend's own socket, behind guest.sock
	FileVMMLog      = "vmm.log"      // the vmm's standard output and error
	FileConsole     = "console.log"  // the guest's console

	// DirRoot is the folder that an image for the process backend brings, and
	// in which its guest lives.
	DirRoot = "root"
)

// Names in the folder of all bundles that are no bundles: a bundle half made, and
// one half deleted. Both begin with a dot, which no id can.
const (
	prefixNew   = ".new-"
	prefixTrash = ".trash-"
)

// MaxIDLength is the length of the longest machine id.
const MaxIDLength = 40

// maxSocketPath is the room for a Unix socket's path in bytes on the strictest
// system, macOS: 104 with the closing zero. Linux has four more, but a folder that
// works on one system shall work on the other.
const maxSocketPath = 103

// reserved reports whether name, at the top of a bundle, belongs to the bundle itself.
// Case does not count: APFS by default takes SPEC.JSON for spec.json.
func reserved(name string) bool {
	name = strings.ToLower(name)
	switch name {
	case FileSpec, FileLock, FileVMM, FileWriter, FileStatus, FileVMMSocket, FileGuestSocket, FileInnerSocket, FileVMMLog, FileConsole:
		return true
	}
	return strings.HasPrefix(name, FileSpec+".") || strings.HasPrefix(name, FileVMM+".") || strings.HasPrefix(name, FileWriter+".")
}

// ValidateID checks a machine's id: 1 to 40 of a-z, 0-9 and '-', not starting or
// ending with '-'. It is a folder's name, so nothing else gets through.
func ValidateID(id string) error {
	if id == "" || len(id) > MaxIDLength {
		return fmt.Errorf("machine id %.60q has %d characters: give 1 to %d of a-z, 0-9 and '-'", id, len(id), MaxIDLength)
	}
	for i := range len(id) {
		c := id[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return fmt.Errorf("machine id %q has the character %q: only a-z, 0-9 and '-' are allowed", id, c)
		}
	}
	if id[0] == '-' || id[len(id)-1] == '-' {
		return fmt.Errorf("machine id %q starts or ends with '-'", id)
	}
	return nil
}

// CheckPath reports whether a bundle named id can live in the folder vmsDir: the
// folder's path is absolute, and short enough for the sockets inside the bundle.
// An agent checks at its start with the longest id that it will use.
func CheckPath(vmsDir, id string) error {
	if err := ValidateID(id); err != nil {
		return err
	}
	return checkBundlePath(filepath.Join(vmsDir, id))
}

func checkBundlePath(dir string) error {
	if !filepath.IsAbs(dir) {
		return fmt.Errorf("the path %q is relative: give an absolute one", dir)
	}
	longest := filepath.Join(dir, FileGuestSocket)
	if n := len(longest); n > maxSocketPath {
		return fmt.Errorf("%w: %s has %d bytes, %d are allowed: choose a folder for machines whose path is at least %d bytes shorter than %s",
			ErrPathTooLong, longest, n, maxSocketPath, n-maxSocketPath, filepath.Dir(dir))
	}
	return nil
}

// ErrPathTooLong says that a bundle's folder has too long a path for Unix sockets.
var ErrPathTooLong = errors.New("path too long for a socket")
