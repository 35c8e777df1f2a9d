// SPDX-License-Identifier: MIT

package states_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minifleet/minifleet/vm"
	"github.com/minifleet/minifleet/vm/states"
)

func key(image string) states.Key {
	return states.Key{Backend: vm.BackendQEMU, Host: "6.1", Image: image, CPUs: 1, MemoryMiB: 1, Options: `{"mac":"1"}`, VMM: "v1"}
}

// size of the memory of one state in these tests; with its folders it takes more.
const size = 1 << 20

func open(t *testing.T, dir string, max int64) *states.Store {
	t.Helper()
	s, err := states.Open(states.Config{Dir: dir, MaxBytes: max})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// fill writes a state as a vmm does.
func fill(_ context.Context, dir string) error {
	return errors.Join(
		os.Mkdir(filepath.Join(dir, vm.DirState), 0o700),
		os.Mkdir(filepath.Join(dir, vm.DirDisks), 0o700),
		os.WriteFile(filepath.Join(dir, vm.DirState, "memory"), bytes.Repeat([]byte{1}, size), 0o600),
		os.WriteFile(filepath.Join(dir, vm.DirDisks, "disk.img"), []byte("disk"), 0o600),
	)
}

func save(t *testing.T, s *states.Store, slot int, k states.Key) {
	t.Helper()
	if err := s.Save(t.Context(), slot, k, fill); err != nil {
		t.Fatal(err)
	}
}

// has reports whether there is a state, as a user finds out.
func has(s *states.Store, slot int, k states.Key) bool {
	st := s.Take(slot, k)
	if st == nil {
		return false
	}
	st.Release()
	return true
}

// entries lists a folder, hidden names included.
func entries(t *testing.T, dir string) int {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func TestOneStatesLife(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "states")
	s := open(t, dir, 1<<30)
	k := key("sha256:1")
	if s.Take(1, k) != nil || !s.Lacks(1, k) {
		t.Fatal("a state out of nothing")
	}
	save(t, s, 1, k)
	if s.Lacks(1, k) || !s.Lacks(2, k) || !s.Lacks(1, key("sha256:2")) || s.Take(2, k) != nil {
		t.Error("a state belongs to one slot and one key")
	}
	if err := s.Save(t.Context(), 1, k, fill); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second one: %v", err)
	}
	if n := s.Bytes(); n < size || n > size+1<<20 {
		t.Errorf("it takes %d bytes", n)
	}
	st := s.Take(1, k)
	if st == nil {
		t.Fatal("it cannot be taken")
	}
	if s.Take(1, k) != nil {
		t.Error("taken twice at once")
	}
	for path, want := range map[string]string{filepath.Join(st.Disks(), "disk.img"): "disk", filepath.Join(st.Dir(), vm.DirDisks, "disk.img"): "disk"} {
		if b, err := os.ReadFile(path); string(b) != want || err != nil {
			t.Errorf("%s: %q, %v", path, b, err)
		}
	}
	st.Release()

	// Another process finds it.
	s = open(t, dir, 1<<30)
	if st = s.Take(1, k); st == nil {
		t.Fatal("it is not found again")
	}
	st.Drop("it was refused")
	if s.Take(1, k) != nil || s.Bytes() != 0 || entries(t, dir) != 0 {
		t.Errorf("it is there after it was dropped: %d bytes, %d entries", s.Bytes(), entries(t, dir))
	}
	if s.Lacks(1, k) {
		t.Error("after a drop another one is made at once")
	}
}

// Each of what a state depends on makes another key.
func TestKeyNames(t *testing.T) {
	t.Parallel()
	seen := map[string]string{}
	for name, change := range map[string]func(*states.Key){
		"none": func(*states.Key) {}, "backend": func(k *states.Key) { k.Backend = vm.BackendVZ }, "host": func(k *states.Key) { k.Host = "6.2" },
		"image": func(k *states.Key) { k.Image = "sha256:2" }, "CPUs": func(k *states.Key) { k.CPUs = 2 }, "memory": func(k *states.Key) { k.MemoryMiB = 2 },
		"options": func(k *states.Key) { k.Options = "" }, "vmm": func(k *states.Key) { k.VMM = "v2" },
		"shifted": func(k *states.Key) { k.Host, k.Image = "6.1 sha256:", "1" },
	} {
		k := key("sha256:1")
		change(&k)
		got, err := k.Name()
		if err != nil || len(got) != 32 || seen[got] != "" {
			t.Errorf("%s: %q, %v, the same as %s", name, got, err, seen[got])
		}
		seen[got] = name
	}
	for _, k := range []states.Key{{}, {Backend: "qemu", Host: "1", Image: "", CPUs: 1, MemoryMiB: 1, VMM: "v"}} {
		if _, err := k.Name(); err == nil {
			t.Errorf("%+v has a name", k)
		}
	}
}

func TestSaveThatFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := open(t, dir, 1<<30)
		k, bad := key("sha256:1"), errors.New("no")
		err := s.Save(t.Context(), 1, k, func(ctx context.Context, dir string) error { return errors.Join(fill(ctx, dir), bad) })
		if !errors.Is(err, bad) || entries(t, dir) != 0 || s.Bytes() != 0 {
			t.Errorf("%v, %d entries", err, entries(t, dir))
		}
		if s.Lacks(1, k) {
			t.Error("it is tried again at once")
		}
		time.Sleep(time.Hour)
		if !s.Lacks(1, k) {
			t.Error("it is never tried again")
		}
		// One that was called off says nothing about the next.
		ctx, cancel := context.WithCancel(t.Context())
		err = s.Save(ctx, 2, k, func(context.Context, string) error { cancel(); return ctx.Err() })
		if err == nil || !s.Lacks(2, k) {
			t.Errorf("called off: %v, then lacking: %t", err, s.Lacks(2, k))
		}
	})
}

func TestLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		limit := int64(2*size + size/2)
		s := open(t, dir, limit)
		a, b, c := key("sha256:a"), key("sha256:b"), key("sha256:c")
		save(t, s, 1, a)
		time.Sleep(time.Minute)
		save(t, s, 1, b)
		time.Sleep(time.Minute)
		has(s, 1, a) // used
		save(t, s, 1, c)
		if !has(s, 1, a) || has(s, 1, b) || !has(s, 1, c) || s.Bytes() > limit {
			t.Errorf("a %t, b %t, c %t, %d bytes: want the one gone that was used longest ago", has(s, 1, a), has(s, 1, b), has(s, 1, c), s.Bytes())
		}
		// What is used is not taken away, and then there is no room.
		time.Sleep(time.Minute)
		one, two := s.Take(1, a), s.Take(1, c)
		if err := s.Save(t.Context(), 1, b, fill); err == nil || !strings.Contains(err.Error(), "saved_states.size") {
			t.Errorf("all are in use: %v", err)
		}
		if _, err := os.Stat(filepath.Join(one.Disks(), "disk.img")); err != nil {
			t.Error(err)
		}
		one.Release()
		two.Release()
		if !has(s, 1, a) || !has(s, 1, c) {
			t.Error("one that was in use is gone")
		}
		time.Sleep(time.Hour)
		has(s, 1, c)
		// The limit was lowered, and the last use is known to the next process.
		s = open(t, dir, size+size/2)
		if has(s, 1, a) || !has(s, 1, c) {
			t.Errorf("a %t, c %t", has(s, 1, a), has(s, 1, c))
		}
		// One that is larger than it promised to be.
		s = open(t, dir, size+size/2)
		err := s.Save(t.Context(), 2, a, func(ctx context.Context, dir string) error {
			return errors.Join(fill(ctx, dir), os.WriteFile(filepath.Join(dir, vm.DirDisks, "big"), bytes.Repeat([]byte{1}, size), 0o600))
		})
		if err == nil || s.Bytes() > size+size/2 || has(s, 2, a) {
			t.Errorf("too large: %v, %d bytes", err, s.Bytes())
		}
	})
}

// A state that cannot have its room takes nobody else's.
func TestNoneGoesInVain(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 4*size)
	a, b := key("sha256:a"), key("sha256:b")
	save(t, s, 1, a)
	save(t, s, 2, a)
	b.MemoryMiB = 5
	if err := s.Save(t.Context(), 1, b, fill); err == nil {
		t.Error("it was kept")
	}
	used := s.Take(2, a)
	b.MemoryMiB = 3
	if err := s.Save(t.Context(), 1, b, fill); err == nil {
		t.Error("it was kept beside one in use")
	}
	used.Release()
	if !has(s, 1, a) || !has(s, 2, a) {
		t.Error("others are gone for one that could not be kept")
	}
}

// What images leave is less than what states may take at most.
func TestWhatIsLeft(t *testing.T) {
	t.Parallel()
	left := int64(1 << 30)
	cfg := states.Config{Dir: t.TempDir(), MaxBytes: 1 << 30, Left: func() int64 { return left }}
	s, err := states.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	a, b := key("sha256:a"), key("sha256:b")
	save(t, s, 1, a)
	save(t, s, 2, a)
	used := s.Take(1, a)
	if n := s.Idle(); n < size || n >= 2*size || s.Bytes() < 2*size {
		t.Errorf("%d bytes are idle of %d", n, s.Bytes())
	}
	left = 2*size + size/2
	save(t, s, 1, b)
	if has(s, 2, a) || !has(s, 1, b) {
		t.Error("want the idle one gone for the new one")
	}
	left = 0 // images were fetched since
	if err := s.Save(t.Context(), 2, b, fill); err == nil || !strings.Contains(err.Error(), "cache.max_gib") {
		t.Errorf("without any room: %v", err)
	}
	used.Release()
	cfg.MinFree = 1 << 60
	cfg.Left = nil
	if s, err = states.Open(cfg); err != nil {
		t.Fatal(err)
	}
	if err := s.Save(t.Context(), 2, b, fill); err == nil || !strings.Contains(err.Error(), "cache.min_free_gib") {
		t.Errorf("on a volume where more must stay free: %v", err)
	}
}

// What VMs need on the volume is worth more than what states save.
func TestDeleteOldest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := open(t, t.TempDir(), 1<<30)
		a := key("sha256:a")
		for slot := 1; slot <= 3; slot++ {
			save(t, s, slot, a)
			time.Sleep(time.Minute)
		}
		used := s.Take(1, a)
		if !s.DeleteOldest() || has(s, 2, a) || !has(s, 3, a) {
			t.Error("want the one gone that was used longest ago, and is not in use")
		}
		if s.Lacks(2, a) {
			t.Error("it would be made again at once")
		}
		if !s.DeleteOldest() || s.DeleteOldest() {
			t.Error("one was idle")
		}
		used.Release()
		time.Sleep(time.Hour)
		if !has(s, 1, a) || !s.Lacks(2, a) {
			t.Error("the one in use is gone, or no other is ever made")
		}
	})
}

func TestPrune(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, 1<<30)
	save(t, s, 1, key("sha256:old"))
	save(t, s, 2, key("sha256:old"))
	save(t, s, 1, key("sha256:new"))
	used := s.Take(2, key("sha256:old"))
	s.Prune(func(k states.Key) bool { return k.Image == "sha256:new" })
	if has(s, 1, key("sha256:old")) || !has(s, 1, key("sha256:new")) {
		t.Error("the wrong ones went")
	}
	if _, err := os.Stat(used.Dir()); err != nil {
		t.Errorf("deleted while it was used: %v", err)
	}
	used.Release()
	if _, err := os.Stat(used.Dir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a stale one stays: %v", err)
	}
}

// Open keeps what is whole, deletes what is half made or half deleted, and leaves alone
// what is no state.
func TestAfterACrash(t *testing.T) {
	t.Parallel()
	k := key("sha256:1")
	for name, tt := range map[string]struct {
		crash func(t *testing.T, dir, state string) // state is the whole one's folder
		kept  bool
		left  int
	}{
		"after all": {func(*testing.T, string, string) {}, true, 1},
		"begun": {func(t *testing.T, dir, _ string) {
			must(t, os.Mkdir(filepath.Join(dir, ".new-2-x"), 0o700))
		}, true, 1},
		"filled, not in its place": {func(t *testing.T, dir, state string) {
			must(t, os.Rename(state, filepath.Join(dir, ".new-"+filepath.Base(state))))
		}, false, 0},
		"half deleted": {func(t *testing.T, dir, state string) {
			must(t, os.RemoveAll(filepath.Join(state, vm.DirState)))
			must(t, os.Rename(state, filepath.Join(dir, ".trash-1")))
		}, false, 0},
		"no memory":        {func(t *testing.T, _, state string) { must(t, os.RemoveAll(filepath.Join(state, vm.DirState))) }, false, 0},
		"no disks":         {func(t *testing.T, _, state string) { must(t, os.RemoveAll(filepath.Join(state, vm.DirDisks))) }, false, 0},
		"nothing about it": {func(t *testing.T, _, state string) { must(t, os.Remove(filepath.Join(state, "state.json"))) }, false, 0},
		"cut off":          {func(t *testing.T, _, state string) { must(t, os.Truncate(filepath.Join(state, "state.json"), 20)) }, false, 0},
		"of another": {func(t *testing.T, dir, state string) {
			must(t, os.Rename(state, filepath.Join(dir, "7"+filepath.Base(state)[1:])))
		}, false, 0},
		"an operator's own": {func(t *testing.T, dir, _ string) { must(t, os.Mkdir(filepath.Join(dir, "notes"), 0o700)) }, true, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := open(t, dir, 1<<30)
			save(t, s, 1, k)
			st := s.Take(1, k)
			st.Release()
			tt.crash(t, dir, st.Dir())
			s = open(t, dir, 1<<30)
			if got := has(s, 1, k); got != tt.kept || entries(t, dir) != tt.left {
				t.Errorf("kept: %t with %d entries, want %t with %d", got, entries(t, dir), tt.kept, tt.left)
			}
		})
	}
}

// A vmm that an earlier agent left holds what it writes or reads.
func TestHeldByAVMM(t *testing.T) {
	t.Parallel()
	dir, k := t.TempDir(), key("sha256:1")
	var log bytes.Buffer
	s := open(t, dir, 1<<30)
	save(t, s, 1, k)
	half := filepath.Join(dir, ".new-2-x")
	must(t, os.Mkdir(half, 0o700))
	st := s.Take(1, k)
	reads, err := vm.HoldSaved(st.Dir(), false)
	must(t, err)
	writes, err := vm.HoldSaved(half, true)
	must(t, err)

	s, err = states.Open(states.Config{Dir: dir, MaxBytes: 1 << 30, Log: slog.New(slog.NewTextHandler(&log, nil))})
	must(t, err)
	s.Prune(func(states.Key) bool { return false })
	if entries(t, dir) != 2 || s.Bytes() == 0 || has(s, 1, k) {
		t.Errorf("%d entries, %d bytes", entries(t, dir), s.Bytes())
	}
	if !strings.Contains(log.String(), "in use") {
		t.Errorf("nothing is said of it: %s", log.String())
	}
	reads()
	writes()
	save(t, s, 3, k) // clears up by the way
	if has(s, 1, k) || entries(t, dir) != 1 {
		t.Errorf("%d entries are left", entries(t, dir))
	}
}

// Where vmms run as another user, that one can fill a state and read it, and not change
// what is whole.
func TestAnotherUsersVMM(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can run vmms as another user")
	}
	dir, k := t.TempDir(), key("sha256:1")
	s, err := states.Open(states.Config{Dir: dir, MaxBytes: 1 << 30, Account: &vm.Account{Name: "other", UID: 12345, GID: 12345}})
	must(t, err)
	look := func(path string, uid uint32, perm fs.FileMode) {
		t.Helper()
		info, err := os.Lstat(path)
		must(t, err)
		if got := info.Sys().(*syscall.Stat_t).Uid; got != uid || info.Mode().Perm() != perm {
			t.Errorf("%s is of %d with %v, want %d with %v", path, got, info.Mode().Perm(), uid, perm)
		}
	}
	must(t, s.Save(t.Context(), 1, k, func(ctx context.Context, dir string) error {
		look(dir, 12345, 0o700)
		disks := filepath.Join(dir, vm.DirDisks)
		return errors.Join(fill(ctx, dir), os.Mkdir(filepath.Join(disks, "more"), 0o755),
			os.Lchown(disks, 12345, 12345), os.Lchown(filepath.Join(disks, "more"), 12345, 12345))
	}))
	st := s.Take(1, k)
	defer st.Release()
	look(dir, 0, 0o711)
	look(st.Dir(), 0, 0o755)
	// This process clones the disks: nobody else may put a link there.
	look(filepath.Join(st.Dir(), vm.DirDisks), 0, 0o700)
	look(filepath.Join(st.Dir(), vm.DirDisks, "more"), 0, 0o755)
	// What lies in the way of the agent's own file is not followed.
	elsewhere := filepath.Join(t.TempDir(), "file")
	err = s.Save(t.Context(), 2, k, func(ctx context.Context, dir string) error {
		return errors.Join(fill(ctx, dir), os.Symlink(elsewhere, filepath.Join(dir, "state.json")))
	})
	if e := s.Save(t.Context(), 3, k, func(ctx context.Context, dir string) error {
		disks := filepath.Join(dir, vm.DirDisks)
		return errors.Join(fill(ctx, dir), os.RemoveAll(disks), os.Symlink(t.TempDir(), disks))
	}); e == nil {
		t.Error("a link in the disks' place is taken")
	}
	if _, e := os.Stat(elsewhere); err == nil || !errors.Is(e, fs.ErrNotExist) {
		t.Errorf("a planted link: %v, %v", err, e)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	for name, c := range map[string]states.Config{
		"relative": {Dir: "states", MaxBytes: 1}, "no room": {Dir: t.TempDir()}, "a file": {Dir: file, MaxBytes: 1},
	} {
		if _, err := states.Open(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestBuilds(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	program := func(name, text string) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o700))
		return path
	}
	mac, err := states.HostBuild(t.Context(), vm.BackendVZ, "", "")
	if err != nil || mac == "" {
		t.Errorf("%q, %v", mac, err)
	}
	first, second := program("a", "echo QEMU 7.2\necho more\n"), program("b", "echo QEMU 8.0\n")
	seven, err := states.HostBuild(t.Context(), vm.BackendQEMU, first, "tcg")
	if err != nil || seven != mac+", QEMU 7.2, tcg" {
		t.Errorf("%q, %v", seven, err)
	}
	for name, path := range map[string]string{"none": filepath.Join(dir, "none"), "fails": program("c", "exit 1"), "silent": program("d", "")} {
		if got, err := states.HostBuild(t.Context(), vm.BackendQEMU, path, ""); err == nil {
			t.Errorf("%s: %q", name, got)
		}
	}
	one, err := states.ProgramVersion(first)
	must(t, err)
	two, err := states.ProgramVersion(second)
	must(t, err)
	if one == two || !strings.HasPrefix(one, "sha256:") {
		t.Errorf("%s and %s", one, two)
	}
	if _, err := states.ProgramVersion(dir); err == nil {
		t.Error("a folder has a version")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
