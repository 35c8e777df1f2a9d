// SPDX-License-Identifier: MIT

package publish

import (
	"context"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/minifleet/minifleet/imagecache/layout"
	"github.com/minifleet/minifleet/imagecache/manifest"
)

// place is where a chunk's content lies in a template.
type place struct{ file, chunk int }

// scanned is a template that is read through: its files, and the manifest they make.
type scanned struct {
	sources  []*source
	manifest *manifest.Manifest
	total    int64
	largest  int64 // of its chunks
}

func newScan(t *layout.Template) (*scanned, error) {
	m := t.Manifest
	m.Schema, m.ChunkBytes, m.Files = manifest.Schema, manifest.ChunkBytes, nil
	s := &scanned{manifest: &m}
	for _, f := range t.Files {
		src, err := newSource(f)
		if err != nil {
			return nil, err
		}
		n := (src.size + m.ChunkBytes - 1) / m.ChunkBytes
		m.Files = append(m.Files, manifest.File{Path: f.Path, Mode: f.Mode, Size: src.size, Chunks: make([]manifest.Chunk, n)})
		s.sources = append(s.sources, src)
		s.total += src.size
		s.largest = max(s.largest, min(src.size, m.ChunkBytes))
	}
	return s, nil
}

// readAhead is how many chunks the system is told of before they are hashed: the disk
// reads them meanwhile.
const readAhead = 8

// size is that of a chunk's content.
func (s *scanned) size(p place) int64 {
	return s.manifest.Files[p.file].ChunkSize(p.chunk, s.manifest)
}

func (s *scanned) offset(p place) int64 { return int64(p.chunk) * s.manifest.ChunkBytes }

// read hashes all files into the manifest: every CPU takes chunk after chunk, and none is
// waited for at a file's end. Holes are not read. visit is called with each chunk that is
// not all zeros, by several goroutines; it must not keep the content. done counts bytes.
func (s *scanned) read(ctx context.Context, done func(int64), visit func(context.Context, place, manifest.Sum, []byte) error) error {
	defer s.close()
	g, ctx := errgroup.WithContext(ctx)
	places := make(chan place, readAhead)
	g.Go(func() error {
		defer close(places)
		for i, src := range s.sources {
			if err := s.offer(ctx, i, src, done, places); err != nil {
				return err
			}
		}
		return nil
	})
	for range runtime.GOMAXPROCS(0) {
		g.Go(func() error {
			buf := make([]byte, s.largest)
			for p := range places {
				if err := s.take(ctx, p, buf, done, visit); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// offer sends the chunks of a file that have data.
func (s *scanned) offer(ctx context.Context, i int, src *source, done func(int64), to chan<- place) error {
	chunks, err := src.begin(s.manifest.ChunkBytes)
	if err != nil {
		return err
	}
	rest := src.size
	for c := range chunks {
		p := place{i, c}
		rest -= s.size(p)
		if src.f != nil {
			willRead(src.f, s.offset(p), s.size(p))
		}
		select {
		case to <- p:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	done(rest) // holes
	return src.end()
}

func (s *scanned) take(ctx context.Context, p place, buf []byte, done func(int64), visit func(context.Context, place, manifest.Sum, []byte) error) error {
	src := s.sources[p.file]
	content := buf[:s.size(p)]
	if err := src.chunk(s.offset(p), content); err != nil {
		return err
	}
	if !manifest.AllZero(content) {
		sum := manifest.SumOf(content)
		s.manifest.Files[p.file].Chunks[p.chunk].Sum = sum
		if err := visit(ctx, p, sum, content); err != nil {
			return err
		}
	}
	done(int64(len(content)))
	return src.end()
}

func (s *scanned) close() {
	for _, src := range s.sources {
		if src.f != nil && src.open.Load() > 0 {
			_ = src.f.Close() // it was only read, and what went wrong is said already
		}
	}
}

// unchanged reports whether all files still are what was read.
func (s *scanned) unchanged() error {
	for _, src := range s.sources {
		if err := src.check(); err != nil {
			return err
		}
	}
	return nil
}

// Describe returns the manifest that a template has, without publishing it. The
// compressed size of those chunks is measured that measure asks for.
func Describe(ctx context.Context, t *layout.Template, measure func(manifest.Sum) bool, progress func(Progress)) (*manifest.Manifest, error) {
	s, err := newScan(t)
	if err != nil {
		return nil, err
	}
	m := newMeter(progress)
	m.begin("reading", s.total)
	var mu sync.Mutex // guards stored
	stored := map[manifest.Sum]int64{}
	err = s.read(ctx, m.done, func(_ context.Context, _ place, sum manifest.Sum, content []byte) error {
		mu.Lock()
		_, known := stored[sum]
		if !known {
			stored[sum] = 0
		}
		mu.Unlock()
		if known || !measure(sum) {
			return nil
		}
		n := int64(len(manifest.Compress(nil, content)))
		mu.Lock()
		defer mu.Unlock()
		stored[sum] = n
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.fill(func(sum manifest.Sum) int64 { return stored[sum] })
	return s.manifest, s.unchanged()
}

// fill writes the stored sizes into the manifest.
func (s *scanned) fill(stored func(manifest.Sum) int64) {
	for i := range s.manifest.Files {
		for j := range s.manifest.Files[i].Chunks {
			if c := &s.manifest.Files[i].Chunks[j]; !c.Zero() {
				c.Stored = stored(c.Sum)
			}
		}
	}
}

// meter adds up progress and shows it.
type meter struct {
	show func(Progress)
	mu   sync.Mutex // guards p, and orders the calls of show
	p    Progress
}

func newMeter(show func(Progress)) *meter {
	if show == nil {
		show = func(Progress) {}
	}
	return &meter{show: show}
}

func (m *meter) add(change func(*Progress)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(&m.p)
	m.show(m.p)
}

func (m *meter) begin(doing string, total int64) {
	m.add(func(p *Progress) { p.Doing, p.Done, p.Total = doing, 0, total })
}

func (m *meter) done(n int64) { m.add(func(p *Progress) { p.Done += n }) }

func (m *meter) sent(n int64) { m.add(func(p *Progress) { p.Sent += n }) }
