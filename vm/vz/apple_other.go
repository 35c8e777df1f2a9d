// SPDX-License-Identifier: MIT

//go:build !(darwin && arm64 && cgo)

package vz

import (
	"errors"
	"runtime"
)

// apple is nothing here.
type apple struct{}

func (apple) host() (host, error) {
	if runtime.GOOS == "darwin" {
		return host{}, errors.New("this minifleet-vmm was built without Virtualization.framework: build it on a Mac with Apple silicon and Xcode's command line tools (make build)")
	}
	return host{}, errors.New("the backend vz needs a Mac with Apple silicon: use another backend on this host")
}

func (a apple) open(plan) (framework, error) {
	_, err := a.host()
	return nil, err
}
