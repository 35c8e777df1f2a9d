// SPDX-License-Identifier: MIT

package manifest

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The schemes of references.
const (
	SchemeLocal  = ""     // in the host's folder of images, put there by hand
	SchemeGCS    = "gs"   // gs://bucket/prefix/name
	SchemeFile   = "file" // file:///path/name
	SchemeOCI    = "oci"  // oci://registry/repository: images in tart's format
	digestPrefix = "sha256:"
)

// DefaultTag is the tag of a remote reference that has neither tag nor digest.
const DefaultTag = "latest"

const (
	maxReference = 1 << 10
	maxName      = 100
	maxTag       = 128
)

// Reference names an image: "name", or "gs://bucket/prefix/name:tag", and with
// "@sha256:..." behind it that very version.
type Reference struct {
	Scheme string
	// Location is what stands between the scheme and the name: bucket and prefix, folder,
	// or registry and the repository's parent.
	Location string
	Name     string
	Tag      string // "latest" where a remote reference has neither tag nor digest
	Digest   string // "sha256:" and 64 of 0-9 and a-f, "" if only the tag names it
}

// Remote reports whether the image is to be fetched from somewhere.
func (r Reference) Remote() bool { return r.Scheme != SchemeLocal }

// At returns the reference to that very version, whatever its tag named.
func (r Reference) At(digest string) Reference {
	r.Tag, r.Digest = "", digest
	return r
}

// String returns it as ParseReference reads it.
func (r Reference) String() string {
	s := r.Name
	if r.Remote() {
		s = r.Scheme + "://" + strings.TrimSuffix(r.Location, "/") + "/" + s
	}
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest
	}
	return s
}

// ParseReference reads a reference:
//
//	name[@sha256:...]
//	gs://bucket[/prefix]/name[:tag][@sha256:...]
//	file:///folder/name[:tag][@sha256:...]
//	oci://registry[/parent]/repository[:tag][@sha256:...]
func ParseReference(s string) (Reference, error) {
	r, err := parseReference(s)
	if err != nil {
		return Reference{}, fmt.Errorf("image %.200q: %w", s, err)
	}
	return r, nil
}

func parseReference(s string) (Reference, error) {
	if len(s) > maxReference {
		return Reference{}, fmt.Errorf("the reference has %d bytes: at most %d are read", len(s), maxReference)
	}
	r := Reference{Name: s}
	scheme, rest, remote := strings.Cut(s, "://")
	if remote {
		last := strings.LastIndexByte(rest, '/')
		if last < 0 {
			return Reference{}, errors.New("the image's name is missing: give gs://BUCKET/NAME, file:///FOLDER/NAME or oci://REGISTRY/NAME")
		}
		r = Reference{Scheme: scheme, Location: rest[:last], Name: rest[last+1:]}
		if scheme == SchemeFile && last == 0 {
			r.Location = "/"
		}
		if err := validateLocation(r.Scheme, r.Location); err != nil {
			return Reference{}, err
		}
	}
	var pinned, tagged bool
	if r.Name, r.Digest, pinned = strings.Cut(r.Name, "@"); pinned && !ValidDigest(r.Digest) {
		return Reference{}, fmt.Errorf("the digest %.80q is not %s and 64 of 0-9 and a-f", r.Digest, digestPrefix)
	}
	if remote {
		r.Name, r.Tag, tagged = strings.Cut(r.Name, ":")
		switch {
		case tagged && !validTagOf(r.Scheme, r.Tag):
			return Reference{}, fmt.Errorf("the tag %.140q: give 1 to %d of a-z, 0-9, '.', '_' and '-', not beginning with '.' or '-'", r.Tag, maxTag)
		case !tagged && !pinned:
			r.Tag = DefaultTag
		}
	}
	return r, ValidateName(r.Name)
}

// ParseLocation reads where images are: gs://BUCKET[/PREFIX], file:///FOLDER or
// oci://REGISTRY[/PARENT]. A slash may follow.
func ParseLocation(s string) (scheme, location string, err error) {
	scheme, location, ok := strings.Cut(s, "://")
	if !ok || len(s) > maxReference {
		return "", "", fmt.Errorf("the location %.200q: give gs://BUCKET/PREFIX, file:///FOLDER or oci://REGISTRY/PARENT", s)
	}
	if len(location) > 1 {
		location = strings.TrimSuffix(location, "/")
	}
	if err := validateLocation(scheme, location); err != nil {
		return "", "", fmt.Errorf("the location %.200q: %w", s, err)
	}
	return scheme, location, nil
}

// ValidateName checks an image's name: 1 to 100 of a-z, 0-9, '.', '_' and '-', starting
// with a letter or a digit. It is a folder's name, so nothing else gets through.
func ValidateName(name string) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("the image's name %.120q has %d characters: give 1 to %d of a-z, 0-9, '.', '_' and '-'", name, len(name), maxName)
	}
	if strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789._-") != "" || strings.IndexByte("._-", name[0]) >= 0 {
		return fmt.Errorf("the image's name %q: use a-z, 0-9, '.', '_' and '-', and start with a letter or a digit", name)
	}
	return nil
}

// ValidTag reports whether tag can be that of an image of ours: 1 to 128 of a-z, 0-9, '.',
// '_' and '-', not beginning with '.' or '-'. It is a file's name, on volumes without case
// too.
func ValidTag(tag string) bool {
	return validTagOf(SchemeOCI, tag) && tag == strings.ToLower(tag)
}

// validTagOf allows upper case where the registry does.
func validTagOf(scheme, tag string) bool {
	if scheme != SchemeOCI {
		return ValidTag(tag)
	}
	if tag == "" || len(tag) > maxTag || tag[0] == '.' || tag[0] == '-' {
		return false
	}
	return strings.Trim(tag, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == ""
}

func validateLocation(scheme, location string) error {
	switch scheme {
	case SchemeFile:
		// A folder's name may have anything that can be printed.
		if !strings.HasPrefix(location, "/") || path.Clean(location) != location || !utf8.ValidString(location) ||
			strings.IndexFunc(location, func(r rune) bool { return !unicode.IsGraphic(r) }) >= 0 {
			return fmt.Errorf("the folder %.120q: give an absolute path without . and .., like file:///srv/images/NAME", location)
		}
		return nil
	case SchemeGCS:
		bucket, prefix, _ := strings.Cut(location, "/")
		if len(bucket) < 3 || len(bucket) > 222 || strings.Trim(bucket, "abcdefghijklmnopqrstuvwxyz0123456789._-") != "" ||
			strings.IndexByte("._-", bucket[0]) >= 0 || strings.IndexByte("._-", bucket[len(bucket)-1]) >= 0 {
			return fmt.Errorf("the bucket %.120q: its name has 3 to 222 of a-z, 0-9, '.', '_' and '-', a letter or a digit at both ends", bucket)
		}
		return validateParts(prefix, len(location) > len(bucket))
	case SchemeOCI:
		registry, parent, _ := strings.Cut(location, "/")
		if registry == "" || strings.Trim(registry, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-:[]") != "" {
			return fmt.Errorf("the registry %.120q: give a host name or HOST:PORT", registry)
		}
		if parent != strings.ToLower(parent) {
			return fmt.Errorf("the repository %.120q: registries allow no upper case", parent)
		}
		return validateParts(parent, len(location) > len(registry))
	default:
		return fmt.Errorf("the scheme %.40q: give gs://BUCKET/NAME, file:///FOLDER/NAME or oci://REGISTRY/NAME", scheme)
	}
}

// validateParts checks what stands between the bucket or registry and the name, if
// anything does.
func validateParts(prefix string, any bool) error {
	if !any {
		return nil
	}
	for part := range strings.SplitSeq(prefix, "/") {
		if part == "" || part == "." || part == ".." ||
			strings.Trim(part, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") != "" {
			return fmt.Errorf("%.120q: its parts have a-z, A-Z, 0-9, '.', '_' and '-', and an empty one, . and .. are none", prefix)
		}
	}
	return nil
}
