// SPDX-License-Identifier: MIT

package manifest

// The schemes of references.
const (
	SchemeLocal  = ""     // in the host's folder of images, put there by hand
	SchemeGCS    = "gs"   // gs://bucket/prefix/name
	SchemeFile   = "file" // file:///path/name
	SchemeOCI    = "oci"  // oci://registry/repository: images in tart's format
	digestPrefix = "sha256:"
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
