// SPDX-License-Identifier: MIT

package assemble_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/minifleet/minifleet/imagecache/assemble"
	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/internal/leakcheck"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

const mib = 1 << 20

// noise is content that nothing else has.
func noise(seed uint64, size int) []byte {
	b := make([]byte, size)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(b)
	return b
}

// store has chunks in memory, and gives them out as a bucket would.
type store struct {
	mu      sync.Mutex
	chunks  map[manifest.Sum][]byte
	fetched []manifest.Sum
	held    int64 // bytes that were given out and not given back
	most    int64
	// before, if set, is called before each chunk is given out, in order of the calls.
	before func(ctx context.Context, n int) error
}

var errGone = errors.New("gone")

func (s *store) Fetch(ctx context.Context, c manifest.Chunk, size int64) (assemble.Fetched, error) {
	s.mu.Lock()
	s.fetched = append(s.fetched, c.Sum)
	n, before := len(s.fetched), s.before
	content, ok := s.chunks[c.Sum]
	s.mu.Unlock()
	if before != nil {
		if err := before(ctx, n); err != nil {
			return assemble.Fetched{}, err
		}
	}
	if !ok {
		return assemble.Fetched{}, errGone
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held += size
	s.most = max(s.most, s.held)
	var once sync.Once
	return assemble.Fetched{Content: slices.Clone(content), Network: size / 2, Release: func() {
		once.Do(func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.held -= size
		})
	}}, nil
}

// count forgets what was fetched and says how much it was.
func (s *store) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.fetched)
	s.fetched = nil
	return n
}

// image makes a manifest of files and puts their chunks into the store.
func (s *store) image(t *testing.T, files map[string][]byte) *manifest.Manifest {
	t.Helper()
	if s.chunks == nil {
		s.chunks = map[manifest.Sum][]byte{}
	}
	m := &manifest.Manifest{Schema: manifest.Schema, GuestOS: "linux", ChunkBytes: mib}
	for path, content := range files {
		f := manifest.File{Path: path, Mode: 0o644, Size: int64(len(content))}
		for chunk := range slices.Chunk(content, mib) {
			var c manifest.Chunk
			if !manifest.AllZero(chunk) {
				c.Sum = manifest.SumOf(chunk)
				s.chunks[c.Sum] = chunk
			}
			f.Chunks = append(f.Chunks, c)
		}
		m.Files = append(m.Files, f)
	}
	slices.SortFunc(m.Files, func(a, b manifest.File) int { return slices.Compare([]byte(a.Path), []byte(b.Path)) })
	b, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if m, err = manifest.Parse(b); err != nil {
		t.Fatal(err)
	}
	return m
}

func job(m *manifest.Manifest, dir string, f assemble.Fetcher) assemble.Job {
	return assemble.Job{Manifest: m, Dir: dir, Fetcher: f, Memory: assemble.NewMemory(16 * mib)}
}

func assembled(t *testing.T, j assemble.Job) assemble.Result {
	t.Helper()
	r, err := assemble.Assemble(t.Context(), j)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// wantFiles compares a folder, all of it, with files.
func wantFiles(t *testing.T, dir string, files map[string][]byte) {
	t.Helper()
	for path, want := range files {
		have, err := os.ReadFile(filepath.Join(dir, path))
		if err != nil {
			t.Error(err)
		} else if !slices.Equal(have, want) {
			t.Errorf("%s is not what it should be", path)
		}
	}
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			if _, ok := files[rel]; !ok {
				t.Errorf("%s is there too", rel)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
