// SPDX-License-Identifier: MIT

//go:build !linux

package freeze

// stands trusts that the process is stopped: only Linux shows each of its threads.
func stands(int) (bool, error) { return true, nil }
