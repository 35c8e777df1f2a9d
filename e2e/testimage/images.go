// SPDX-License-Identifier: MIT

package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/minifleet/minifleet/imagecache/layout"
	"github.com/minifleet/minifleet/vm/options"
)

// The images, by the names of their folders. They differ in the kernel's command line
// alone.
const (
	nameGuest = "testlinux" // minifleet-guest answers at the virtio-serial port
	nameSSH   = "sshonly"   // nothing but the SSH server answers
)

const (
	fileDisk   = options.FileDisk
	fileKernel = options.FileKernel
	fileInitrd = options.FileInitrd
)

// commandLine is the kernel's: quick to boot without hardware support, and off after a
// panic. "testimage.guest" is read by the guest's etc/service/guest.
const (
	commandLine = "console=ttyS0 quiet panic=-1 nokaslr mitigations=off audit=0 apparmor=0 lsm= cryptomgr.notests i8042.noaux no_timer_check"
	withoutIt   = " testimage.guest=off"
)

// writeImages completes the image that has disk, kernel and initrd, and makes the other
// one of it, whose files are hard links: an image's files never change.
func writeImages(dir string, set packageSet, kernel, runner string) error {
	if err := os.Mkdir(filepath.Join(dir, nameSSH), 0o755); err != nil {
		return err
	}
	for _, file := range []string{fileDisk, fileKernel, fileInitrd} {
		if err := os.Link(filepath.Join(dir, nameGuest, file), filepath.Join(dir, nameSSH, file)); err != nil {
			return err
		}
	}
	versions := []string{"Linux " + kernel}
	for _, d := range set.Debs {
		if d.Name == packageBusybox || d.Name == packageSSH {
			versions = append(versions, d.Name+" "+d.Version)
		}
	}
	versions = append(versions, runner)
	for name, image := range map[string]struct{ line, what string }{
		nameGuest: {commandLine, "minifleet-guest at the virtio-serial port " + options.GuestPortName},
		nameSSH:   {commandLine + withoutIt, "no minifleet-guest"},
	} {
		manifest, err := json.MarshalIndent(layout.Image{
			Schema: layout.ImageSchema, Name: name, GuestOS: "linux",
			Description: fmt.Sprintf("The tests' guest, made by make test-image: %s; SSH for root and runner; %s.", strings.Join(versions, ", "), image.what),
		}, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name, layout.FileImage), append(manifest, '\n'), 0o644); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name, options.FileCommandLine), []byte(image.line+"\n"), 0o644); err != nil {
			return err
		}
	}
	return settleModes(dir)
}

// settleModes gives files and folders the same modes whatever the umask: they are part of
// an image's digest.
func settleModes(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return os.Chmod(path, 0o755)
		default:
			return os.Chmod(path, 0o644)
		}
	})
}

// inputs returns the digest of all that the images are made from: the packages, the
// programs, the keys, and this program, which has the guest's own files in it.
func (b *build) inputs(set packageSet, k keys) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	for _, d := range set.Debs {
		fmt.Fprintf(sum, "package %q %q %q\n", d.Name, d.Version, d.SHA256)
	}
	fmt.Fprintf(sum, "keys %q %q\n", k.public, k.host)
	for _, path := range []string{self, b.guest, b.runner} {
		one, err := fileDigest(path)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(sum, "program %s\n", one)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func fileDigest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// upToDate reports whether the images were made of these inputs and are still there.
func (b *build) upToDate(images, inputs string) bool {
	made, err := os.ReadFile(filepath.Join(b.dir, fileInputs))
	if err != nil || strings.TrimSpace(string(made)) != inputs {
		return false
	}
	for _, name := range []string{nameGuest, nameSSH} {
		for _, file := range []string{fileDisk, fileKernel, fileInitrd, options.FileCommandLine, layout.FileImage} {
			if _, err := os.Stat(filepath.Join(images, name, file)); err != nil {
				return false
			}
		}
	}
	return true
}
