// SPDX-License-Identifier: MIT

package doctor

import (
	"context"
	"fmt"
	"time"
)

func commonChecks() []check {
	return []check{
		{name: "volume", configured: true, look: lookVolume},
		{name: "clones", configured: true, look: lookClones},
		{name: "space", configured: true, look: lookSpace},
		{name: "controller", configured: true, look: lookController},
		{name: "clock", configured: true, look: lookClock},
	}
}

// lookVolume: clones do not cross volumes.
func lookVolume(_ context.Context, h *Host) Finding {
	state, err := h.Space(h.Target.StateDir)
	if err != nil {
		return fail("make the folder for the agent's user, on the volume of the images", "state_dir: %v", err)
	}
	images, err := h.Space(h.Target.ImagesDir)
	switch {
	case err != nil:
		return fail("make the folder, on the volume of state_dir", "images_dir: %v", err)
	case state.Volume == images.Volume:
		return ok("state_dir and images_dir are on one volume")
	case h.Target.AllowCopy:
		return warn("put both on one volume", "state_dir and images_dir are on two volumes: each VM copies its whole image, as allow_copy lets it")
	}
	return fail("put both on one volume", "state_dir and images_dir are on two volumes: no image can be cloned across")
}

func lookClones(_ context.Context, h *Host) Finding {
	works, err := h.Clones(h.Target.StateDir)
	switch {
	case err != nil:
		return fail("make state_dir writable for the agent's user, and run this as that user", "state_dir: %v", err)
	case works:
		return ok("%s clones copy-on-write", h.Target.StateDir)
	case h.Target.AllowCopy:
		return warn("put state_dir and images_dir on an APFS, XFS or btrfs volume", "none here: each VM copies its whole image, as allow_copy lets it")
	}
	return fail("put state_dir and images_dir on one APFS, XFS or btrfs volume, or set allow_copy", "none here: the agent refuses to start")
}

// leastFree is what any host needs for logs, records and the system itself, where its agent
// was not told what to reserve.
const leastFree = 10 << 30

// lookSpace: clones take nothing at first, and then whatever jobs write; copies take their
// image at once. The agent refuses a VM for which there is less than that.
func lookSpace(_ context.Context, h *Host) Finding {
	space, err := h.Space(h.Target.StateDir)
	if err != nil {
		return fail("make the folder for the agent's user", "state_dir: %v", err)
	}
	image, err := h.ImageSize(h.Target.ImagesDir)
	if err != nil {
		return fail("make the folder readable for whoever runs this", "images_dir: %v", err)
	}
	each, least := h.Target.Reserve, h.Target.Reserve
	if each == 0 {
		each, least = image/4, leastFree
	}
	if h.Target.AllowCopy && !h.clonesImages(space.Volume) {
		each += image
	}
	least = max(least, each)
	all := max(least, int64(h.Target.Slots)*each)
	const advice = "remove images and saved files that nobody needs; on a Mac also look at tmutil listlocalsnapshots /"
	switch {
	case space.Free < least:
		return fail(advice+"; or lower disk_reserve_mib", "%s free, at least %s are needed", gib(space.Free), gib(least))
	case space.Free < all:
		return warn(advice, "%s free; %d VMs of the largest image (%s) may write %s", gib(space.Free), h.Target.Slots, gib(image), gib(all))
	}
	return ok("%s free, %s are advisable", gib(space.Free), gib(all))
}

// clonesImages reports whether images become VMs without being copied.
func (h *Host) clonesImages(vms uint64) bool {
	works, err := h.Clones(h.Target.StateDir)
	images, errImages := h.Space(h.Target.ImagesDir)
	return err == nil && works && errImages == nil && images.Volume == vms
}

func gib(bytes int64) string { return fmt.Sprintf("%.1f GiB", float64(bytes)/(1<<30)) }

func lookController(ctx context.Context, h *Host) Finding {
	r, err := h.Reach(ctx)
	switch {
	case err != nil:
		return fail("compare controller, ca_file and the token with the controller's configuration; look at the way there (curl -v)", "%v", err)
	case !r.Enrolled && !r.Token:
		return fail("make a token with `minifleet host token` at the controller and name its file as enrolment_token_file", "it answers and %s, but this host has not joined and has no token", r.Trust)
	case !r.Enrolled:
		return ok("it answers and %s; this host joins with the agent's first start", r.Trust)
	}
	return ok("it answers and %s; this host has joined", r.Trust)
}

// How far clocks may be apart. Certificates and GitHub's tokens live for minutes to hours.
const (
	clockWarn = 30 * time.Second
	clockFail = 5 * time.Minute
)

func lookClock(ctx context.Context, h *Host) Finding {
	r, err := h.Reach(ctx)
	if err != nil || r.Date.IsZero() {
		return warn("", "the controller's clock is not known")
	}
	advice := "turn time synchronisation on: timedatectl set-ntp true"
	if h.System == "darwin" {
		advice = "turn time synchronisation on: sudo systemsetup -setusingnetworktime on; at once: sudo sntp -sS time.apple.com"
	}
	// The controller tells whole seconds.
	apart := h.Now().Sub(r.Date).Truncate(time.Second)
	switch {
	case apart.Abs() > clockFail:
		return fail(advice, "%v from the controller's", apart)
	case apart.Abs() > clockWarn:
		return warn(advice, "%v from the controller's", apart)
	}
	return ok("as the controller's")
}
