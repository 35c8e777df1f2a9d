// SPDX-License-Identifier: MIT

package states

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/minifleet/minifleet/internal/durable"
	"github.com/minifleet/minifleet/vm"
)

// Lacks reports whether a state of the slot and the key is worth making: there is none,
// and none was tried, or used, in vain a short while ago.
func (s *Store) Lacks(slot int, key Key) bool {
	name, err := about{Slot: slot, Key: key}.name()
	if err != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	at, failed := s.failed[name]
	return s.states[name] == nil && (!failed || time.Since(at) >= saveAgain)
}

// Save makes the state of a slot and a key: save writes it into the empty private folder
// that it is given, as vm.SaveRequest has it, and leaves nothing there after an error. The
// state is then durable, and in nobody's hands. Room is made first for the machine's memory
// and then for what the state has come to take. It fails with fs.ErrExist if there is one.
func (s *Store) Save(ctx context.Context, slot int, key Key, save func(ctx context.Context, dir string) error) error {
	a := about{Schema: schema, Slot: slot, Key: key, MadeAt: time.Now().UTC()}
	name, err := a.name()
	if err != nil {
		return err
	}
	if slot < 1 || slot > maxSlot {
		return fmt.Errorf("saved state: slot %d: give 1 to %d", slot, maxSlot)
	}
	if err := s.sweep(); err != nil {
		return fmt.Errorf("saved state %s: %w", name, err)
	}
	s.mu.Lock()
	there := s.states[name] != nil || s.making[prefixNew+name]
	if !there {
		s.making[prefixNew+name] = true
	}
	s.mu.Unlock()
	if there {
		return fmt.Errorf("saved state %s: %w", name, fs.ErrExist)
	}
	err = s.make(ctx, name, a, save)
	s.mu.Lock()
	delete(s.making, prefixNew+name)
	delete(s.failed, name)
	if err != nil && ctx.Err() == nil {
		s.failed[name] = time.Now()
	}
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("saved state %s: %w", name, err)
	}
	return nil
}

// make makes a state aside and puts it in its place.
func (s *Store) make(ctx context.Context, name string, a about, save func(context.Context, string) error) (err error) {
	memory := int64(a.Key.MemoryMiB) << 20
	if !s.makeRoom(memory) {
		return s.noRoom(memory)
	}
	free, err := freeBytes(s.cfg.Dir)
	if err != nil {
		return err
	}
	if free < memory+s.cfg.MinFree {
		return fmt.Errorf("the volume of %s has %d MiB free, a machine's memory takes up to %d, and %d must stay free (cache.min_free_gib): free some space there",
			s.cfg.Dir, free>>20, memory>>20, s.cfg.MinFree>>20)
	}
	tmp := filepath.Join(s.cfg.Dir, prefixNew+name)
	// A vmm that an earlier agent left may be at work in it.
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	if err := s.give(tmp); err != nil {
		return err
	}
	if err := save(ctx, tmp); err != nil {
		return err
	}
	if err := s.takeBack(tmp); err != nil {
		return err
	}
	if a.Bytes, err = settle(tmp); err != nil {
		return err
	}
	if !s.makeRoom(a.Bytes) {
		return s.noRoom(a.Bytes)
	}
	return s.place(tmp, name, a)
}

// give lets the vmm's user, if it is another one, fill a folder.
func (s *Store) give(dir string) error {
	if s.cfg.Account == nil {
		return nil
	}
	return os.Lchown(dir, s.cfg.Account.UID, s.cfg.Account.GID)
}

// takeBack leaves that user the right to read the machine's memory. The disks, of which
// this process clones with its own rights, are out of that user's reach from then on: a
// link put in a folder's place would have other files cloned.
func (s *Store) takeBack(dir string) error {
	if s.cfg.Account == nil {
		return nil
	}
	uid, gid, disks := os.Geteuid(), os.Getegid(), filepath.Join(dir, vm.DirDisks)
	if err := errors.Join(os.Lchown(dir, uid, gid), os.Chmod(dir, 0o755)); err != nil {
		return err
	}
	if info, err := os.Lstat(disks); err != nil || !info.IsDir() {
		return errors.Join(err, fmt.Errorf("%s is no folder", disks))
	}
	// From the outside inwards: nobody gets past a folder that is this user's alone.
	if err := errors.Join(os.Lchown(disks, uid, gid), os.Chmod(disks, 0o700)); err != nil {
		return err
	}
	return filepath.WalkDir(disks, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			err = os.Lchown(path, uid, gid)
		}
		return err
	})
}

func (s *Store) noRoom(bytes int64) error {
	return fmt.Errorf("it takes %d MiB and all saved states may take %d now, of which some are in use: raise saved_states.size_gib, or cache.max_gib, for which images count too", bytes>>20, s.most()>>20)
}

// place gives a whole state its name, durably.
func (s *Store) place(tmp, name string, a about) error {
	if err := writeAbout(tmp, a); err != nil {
		return err
	}
	for _, part := range []string{filepath.Join(tmp, fileAbout), tmp} {
		if err := durable.Sync(part); err != nil {
			return err
		}
	}
	dir := filepath.Join(s.cfg.Dir, name)
	if err := os.Rename(tmp, dir); err != nil {
		return err
	}
	e, err := readEntry(dir)
	if err == nil {
		err = durable.Sync(s.cfg.Dir)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	s.mu.Lock()
	s.states[name] = e
	s.mu.Unlock()
	s.log.Info("saved state kept", slog.String("state", name), slog.String("image", a.Key.Image), slog.Int("slot", a.Slot), slog.Int64("bytes", a.Bytes))
	return nil
}
