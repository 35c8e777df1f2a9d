// SPDX-License-Identifier: MIT

// Package testimage finds the images of the small Linux guest that tests boot under QEMU.
// `make test-image` builds them, and `make test` has done so before. A test that needs
// what is not there is skipped, and fails where CI is true. Nothing but tests imports it.
package testimage

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// QEMU is the program that runs the images.
const QEMU = "qemu-system-x86_64"

// The images, by the names of their folders. They differ in this alone.
const (
	// Guest has minifleet-guest at the virtio-serial port options.GuestPortName.
	Guest = "testlinux"
	// SSH has no minifleet-guest, only the SSH server.
	SSH = "sshonly"
)

// Images is where things are. All paths are absolute.
type Images struct {
	// Dir is a folder of images, as an agent's images_dir: Guest and SSH are in it. They
	// are never written to: clone them.
	Dir string
	// QEMU is the path of the program.
	QEMU string
	// Key is the private key file that logs in as root and as runner.
	Key string
	// HostKey is the guest's public key, the text of a line without a host.
	HostKey string
}

// Image is the folder of an image.
func (i Images) Image(name string) string { return filepath.Join(i.Dir, name) }

// TB is what of testing.TB is needed.
type TB interface {
	Helper()
	Skip(args ...any)
	Fatal(args ...any)
}

// Need returns where the images are and QEMU, or ends the test: with a skip, and where CI
// is true with a failure.
func Need(t TB) Images {
	t.Helper()
	images, err := find(".", os.Getenv("PATH"))
	switch {
	case err == nil:
	case os.Getenv("CI") == "true":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
	return images
}

// find looks in the checkout that the folder from lies in.
func find(from, path string) (Images, error) {
	built, err := buildDir(from)
	if err != nil {
		return Images{}, err
	}
	images := Images{Dir: filepath.Join(built, "images"), Key: filepath.Join(built, "image-keys", "id_ed25519")}
	for _, name := range []string{Guest, SSH} {
		if _, err := os.Stat(filepath.Join(images.Image(name), "image.json")); err != nil {
			return Images{}, fmt.Errorf("there is no image of the test guest: run make test-image (%w)", err)
		}
	}
	hostKey, err := os.ReadFile(filepath.Join(built, "image-keys", "ssh_host_ed25519_key.pub"))
	if err != nil {
		return Images{}, fmt.Errorf("there are no keys for the test guest: run make test-image (%w)", err)
	}
	images.HostKey = string(hostKey)
	for _, dir := range filepath.SplitList(path) {
		if images.QEMU, err = exec.LookPath(filepath.Join(dir, QEMU)); err == nil && filepath.IsAbs(dir) {
			return images, nil
		}
	}
	return Images{}, fmt.Errorf("there is no %s, which boots the test guest (Debian: apt-get install qemu-system-x86)", QEMU)
}

// buildDir is the checkout's folder of what the end-to-end tests build.
func buildDir(from string) (string, error) {
	dir, err := filepath.Abs(from)
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "e2e", "go.mod")); err == nil {
			return filepath.Join(dir, "e2e", "bin"), nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("this is no checkout of Minifleet: there is no e2e/go.mod above the working directory")
		}
		dir = parent
	}
}
