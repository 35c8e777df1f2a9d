// SPDX-License-Identifier: MIT

// Command testimage builds the images of the small Linux guest that the tests boot under
// QEMU: Debian's kernel, busybox as init and userland, the real OpenSSH server,
// minifleet-guest, and the runner client of the end-to-end tests. It needs neither root
// nor mounts: packages are fetched and read, never installed. Equal inputs give equal
// bytes, and unchanged inputs build nothing.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stderr, os.Getenv))
}

// The exit codes beside 0, when the images are there, and 1.
const (
	exitUsage   = 2
	exitMissing = 3 // a tool is missing, or this machine is not one that can build them
)

func run(ctx context.Context, args []string, stderr io.Writer, getenv func(string) string) int {
	var b build
	var optional, check bool
	f := flag.NewFlagSet("testimage", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&b.dir, "dir", "", "`folder` of what is built and kept: images, image-keys, packages")
	f.StringVar(&b.guest, "guest", "", "minifleet-guest for linux/amd64, a `file`")
	f.StringVar(&b.runner, "runner", "", "the runner client for linux/amd64, a `file`")
	f.BoolVar(&optional, "optional", false, "succeed without images where they cannot be built, but with CI=true")
	f.BoolVar(&check, "check", false, "say only whether this machine can build the images and boot them")
	if err := f.Parse(args); err != nil {
		return exitUsage
	}
	if check {
		if err := checkMachine(tool{"qemu-system-x86_64", "qemu-system-x86"}); err != nil {
			fmt.Fprintln(stderr, err)
			return exitMissing
		}
		return 0
	}
	if b.dir == "" || b.guest == "" || b.runner == "" || f.NArg() > 0 {
		fmt.Fprintln(stderr, "testimage: -dir, -guest and -runner are required, and nothing else is taken")
		return exitUsage
	}
	b.say = func(format string, args ...any) { fmt.Fprintf(stderr, "test image: "+format+"\n", args...) }

	err := b.run(ctx)
	var missing *missingError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &missing) && optional && getenv("CI") != "true":
		b.say("none is built, and the tests that boot it are skipped: %v", err)
		return 0
	case errors.As(err, &missing):
		b.say("%v", err)
		return exitMissing
	default:
		b.say("%v", err)
		return 1
	}
}

// build is one run of the program.
type build struct {
	dir           string
	guest, runner string
	say           func(format string, args ...any)
}

// The folders and files in build.dir. Package internal/testimage knows the first two.
const (
	dirImages   = "images"
	dirKeys     = "image-keys"
	dirPackages = "packages"
	fileInputs  = "images.inputs" // the digest of what the images were built from
)

func (b *build) run(ctx context.Context) error {
	if err := checkMachine(); err != nil {
		return err
	}
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return err
	}
	keys, err := ensureKeys(ctx, filepath.Join(b.dir, dirKeys))
	if err != nil {
		return err
	}
	start := time.Now()
	lap := func(what string) {
		b.say("%-28s %5.1f s", what, time.Since(start).Seconds())
		start = time.Now()
	}
	set, fetched, err := ensurePackages(ctx, filepath.Join(b.dir, dirPackages))
	if err != nil {
		return err
	}
	if fetched {
		lap("packages fetched")
	}
	inputs, err := b.inputs(set, keys)
	if err != nil {
		return err
	}
	images := filepath.Join(b.dir, dirImages)
	if b.upToDate(images, inputs) {
		b.say("%s is up to date", images)
		return nil
	}

	// Built beside and moved into place: whoever finds an image finds a whole one.
	tmp, err := os.MkdirTemp(b.dir, dirImages+".tmp-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	base := filepath.Join(tmp, dirImages, nameGuest)
	if err := os.MkdirAll(base, 0o755); err != nil {
		return err
	}
	version, modules, err := writeKernel(ctx, set, filepath.Join(base, fileKernel))
	if err != nil {
		return err
	}
	lap("kernel " + version)
	tree, err := rootTree(ctx, set, programs{guest: b.guest, runner: b.runner}, keys)
	if err != nil {
		return err
	}
	lap("userland")
	if err := writeInitrd(filepath.Join(base, fileInitrd), tree, modules); err != nil {
		return err
	}
	if err := writeDisk(ctx, filepath.Join(base, fileDisk), filepath.Join(tmp, "contents"), tree); err != nil {
		return err
	}
	lap("disk")
	runner, err := output(command(ctx, b.runner, "--version"))
	if err != nil {
		return err
	}
	if err := writeImages(filepath.Join(tmp, dirImages), set, version, strings.TrimSpace(string(runner))); err != nil {
		return err
	}
	return b.replace(filepath.Join(tmp, dirImages), images, inputs)
}

// replace puts what was built in the place of what was there.
func (b *build) replace(built, images, inputs string) error {
	stamp := filepath.Join(b.dir, fileInputs)
	if err := errors.Join(os.RemoveAll(stamp), os.RemoveAll(images)); err != nil {
		return err
	}
	if err := os.Rename(built, images); err != nil {
		return err
	}
	return os.WriteFile(stamp, []byte(inputs+"\n"), 0o644)
}
