// SPDX-License-Identifier: MIT

// Package oci reads images in tart's format from an OCI registry: a configuration, disk
// layers of Apple's LZ4 frames, and NVRAM, each by its digest.
package oci
