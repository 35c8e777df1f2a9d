// SPDX-License-Identifier: MIT

package vm_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/vm"
)

func TestScan(t *testing.T) {
	t.Parallel()
	vms := newVMs(t)
	running := start(t, create(t, vms, newSpec("b-running")))
	ended := start(t, create(t, vms, newSpec("c-ended")))
	if err := ended.Stop(within(t)); err != nil {
		t.Fatal(err)
	}
	create(t, vms, newSpec("a-never-started"))
	broken := create(t, vms, newSpec("d-broken"))
	write(t, filepath.Join(broken, vm.FileSpec), "{")
	moved := filepath.Join(vms, "e-moved")
	if err := os.Rename(create(t, vms, newSpec("e-was")), moved); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{".new-f-1234", ".trash-g-1234", ".trash-g-1234/root", "operators-own", "Not-An-Id"} {
		if err := os.Mkdir(filepath.Join(vms, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(vms, "a-file"), "")
	busy := filepath.Join(vms, ".new-h-1234") // someone makes a bundle right now
	if err := os.Mkdir(busy, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(busy, vm.FileLock), "")
	lock, err := vm.AcquireLock(within(t), busy)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()

	found, err := vm.Scan(within(t), vms)
	if err != nil {
		t.Fatal(err)
	}
	type brief struct {
		Name      string
		Condition vm.Condition
		Reason    vm.Reason
		Spec      bool
	}
	var got []brief
	for _, f := range found {
		got = append(got, brief{filepath.Base(f.Dir), f.Condition, f.State.Reason, f.SpecErr == nil && f.Spec.ID != ""})
		if (f.Condition == vm.Unfinished) != (f.ID == "") {
			t.Errorf("%s has the id %q", f.Dir, f.ID)
		}
	}
	want := []brief{
		{".new-f-1234", vm.Unfinished, "", false},
		{".trash-g-1234", vm.Unfinished, "", false},
		{"a-never-started", vm.Ended, vm.ReasonVMMDied, true},
		{"b-running", vm.Running, "", true},
		{"c-ended", vm.Ended, vm.ReasonStopped, true},
		{"d-broken", vm.Ended, vm.ReasonVMMDied, false},
		{"e-moved", vm.Ended, vm.ReasonVMMDied, false},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}

	for _, f := range found {
		err := vm.Remove(within(t), f.Dir)
		if f.Condition == vm.Running {
			if !errors.Is(err, vm.ErrLocked) {
				t.Errorf("remove the running machine: %v", err)
			}
			continue
		}
		if err != nil {
			t.Error(err)
		}
	}
	if diff := cmp.Diff([]string{".new-h-1234", "Not-An-Id", "a-file", "b-running", "operators-own"}, names(t, vms)); diff != "" {
		t.Error(diff)
	}
	if err := running.Stop(within(t)); err != nil {
		t.Fatal(err)
	}
}

func TestScanOfNoFolder(t *testing.T) {
	t.Parallel()
	if _, err := vm.Scan(within(t), "/no/such/folder"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("scan: %v", err)
	}
}

func TestRemove(t *testing.T) {
	t.Parallel()
	vms := newVMs(t)
	own := filepath.Join(vms, "operators-own")
	if err := os.Mkdir(own, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(own, "thesis.txt"), "years of work")
	for name, dir := range map[string]string{"not a bundle": own, "no name of a bundle": filepath.Join(vms, "Own")} {
		if err := vm.Remove(within(t), dir); err == nil {
			t.Errorf("%s: removed", name)
		}
	}
	if _, err := os.Stat(filepath.Join(own, "thesis.txt")); err != nil {
		t.Error(err)
	}
	if err := vm.Remove(within(t), filepath.Join(vms, "gone-1")); err != nil {
		t.Errorf("remove what is not there: %v", err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
