// SPDX-License-Identifier: MIT

package vz

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
)

// StateKey says what a saved state belongs to. The framework restores it only where all of
// this is as it was, and does not check all of it by itself.
type StateKey struct {
	HostBuild   string // build of the host's macOS, from kern.osversion
	ImageDigest string
	CPUs        int
	MemoryMiB   int
	VMMVersion  string
}

// Name is a folder's name for states with this key: equal keys have equal names, and
// different keys different ones.
func (k StateKey) Name() (string, error) {
	if k.HostBuild == "" || k.ImageDigest == "" || k.VMMVersion == "" || k.CPUs < 1 || k.MemoryMiB < 1 {
		return "", errors.New("a saved state cannot be kept: its host's build, image digest, version, CPUs or memory is unknown")
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %d %d %q", k.HostBuild, k.ImageDigest, k.CPUs, k.MemoryMiB, k.VMMVersion))
	return hex.EncodeToString(sum[:16]), nil
}
