// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/vm"
	vmoptions "github.com/minifleet/minifleet/vm/options"
)

// The disk of the image that is cloned: as large as this, and where it is sparse with so
// much data in it as the test image has.
const (
	cloneSize = 10 << 30
	cloneData = 27 << 20
	// copySize is the written one where clones are copies, whose times go with the size: a
	// few of these say more than one of the other.
	copySize = 2 << 30
)

// measureClone clones an image of 10 GiB, sparse and written, on the file system of the
// measurements, and on XFS and btrfs where this user can make and mount some.
func measureClone(ctx context.Context, b *bencher) error {
	dir := filepath.Join(b.dir, "clone")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	err := b.clones(ctx, dir, fileSystemType(dir))
	if err != nil {
		return err
	}
	for _, kind := range []string{"xfs", "btrfs"} {
		if fileSystemType(dir) == kind {
			continue // it was that
		}
		v, why, err := b.mount(ctx, filepath.Join(dir, kind), kind, b.cloneOf(cloneSize)+(1<<30))
		if err != nil {
			return err
		}
		if why != "" {
			b.skip("clone of 10 GiB on "+kind, "within 2x", why)
			continue
		}
		if err := errors.Join(b.clones(ctx, v.dir, kind), v.unmount()); err != nil {
			return err
		}
	}
	return nil
}

// cloneOf returns the size of something at the run's scale.
func (b *bencher) cloneOf(n int64) int64 { return max(1<<20, int64(float64(n)*b.scale)) }

// clones measures in one folder.
func (b *bencher) clones(ctx context.Context, dir, kind string) error {
	for _, written := range []bool{false, true} {
		what, size, data := "sparse", b.cloneOf(cloneSize), b.cloneOf(cloneData)
		if written {
			if vm.ProbeClone(dir, dir) != nil {
				size = b.cloneOf(copySize)
			}
			what, data = "written", size
		}
		c := cloning{dir: filepath.Join(dir, what), size: size, data: data}
		figure := fmt.Sprintf("clone of %d MiB, %s, on %s", c.size>>20, what, kind)
		if room := freeSpace(dir); room < 2*data+(1<<30) {
			b.skip(figure, "within 2x", fmt.Sprintf("%s free: too little for image and copy", mib(room)))
			continue
		}
		err := c.measure(ctx, b.few(9))
		if err := errors.Join(err, os.RemoveAll(c.dir)); err != nil {
			return err
		}
		part := float64(c.ours.at(0.5)) / float64(c.bare.at(0.5))
		b.limit(figure, "within 2x", fmt.Sprintf("%.2fx: %s p50, %s %s p50, n %d", part, fine(c.ours.at(0.5)), c.by, fine(c.bare.at(0.5)), len(c.bare)), part <= 2)
		b.note("  whole bundle, with what makes it durable", c.bundle.String())
	}
	return nil
}

// fine is for what takes microseconds.
func fine(d time.Duration) string {
	if d < time.Millisecond {
		return fmt.Sprintf("%.3f ms", float64(d)/1e6)
	}
	return short(d)
}

// cloning is one image and what its clones took.
type cloning struct {
	dir        string
	size, data int64

	by     string // the bare calls
	bare   times  // those, of the disk alone
	ours   times  // the disk's part of vm.Create
	bundle times  // vm.Create as a whole
}

// enough ends a measurement early: copies of what is written take seconds each.
const enough = 15 * time.Second

// measure makes the image and clones it in turns by vm.Create and by the bare calls, each
// clone deleted before the next is made.
func (c *cloning) measure(ctx context.Context, rounds int) error {
	image, bundles := filepath.Join(c.dir, "image"), filepath.Join(c.dir, "vms")
	if err := errors.Join(os.MkdirAll(image, 0o700), os.Mkdir(bundles, 0o700)); err != nil {
		return err
	}
	disk := filepath.Join(image, vmoptions.FileDisk)
	if err := writeDisk(ctx, disk, c.size, c.data); err != nil {
		return err
	}
	// Files are cloned in the order of their names. That the one before is done tells when
	// the disk's turn has come.
	if err := os.WriteFile(filepath.Join(image, vmoptions.FileCommandLine), []byte("quiet\n"), 0o600); err != nil {
		return err
	}
	began := time.Now()
	for i := range rounds + 1 {
		for turn := range 2 {
			var err error
			if (turn == 0) == (i%2 == 0) {
				err = c.create(ctx, bundles, image, i)
			} else {
				err = c.call(disk, filepath.Join(c.dir, "bare.img"))
			}
			if err != nil {
				return err
			}
		}
		if i == 0 && time.Since(began) < time.Second {
			c.bare, c.ours, c.bundle = nil, nil, nil // the first found nothing in memory
		}
		if time.Since(began) > enough {
			break
		}
	}
	return nil
}

// create clones the image by vm.Create.
func (c *cloning) create(ctx context.Context, bundles, image string, n int) error {
	var at [3]time.Time // when so many files were done
	began := time.Now()
	dir, err := vm.Create(ctx, vm.CreateConfig{
		Dir: bundles, ImageDir: image, Clone: vm.CloneAllowCopy,
		Spec: vm.Spec{ID: fmt.Sprintf("c%d", n), CPUs: machineCPUs, MemoryMiB: machineMemory, Backend: vm.BackendQEMU, MaxLife: time.Hour, Options: []byte("{}")},
		Progress: func(p vm.Progress) {
			if p.Files < len(at) && at[p.Files].IsZero() {
				at[p.Files] = time.Now()
			}
		},
	})
	if err != nil {
		return err
	}
	c.bundle, c.ours = append(c.bundle, time.Since(began)), append(c.ours, at[2].Sub(at[1]))
	return vm.Remove(ctx, dir)
}

// call clones the disk by the bare calls.
func (c *cloning) call(disk, to string) error {
	src, err := os.Open(disk)
	if err != nil {
		return err
	}
	defer src.Close()
	began := time.Now()
	c.by, err = bareClone(src, to)
	took := time.Since(began)
	if err != nil {
		return err
	}
	c.bare = append(c.bare, took)
	return os.Remove(to)
}

// writeDisk makes a disk with data at its start, and as much of it in memory as there is
// room for.
func writeDisk(ctx context.Context, path string, size, data int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	piece := make([]byte, 8<<20)
	for i := range piece {
		piece[i] = byte(i*7 + i>>9)
	}
	for off := int64(0); off < data && err == nil; off += int64(len(piece)) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		_, err = f.WriteAt(piece[:min(int64(len(piece)), data-off)], off)
	}
	return errors.Join(err, f.Truncate(size), f.Sync(), f.Close())
}

func freeSpace(dir string) int64 {
	var s unix.Statfs_t
	if unix.Statfs(dir, &s) != nil {
		return 0
	}
	return int64(s.Bavail) * int64(s.Bsize) //nolint:unconvert // the types differ between systems
}
