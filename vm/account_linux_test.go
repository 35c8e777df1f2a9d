// SPDX-License-Identifier: MIT

package vm_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/vm"
)

// TestMachineOfAnotherUser: an agent that is root has a vmm run as another user, from the
// start to the end, and takes it over after a restart.
func TestMachineOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		without(t, "only root can start a vmm as another user")
	}
	as, err := vm.LookUpAccount("nobody")
	if err != nil {
		without(t, "no user nobody: %v", err)
	}
	vms := newVMs(t)
	spec := newSpec("theirs-1")
	// Where that user can run them.
	vmm := copyProgram(t, vmmProgram, filepath.Join(vms, "minifleet-vmm"))
	spec.Process.GuestProgram = copyProgram(t, spec.Process.GuestProgram, filepath.Join(vms, "guest"))
	if err := os.Chmod(vms, 0o711); err != nil {
		t.Fatal(err)
	}
	dir := create(t, vms, spec)
	// What an image brought belongs to the machine too.
	if err := os.WriteFile(filepath.Join(dir, "disk.img"), []byte("disk"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", "/root")
	t.Setenv("TMPDIR", "/root/tmp")
	m, err := vm.StartAs(within(t), dir, vmm, &as)
	if err != nil {
		t.Fatal(err)
	}
	own(t, m)
	awaitGuest(t, m)
	for what, pid := range map[string]int{"vmm": m.VMM().PID, "guest": facts(t, m).PID} {
		if ids := status(t, pid, "Uid"); ids != strings.Repeat(fmt.Sprintf("\t%d", as.UID), 4) {
			t.Errorf("the %s runs as %q, want %d", what, ids, as.UID)
		}
		if ids := strings.Fields(status(t, pid, "Groups")); !slices.Equal(ids, []string{fmt.Sprint(as.GID)}) {
			t.Errorf("the %s has the groups %v, want its own only", what, ids)
		}
		if caps := status(t, pid, "CapEff"); strings.Trim(caps, "\t0") != "" {
			t.Errorf("the %s kept capabilities: %s", what, caps)
		}
	}
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", m.VMM().PID))
	if err != nil || strings.Contains(string(env), "HOME=/root") || strings.Contains(string(env), "TMPDIR=") || !strings.Contains(string(env), "USER=nobody") || !strings.Contains(string(env), "HOME="+as.Home) {
		t.Errorf("the vmm's environment: %q, %v", env, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) < 8 {
		t.Fatalf("%d files, %v", len(entries), err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if owner := info.Sys().(*syscall.Stat_t).Uid; int(owner) != as.UID {
			t.Errorf("%s belongs to %d", e.Name(), owner)
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("bundle: %v, %v; want 0700", info.Mode(), err)
	}
	m.Detach()
	adopted, err := vm.Adopt(within(t), dir)
	if err != nil {
		t.Fatal(err)
	}
	own(t, adopted)
	if err := adopted.Stop(within(t)); err != nil {
		t.Fatal(err)
	}
	if reason, detail := adopted.Final(); reason != vm.ReasonStopped {
		t.Errorf("final: %s, %s", reason, detail)
	}
	if err := vm.Remove(within(t), dir); err != nil {
		t.Fatal(err)
	}
}

// TestAnotherUserOutOfReach: the error names what is in the way, and nothing runs.
func TestAnotherUserOutOfReach(t *testing.T) {
	if os.Geteuid() != 0 {
		without(t, "only root can start a vmm as another user")
	}
	as, err := vm.LookUpAccount("nobody")
	if err != nil {
		without(t, "no user nobody: %v", err)
	}
	vms := newVMs(t) // 0700
	// Root starts the program, which then cannot get at its bundle.
	dir := create(t, vms, newSpec("far-1"))
	if _, err := vm.StartAs(within(t), dir, vmmProgram, &as); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("error %v", err)
	}
	wantLocked(t, dir, false)
}

func TestAccounts(t *testing.T) {
	for name, want := range map[string]string{"root": "ordinary user", "no such user": "look up user"} {
		if a, err := vm.LookUpAccount(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
	}
	if os.Geteuid() != 0 {
		if err := (vm.Account{Name: "x", UID: os.Geteuid() + 1}).Assume(); err == nil {
			t.Error("an ordinary user became another")
		}
	}
	if err := (vm.Account{Name: "self", UID: os.Geteuid()}).Assume(); err != nil {
		t.Errorf("to become oneself: %v", err)
	}
	a := vm.Account{Name: "builder", UID: 501}
	vmm := []string{"/usr/local/bin/minifleet-vmm", "run", "--ready-fd", "3"}
	want := []string{"/bin/launchctl", "asuser", "501", "/usr/local/bin/minifleet-vmm", "run", "--ready-fd", "3", "--as", "builder"}
	if diff := cmp.Diff(want, a.Command("darwin", slices.Clone(vmm))); diff != "" {
		t.Errorf("on a Mac: %s", diff)
	}
	if diff := cmp.Diff(want[3:], a.Command("linux", slices.Clone(vmm))); diff != "" {
		t.Errorf("on Linux: %s", diff)
	}
}

// status returns a line of /proc/PID/status.
func status(t *testing.T, pid int, key string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, key+":"); ok {
			return strings.TrimRight(rest, "\n ")
		}
	}
	t.Fatalf("no %s in the status of %d", key, pid)
	return ""
}

func copyProgram(t *testing.T, from, to string) string {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return to
}
