// SPDX-License-Identifier: MIT

package assemble_test

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/minifleet/minifleet/imagecache/assemble"
	"github.com/minifleet/minifleet/imagecache/manifest"
)

// disk is content with zeros in the middle and an end that is no whole chunk.
func disk(seed uint64) []byte {
	return slices.Concat(noise(seed, 2*mib), make([]byte, 3*mib), noise(seed+1, 2*mib+1234))
}

func stored(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

func TestAssemble(t *testing.T) {
	t.Parallel()
	var s store
	files := map[string][]byte{"disk.img": disk(1), "efi/vars": noise(3, 100), "empty": {}, "zeros": make([]byte, 5*mib/2)}
	m := s.image(t, files)
	dir := filepath.Join(t.TempDir(), "image")
	j := job(m, dir, &s)
	var last assemble.Progress
	j.Progress = func(p assemble.Progress) {
		if p.DoneBytes < last.DoneBytes {
			t.Errorf("progress went from %+v to %+v", last, p)
		}
		last = p
	}
	r := assembled(t, j)
	wantFiles(t, dir, files)
	const content = 4*mib + 1234 + 100
	if want := (assemble.Progress{DoneBytes: m.Bytes(), TotalBytes: m.Bytes(), FetchedBytes: content / 2, WrittenBytes: content}); last != want {
		t.Errorf("progress ended with %+v, want %+v", last, want)
	}
	if r.WrittenBytes != content || r.KeptBytes != 0 || r.Cloned || len(r.Stamps) != 4 {
		t.Errorf("result %+v", r)
	}
	if n := stored(t, filepath.Join(dir, "zeros")); n != 0 {
		t.Errorf("zeros take %d bytes", n)
	}
	if n := stored(t, filepath.Join(dir, "disk.img")); n > 5*mib {
		t.Errorf("4 MiB and a bit take %d bytes", n)
	}
	for _, stamp := range r.Stamps {
		if now, err := assemble.StampOf(dir, stamp.Path); err != nil || now != stamp {
			t.Errorf("%s looks like %+v (%v) and was said to look like %+v", stamp.Path, now, err, stamp)
		}
	}
	if s.held != 0 {
		t.Errorf("%d bytes were not given back", s.held)
	}
	// Again: all is there, and nothing is fetched.
	s.count()
	if r := assembled(t, job(m, dir, &s)); s.count() != 0 || r.KeptBytes != content || r.WrittenBytes != 0 {
		t.Errorf("a second time: %+v", r)
	}
}

// TestResume cuts an assembly off, spoils what it left in every way, and goes on: what is
// right is kept, and nothing else.
func TestResume(t *testing.T) {
	t.Parallel()
	var s store
	files := map[string][]byte{"a/disk.img": disk(10), "b/disk.img": disk(20), "c": noise(30, 3*mib)}
	m := s.image(t, files)
	dir := filepath.Join(t.TempDir(), "image")
	cut := errors.New("the test's cut")
	s.before = func(_ context.Context, n int) error {
		if n == 9 {
			return cut
		}
		return nil
	}
	j := job(m, dir, &s)
	j.Memory = assemble.NewMemory(2 * mib) // one after the other
	if _, err := assemble.Assemble(t.Context(), j); !errors.Is(err, cut) || !strings.Contains(err.Error(), "b/disk.img, chunk 6") && !strings.Contains(err.Error(), "b/disk.img, chunk 5") {
		t.Fatalf("the cut: %v", err)
	}
	s.before = nil
	spoil := func(name string, off int64, b []byte) {
		t.Helper()
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt(b, off); err != nil {
			t.Fatal(err)
		}
	}
	done := s.count() - 1
	spoil("a/disk.img", mib+5, []byte{'!'})         // a chunk that was whole
	spoil("a/disk.img", 3*mib+5, []byte{'!'})       // one of zeros
	spoil("a/disk.img", int64(disk10), []byte{'!'}) // behind the end
	if err := os.WriteFile(filepath.Join(dir, "stray"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/hostname", filepath.Join(dir, "c")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "d/e"), 0o755); err != nil {
		t.Fatal(err)
	}
	assembled(t, job(m, dir, &s))
	wantFiles(t, dir, files)
	all := 5 + 5 + 3
	if n := s.count(); n != all-done+1 {
		t.Errorf("%d chunks of %d were fetched, of which %d were there and one of these spoilt", n, all, done)
	}
	if info, err := os.Lstat(filepath.Join(dir, "d")); err == nil {
		t.Errorf("%s is there", info.Name())
	}
}

const disk10 = 7*mib + 1234

func TestChunksThatAreNone(t *testing.T) {
	t.Parallel()
	var s store
	m := s.image(t, map[string][]byte{"disk.img": noise(1, 3*mib)})
	for name, f := range map[string]assemble.Fetcher{
		"gone":  &store{},
		"short": lengths(-1),
		"long":  lengths(1),
		"none":  assemble.First{},
	} {
		dir := filepath.Join(t.TempDir(), "image")
		if _, err := assemble.Assemble(t.Context(), job(m, dir, f)); err == nil || !strings.Contains(err.Error(), "disk.img, chunk 0") {
			t.Errorf("%s: %v", name, err)
		}
		assembled(t, job(m, dir, assemble.First{f, &s})) // the next one has it
		wantFilesOf(t, dir, m, &s)
	}
}

func wantFilesOf(t *testing.T, dir string, m *manifest.Manifest, s *store) {
	t.Helper()
	damages, _, err := assemble.Verify(t.Context(), dir, m, nil)
	if err != nil || len(damages) > 0 {
		t.Errorf("%v, %v", damages, err)
	}
}

// lengths gives chunks of a wrong length.
type lengths int64

func (l lengths) Fetch(_ context.Context, _ manifest.Chunk, size int64) (assemble.Fetched, error) {
	return assemble.Fetched{Content: make([]byte, size+int64(l))}, nil
}

// TestOrderAndMemory holds the first chunk back: the others come as far as the memory
// reaches, and none is written.
func TestOrderAndMemory(t *testing.T) {
	t.Parallel()
	var s store
	files := map[string][]byte{"disk.img": noise(1, 40*mib)}
	m := s.image(t, files)
	first := m.Files[0].Chunks[0].Sum
	release, begun := make(chan struct{}), make(chan struct{}, 40)
	blocked := fetcher(func(ctx context.Context, c manifest.Chunk, size int64) (assemble.Fetched, error) {
		begun <- struct{}{}
		if c.Sum == first {
			select {
			case <-release:
			case <-ctx.Done():
				return assemble.Fetched{}, context.Cause(ctx)
			}
		}
		return s.Fetch(ctx, c, size)
	})
	const room = 16 // MiB: two for a chunk on its way, one for each that waits for the first
	j := job(m, filepath.Join(t.TempDir(), "image"), blocked)
	j.Memory = assemble.NewMemory(room * mib)
	told := false
	j.Progress = func(assemble.Progress) {
		if !told {
			told = true
			select {
			case <-release:
			default:
				t.Error("a chunk was written before the first")
			}
		}
	}
	done := make(chan error, 1)
	go func() {
		_, err := assemble.Assemble(t.Context(), j)
		done <- err
	}()
	for range room - 2 {
		<-begun
	}
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if s.most >= room*mib || s.held != 0 {
		t.Errorf("%d bytes were held at once and %d are", s.most, s.held)
	}
	wantFiles(t, j.Dir, files)
}

type fetcher func(context.Context, manifest.Chunk, int64) (assemble.Fetched, error)

func (f fetcher) Fetch(ctx context.Context, c manifest.Chunk, size int64) (assemble.Fetched, error) {
	return f(ctx, c, size)
}

// TestCalledOff ends an assembly at every chunk, and then at the gate.
func TestCalledOff(t *testing.T) {
	t.Parallel()
	var s store
	files := map[string][]byte{"disk.img": noise(1, 12*mib)}
	m := s.image(t, files)
	dir := filepath.Join(t.TempDir(), "image")
	cause := errors.New("the test's cause")
	for n := 1; n <= 12; n++ {
		ctx, cancel := context.WithCancelCause(t.Context())
		j := job(m, dir, &s)
		at := 0
		j.Progress = func(assemble.Progress) {
			if at++; at == n {
				cancel(cause)
			}
		}
		if _, err := assemble.Assemble(ctx, j); n < 12 && !errors.Is(err, cause) {
			t.Errorf("at chunk %d: %v", n, err)
		}
		cancel(nil)
	}
	j := job(m, filepath.Join(t.TempDir(), "image"), &s)
	j.Gate = func(context.Context) error { return cause }
	if _, err := assemble.Assemble(t.Context(), j); !errors.Is(err, cause) {
		t.Errorf("at the gate: %v", err)
	}
	if s.held != 0 {
		t.Errorf("%d bytes were not given back", s.held)
	}
	assembled(t, job(m, dir, &s))
	wantFiles(t, dir, files)
}

// later is a version of an image: parts are changed, zeroed, filled, moved, and files are
// longer, shorter, new and gone.
func versions() (before, after map[string][]byte) {
	long := noise(1, 12*mib)
	changed := slices.Clone(long)
	copy(changed[mib:], noise(2, 10))        // changed
	clear(changed[3*mib : 4*mib])            // zeros now
	copy(changed[8*mib:9*mib], long[5*mib:]) // moved
	hole := slices.Concat(noise(4, mib), make([]byte, 2*mib), noise(5, mib))
	filled := slices.Clone(hole)
	copy(filled[mib:], noise(6, mib/2))
	before = map[string][]byte{
		"disk.img": long, "filled": hole, "longer": noise(7, mib+100), "shorter": noise(8, 3*mib), "same": noise(9, 2*mib), "gone": noise(10, mib),
		"zero-tail": slices.Concat(noise(13, mib), make([]byte, mib/2)),
	}
	after = map[string][]byte{
		"disk.img": changed, "filled": filled, "longer": slices.Concat(before["longer"], noise(11, 2*mib)), "shorter": before["shorter"][:mib+50],
		"same": before["same"], "new/file": noise(12, mib),
		"zero-tail": slices.Concat(noise(13, mib), make([]byte, 3*mib)),
	}
	return before, after
}

// TestDelta makes one version from the other, where the volume clones and where not, with
// a record that holds and without.
func TestDelta(t *testing.T) {
	t.Parallel()
	before, after := versions()
	for _, kind := range []string{"xfs", "btrfs", "tmpfs"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			root := volume(t, kind, 512*mib)
			var s store
			old, now := s.image(t, before), s.image(t, after)
			base := filepath.Join(root, "base")
			stamps := assembled(t, job(old, base, &s)).Stamps
			s.count()
			shared, missing := assemble.Shared(now, old)
			// changed, moved, filled, two chunks of longer and its end, shorter's end, new/file
			if want := int64(mib*(1+1+1+1+1) + mib + 100 + 50); missing != want || shared == 0 {
				t.Errorf("%d bytes shared, %d missing, want %d", shared, missing, want)
			}
			for name, trusted := range map[string]bool{"trusted": true, "read": false} {
				dir := filepath.Join(root, name)
				j := job(now, dir, &s)
				j.Base = &assemble.Base{Dir: base, Manifest: old, Holds: func(path string) bool {
					i := slices.IndexFunc(stamps, func(s assemble.Stamp) bool { return s.Path == path })
					have, err := assemble.StampOf(base, path)
					return trusted && i >= 0 && err == nil && have == stamps[i]
				}}
				r := assembled(t, j)
				wantFiles(t, dir, after)
				wantFiles(t, base, before)
				clones := kind != "tmpfs"
				if r.Cloned != clones {
					t.Errorf("%s: cloned: %t", name, r.Cloned)
				}
				want := missing
				switch {
				case !clones:
					want += shared
				case !trusted: // who reads sees that the end of shorter is what it was
					want -= 50
				}
				if r.WrittenBytes != want || r.KeptBytes != missing+shared-want {
					t.Errorf("%s: written %d and kept %d bytes of %d and %d", name, r.WrittenBytes, r.KeptBytes, want, missing+shared-want)
				}
			}
			// What is rotten in the base is kept where its record is believed, and found where
			// it is read. Verify finds it anyway.
			path := filepath.Join(base, "same")
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt([]byte{'!'}, 7); err != nil {
				t.Fatal(err)
			}
			f.Close()
			damages, _, err := assemble.Verify(t.Context(), base, old, nil)
			if err != nil || len(damages) != 1 || damages[0].Path != "same" || damages[0].Chunk != 0 {
				t.Errorf("verify: %v, %v", damages, err)
			}
			dir := filepath.Join(root, "found")
			j := job(now, dir, &s)
			j.Base = &assemble.Base{Dir: base, Manifest: old, Holds: func(string) bool { return false }}
			assembled(t, j)
			wantFiles(t, dir, after)
		})
	}
}

func TestFullVolume(t *testing.T) {
	t.Parallel()
	root := volume(t, "tmpfs", 4*mib)
	var s store
	m := s.image(t, map[string][]byte{"disk.img": noise(1, 8*mib)})
	dir := filepath.Join(root, "image")
	if _, err := assemble.Assemble(t.Context(), job(m, dir, &s)); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "disk.img, chunk ") {
		t.Errorf("%v", err)
	}
	if s.held != 0 {
		t.Errorf("%d bytes were not given back", s.held)
	}
}

func TestVerify(t *testing.T) {
	t.Parallel()
	var s store
	m := s.image(t, map[string][]byte{"a": disk(1), "b": noise(5, mib), "c": noise(6, mib), "d": noise(7, mib), "z": make([]byte, 2*mib)})
	dir := filepath.Join(t.TempDir(), "image")
	stamps := assembled(t, job(m, dir, &s)).Stamps
	var last assemble.Progress
	damages, seen, err := assemble.Verify(t.Context(), dir, m, func(p assemble.Progress) { last = p })
	if err != nil || len(damages) != 0 || !slices.Equal(seen, stamps) || last.DoneBytes != m.Bytes() {
		t.Fatalf("%v, %v, %v, %+v", damages, seen, err, last)
	}
	write := func(name string, off int64) {
		t.Helper()
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte{1}, off); err != nil {
			t.Fatal(err)
		}
	}
	write("a", 4*mib)
	write("a", 6*mib)
	write("z", 2*mib-1)
	if err := errors.Join(os.Remove(filepath.Join(dir, "b")), os.Truncate(filepath.Join(dir, "c"), 5), os.Remove(filepath.Join(dir, "d")), os.Symlink("a", filepath.Join(dir, "d"))); err != nil {
		t.Fatal(err)
	}
	damages, _, err = assemble.Verify(t.Context(), dir, m, nil)
	if err != nil {
		t.Fatal(err)
	}
	have := map[string][]int{}
	for _, d := range damages {
		have[d.Path] = append(have[d.Path], d.Chunk)
	}
	for _, chunks := range have {
		slices.Sort(chunks)
	}
	if want := map[string][]int{"a": {4, 6}, "b": {-1}, "c": {-1}, "d": {-1}, "z": {1}}; !maps.EqualFunc(have, want, slices.Equal[[]int]) {
		t.Errorf("%v, want %v", have, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := assemble.Verify(ctx, dir, m, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("called off: %v", err)
	}
}
