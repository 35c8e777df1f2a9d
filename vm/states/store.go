// SPDX-License-Identifier: MIT

package states

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/minifleet/minifleet/vm"
)

// Config says where states are kept, and how much they may take.
type Config struct {
	// Dir is the folder of all states, made if missing. It belongs on the volume of the
	// bundles, so that disks can be cloned between them.
	Dir string
	// MaxBytes bounds all states together, as they are allocated on the disk.
	MaxBytes int64
	// Left, if set, is what all of them may take at this moment: another bound, which moves.
	Left func() int64
	// MinFree is how many bytes of the volume a new state leaves free.
	MinFree int64
	// Account, if set, is the user as whom vmms run. A state is then written and read by
	// that user, whose its files stay; that one is trusted with every machine of the host.
	// What belongs to the state as a whole, its state.json above all, is root's.
	Account *vm.Account
	// Log defaults to none.
	Log *slog.Logger
}

// Store keeps a host's states. Its methods may be called by several goroutines. One
// process has a folder open at a time.
type Store struct {
	cfg Config
	log *slog.Logger

	clearing sync.Mutex // one deletes at a time

	mu     sync.Mutex           // guards the rest, never held over input or output
	states map[string]*entry    // by name
	making map[string]bool      // folders that are being filled
	failed map[string]time.Time // when one was last saved, used or kept in vain, by name
}

// entry is one whole state on the disk.
type entry struct {
	about
	dir    string
	used   time.Time // last
	taken  bool      // somebody has it
	doomed string    // why it is to go; "" for one that stays
}

// saveAgain is how long after a save or a restore that failed the next save of its kind
// is tried.
const saveAgain = time.Hour

// Open finds what an earlier process has kept, and deletes what it left half made.
func Open(cfg Config) (*Store, error) {
	if !filepath.IsAbs(cfg.Dir) {
		return nil, fmt.Errorf("the folder of saved states is %q: give an absolute path", cfg.Dir)
	}
	if cfg.MaxBytes <= 0 {
		return nil, fmt.Errorf("saved states may take %d bytes: give more than 0", cfg.MaxBytes)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Store{cfg: cfg, log: cfg.Log, states: map[string]*entry{}, making: map[string]bool{}, failed: map[string]time.Time{}}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the folder of saved states: %w", err)
	}
	mode := fs.FileMode(0o700)
	if cfg.Account != nil {
		mode = 0o711 // the way to the states, which it does not list
	}
	if err := os.Chmod(cfg.Dir, mode); err != nil {
		return nil, fmt.Errorf("open the folder of saved states: %w", err)
	}
	if err := s.adopt(); err != nil {
		return nil, fmt.Errorf("open the folder of saved states: %w", err)
	}
	s.makeRoom(0)
	return s, nil
}

// adopt looks through the folder. What does not look like a state is left alone.
func (s *Store) adopt() error {
	if err := s.sweep(); err != nil {
		return err
	}
	found, err := os.ReadDir(s.cfg.Dir)
	if err != nil {
		return err
	}
	for _, f := range found {
		if !f.IsDir() || !looksLikeState(f.Name()) {
			continue
		}
		dir := filepath.Join(s.cfg.Dir, f.Name())
		e, err := readEntry(dir)
		if err != nil {
			e = &entry{dir: dir, doomed: "it is not whole: " + err.Error()}
		}
		s.mu.Lock()
		s.states[f.Name()] = e
		s.mu.Unlock()
	}
	s.clear()
	return nil
}

// looksLikeState reports whether a folder has a name as about.name makes it.
func looksLikeState(name string) bool {
	slot, key, ok := strings.Cut(name, "-")
	n, err := strconv.Atoi(slot)
	return ok && err == nil && n > 0 && len(key) == 32 && strings.Trim(key, "0123456789abcdef") == ""
}

// sweep deletes what is half made or half deleted, but for what somebody is just making.
func (s *Store) sweep() error {
	found, err := os.ReadDir(s.cfg.Dir)
	if err != nil {
		return err
	}
	for _, f := range found {
		name := f.Name()
		s.mu.Lock()
		busy := s.making[name]
		s.mu.Unlock()
		if busy || !f.IsDir() || !strings.HasPrefix(name, prefixNew) && !strings.HasPrefix(name, prefixTrash) {
			continue
		}
		dir := filepath.Join(s.cfg.Dir, name)
		release, err := vm.HoldSaved(dir, true)
		if errors.Is(err, vm.ErrLocked) || errors.Is(err, fs.ErrNotExist) {
			continue // a vmm that an earlier agent left still writes there, and clears up itself
		}
		if err == nil {
			err = os.RemoveAll(dir)
			release()
		}
		if err != nil {
			s.log.Warn("a half-made saved state stays on the disk", slog.String("folder", dir), slog.Any("error", err))
		}
	}
	return nil
}

// State is a saved state in somebody's hands. It is released or dropped once.
type State struct {
	store *Store
	entry *entry
}

// Dir is what a spec names to restore the state.
func (t *State) Dir() string { return t.entry.dir }

// Disks is the folder from which the machine's disks are cloned.
func (t *State) Disks() string { return filepath.Join(t.entry.dir, vm.DirDisks) }

// Take gives out the state of a slot and a key, nil if there is none to be had.
func (s *Store) Take(slot int, key Key) *State {
	name, err := about{Slot: slot, Key: key}.name()
	if err != nil {
		return nil
	}
	s.mu.Lock()
	e := s.states[name]
	if e == nil || e.taken || e.doomed != "" {
		s.mu.Unlock()
		return nil
	}
	e.taken, e.used = true, time.Now()
	dir, used := e.dir, e.used
	s.mu.Unlock()
	// The next process shall know as well. Nothing depends on it.
	_ = os.Chtimes(filepath.Join(dir, fileAbout), used, used)
	return &State{store: s, entry: e}
}

// Release gives the state back. Clones of its disks live on.
func (t *State) Release() {
	t.store.mu.Lock()
	t.entry.taken = false
	t.store.mu.Unlock()
	t.store.clear()
}

// Drop deletes a state that has proved to be of no use. The next of its kind may prove to
// be the same, so it is not lacking for a while.
func (t *State) Drop(why string) {
	t.store.mu.Lock()
	t.entry.taken, t.entry.doomed = false, why
	t.store.failed[filepath.Base(t.entry.dir)] = time.Now()
	t.store.mu.Unlock()
	t.store.clear()
}

// Prune deletes the states whose key does not pass, at the latest when they are released.
func (s *Store) Prune(keep func(Key) bool) {
	s.mu.Lock()
	for _, e := range s.states {
		if e.doomed == "" && !keep(e.Key) {
			e.doomed = "nothing on this host fits it any more"
		}
	}
	s.mu.Unlock()
	s.clear()
}

// Bytes returns what all states take.
func (s *Store) Bytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytesLocked()
}

func (s *Store) bytesLocked() int64 {
	sum := int64(0)
	for _, e := range s.states {
		sum += e.Bytes
	}
	return sum
}

// makeRoom deletes those that were used longest ago, until so many bytes more have room.
// It reports whether they have. Where they cannot have it, none goes in vain.
func (s *Store) makeRoom(bytes int64) bool {
	most := s.most()
	s.mu.Lock()
	free := most - s.bytesLocked() - bytes
	var idle []*entry
	for _, e := range s.states {
		switch {
		case e.taken:
		case e.doomed != "":
			free += e.Bytes // goes anyway
		default:
			idle = append(idle, e)
		}
	}
	room := free
	for _, e := range idle {
		room += e.Bytes
	}
	if room < 0 {
		s.mu.Unlock()
		return false
	}
	slices.SortFunc(idle, func(a, b *entry) int { return a.used.Compare(b.used) })
	for _, e := range idle {
		if free >= 0 {
			break
		}
		e.doomed = "others need its room"
		free += e.Bytes
	}
	s.mu.Unlock()
	s.clear()
	return s.Bytes()+bytes <= most
}

// most is what all states may take now.
func (s *Store) most() int64 {
	if s.cfg.Left == nil {
		return s.cfg.MaxBytes
	}
	return min(s.cfg.MaxBytes, s.cfg.Left())
}

// Idle returns what the states take that are in nobody's hands.
func (s *Store) Idle() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum := int64(0)
	for _, e := range s.states {
		if !e.taken && e.doomed == "" {
			sum += e.Bytes
		}
	}
	return sum
}

// DeleteOldest deletes the state that was used longest ago and is in nobody's hands, for the
// room that it takes on the volume, and reports whether it is gone. The next of its kind is
// not lacking for a while.
func (s *Store) DeleteOldest() bool {
	s.mu.Lock()
	oldest, name := (*entry)(nil), ""
	for n, e := range s.states {
		if !e.taken && e.doomed == "" && (oldest == nil || e.used.Before(oldest.used)) {
			oldest, name = e, n
		}
	}
	if oldest == nil {
		s.mu.Unlock()
		return false
	}
	oldest.doomed = "the volume is short of room"
	s.failed[name] = time.Now()
	s.mu.Unlock()
	s.clear()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.states[name] != oldest
}

// clear deletes what is to go and is in nobody's hands. What cannot be deleted is tried
// again with the next clear.
func (s *Store) clear() {
	s.clearing.Lock()
	defer s.clearing.Unlock()
	tried := map[string]bool{}
	for {
		name, e := s.nextDoomed(tried)
		if e == nil {
			return
		}
		tried[name] = true
		if err := s.delete(e.dir); err != nil {
			s.log.Warn("a saved state stays on the disk", slog.String("state", name), slog.String("reason", e.doomed), slog.Any("error", err))
			continue
		}
		s.mu.Lock()
		delete(s.states, name)
		s.mu.Unlock()
		s.log.Info("saved state deleted", slog.String("state", name), slog.String("reason", e.doomed))
	}
}

// nextDoomed picks one that is to go.
func (s *Store) nextDoomed(tried map[string]bool) (string, *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, e := range s.states {
		if e.doomed != "" && !e.taken && !tried[name] {
			return name, e
		}
	}
	return "", nil
}

// delete deletes a state in whole: it is renamed first. A vmm that still reads it, left by
// an earlier agent, keeps it.
func (s *Store) delete(dir string) error {
	release, err := vm.HoldSaved(dir, true)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer release()
	trash := filepath.Join(s.cfg.Dir, prefixTrash+rand.Text()[:8])
	if err := os.Rename(dir, trash); err != nil {
		return err
	}
	return os.RemoveAll(trash)
}
