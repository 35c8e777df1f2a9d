// SPDX-License-Identifier: MIT

package disks

import (
	"context"
	"encoding/binary"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Sources are what text and programs are made of.
type Sources struct{ text, programs []byte }

// Load reads them out of the Go toolchain, at most so many bytes of each.
func Load(ctx context.Context, limit int) (*Sources, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("find the Go toolchain: %w", err)
	}
	root := strings.TrimSpace(string(out))
	var s Sources
	collect := func(dir string, into *[]byte, ok func(string) bool) error {
		return filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || !ok(path) {
				return err
			}
			if len(*into) >= limit {
				return fs.SkipAll
			}
			b, err := os.ReadFile(path)
			*into = append(*into, b[:min(len(b), limit-len(*into))]...)
			return err
		})
	}
	if err := collect("src", &s.text, func(path string) bool { return strings.HasSuffix(path, ".go") }); err != nil {
		return nil, err
	}
	for _, dir := range []string{"bin", filepath.Join("pkg", "tool")} {
		if err := collect(dir, &s.programs, func(string) bool { return true }); err != nil {
			return nil, err
		}
	}
	if len(s.text) < 1<<20 || len(s.programs) < 1<<20 {
		return nil, fmt.Errorf("the Go toolchain at %s has %d bytes of text and %d of programs: too little to make disks of", root, len(s.text), len(s.programs))
	}
	return &s, nil
}

// writer makes content from a seed.
type writer struct {
	*Sources
	r     *rand.Rand
	noise *rand.ChaCha8
	b     []byte
}

func (s *Sources) writer(seed, part uint64) *writer {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	binary.LittleEndian.PutUint64(key[8:], part)
	return &writer{Sources: s, r: rand.New(rand.NewPCG(seed, part)), noise: rand.NewChaCha8(key)}
}

// write writes one piece: whole blocks, with zeros behind the end of the file. What is
// unused is not written.
func (w *writer) write(f *os.File, at int64, p piece) error {
	if p.kind == unused {
		return nil
	}
	// In parts, as some files are large.
	for done := int64(0); done < p.bytes; done += partBytes {
		if _, err := f.WriteAt(w.content(p.kind, min(partBytes, p.bytes-done)), at+done); err != nil {
			return err
		}
	}
	return nil
}

const partBytes = 4 << 20

// content makes so many bytes and fills the last block. It is valid until the next call.
func (w *writer) content(k kind, n int64) []byte {
	whole := (n + Block - 1) / Block * Block
	if int64(cap(w.b)) < whole {
		w.b = make([]byte, max(whole, partBytes))
	}
	b := w.b[:whole]
	clear(b[n:])
	switch b := b[:n]; k {
	case text:
		w.slices(b, w.text, 8<<10)
	case program:
		w.slices(b, w.programs, 64<<10)
		// Addresses differ from one link to the next, so that no two programs have the same.
		for i := 64 + w.r.IntN(512); i+4 <= len(b); i += 64 + w.r.IntN(512) {
			binary.LittleEndian.PutUint32(b[i:], w.r.Uint32())
		}
	case compressed:
		_, _ = w.noise.Read(b) // it never fails
	case records:
		for ; len(b) > 0; b = b[min(len(b), Block):] {
			w.records(b[:min(len(b), Block)])
		}
	case unused:
		clear(b)
	}
	return b
}

// slices fills b with slices of a source, longer and shorter ones.
func (w *writer) slices(b, source []byte, typical int) {
	for len(b) > 0 {
		from := w.r.IntN(len(source))
		n := copy(b[:min(len(b), typical/2+w.r.IntN(typical))], source[from:])
		b = b[n:]
	}
}

// records fills one block of metadata: a head, entries in order, and room that is left.
func (w *writer) records(b []byte) {
	clear(b)
	const head, entry = 32, 48
	if len(b) < head {
		return
	}
	id := w.r.Uint64N(1 << 40)
	binary.LittleEndian.PutUint64(b, w.r.Uint64()) // a checksum
	binary.LittleEndian.PutUint64(b[8:], id)
	fill := len(b) * (40 + w.r.IntN(60)) / 100
	for i := head; i+entry <= fill; i += entry {
		id += 1 + w.r.Uint64N(8)
		binary.LittleEndian.PutUint64(b[i:], id)
		binary.LittleEndian.PutUint64(b[i+8:], id<<12|w.r.Uint64N(1<<12))
		binary.LittleEndian.PutUint32(b[i+16:], w.r.Uint32N(1<<20))
		binary.LittleEndian.PutUint64(b[i+24:], 1_790_000_000_000_000_000+w.r.Uint64N(1<<50))
	}
}
