// SPDX-License-Identifier: MIT

//go:build !linux

package qemu

import (
	"context"
	"errors"

	"github.com/minifleet/minifleet/vm"
)

func (Config) open(context.Context, vm.OpenConfig) (vm.Instance, error) {
	return nil, vm.WithReason(vm.ReasonBadConfiguration, errors.New("the backend qemu needs QEMU on Linux: use another backend in the pool, or a host with Linux"))
}

// HandOver is for a forward, which only Linux has.
func HandOver(string, string) error { return errors.ErrUnsupported }
