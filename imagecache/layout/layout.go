// SPDX-License-Identifier: MIT

// Package layout reads the folders in which images lie on a disk: ours, tart's VM folder,
// and shoes-vz's template. It says what image a folder holds; it moves no bytes.
package layout

import "github.com/minifleet/minifleet/imagecache/manifest"

// Template is an image in a folder, whatever its layout.
type Template struct {
	Dir string
	// Manifest has everything but the chunks: it has neither ChunkBytes nor Files.
	Manifest manifest.Manifest
	Files    []File // in the order of their paths
}

// File is a file that the image has, under the name that our backends read.
type File struct {
	Path string // in the image, as in manifest.File
	Mode uint32
	// Source is where its content lies; where it is "", Content is it, made from what the
	// folder says elsewhere.
	Source  string
	Content []byte
}
