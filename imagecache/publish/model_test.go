// SPDX-License-Identifier: MIT

package publish_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minifleet/minifleet/imagecache/layout"
	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/imagecache/objects"
	"github.com/minifleet/minifleet/imagecache/publish"
)

// The model: actors do what operators do, all at once, on one store. Before each request
// every actor waits; a seed chooses whose request is next, whether time passes before it, and
// whether its actor is killed instead. After each request what must hold is checked.
//
// What must hold: a manifest that a tag names is there, with all its chunks. Where no push
// takes as long as half a lease, so does every manifest without a tag.

// request is an actor's, waiting for its turn.
type request struct {
	actor    int
	op, name string
	turn     chan error
}

func (r request) String() string { return fmt.Sprintf("%d: %s %s", r.actor, r.op, r.name) }

var errKilled = errors.New("killed")

type model struct {
	t     *testing.T
	store *memory
	rand  *rand.Rand
	// hasty: time passes slowly enough for no push to take half a lease.
	hasty bool
	// persistence is how likely an actor's request is followed by another of it.
	persistence float64
	runs        int

	mu      sync.Mutex // guards the rest
	waiting []request
	dead    map[int]bool
	trace   []string
	parsed  map[string]*manifest.Manifest
}

type actorKey struct{}

// wait is an actor's wait for its turn.
func (m *model) wait(ctx context.Context, op, name string) error {
	actor, ok := ctx.Value(actorKey{}).(int)
	if !ok {
		return ctx.Err() // the test itself
	}
	r := request{actor, op, name, make(chan error, 1)}
	m.mu.Lock()
	if m.dead[actor] {
		m.mu.Unlock()
		return errKilled
	}
	m.waiting = append(m.waiting, r)
	m.mu.Unlock()
	return <-r.turn
}

// next lets one request happen, and reports whether there was one.
func (m *model) next() bool {
	synctest.Wait() // until all actors wait or have ended
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.waiting) == 0 {
		return false
	}
	slices.SortStableFunc(m.waiting, func(a, b request) int {
		return cmp.Or(cmp.Compare(a.actor, b.actor), cmp.Compare(a.op, b.op), cmp.Compare(a.name, b.name))
	})
	m.pass()
	r := m.choose()
	if m.rand.IntN(200) == 0 {
		m.kill(r)
		return true
	}
	m.trace = append(m.trace, r.String())
	r.turn <- nil
	return true
}

// choose takes a request from those that wait: with the seed's persistence one of the same
// actor as before, so that the others stand still somewhere for long.
func (m *model) choose() request {
	if !slices.ContainsFunc(m.waiting, func(r request) bool { return r.actor == m.runs }) || m.rand.Float64() > m.persistence {
		m.runs = m.waiting[m.rand.IntN(len(m.waiting))].actor
		others := slices.DeleteFunc(slices.Clone(m.waiting), func(r request) bool { return r.actor == m.runs })
		if len(others) > 0 && m.rand.IntN(2) == 0 {
			m.runs = others[m.rand.IntN(len(others))].actor
		}
	}
	var own []int
	for i, r := range m.waiting {
		if r.actor == m.runs {
			own = append(own, i)
		}
	}
	i := own[m.rand.IntN(len(own))]
	r := m.waiting[i]
	m.waiting = slices.Delete(m.waiting, i, i+1)
	return r
}

// kill ends an actor: none of its requests happens any more.
func (m *model) kill(r request) {
	m.trace = append(m.trace, fmt.Sprintf("%d is killed", r.actor))
	m.dead[r.actor] = true
	r.turn <- errKilled
	m.waiting = slices.DeleteFunc(m.waiting, func(o request) bool {
		if o.actor == r.actor {
			o.turn <- errKilled
		}
		return o.actor == r.actor
	})
}

// pass lets time pass, now and then. No tag is about to be written while much does: between
// the last look at a manifest and the request that names it there is less than a lease.
func (m *model) pass() {
	long := !m.hasty && !slices.ContainsFunc(m.waiting, func(r request) bool { return r.op == "put" && kind(r.name) == "tags" })
	d := time.Second
	switch n := m.rand.IntN(40); {
	case n < 2 && long:
		d = time.Duration(m.rand.Int64N(int64(3 * publish.Lease)))
	case n < 4:
		d = time.Duration(m.rand.Int64N(int64(publish.Lease / 200)))
	}
	m.store.advance(d)
}

// check says what does not hold.
func (m *model) check() error {
	m.store.mu.Lock()
	defer m.store.mu.Unlock()
	for name, o := range m.store.objects {
		switch kind(name) {
		case "tags":
			digest, err := manifest.ParseTag(o.content)
			if err != nil {
				return err
			}
			if err := m.whole(digest); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		case "manifests":
			digest, _ := manifest.ParseManifestObject(name)
			if err := m.whole(digest); err != nil && m.hasty {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return nil
}

// whole says what an image lacks. The store is locked.
func (m *model) whole(digest string) error {
	o, ok := m.store.objects[manifest.ManifestObject(digest)]
	if !ok {
		return errors.New("the manifest is not there")
	}
	if m.parsed[digest] == nil {
		parsed, err := manifest.Parse(o.content)
		if err != nil {
			return err
		}
		m.parsed[digest] = parsed
	}
	for _, f := range m.parsed[digest].Files {
		for _, c := range f.Chunks {
			if _, ok := m.store.objects[manifest.ChunkObject(c.Sum)]; !ok {
				return fmt.Errorf("the chunk of %s is not there", f.Path)
			}
		}
	}
	return nil
}

// template is an image of small files, each of which is one chunk. Images with the same
// letters share them.
func template(letters string) *layout.Template {
	t := &layout.Template{Manifest: manifest.Manifest{Schema: manifest.Schema, GuestOS: "linux"}}
	for i, l := range letters {
		t.Files = append(t.Files, layout.File{Path: fmt.Sprintf("file-%d", i), Mode: 0o644, Content: []byte(strings.Repeat(string(l), 40))})
	}
	return t
}

func ref(tag string) manifest.Reference {
	return manifest.Reference{Scheme: manifest.SchemeFile, Location: "/", Name: "image", Tag: tag}
}

var collecting = publish.GCOptions{Grace: publish.Lease, KeepUntagged: publish.Lease}

// one returns one of several.
func one[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// image returns an image that has chunks in common with others.
func image(r *rand.Rand) *layout.Template { return template(one(r, "abc", "abd", "bc", "ce")) }

// action is something that an operator does.
func action(r *rand.Rand, l publish.Location, digests []string) func(context.Context) error {
	tag := one(r, "v1", "v2")
	switch n := r.IntN(12); {
	case n < 4:
		of := image(r)
		return func(ctx context.Context) error {
			_, err := l.Push(ctx, of, publish.PushOptions{Name: "image", Tag: tag})
			return err
		}
	case n < 8:
		return func(ctx context.Context) error { _, err := l.GC(ctx, collecting); return err }
	case n < 9:
		return func(ctx context.Context) error { _, err := l.Delete(ctx, ref(tag), false); return err }
	case n < 10 && len(digests) > 0:
		which := ref("").At(one(r, digests...))
		return func(ctx context.Context) error { _, err := l.Delete(ctx, which, false); return err }
	case n < 11 && len(digests) > 0:
		which := ref("").At(one(r, digests...))
		return func(ctx context.Context) error { _, err := l.Tag(ctx, which, tag); return err }
	default:
		from := one(r, "v1", "v2")
		return func(ctx context.Context) error { _, err := l.Tag(ctx, ref(from), tag); return err }
	}
}

// run runs a seed's story, and returns what did not hold.
func (m *model) run() error {
	l := publish.Location{Store: m.store, Parallel: 2}
	ctx := context.Background()
	var digests []string
	for range m.rand.IntN(4) { // long ago
		p, err := l.Push(ctx, image(m.rand), publish.PushOptions{Name: "image", Tag: one(m.rand, "v1", "v2")})
		if err != nil {
			return err
		}
		digests = append(digests, p.Digest)
		m.store.advance(time.Duration(m.rand.Int64N(int64(3 * publish.Lease))))
	}
	if m.rand.IntN(2) == 0 { // and one that was broken off
		left := m.rand.IntN(40)
		m.store.before = func(context.Context, string, string) error {
			m.store.mu.Lock()
			defer m.store.mu.Unlock()
			if left--; left < 0 {
				return errKilled
			}
			return nil
		}
		_, _ = l.Push(ctx, image(m.rand), publish.PushOptions{Name: "image", Tag: "v3"})
		m.store.before = m.wait
		m.store.advance(time.Duration(m.rand.Int64N(int64(3 * publish.Lease))))
	}
	for name := range maps.Clone(m.store.objects) { // what a broken-off push left can be tagged too
		if digest, ok := manifest.ParseManifestObject(name); ok && !slices.Contains(digests, digest) {
			digests = append(digests, digest)
		}
	}
	slices.Sort(digests)
	if m.rand.IntN(2) == 0 {
		_, _ = l.Delete(ctx, ref("v1"), false)
		m.store.advance(2 * publish.Lease)
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	var wrong []error
	for i := range 2 + m.rand.IntN(3) {
		do := action(m.rand, l, digests)
		all.Go(func() {
			if err := do(context.WithValue(ctx, actorKey{}, i)); !expected(err) {
				mu.Lock()
				defer mu.Unlock()
				wrong = append(wrong, fmt.Errorf("actor %d: %w", i, err))
			}
		})
	}
	for m.next() {
		synctest.Wait()
		if err := m.check(); err != nil {
			m.mu.Lock()
			for i := range 10 { // let all go
				m.dead[i] = true
			}
			for _, r := range m.waiting {
				r.turn <- errKilled
			}
			m.mu.Unlock()
			all.Wait()
			return err
		}
	}
	all.Wait()
	if err := errors.Join(wrong...); err != nil {
		return err
	}
	return m.settle(ctx, l)
}

// expected reports whether an error is what happens beside others.
func expected(err error) bool {
	_, moved := errors.AsType[*publish.MovedError](err)
	_, tagged := errors.AsType[*publish.TaggedError](err)
	_, young := errors.AsType[*publish.YoungError](err)
	return err == nil || moved || tagged || young || errors.Is(err, errKilled) || errors.Is(err, publish.ErrNoImage) ||
		strings.Contains(err.Error(), "lacks the chunk") || strings.Contains(err.Error(), "moved by somebody else")
}

// settle collects what is left, long after, and looks whether what stays is what tags need.
func (m *model) settle(ctx context.Context, l publish.Location) error {
	for range 2 {
		m.store.advance(2 * publish.Lease)
		if _, err := l.GC(ctx, collecting); err != nil {
			return err
		}
		if err := m.check(); err != nil {
			return err
		}
	}
	v, err := l.Verify(ctx, "", nil)
	if err != nil || len(v.Problems) > 0 {
		return fmt.Errorf("%+v, %w", v.Problems, err)
	}
	chunks, manifests, tagged := 0, 0, map[string]bool{}
	for name, o := range m.store.objects {
		switch kind(name) {
		case "chunks":
			chunks++
		case "manifests":
			manifests++
		case "tags":
			digest, _ := manifest.ParseTag(o.content)
			tagged[digest] = true
		}
	}
	if manifests != len(tagged) || chunks != v.Chunks {
		return fmt.Errorf("%d manifests and %d chunks are left, and tags need %d and %d", manifests, chunks, len(tagged), v.Chunks)
	}
	return nil
}

// story runs one seed in a bubble.
func story(t *testing.T, seed uint64, hasty bool, change func(*memory)) (trace []string, err error) {
	synctest.Test(t, func(t *testing.T) {
		m := &model{t: t, store: newMemory(), rand: rand.New(rand.NewPCG(seed, 5)), hasty: hasty, persistence: []float64{0, 0.5, 0.9, 0.97}[seed%4], dead: map[int]bool{}, parsed: map[string]*manifest.Manifest{}}
		m.store.before = m.wait
		change(m.store)
		err = m.run()
		trace = m.trace
	})
	return trace, err
}

func warm(t *testing.T) {
	t.Helper()
	content := []byte("what is compressed once outside of every bubble")
	if _, err := manifest.Decompress(manifest.Compress(nil, content), int64(len(content)), manifest.SumOf(content)); err != nil {
		t.Fatal(err)
	}
}

// TestEveryTagNamesAWholeImage tells thousands of stories. MINIFLEET_SEEDS is how many.
func TestEveryTagNamesAWholeImage(t *testing.T) {
	warm(t)
	seeds := 600
	if raced {
		seeds = 60 // the detector makes them slow, and finds nothing in most that others lack
	}
	if n, err := strconv.Atoi(os.Getenv("MINIFLEET_SEEDS")); err == nil {
		seeds = n
	}
	for seed := range uint64(seeds) {
		for _, hasty := range []bool{false, true} {
			if trace, err := story(t, seed, hasty, func(*memory) {}); err != nil {
				t.Fatalf("seed %d, hasty %t: %v after\n%s", seed, hasty, err, strings.Join(trace, "\n"))
			}
		}
	}
}

// TestTheModelFindsABlindStore: a store that deletes whatever the metageneration is found out.
func TestTheModelFindsABlindStore(t *testing.T) {
	warm(t)
	for seed := range uint64(500) {
		if _, err := story(t, seed, false, func(m *memory) { m.blind = true }); err != nil {
			t.Logf("seed %d: %v", seed, err)
			return
		}
	}
	t.Error("a store that does not look at metagenerations is as good as any: the model finds nothing")
}

var _ objects.Store = &memory{}
