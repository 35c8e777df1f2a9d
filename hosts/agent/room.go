// SPDX-License-Identifier: MIT

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/imagecache"
	"github.com/minifleet/minifleet/vm"
)

// checkVolumes finds out how images become VMs: copy-on-write, which needs one volume,
// or, if that is allowed, by copying.
func (v *VMs) checkVolumes() error {
	from, to := v.cfg.ImagesDir, v.cfg.Dir
	one, err := sameVolume(from, to)
	if err != nil {
		return fmt.Errorf("images_dir: %w", err)
	}
	v.apart = !one
	if one {
		from = to // which is ours to write to
	}
	err = vm.ProbeClone(from, to)
	switch {
	case err == nil: // also between subvolumes of btrfs, which look like volumes
		v.apart = false
		return nil
	case full(err): // the agent has to clear up, and finds out with the next clone
		v.copies = !one && v.cfg.AllowCopy
		v.cfg.Log.Error("the volume of the VMs is full", slog.String("folder", to), slog.Any("error", err))
		return nil
	case v.cfg.AllowCopy && (!one || errors.Is(err, vm.ErrCloneUnsupported)):
		v.copies = true
		v.cfg.Log.Warn("images are copied in full for each VM, because this volume has no copy-on-write clones", slog.String("folder", to))
		return nil
	case !one:
		return fmt.Errorf("images_dir is on another volume than state_dir: %w: put both on one APFS, XFS or btrfs volume, or set allow_copy: true to copy every image in full for every VM", err)
	case errors.Is(err, vm.ErrCloneUnsupported):
		return fmt.Errorf("%w: put state_dir and images_dir on one APFS, XFS or btrfs volume, or set allow_copy: true to copy every image in full for every VM", err)
	default:
		return fmt.Errorf("state_dir: %w", err)
	}
}

// sameVolume reports whether two folders are on one.
func sameVolume(a, b string) (bool, error) {
	var devices [2]uint64
	for i, dir := range []string{a, b} {
		info, err := os.Stat(dir)
		if err != nil {
			return false, err
		}
		if s, ok := info.Sys().(*syscall.Stat_t); ok {
			devices[i] = uint64(s.Dev)
		}
	}
	return devices[0] == devices[1], nil
}

// reserveShare is the part of an image's size that a VM is expected to write: so much has
// to be free for it where the configuration does not say.
const reserveShare = 4

// checkRoom refuses a VM for which the volume has no room: for what a copy takes at once,
// and for what the VM will write. Images and saved states that nobody uses go before that. It
// is a look before the leap: what VMs write later can still fill the volume.
func (v *VMs) checkRoom(ctx context.Context, image *imagecache.Image) error {
	need := v.cfg.DiskReserve
	if need == 0 {
		need = image.Stored / reserveShare
	}
	what := "for what the VM writes"
	if v.copies {
		need += image.Stored
		what = "for a copy of the image and what the VM writes"
	}
	var free int64
	for again := true; again; again = v.clear(ctx) {
		var s unix.Statfs_t
		if err := unix.Statfs(v.cfg.Dir, &s); err != nil {
			return fmt.Errorf("free space of %s: %w", v.cfg.Dir, err)
		}
		if free = int64(min(s.Bavail, 1<<40)) * int64(s.Bsize); free >= need {
			return nil
		}
	}
	return fmt.Errorf("the volume of %s has %d MiB free and image %s needs %d MiB there, %s: free some space, or lower disk_reserve_mib: %w",
		v.cfg.Dir, free>>20, image.Name, need>>20, what, syscall.ENOSPC)
}

// clear takes something away from the volume of the VMs that nobody uses, and reports whether
// there was anything.
func (v *VMs) clear(ctx context.Context) bool {
	if v.apart { // the images' room is of no use
		return v.saved.store != nil && v.saved.store.DeleteOldest()
	}
	return v.images.EvictOldest(ctx)
}
