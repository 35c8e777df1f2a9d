// SPDX-License-Identifier: MIT

package agent_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/internal/testimage"
	"github.com/minifleet/minifleet/vm"
)

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
		for _, now := range []time.Time{time.Date(2031, 5, 1, 0, 0, 0, 0, time.UTC), time.Now()} {
			g := m.Guest().(*guest.Client)
			if err := g.SetClock(ctx, now); err != nil {
				t.Error(err)
			}
			var out strings.Builder
			code, err := g.Exec(ctx, guest.ExecRequest{Argv: []string{"date", "+%s"}}, &out, nil)
			seconds, parseErr := strconv.ParseInt(strings.TrimSpace(out.String()), 10, 64)
			if late := time.Unix(seconds, 0).Sub(now); code != 0 || err != nil || parseErr != nil || late.Abs() > time.Minute {
				t.Errorf("the guest's clock is %q after it was set to %v: %d, %v", out.String(), now, code, err)
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
	damaged, err := v.Create(ctx, order(4), func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	why := damaged.Start(ctx)
	if vm.ReasonOf(why, "") != vm.ReasonRestoreFailed {
		t.Errorf("a damaged state: %v", why)
	}
	damaged.(agent.Saved).Unfit(fmt.Sprint(why))
	end(damaged.(agent.Saved))
	m := begin(4) // the same VM, anew
	if m.Restored() || m.Lacking() {
		t.Errorf("after a damaged state: restored %t, lacking %t", m.Restored(), m.Lacking())
	}
	answer(m)
	end(m)
}
