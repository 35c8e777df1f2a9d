// SPDX-License-Identifier: MIT

package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDiskHasTheTree(t *testing.T) {
	needTools(t)
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk")
	tr := tree{}
	tr.dir("tmp", fs.ModeSticky|0o777, root)
	tr.file("home/it's \"a\" name", 0o640, runner, []byte("text"))
	tr.link("home/link", "it's \"a\" name")
	if err := writeDisk(t.Context(), disk, filepath.Join(dir, "contents"), tr); err != nil {
		t.Fatal(err)
	}
	for question, want := range map[string][]string{
		"stat /tmp":                    {"Type: directory", "Mode:  01777", "User:     0", "ctime: 0x6553f100"},
		`stat "/home/it's ""a"" name"`: {"Type: regular", "Mode:  0640", "User:  1000   Group:  1000", "Size: 4", "mtime: 0x6553f100", "crtime: 0x6553f100"},
		"stat /home/link":              {"Type: symlink", `Fast link dest: "it's "a" name"`},
		"stat /lost+found":             {"User:     0", "atime: 0x6553f100"},
		"stat /":                       {"User:     0", "crtime: 0x6553f100"},
		`cat "/home/it's ""a"" name"`:  {"text"},
		"show_super_stats -h":          {"Filesystem volume name:   root", "Filesystem state:         clean"},
	} {
		out, err := output(command(t.Context(), "debugfs", "-R", question, disk))
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range want {
			if !strings.Contains(string(out), w) {
				t.Errorf("%s has no %q:\n%s", question, w, out)
			}
		}
	}
	info, err := os.Stat(disk)
	if err != nil || info.Size() != diskSize || info.Mode().Perm() != 0o644 {
		t.Errorf("the disk is %v, %v", info, err)
	}
}

// What debugfs could not do fails the build: it ends with success all the same.
func TestDebugfsFailureIsFound(t *testing.T) {
	needTools(t)
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk")
	if err := writeDisk(t.Context(), disk, filepath.Join(dir, "contents"), tree{}); err != nil {
		t.Fatal(err)
	}
	err := debugfs(t.Context(), disk, []byte("mkdir a\nwrite /no/such/file b\n"))
	if err == nil || !strings.Contains(err.Error(), "/no/such/file") {
		t.Errorf("error %v", err)
	}
}

func TestCpio(t *testing.T) {
	tr := tree{}
	tr.file("bin/sh", 0o755, root, []byte("12345"))
	tr.link("init", "bin/sh")
	got := string(cpio(tr))
	const header = "07070100000002000081ED000000000000000000000001" + "6553F100" + "00000005" + "00000000000000000000000000000000" + "00000007" + "00000000"
	if want := header + "bin/sh\x00\x00\x00\x00" + "12345\x00\x00\x00"; !strings.Contains(got, want) {
		t.Errorf("no entry %q in\n%q", want, got)
	}
	for _, name := range []string{"bin\x00", "init\x00", "TRAILER!!!\x00"} {
		if at := strings.Index(got, name); at < 110 || got[at-110:at-104] != "070701" {
			t.Errorf("no entry %q in\n%q", name, got)
		}
	}
	if len(got)%4 != 0 {
		t.Errorf("%d bytes", len(got))
	}
}
