// SPDX-License-Identifier: MIT

package main

import (
	"archive/tar"
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// guestFiles are the files of the guest that are ours. Those that begin with "#!" are
// executable.
//
//go:embed guest
var guestFiles embed.FS

// The owners of files. The runner runs as a user of its own; minifleet-guest does not, so
// that no job gets at the channel to the host.
const (
	root   = 0
	runner = 1000 // its group too
)

// programs are those in the guest that no package brings.
type programs struct{ guest, runner string }

// rootTree returns the guest's root file system.
func rootTree(ctx context.Context, set packageSet, p programs, k keys) (tree, error) {
	packaged, err := userland(ctx, set)
	if err != nil {
		return nil, err
	}
	t := tree{}
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
		t.dir("usr/"+dir, 0o755, root)
		t.link(dir, "usr/"+dir)
	}
	for _, dir := range []string{"dev", "proc", "sys", "run", "mnt", "usr/local/bin", "var/log", "var/tmp"} {
		t.dir(dir, 0o755, root)
	}
	t.link("var/run", "../run")
	t.link("etc/resolv.conf", "../run/resolv.conf")
	t.dir("tmp", fs.ModeSticky|0o777, root)
	t.dir("var/tmp", fs.ModeSticky|0o777, root)
	t.dir("root", 0o700, root)
	t.dir("home/runner", 0o755, runner)

	for _, name := range slices.Sorted(programsOf(packaged)) {
		if err := addWithLibraries(t, packaged, name); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := applets(ctx, t); err != nil {
		return nil, err
	}
	if err := own(t); err != nil {
		return nil, err
	}
	for home, owner := range map[string]uint32{"root": root, "home/runner": runner} {
		t.dir(home+"/.ssh", 0o700, owner)
		t.file(home+"/.ssh/authorized_keys", 0o600, owner, k.public)
	}
	t.file("etc/ssh/ssh_host_ed25519_key", 0o600, root, k.host)

	guest, err := os.ReadFile(p.guest)
	if err != nil {
		return nil, err
	}
	t.file("usr/sbin/minifleet-guest", 0o755, root, guest)
	listener, err := os.ReadFile(p.runner)
	if err != nil {
		return nil, err
	}
	const runnerDir = "home/runner/actions-runner"
	t.dir(runnerDir, 0o755, runner)
	t.dir(runnerDir+"/bin", 0o755, runner)
	t.file(runnerDir+"/bin/Runner.Listener", 0o755, runner, listener)
	return t, nil
}

// userland returns what the packages bring, but for the kernel: programs and libraries.
func userland(ctx context.Context, set packageSet) (tree, error) {
	t := tree{}
	for _, d := range set.Debs {
		if d.Kernel {
			continue
		}
		err := set.read(ctx, d, func(name string, h *tar.Header, r io.Reader) error {
			library := slices.Contains(libraryDirs, path.Dir(name)) && strings.Contains(name, ".so")
			if !library && !isProgram(name) {
				return nil
			}
			switch h.Typeflag {
			case tar.TypeSymlink:
				t.link(name, h.Linkname)
			case tar.TypeReg:
				data, err := io.ReadAll(r)
				if err != nil {
					return err
				}
				t.file(name, fs.FileMode(h.Mode)&fs.ModePerm, root, data)
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("package %s: %w", d.File, err)
		}
	}
	return t, nil
}

// isProgram reports whether this file of a package is a program of the guest. Newer
// releases of OpenSSH have more than one next to sshd.
func isProgram(name string) bool {
	switch name {
	case pathBusybox, "usr/sbin/sshd", "usr/lib/openssh/sftp-server", "usr/lib/openssh/sshd-session", "usr/lib/openssh/sshd-auth":
		return true
	}
	return false
}

const pathBusybox = "usr/bin/busybox"

func programsOf(t tree) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for name := range t {
			if isProgram(name) && !yield(name) {
				return
			}
		}
	}
}

// applets links busybox to the names of all that it can be. It runs the guest's busybox,
// which alone knows.
func applets(ctx context.Context, t tree) error {
	f, err := os.CreateTemp("", "busybox") // it goes by its name
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(t[pathBusybox].data)
	if err = errors.Join(err, f.Chmod(0o700), f.Close()); err != nil {
		return err
	}
	list, err := output(command(ctx, f.Name(), "--list"))
	if err != nil {
		return err
	}
	for name := range strings.Lines(string(list)) {
		name = strings.TrimSpace(name)
		if _, ok := t["usr/bin/"+name]; !ok {
			t.link("usr/bin/"+name, "busybox")
		}
	}
	t.link("usr/sbin/init", "../bin/busybox")
	return nil
}

// own adds our files.
func own(t tree) error {
	const top = "guest/root"
	return fs.WalkDir(guestFiles, top, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := guestFiles.ReadFile(name)
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		switch {
		case bytes.HasPrefix(data, []byte("#!")):
			mode = 0o755
		case path.Base(name) == "shadow":
			mode = 0o600
		}
		t.file(strings.TrimPrefix(name, top+"/"), mode, root, data)
		return nil
	})
}
