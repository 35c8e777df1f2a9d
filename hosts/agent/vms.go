// SPDX-License-Identifier: MIT

package agent

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/imagecache"
	"github.com/minifleet/minifleet/vm"
	"github.com/minifleet/minifleet/vm/options"
)

// RunnerDir is where an image has its runner, inside the root folder that an image
// for the process backend brings.
const RunnerDir = "runner"

// Defaults of a VM where its pool does not say.
const (
	defaultCPUs      = 4
	defaultMemoryMiB = 8192
	defaultMaxLife   = 7 * 24 * time.Hour // GitHub ends a job after five days
)

// adoptTime bounds how long a VM's owner may take to answer at the agent's start.
const adoptTime = 10 * time.Second

// VMsConfig says how VMs are made on this host.
type VMsConfig struct {
	// Dir is the folder of all bundles, made if missing. Its path must be short, for
	// there are sockets in it. The identities of the slots are kept beside it.
	Dir string
	// ImagesDir is the folder of all images. It must exist.
	ImagesDir string
	// Cache says how images are fetched, and limits what is kept of them. Its Dir is
	// ImagesDir, and its Log this one.
	Cache imagecache.Config
	// Backend is the kind of VM.
	Backend vm.BackendName
	// VMMProgram and GuestProgram are absolute paths. The guest program is needed by the
	// process backend only.
	VMMProgram   string
	GuestProgram string
	// Account, if set, is the user as whom vmms run, on a Mac in that user's session. Only
	// an agent that is root can start them. Config.OtherUser has to be set with it.
	Account *vm.Account
	// AllowCopy lets clones be copies where copy-on-write does not work.
	AllowCopy bool
	// SavedStates is how many bytes saved states may take together; none are kept with 0.
	SavedStates int64
	// QEMU is for the backend of that name.
	QEMU QEMUConfig
	// SSH is for pools whose images have only an SSH server.
	SSH SSHConfig
	// BootDelay makes the process backend's guests pretend to boot.
	BootDelay time.Duration
	// DiskReserve is how many bytes have to be free for what a new VM will write. Zero
	// means a quarter of what its image takes.
	DiskReserve int64
	// MaxLife ends a VM whatever it does. Zero means a week.
	MaxLife time.Duration
	// Log receives what happens. Nil means nowhere.
	Log *slog.Logger
}

// VMs are the Machines of a real host: package vm's, cloned from package imagecache's.
type VMs struct {
	cfg    VMsConfig
	images *imagecache.Cache
	clone  vm.CloneMode
	copies bool // clones are copies
	apart  bool // images and bundles are on two volumes

	identities *identities // of the slots
	saved      savedStates
}

// NewVMs checks all that can be checked before the first VM, above all that clones cost
// nothing.
func NewVMs(cfg VMsConfig) (*VMs, error) {
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	cfg.MaxLife = cmp.Or(cfg.MaxLife, defaultMaxLife)
	switch cfg.Backend {
	case vm.BackendProcess:
		if err := checkProgram("guest", cfg.GuestProgram); err != nil {
			return nil, err
		}
		cfg.Log.Warn("the process backend isolates nothing: jobs can do what this user can")
	case vm.BackendQEMU:
		if err := cfg.QEMU.Validate(); err != nil {
			return nil, fmt.Errorf("qemu: %w", err)
		}
	case vm.BackendVZ:
	default:
		return nil, CheckBackend(cfg.Backend)
	}
	if err := cfg.SSH.Validate(); err != nil {
		return nil, fmt.Errorf("ssh: %w", err)
	}
	if err := checkProgram("vmm", cfg.VMMProgram); err != nil {
		return nil, err
	}
	if err := vm.CheckPath(cfg.Dir, longestID); err != nil {
		return nil, fmt.Errorf("state_dir: %w", err)
	}
	if cfg.Account != nil && os.Geteuid() != 0 {
		return nil, fmt.Errorf("session_user is %s and this agent is not root, who alone can start VMs as another user: run it as root (a LaunchDaemon), or remove session_user", cfg.Account.Name)
	}
	if err := makePrivate(cfg.Dir, wayMode(cfg.Account != nil)); err != nil {
		return nil, fmt.Errorf("state_dir: %w: give the agent's user a folder of its own that it can write to", err)
	}
	cfg.Cache.Dir, cfg.Cache.Log = cfg.ImagesDir, cfg.Log
	images, err := imagecache.Open(cfg.Cache)
	if err != nil {
		return nil, fmt.Errorf("images_dir: %w", err)
	}
	ids, err := openIdentities(filepath.Join(filepath.Dir(cfg.Dir), fileSlots), cfg.Log)
	if err != nil {
		return nil, fmt.Errorf("state_dir: %w", err)
	}
	v := &VMs{cfg: cfg, images: images, identities: ids}
	if cfg.AllowCopy {
		v.clone = vm.CloneAllowCopy
	}
	if err := v.checkVolumes(); err != nil {
		return nil, err
	}
	v.saved = openStates(cfg, images)
	return v, nil
}

// Close ends what goes on beside the calls: images that are being fetched.
func (v *VMs) Close() error { return v.images.Close() }

// CheckBackend refuses what is none.
func CheckBackend(b vm.BackendName) error {
	switch b {
	case vm.BackendQEMU, vm.BackendVZ, vm.BackendProcess:
		return nil
	}
	return fmt.Errorf("backend is %.60q: give %s (Linux), %s (macOS) or %s (for development: no isolation)", b, vm.BackendQEMU, vm.BackendVZ, vm.BackendProcess)
}

// longestID is as long as an id can be.
const longestID = "0123456789012345678901234567890123456789"

func checkProgram(key, path string) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w: set it to the path of the program minifleet-%s", key, err, key)
	case !filepath.IsAbs(path):
		return fmt.Errorf("%s: the path %s is not absolute", key, path)
	case !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0:
		return fmt.Errorf("%s: %s is not an executable file", key, path)
	}
	return nil
}

// Images lists the images in the cache: the names of those put there by hand, the digests
// of those that were fetched.
func (v *VMs) Images(ctx context.Context) ([]string, error) {
	entries, err := v.images.List(ctx)
	if err != nil {
		return nil, err
	}
	v.pruneStates(entries)
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, cmp.Or(e.Name, e.Digest))
	}
	return names, nil
}

// IsMac reads it from the image.
func (v *VMs) IsMac(ctx context.Context, image string) (bool, error) {
	if v.cfg.Backend != vm.BackendVZ {
		return false, nil
	}
	m, err := v.images.Manifest(ctx, image)
	return err == nil && v.isMac(m.GuestOS), err
}

func (v *VMs) isMac(imageOS string) bool {
	return v.cfg.Backend == vm.BackendVZ && guestOf(imageOS) == options.GuestMacOS
}

// Create clones a VM from its image.
func (v *VMs) Create(ctx context.Context, o Order, progress func(string)) (Machine, error) {
	if err := v.checkOrder(o); err != nil {
		return nil, err
	}
	began := time.Now()
	image, err := v.images.Ensure(ctx, o.Image, imageProgress(o.Image, progress))
	if err != nil {
		return nil, err
	}
	defer image.Release()
	if o.Mac != v.isMac(image.GuestOS) {
		return nil, fmt.Errorf("image %s is not for the guest that it was for when its VM was let in: try again", o.Image)
	}
	if err := v.checkRoom(ctx, image); err != nil {
		return nil, err
	}
	spec, err := v.spec(o, image)
	if err != nil {
		return nil, err
	}
	cloning := time.Now()
	m, err := v.cloneFrom(ctx, o, spec, image.Dir, func(p vm.Progress) {
		progress(fmt.Sprintf("clone: %d files, %d MiB copied", p.Files, p.CopiedBytes>>20))
	})
	if err != nil {
		return nil, err
	}
	m.took.Image, m.took.Clone = cloning.Sub(began), time.Since(cloning)
	return m, nil
}

// Scan finds what an earlier agent left, adopts what runs, and deletes what was never
// finished.
func (v *VMs) Scan(ctx context.Context) ([]Found, error) {
	bundles, err := vm.Scan(ctx, v.cfg.Dir)
	if err != nil {
		return nil, err
	}
	found := make([]Found, len(bundles))
	var adoptions sync.WaitGroup
	for i, b := range bundles {
		if b.Condition == vm.Unfinished {
			if err := vm.Remove(ctx, b.Dir); err != nil {
				v.cfg.Log.Warn("a half-made VM stays on the disk", slog.String("folder", b.Dir), slog.Any("error", err))
			}
			crashpoint.Reached(crashpoint.LeftoverRemoved)
			continue
		}
		n := readNotes(b.Spec)
		m := v.newVM(b.Dir, n.guest, b.Spec.Image)
		m.keepsake.restored = b.Spec.Restore != ""
		found[i] = Found{ID: b.ID, Pool: n.pool, Slot: n.slot, Mac: n.mac, Machine: m, Ending: describe(b.State.Reason, b.State.Detail)}
		if b.Condition != vm.Ended && n.slot > 0 && n.identity != (options.Identity{}) {
			if err := v.identities.keep(n.slot, n.identity); err != nil { // a full volume, which only this agent can clear
				v.cfg.Log.Error("the identities of the slots cannot be kept", slog.String("runner", b.ID), slog.Any("error", err))
			}
		}
		switch b.Condition {
		case vm.Ended:
			m.end(found[i].Ending)
		case vm.Orphaned:
			found[i].Running, found[i].Orphan = true, true
		case vm.Running:
			found[i].Running = true
			adoptions.Go(func() {
				if err := m.adopt(ctx); err != nil {
					v.cfg.Log.Error("a running VM cannot be adopted and will be ended", slog.String("runner", b.ID), slog.Any("error", err))
					found[i].Orphan = true
				}
			})
		}
	}
	adoptions.Wait()
	kept := found[:0]
	for _, f := range found {
		if f.ID != "" {
			kept = append(kept, f)
		}
	}
	return kept, ctx.Err()
}

// EndLeftovers is package vm's.
func (v *VMs) EndLeftovers(ctx context.Context) (int, error) {
	return vm.EndLeftovers(ctx, v.cfg.Dir, v.cfg.Account)
}

// explain adds to an error that has a reason what to do about it.
func explain(err error) error {
	reason := vm.ReasonOf(err, "")
	if advice := reason.Sentence(); reason.Failed() && advice != "" {
		return fmt.Errorf("%w (%s)", err, advice)
	}
	return err
}

// describe makes a sentence of why a VM ended, and of what to do where it failed.
func describe(reason vm.Reason, detail string) string {
	if reason == "" {
		return "it never started"
	}
	text := string(reason)
	if detail != "" {
		text += ": " + detail
	}
	if advice := reason.Sentence(); reason.Failed() && advice != "" {
		text += " (" + advice + ")"
	}
	return text
}
