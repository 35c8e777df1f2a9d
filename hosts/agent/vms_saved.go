// SPDX-License-Identifier: MIT

package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/minifleet/minifleet/imagecache"
	"github.com/minifleet/minifleet/vm"
	"github.com/minifleet/minifleet/vm/options"
	"github.com/minifleet/minifleet/vm/states"
)

// dirStates is the folder of the saved states, beside that of the bundles.
const dirStates = "states"

var _ Saved = (*vmMachine)(nil)

// savedStates are the states of this host and what they all depend on. The zero value
// keeps none.
type savedStates struct {
	store *states.Store
	host  string // of states.Key
	vmm   string
}

// openStates opens the host's saved states. They only save time, so a host that cannot
// keep any does without, and says so.
func openStates(cfg VMsConfig, images *imagecache.Cache) savedStates {
	dir := filepath.Join(filepath.Dir(cfg.Dir), dirStates)
	if cfg.SavedStates == 0 || cfg.Backend == vm.BackendProcess {
		forgetStates(dir, cfg.Log)
		return savedStates{}
	}
	var s savedStates
	err := func() (err error) {
		if s.host, err = states.HostBuild(context.Background(), cfg.Backend, options.QEMUProgram, cfg.QEMU.Accelerator); err != nil {
			return err
		}
		if s.vmm, err = states.ProgramVersion(cfg.VMMProgram); err != nil {
			return err
		}
		s.store, err = states.Open(states.Config{
			Dir: dir, MaxBytes: cfg.SavedStates, Left: images.Left, MinFree: cfg.Cache.MinFree, Account: cfg.Account, Log: cfg.Log,
		})
		return err
	}()
	if err != nil {
		cfg.Log.Warn("no states are saved on this host", slog.Any("error", err))
		return savedStates{}
	}
	s.store.Prune(func(k states.Key) bool { return s.fits(k, cfg.Backend) })
	images.CountToo(s.store)
	return s
}

// forgetStates deletes what was kept before saved states were turned off.
func forgetStates(dir string, log *slog.Logger) {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return
	}
	s, err := states.Open(states.Config{Dir: dir, MaxBytes: 1, Log: log})
	if err != nil {
		log.Warn("saved states stay on the disk", slog.Any("error", err))
		return
	}
	s.Prune(func(states.Key) bool { return false })
}

// fits reports whether a state is of this host as it is now.
func (s savedStates) fits(k states.Key, b vm.BackendName) bool {
	return k.Host == s.host && k.VMM == s.vmm && k.Backend == b
}

// pruneStates deletes the states of images that are gone.
func (v *VMs) pruneStates(images []imagecache.Entry) {
	if v.saved.store == nil {
		return
	}
	digests := map[string]bool{}
	for _, e := range images {
		digests[e.Digest] = true
	}
	v.saved.store.Prune(func(k states.Key) bool { return v.saved.fits(k, v.cfg.Backend) && digests[k.Image] })
}

// keyOf is what a state of the machine would belong to.
func (v *VMs) keyOf(s vm.Spec) states.Key {
	return states.Key{
		Backend: s.Backend, Host: v.saved.host, Image: s.Image.Digest,
		CPUs: s.CPUs, MemoryMiB: s.MemoryMiB, Options: string(s.Options), VMM: v.saved.vmm,
	}
}

// keepsake is what a machine has to do with saved states.
type keepsake struct {
	store    *states.Store // nil if none can be made of it
	slot     int
	key      states.Key
	clone    vm.CloneMode
	restored bool
	taken    *states.State // in use; nil when that is over, and for an adopted machine
}

// cloneFrom makes the bundle of a spec: from the saved state that fits it, unless the order
// forbids that, and else from the image.
func (v *VMs) cloneFrom(ctx context.Context, o Order, spec vm.Spec, imageDir string, progress func(vm.Progress)) (*vmMachine, error) {
	var k keepsake
	if v.saved.store != nil {
		k = keepsake{store: v.saved.store, slot: o.Slot, key: v.keyOf(spec), clone: v.clone}
		if !o.Cold {
			k.taken = k.store.Take(k.slot, k.key)
		}
	}
	if t := k.taken; t != nil {
		restore := spec
		restore.Restore = t.Dir()
		dir, err := vm.Create(ctx, vm.CreateConfig{Dir: v.cfg.Dir, ImageDir: t.Disks(), Clone: v.clone, Spec: restore, Progress: progress})
		if err == nil {
			k.restored = true
			return v.keeping(dir, o, spec, k), nil
		}
		if ctx.Err() != nil || full(err) {
			t.Release()
			return nil, err
		}
		v.cfg.Log.Warn("a saved state cannot be cloned and is deleted", slog.String("runner", o.ID), slog.Any("error", err))
		t.Drop(err.Error())
		k.taken = nil
	}
	dir, err := vm.Create(ctx, vm.CreateConfig{Dir: v.cfg.Dir, ImageDir: imageDir, Clone: v.clone, Spec: spec, Progress: progress})
	if err != nil {
		return nil, err
	}
	return v.keeping(dir, o, spec, k), nil
}

func (v *VMs) keeping(dir string, o Order, spec vm.Spec, k keepsake) *vmMachine {
	m := v.newVM(dir, o.Guest, spec.Image)
	m.keepsake = k
	return m
}

// Restored reports whether the machine continues from a saved state.
func (m *vmMachine) Restored() bool { return m.keepsake.restored }

// Continued frees the state.
func (m *vmMachine) Continued() {
	if t := m.handBack(); t != nil {
		t.Release()
	}
}

// Unfit deletes the state, unless the machine ended of something else.
func (m *vmMachine) Unfit(why string) {
	t := m.handBack()
	if t == nil {
		return
	}
	if machine, _ := m.current(); machine != nil {
		switch reason, _ := machine.Final(); reason {
		case vm.ReasonTwoVMLimit, vm.ReasonKeychainLocked, vm.ReasonNoEntitlement, vm.ReasonStopped:
			t.Release()
			return
		}
	}
	t.Drop(why)
}

func (m *vmMachine) handBack() *states.State {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.keepsake.taken
	m.keepsake.taken = nil
	return t
}

// Lacking reports whether the machine booted and there is no state of its kind.
func (m *vmMachine) Lacking() bool {
	k := m.keepsake
	return k.store != nil && !k.restored && k.store.Lacks(k.slot, k.key)
}

// Save has the vmm save the machine.
func (m *vmMachine) Save(ctx context.Context, ready func(context.Context) error) error {
	machine, ended := m.current()
	if machine == nil || ended {
		return errNotStarted
	}
	k := m.keepsake
	if k.store == nil {
		return fmt.Errorf("save: %w", errors.ErrUnsupported)
	}
	return k.store.Save(ctx, k.slot, k.key, func(ctx context.Context, dir string) error {
		if err := ready(ctx); err != nil {
			return err
		}
		return machine.Save(ctx, dir, k.clone)
	})
}
