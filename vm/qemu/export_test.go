// SPDX-License-Identifier: MIT

//go:build linux

package qemu

import (
	"testing"
	"time"
)

// LongButton gives guests that shut down the time of a busy machine, until the test ends.
func LongButton(t *testing.T) {
	was := buttonLimit
	t.Cleanup(func() { buttonLimit = was })
	buttonLimit = time.Minute
}
