// SPDX-License-Identifier: MIT

package fleet

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// An image is named in one of two ways: by a name, for one that was put into every
// host's folder by hand, or by a reference (gs://, file:// or oci://) whose tag, or
// digest, stands for one that hosts fetch. A reference that a runner is made from
// always has a digest.

// maxReference bounds a reference, so that reasons and rows stay short.
const maxReference = 512

var (
	imageDigest  = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	imageSchemes = []string{"gs", "file", "oci"}
)

// RemoteImage reports whether an image is a reference, and not a name.
func RemoteImage(image string) bool { return strings.Contains(image, "://") }

// ValidDigest reports whether a text is the digest of an image.
func ValidDigest(s string) bool { return imageDigest.MatchString(s) }

// checkImage returns what is wrong with a pool's image, as far as this package can say:
// the grammar of references is checked where the configuration is read.
func checkImage(image string) error {
	if !RemoteImage(image) {
		if !ValidName(image) {
			return fmt.Errorf("image %.80q: want a name of 1 to 32 lower-case letters, digits and dashes, or a reference such as gs://bucket/name:tag", image)
		}
		return nil
	}
	scheme, rest, _ := strings.Cut(image, "://")
	switch digest := ImageDigest(image); {
	case len(image) > maxReference:
		return fmt.Errorf("image %.80q... is longer than %d bytes", image, maxReference)
	case !slices.Contains(imageSchemes, scheme):
		return fmt.Errorf("image %.80q: want a name, or a reference that begins with gs://, file:// or oci://", image)
	case rest == "" || strings.ContainsFunc(image, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }):
		return fmt.Errorf("image %.80q: a reference has a place and a name, and no spaces", image)
	case strings.Contains(image, "@") && !ValidDigest(digest):
		return fmt.Errorf("image %.80q: what follows @ must be sha256: and 64 hex digits", image)
	}
	return nil
}

// ImageDigest returns the digest of a reference, "" if it has none.
func ImageDigest(image string) string {
	_, digest, _ := strings.Cut(image, "@")
	return digest
}

// ImageAt returns the reference of one digest of what another reference names: its tag
// goes, since the digest says all.
func ImageAt(reference, digest string) string {
	base, _, _ := strings.Cut(reference, "@")
	if colon := strings.LastIndex(base, ":"); colon > strings.LastIndex(base, "/") {
		base = base[:colon]
	}
	return base + "@" + digest
}

// ImageKey is what a host lists an image under: its digest, or the name.
func ImageKey(image string) string {
	if RemoteImage(image) {
		return ImageDigest(image)
	}
	return image
}

// SameImage reports whether two images have the same content, wherever they come from.
func SameImage(a, b string) bool { return a != "" && b != "" && ImageKey(a) == ImageKey(b) }

// ImageShort is an image as a sentence names it: its name and the first digits of its digest.
func ImageShort(image string) string {
	if !RemoteImage(image) {
		return image
	}
	base, digest, pinned := strings.Cut(image, "@")
	name := base[strings.LastIndex(base, "/")+1:]
	if !pinned {
		return name
	}
	name, _, _ = strings.Cut(name, ":")
	digest = strings.TrimPrefix(digest, "sha256:")
	return name + "@" + digest[:min(12, len(digest))]
}
