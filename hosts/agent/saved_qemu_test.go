// SPDX-License-Identifier: MIT

package agent_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/internal/testimage"
	"github.com/minifleet/minifleet/vm"
)

// clock is what a guest with a clock offers.
type clock interface {
	SetClock(ctx context.Context, now time.Time) error
}

// A real VM is saved once, and three others continue from its state, each from clones of
// its own. One that was damaged is found out.
func TestSavedStatesOnQEMU(t *testing.T) {
	images := testimage.Need(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "mf") //nolint:usetesting // its path is too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	v, err := agent.NewVMs(agent.VMsConfig{
		Dir: filepath.Join(dir, "vms"), ImagesDir: images.Dir, Backend: vm.BackendQEMU, VMMProgram: filepath.Join(bin, "minifleet-vmm"),
		QEMU: agent.QEMUConfig{Accelerator: "tcg"}, AllowCopy: true, SavedStates: 4 << 30,
	})
	if err != nil {
		t.Fatal(err)
	}
	order := func(n int) agent.Order {
		return agent.Order{ID: fmt.Sprintf("m-%d", n), Pool: "p", Slot: 1, Image: testimage.Guest, CPUs: 1, MemoryMiB: 512}
	}
	begin := func(n int) agent.Saved {
		t.Helper()
		m, err := v.Create(ctx, order(n), func(string) {})
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Start(ctx); err != nil {
			t.Fatal(err)
		}
		return m.(agent.Saved)
	}
	answer := func(m agent.Saved) guest.Status {
		t.Helper()
		for {
			s, err := m.Guest().Status(ctx, 0, 0)
			if err == nil {
				return s
			}
			if ctx.Err() != nil {
				t.Fatal(err)
			}
		}
	}
	end := func(m agent.Saved) {
		t.Helper()
		if err := m.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		if err := m.Remove(ctx); err != nil {
			t.Fatal(err)
		}
		m.Release()
	}

	first := begin(0)
	if first.Restored() || !first.Lacking() {
		t.Fatalf("restored %t, lacking %t", first.Restored(), first.Lacking())
	}
	saved := answer(first)
	if err := first.Save(ctx, func(context.Context) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if again := answer(first); again.Instance != saved.Instance || first.Lacking() {
		t.Errorf("after the save: %+v, lacking %t", again, first.Lacking())
	}
	end(first)

	for n := 1; n <= 3; n++ {
		m := begin(n)
		began := time.Now()
		s := answer(m)
		t.Logf("continued after %v", time.Since(began))
		if !m.Restored() || m.Lacking() || s.Instance != saved.Instance || s.HasConfig {
			t.Errorf("restored %t, lacking %t, %+v after %+v", m.Restored(), m.Lacking(), s, saved)
		}
		if c, ok := m.Guest().(clock); ok {
			if err := c.SetClock(ctx, time.Now()); err != nil {
				t.Error(err)
			}
		}
		m.Continued()
		// Every stream of the guest goes on, also several at once.
		if _, err := m.Guest().Status(ctx, s.Revision, time.Millisecond); err != nil {
			t.Error(err)
		}
		end(m)
	}

	// A state that was damaged is found out, and costs nothing but itself.
	files, err := filepath.Glob(filepath.Join(dir, "states", "1-*", vm.DirState, "*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("the state's memory is in %v, %v", files, err)
	}
	if err := os.Truncate(files[0], 1<<20); err != nil {
		t.Fatal(err)
	}
	m := begin(4)
	why, err := m.Wait(ctx)
	if err != nil || !strings.Contains(why, string(vm.ReasonRestoreFailed)) {
		t.Errorf("a damaged state: %q, %v", why, err)
	}
	m.Unfit(why)
	end(m)
	m = begin(4) // the same VM, anew
	if m.Restored() || m.Lacking() {
		t.Errorf("after a damaged state: restored %t, lacking %t", m.Restored(), m.Lacking())
	}
	answer(m)
	end(m)
}
