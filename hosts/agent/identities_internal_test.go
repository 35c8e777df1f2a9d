// SPDX-License-Identifier: MIT

package agent

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/vm/options"
)

func openTestIdentities(t *testing.T, dir string) *identities {
	t.Helper()
	ids, err := openIdentities(filepath.Join(dir, fileSlots), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

func identityOf(t *testing.T, ids *identities, slot int) options.Identity {
	t.Helper()
	id, err := ids.of(slot)
	if err != nil {
		t.Fatal(err)
	}
	if err := id.Validate(true); err != nil {
		t.Fatal(err)
	}
	return id
}

func TestIdentitiesAreMadeOnce(t *testing.T) {
	dir := t.TempDir()
	ids := openTestIdentities(t, dir)
	one, two := identityOf(t, ids, 1), identityOf(t, ids, 2)
	if one == two || one.MAC == two.MAC || one.ECID == two.ECID {
		t.Errorf("slots 1 and 2 share %v and %v", one, two)
	}
	for range 2 { // and after a restart
		if identityOf(t, ids, 1) != one || identityOf(t, ids, 2) != two {
			t.Error("a slot has another identity than before")
		}
		ids = openTestIdentities(t, dir)
	}
}

func TestAnIdentityThatCannotBeKeptIsNotGivenOut(t *testing.T) {
	dir := t.TempDir()
	ids := openTestIdentities(t, filepath.Join(dir, "gone"))
	if id, err := ids.of(1); err == nil || !strings.Contains(err.Error(), "slot 1") {
		t.Fatalf("slot 1 has %v, %v", id, err)
	}
	if len(ids.known) != 0 {
		t.Error("what is not on the disk counts as known")
	}
}

// Where nothing can be written a VM that runs still has the identity that it has.
func TestTheIdentityOfARunningVMIsKeptInMindAtLeast(t *testing.T) {
	dir := t.TempDir()
	ids := openTestIdentities(t, dir)
	one := identityOf(t, ids, 1)
	ids.path = filepath.Join(dir, "gone", fileSlots)
	if err := ids.keep(2, one); err == nil || !strings.Contains(err.Error(), "slot 2") {
		t.Errorf("nothing is said of it: %v", err)
	}
	if identityOf(t, ids, 2) != one {
		t.Error("the slot of a running VM has another identity than the VM")
	}
	if id, err := ids.of(1); err == nil {
		t.Errorf("slot 1 has %v, which is not on the disk", id)
	}
}

// What runs is right: the file may be of an earlier day.
func TestTheIdentityOfARunningVMIsKept(t *testing.T) {
	dir := t.TempDir()
	ids := openTestIdentities(t, dir)
	one := identityOf(t, ids, 1)
	identityOf(t, ids, 2)
	if err := ids.keep(2, one); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if identityOf(t, ids, 2) != one {
			t.Error("the slot of a running VM has another identity than the VM")
		}
		if identityOf(t, ids, 1) == one {
			t.Error("two slots share an identity")
		}
		ids = openTestIdentities(t, dir)
	}
}

const goodSlots = `{"schema":1,"slots":{"1":{"ecid":"11","mac":"02:00:00:00:00:01"},"2":{"ecid":"12","mac":"02:00:00:00:00:02"}}}`

func TestDamagedIdentitiesAreLaidAside(t *testing.T) {
	for name, text := range map[string]string{
		"empty":       "",
		"cut off":     goodSlots[:40],
		"more":        goodSlots + "{}",
		"unknown key": `{"schema":1,"slots":{},"speed":1}`,
		"schema":      `{"schema":2,"slots":{}}`,
		"slot 0":      strings.Replace(goodSlots, `"1":`, `"0":`, 1),
		"same MAC":    strings.Replace(goodSlots, ":01", ":02", 1),
		"same ECID":   strings.Replace(goodSlots, `"11"`, `"12"`, 1),
		"no ECID":     strings.Replace(goodSlots, `"11"`, `"0"`, 1),
		"global MAC":  strings.Replace(goodSlots, `"02:00:00:00:00:01"`, `"00:00:00:00:00:01"`, 1),
		"huge":        goodSlots + strings.Repeat(" ", maxSlotsBytes),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, fileSlots)
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			ids := openTestIdentities(t, dir)
			if len(ids.known) != 0 {
				t.Errorf("it is believed: %v", ids.known)
			}
			if kept, err := os.ReadFile(path + ".damaged"); err != nil || string(kept) != text {
				t.Errorf("the damaged file is not kept: %v", err)
			}
			one := identityOf(t, ids, 1)
			if identityOf(t, openTestIdentities(t, dir), 1) != one {
				t.Error("what was made anew is not kept")
			}
		})
	}
}

func FuzzSlotsFile(f *testing.F) {
	f.Add([]byte(goodSlots))
	f.Add([]byte(`{"schema":1,"slots":{}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		known, err := parseSlots(raw)
		if (known == nil) == (err == nil) {
			t.Fatalf("%v with %v", known, err)
		}
		seen := map[options.Identity]bool{}
		for n, id := range known {
			if err := id.Validate(true); err != nil || n < 1 || seen[id] {
				t.Errorf("slot %d: %v, %v", n, id, err)
			}
			seen[id] = true
		}
	})
}
