// SPDX-License-Identifier: MIT

package main

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

func TestLibrariesOfTheGuest(t *testing.T) {
	made := madeBy(t)
	set, _, err := ensurePackages(t.Context(), made)
	if err != nil {
		t.Fatal(err)
	}
	packaged, err := userland(t.Context(), set)
	if err != nil {
		t.Fatal(err)
	}
	to := tree{}
	if err := addWithLibraries(to, packaged, "usr/sbin/sshd"); err != nil {
		t.Fatal(err)
	}
	names := strings.Join(slices.Sorted(maps.Keys(to)), " ")
	for _, want := range []string{"usr/sbin/sshd", "/ld-linux-x86-64.so.2", "/libc.so.6", "/libcrypto.so.3"} {
		if !strings.Contains(names, want) {
			t.Errorf("no %s among %s", want, names)
		}
	}
	maps.DeleteFunc(packaged, func(name string, _ node) bool { return strings.Contains(name, "/libcrypto.so") })
	if err := addWithLibraries(tree{}, packaged, "usr/sbin/sshd"); err == nil || !strings.Contains(err.Error(), "libcrypto.so.3: no package has it") {
		t.Errorf("error %v", err)
	}
}
