// SPDX-License-Identifier: MIT

//go:build !linux

package guest

import (
	"errors"
	"runtime"
	"syscall"
)

// orphans exist on Linux only: no other system lets a process adopt them.
type orphans struct{}

// dieWithParent has no counterpart here: a listener outlives a killed guest
// until it loses its VM.
func dieWithParent(*syscall.SysProcAttr) {}

func adoptOrphans(*family) (*orphans, error) {
	return nil, errors.New("adopting orphans needs Linux, this is " + runtime.GOOS)
}

func (*orphans) start()                       {}
func (*orphans) kill(func(int) bool) error    { return nil }
func (*orphans) killMarked(mark string) error { return nil }
func (*orphans) close()                       {}
