// SPDX-License-Identifier: MIT

package imagecache

import (
	"fmt"
	"strings"
)

const (
	maxNameLength = 100
	digestPrefix  = "sha256:"
)

// ValidateName checks an image's name: 1 to 100 of a-z, 0-9, '.', '_' and '-', starting
// with a letter or a digit. It is a folder's name, so nothing else gets through.
func ValidateName(name string) error {
	if name == "" || len(name) > maxNameLength {
		return fmt.Errorf("image name %.120q has %d characters: give 1 to %d of a-z, 0-9, '.', '_' and '-'", name, len(name), maxNameLength)
	}
	for i := range len(name) {
		c := name[i]
		letter := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !letter && (i == 0 || c != '.' && c != '_' && c != '-') {
			return fmt.Errorf("image name %q: use a-z, 0-9, '.', '_' and '-', and start with a letter or a digit", name)
		}
	}
	return nil
}

// reference is what a pool asks for: a name, and if a digest follows ("name@sha256:...")
// that very version.
type reference struct{ name, digest string }

func parseReference(ref string) (reference, error) {
	name, digest, pinned := strings.Cut(ref, "@")
	if err := ValidateName(name); err != nil {
		return reference{}, err
	}
	if pinned && !validDigest(digest) {
		return reference{}, fmt.Errorf("image %s: the digest %.80q is not %s and 64 of 0-9 and a-f", name, digest, digestPrefix)
	}
	return reference{name: name, digest: digest}, nil
}

// remote reports whether a reference names an image that is published somewhere.
func remote(ref string) bool { return strings.Contains(ref, "://") }

func validDigest(d string) bool {
	hex, ok := strings.CutPrefix(d, digestPrefix)
	return ok && len(hex) == 64 && strings.Trim(hex, "0123456789abcdef") == ""
}
