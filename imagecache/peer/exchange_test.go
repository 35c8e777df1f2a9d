// SPDX-License-Identifier: MIT

package peer

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minifleet/minifleet/imagecache/manifest"
)

// TestFourHostsAtOnce lets hosts of one site pull an image at the same time: it should cross
// the uplink about once.
func TestFourHostsAtOnce(t *testing.T) {
	img := newImage(1, 160)
	source := &bucket{content: img.content}
	var all []*host
	for i := range 4 {
		h := newHost(t, fmt.Sprintf("h-%d", i), func(c *Config) { c.RecentBytes = 16 * chunkBytes })
		h.serve()
		all = append(all, h)
	}
	know(all...)
	var work sync.WaitGroup
	for _, h := range all {
		work.Go(func() {
			if err := h.pull(img, source); err != nil {
				t.Errorf("host %s: %v", h.name, err)
			}
		})
	}
	work.Wait()
	share := float64(source.bytes.Load()) / float64(img.bytes)
	t.Logf("4 hosts pulled %d bytes each; the bucket gave %.3f of that", img.bytes, share)
	if share < 1 || share > 1.1 {
		t.Errorf("the bucket gave the image %.3f times: want about once", share)
	}
}

// TestOneThatComesLater takes what others have, and the rest with them.
func TestOneThatComesLater(t *testing.T) {
	img := newImage(2, 100)
	source := &bucket{content: img.content}
	a, b, c := newHost(t, "h-a"), newHost(t, "h-b"), newHost(t, "h-c")
	for _, h := range []*host{a, b, c} {
		h.serve()
	}
	know(a, b, c)
	a.disk.putAll(img) // pulled long ago
	if err := b.pull(img, source); err != nil {
		t.Fatal(err)
	}
	if n := source.bytes.Load(); n != 0 {
		t.Errorf("%d bytes came from the bucket and a peer had them all", n)
	}
	if err := c.pull(img, source); err != nil || source.bytes.Load() != 0 {
		t.Errorf("a third one: %v, %d bytes from the bucket", err, source.bytes.Load())
	}
}

// TestHalfAnImageIsGivenToo has one host in the middle of its pull when the next begins.
func TestHalfAnImageIsGivenToo(t *testing.T) {
	img := newImage(8, 60)
	a, b := newHost(t, "h-a", func(c *Config) { c.RecentBytes = 2 * chunkBytes }), newHost(t, "h-b")
	a.serve()
	b.serve()
	know(a, b)
	source := &bucket{content: img.content}
	dir := t.TempDir()
	disk, err := os.Create(filepath.Join(dir, "disk.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	if err := disk.Truncate(img.bytes); err != nil {
		t.Fatal(err)
	}
	f, release := a.First(Pull{Manifest: img.manifest, Dir: dir, Next: source})
	defer release()
	for i := range 40 {
		got := a.fetch(f, img, i)
		if _, err := disk.WriteAt(got.Content, int64(i)*chunkBytes); err != nil {
			t.Fatal(err)
		}
	}
	// What is there and is not the image's, as from the one it is made from, is not given.
	if _, err := disk.WriteAt(bytes.Repeat([]byte("x"), chunkBytes), 50*chunkBytes); err != nil {
		t.Fatal(err)
	}
	if err := b.pull(img, source); err != nil {
		t.Fatal(err)
	}
	for i := 40; i < 60; i++ {
		a.fetch(f, img, i)
	}
	if n := source.bytes.Load(); n != img.bytes {
		t.Errorf("the bucket gave %d bytes for an image of %d", n, img.bytes)
	}
}

// TestNobodyInAHurryWaitsForOneThatIsNot lets a host whose pull is limited be asked by one
// with a job that waits.
func TestNobodyInAHurryWaitsForOneThatIsNot(t *testing.T) {
	img := newImage(9, 20)
	a, b := newHost(t, "h-a"), newHost(t, "h-b")
	a.serve()
	b.serve()
	know(a, b)
	patient := func() bool { return true }
	slow := &bucket{content: img.content}
	_, release := a.First(Pull{Manifest: img.manifest, Patient: patient, Next: slow})
	defer release()
	source := &bucket{content: img.content}
	f, releaseB := b.First(Pull{Manifest: img.manifest, Next: source})
	for i := range 10 {
		b.fetch(f, img, i)
	}
	releaseB()
	if slow.calls.Load() != 0 || source.calls.Load() != 10 {
		t.Errorf("%d chunks were fetched by the host that is limited, %d by the other", slow.calls.Load(), source.calls.Load())
	}
	for _, o := range b.others {
		o.slow = time.Time{}
	}
	f, releaseB = b.First(Pull{Manifest: img.manifest, Patient: patient, Next: source})
	defer releaseB()
	for i := 10; i < 20; i++ {
		b.fetch(f, img, i)
	}
	if slow.calls.Load() == 0 || slow.calls.Load()+source.calls.Load() != 20 {
		t.Errorf("without a hurry: %d and %d", slow.calls.Load(), source.calls.Load())
	}
}

// TestAllHoldersShareTheWork spreads the questions of one host over all that have the image.
func TestAllHoldersShareTheWork(t *testing.T) {
	img := newImage(3, 90)
	source := &bucket{content: img.content}
	var all []*host
	for i := range 4 {
		h := newHost(t, fmt.Sprintf("h-%d", i))
		if i > 0 {
			h.disk.putAll(img)
		}
		h.serve()
		all = append(all, h)
	}
	know(all...)
	counted := map[*host]*counter{}
	for _, h := range all[1:] {
		counted[h] = &counter{Chunks: h.disk}
		h.cfg.Chunks = counted[h]
	}
	if err := all[0].pull(img, source); err != nil {
		t.Fatal(err)
	}
	for h, c := range counted {
		if c.n < 10 || c.n > 60 {
			t.Errorf("host %s gave %d of 90 chunks, of three that have all", h.name, c.n)
		}
	}
}

type counter struct {
	Chunks
	mu sync.Mutex // guards n
	n  int
}

func (c *counter) OpenChunk(ctx context.Context, sum manifest.Sum, room func(int64) ([]byte, error)) ([]byte, error) {
	c.mu.Lock()
	c.n++
	c.mu.Unlock()
	return c.Chunks.OpenChunk(ctx, sum, room)
}

// TestOnePeerVanishes ends the listener of one host in the middle of three pulls.
func TestOnePeerVanishes(t *testing.T) {
	img := newImage(4, 90)
	var all []*host
	for i := range 3 {
		all = append(all, newHost(t, fmt.Sprintf("h-%d", i)))
	}
	stop := all[0].serve()
	all[1].serve()
	all[2].serve()
	know(all...)
	source := &bucket{content: img.content}
	half := make(chan struct{})
	once := sync.OnceFunc(func() { close(half) })
	source.before = func(context.Context, manifest.Chunk) error {
		if source.calls.Load() > 30 {
			once()
		}
		return nil
	}
	var work sync.WaitGroup
	work.Go(func() { <-half; stop() })
	for _, h := range all {
		work.Go(func() {
			if err := h.pull(img, source); err != nil {
				t.Errorf("host %s: %v", h.name, err)
			}
		})
	}
	work.Wait()
	// The one that vanished goes on alone, the others together.
	if share := float64(source.bytes.Load()) / float64(img.bytes); share > 2.1 {
		t.Errorf("the bucket gave the image %.2f times", share)
	}
}

// TestAPullThatEndsLeavesNothing lets a host ask for a chunk that the other stops to fetch.
func TestAPullThatEndsLeavesNothing(t *testing.T) {
	img := newImage(5, 40)
	a, b := newHost(t, "h-a"), newHost(t, "h-b")
	a.serve()
	b.serve()
	know(a, b)
	asked := make(chan struct{}, 100)
	stuck := &bucket{content: img.content, before: func(ctx context.Context, _ manifest.Chunk) error {
		asked <- struct{}{}
		<-ctx.Done()
		return context.Cause(ctx)
	}}
	_, release := b.First(Pull{Manifest: img.manifest, Next: stuck})
	source := &bucket{content: img.content}
	f, releaseA := a.First(Pull{Manifest: img.manifest, Next: source})
	defer releaseA()
	// A chunk that b is to fetch, so a asks b.
	i := 0
	for c, _ := img.chunk(i); len(a.before(c.Sum)) == 0; c, _ = img.chunk(i) {
		i++
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if got := a.fetch(f, img, i); got.Peer {
			t.Error("a peer gave what it did not have")
		}
	}()
	<-asked
	release() // waits for what b does for a
	<-done
	if source.calls.Load() != 1 {
		t.Errorf("%d calls to the bucket", source.calls.Load())
	}
	if len(b.pulling(img.manifest.Files[0].Chunks[0].Sum)) > 0 {
		t.Error("b is still pulling")
	}
}

func TestRecentIsBounded(t *testing.T) {
	img := newImage(6, 50)
	a := newHost(t, "h-a", func(c *Config) { c.RecentBytes = 4 * chunkBytes })
	f, release := a.First(Pull{Manifest: img.manifest, Next: &bucket{content: img.content}})
	for i := range 50 {
		a.fetch(f, img, i)
		if len(a.recent.held) > 5 || a.recent.bytes > 4*chunkBytes || len(a.recent.order) != len(a.recent.held) {
			t.Fatalf("after %d chunks %d are kept, %d bytes", i+1, len(a.recent.held), a.recent.bytes)
		}
	}
	release()
	release()
	if len(a.recent.held) != 0 || a.recent.bytes != 0 {
		t.Errorf("%d chunks stay after the pull", len(a.recent.held))
	}
}

func TestNoTokenNoPeers(t *testing.T) {
	img := newImage(7, 3)
	a, b := newHost(t, "h-a"), newHost(t, "h-b")
	b.serve()
	b.disk.putAll(img)
	terms := a.terms(a, b)
	terms.Token = b.token(b.claims()) // it has one, but not this
	source := &bucket{content: img.content}
	f, release := a.First(Pull{Manifest: img.manifest, Next: source})
	defer release()
	a.fetch(f, img, 0) // nothing was learnt yet
	a.Learn(terms)
	know(b)
	a.fetch(f, img, 1)
	if source.calls.Load() != 2 {
		t.Errorf("%d calls to the bucket, want 2", source.calls.Load())
	}
	if log := a.log.String(); !strings.Contains(log, "it answered 401") || strings.Contains(log, terms.Token.Reveal()) {
		t.Errorf("log: %s", log)
	}
}
