// SPDX-License-Identifier: MIT

// Package oci reads images in tart's format from an OCI registry: a configuration, disk
// layers of Apple's LZ4 frames, and NVRAM, each by its digest. It writes them into a folder
// as an image of ours, and makes the manifest that such an image has. Where the folder is,
// and what becomes of it, is others' business.
package oci
