// SPDX-License-Identifier: MIT

package manifest

import (
	"fmt"
	"strings"
)

const (
	maxPath    = 512
	maxSegment = 200
)

// reserved are the names at the top of an image that mean something to Minifleet: what
// describes an image, and what a machine's bundle holds beside the image's files.
var reserved = [...]string{
	"image.json", "spec.json", "lock", "vmm.json", "writer.json", "status.jsonl", "vmm.sock", "guest.sock", "inner.sock", "vmm.log", "console.log",
}

// ValidatePath checks the path of a file of an image: relative and clean, of printable
// ASCII without a backslash, so that it is the same file on every volume, and no name that
// Minifleet uses itself.
func ValidatePath(path string) error {
	if path == "" || len(path) > maxPath {
		return fmt.Errorf("the path %.80q has %d bytes: it must have 1 to %d", path, len(path), maxPath)
	}
	for i := range len(path) {
		if c := path[i]; c < ' ' || c > '~' || c == '\\' {
			return fmt.Errorf("the path %.80q has the byte %q: use printable ASCII without backslashes", path, c)
		}
	}
	for segment := range strings.SplitSeq(path, "/") {
		switch {
		case segment == "" || segment == "." || segment == "..":
			return fmt.Errorf("the path %.80q is absolute, climbs or is not clean: make it relative, without empty parts and without . or .. in it", path)
		case len(segment) > maxSegment:
			return fmt.Errorf("the path %.80q has a part of %d bytes: at most %d are possible", path, len(segment), maxSegment)
		}
	}
	top, _, _ := strings.Cut(strings.ToLower(path), "/")
	if top[0] == '.' {
		return fmt.Errorf("the path %.80q begins with a dot: such names are Minifleet's own: rename it in the image", path)
	}
	for _, name := range reserved {
		if top == name || strings.HasPrefix(top, name+".") {
			return fmt.Errorf("the path %.80q begins with %s, a name that Minifleet uses itself: rename it in the image", path, name)
		}
	}
	return nil
}
