// SPDX-License-Identifier: MIT

package publish_test

import (
	"bytes"
	"context"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/minifleet/minifleet/imagecache/objects"
)

// memory is a store with a clock of its own. A listing is no snapshot: it shows each page
// as it is when it is asked for.
type memory struct {
	// before is asked before every request, which fails with its error.
	before func(ctx context.Context, op, name string) error

	mu      sync.Mutex // guards the rest
	objects map[string]object
	clock   time.Time
	last    int64 // generation
	counts  map[string]int
	// Faults of the store itself, to see that tests find them.
	blind bool // a deletion does not look at the metageneration
}

type object struct {
	objects.Attributes
	content []byte
}

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func newMemory() *memory {
	return &memory{
		objects: map[string]object{}, clock: epoch, counts: map[string]int{},
		before: func(ctx context.Context, _, _ string) error { return ctx.Err() },
	}
}

const pageSize = 2

func (m *memory) advance(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clock = m.clock.Add(d)
}

func (m *memory) count(op string) {
	m.counts[op]++
}

// counted returns how often each request was made, and forgets it.
func (m *memory) counted() map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.counts
	m.counts = map[string]int{}
	return c
}

func kind(name string) string {
	folder, _, _ := strings.Cut(name, "/")
	return folder
}

// begin asks whether a request may go on, and leaves the store locked if it may.
func (m *memory) begin(ctx context.Context, op, name string) error {
	if err := m.before(ctx, op, name); err != nil {
		return err
	}
	m.mu.Lock()
	m.count(op + " " + kind(name))
	return nil
}

func (m *memory) allowed(name string, c objects.Condition) (object, error) {
	o, ok := m.objects[name]
	if ok && c.Absent || c.Generation != 0 && (!ok || c.Generation != o.Generation) || c.Metageneration != 0 && (!ok || c.Metageneration != o.Metageneration) {
		return o, objects.ErrPrecondition
	}
	if !ok && !c.Absent {
		return o, objects.ErrNotFound
	}
	return o, nil
}

func (m *memory) Get(ctx context.Context, name string) (io.ReadCloser, objects.Attributes, error) {
	if err := m.begin(ctx, "get", name); err != nil {
		return nil, objects.Attributes{}, err
	}
	defer m.mu.Unlock()
	o, err := m.allowed(name, objects.Condition{})
	return io.NopCloser(bytes.NewReader(o.content)), o.Attributes, err
}

func (m *memory) Stat(ctx context.Context, name string) (objects.Attributes, error) {
	if err := m.begin(ctx, "stat", name); err != nil {
		return objects.Attributes{}, err
	}
	defer m.mu.Unlock()
	o, err := m.allowed(name, objects.Condition{})
	return o.Attributes, err
}

func (m *memory) List(ctx context.Context, prefix string) iter.Seq2[objects.Attributes, error] {
	return func(yield func(objects.Attributes, error) bool) {
		after := ""
		for {
			if err := m.begin(ctx, "list", prefix); err != nil {
				yield(objects.Attributes{}, err)
				return
			}
			var page []objects.Attributes
			for _, name := range slices.Sorted(maps.Keys(m.objects)) {
				if strings.HasPrefix(name, prefix) && name > after && len(page) < pageSize {
					page = append(page, m.objects[name].Attributes)
				}
			}
			m.mu.Unlock()
			for _, a := range page {
				if after = a.Name; !yield(a, nil) {
					return
				}
			}
			if len(page) < pageSize {
				return
			}
		}
	}
}

func (m *memory) Put(ctx context.Context, name string, content []byte, c objects.Condition) (objects.Attributes, error) {
	if err := m.begin(ctx, "put", name); err != nil {
		return objects.Attributes{}, err
	}
	defer m.mu.Unlock()
	if _, err := m.allowed(name, c); err == objects.ErrPrecondition { //nolint:errorlint // it is made above
		return objects.Attributes{}, err
	}
	m.last++
	a := objects.Attributes{Name: name, Size: int64(len(content)), Generation: m.last, Metageneration: 1, Touched: m.clock}
	m.objects[name] = object{a, bytes.Clone(content)}
	return a, nil
}

func (m *memory) Touch(ctx context.Context, name string, c objects.Condition) (objects.Attributes, error) {
	if err := m.begin(ctx, "touch", name); err != nil {
		return objects.Attributes{}, err
	}
	defer m.mu.Unlock()
	o, err := m.allowed(name, c)
	if err != nil {
		return objects.Attributes{}, err
	}
	o.Metageneration++
	o.Touched = m.clock
	m.objects[name] = o
	return o.Attributes, nil
}

func (m *memory) Delete(ctx context.Context, name string, c objects.Condition) error {
	if err := m.begin(ctx, "delete", name); err != nil {
		return err
	}
	defer m.mu.Unlock()
	if m.blind {
		c.Metageneration = 0
	}
	if _, err := m.allowed(name, c); err != nil {
		return err
	}
	delete(m.objects, name)
	return nil
}

func (m *memory) String() string { return "memory" }
func (m *memory) Close() error   { return nil }
