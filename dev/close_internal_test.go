// SPDX-License-Identifier: MIT

package dev

import (
	"testing"
	"time"

	"github.com/minifleet/minifleet/vm"
)

// A VM that ends between the look at the folder and the turn to end it is ended.
func TestEndsWhatHasEndedSince(t *testing.T) {
	dir, err := vm.Create(t.Context(), vm.CreateConfig{Dir: t.TempDir(), Spec: vm.Spec{
		ID: "r-1", Backend: vm.BackendProcess, CPUs: 1, MemoryMiB: 256, MaxLife: time.Hour, Process: &vm.ProcessSpec{GuestProgram: "/bin/true"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := end(t.Context(), vm.Found{Dir: dir, Condition: vm.Running}); err != nil {
		t.Error(err)
	}
}
