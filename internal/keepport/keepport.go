// SPDX-License-Identifier: MIT

// Package keepport keeps a port of loopback for a test that listens there later, or again
// after a restart: a port that was only free a moment ago is somebody else's by then, now
// and then.
package keepport

import "testing"

// Address returns an address at which nobody listens. Until the test ends its port is given
// to no program that asks for any port, and to whoever asks for this one.
func Address(t testing.TB) string {
	t.Helper()
	address, release, err := keep()
	if err != nil {
		t.Fatalf("keep a port: %v", err)
	}
	t.Cleanup(release)
	return address
}
