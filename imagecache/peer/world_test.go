// SPDX-License-Identifier: MIT

package peer

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minifleet/minifleet/imagecache/assemble"
	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/imagecache/peer/token"
	"github.com/minifleet/minifleet/secret"
)

const (
	patience   = time.Minute // for what is certain to come
	chunkBytes = 64 << 10
	site       = "abcdefgh"
)

var (
	controllerKey = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, ed25519.SeedSize))
	loopback      = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
)

// image is one file of n chunks and a bit, each with a content of its own.
type image struct {
	manifest *manifest.Manifest
	content  map[manifest.Sum][]byte
	bytes    int64
}

func newImage(seed uint64, n int) image {
	chance := rand.NewChaCha8([32]byte{byte(seed)})
	img := image{content: map[manifest.Sum][]byte{}}
	file := manifest.File{Path: "disk.img"}
	for i := range n {
		c := make([]byte, chunkBytes)
		if i == n-1 {
			c = c[:1000]
		}
		_, _ = chance.Read(c)
		sum := manifest.Sum(sha256.Sum256(c))
		img.content[sum] = c
		file.Chunks = append(file.Chunks, manifest.Chunk{Sum: sum})
		file.Size += int64(len(c))
		img.bytes += int64(len(c))
	}
	img.manifest = &manifest.Manifest{Schema: manifest.Schema, ChunkBytes: chunkBytes, Files: []manifest.File{file}}
	return img
}

func (img image) chunk(i int) (manifest.Chunk, int64) {
	c := img.manifest.Files[0].Chunks[i]
	return c, int64(len(img.content[c.Sum]))
}

// bucket is where images come from, and counts.
type bucket struct {
	content map[manifest.Sum][]byte
	bytes   atomic.Int64
	calls   atomic.Int64
	before  func(ctx context.Context, c manifest.Chunk) error // if set
}

func (b *bucket) Fetch(ctx context.Context, c manifest.Chunk, size int64) (assemble.Fetched, error) {
	b.calls.Add(1)
	if b.before != nil {
		if err := b.before(ctx, c); err != nil {
			return assemble.Fetched{}, err
		}
	}
	content, ok := b.content[c.Sum]
	if !ok || int64(len(content)) != size {
		return assemble.Fetched{}, errors.New("the bucket does not have it")
	}
	b.bytes.Add(size)
	return assemble.Fetched{Content: content, Network: size}, nil
}

// disk is what a host has.
type disk struct {
	mu   sync.Mutex // guards held
	held map[manifest.Sum][]byte
}

func (d *disk) OpenChunk(_ context.Context, sum manifest.Sum, room func(int64) ([]byte, error)) ([]byte, error) {
	d.mu.Lock()
	c, ok := d.held[sum]
	d.mu.Unlock()
	if !ok {
		return nil, errors.New("not here")
	}
	b, err := room(int64(len(c)))
	copy(b, c)
	return b, err
}

func (d *disk) put(sum manifest.Sum, c []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.held[sum] = c
}

func (d *disk) putAll(img image) {
	for sum, c := range img.content {
		d.put(sum, c)
	}
}

// host is one of several on this machine.
type host struct {
	*Exchange
	t    *testing.T
	name string
	disk *disk
	peer Peer
	log  *logged
}

// logged collects what is logged.
type logged struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// ample are limits that nothing meets on a slow machine.
var ample = Limits{Sign: patience, Hold: patience, Whole: patience, Queue: patience}

func newHost(t *testing.T, name string, edit ...func(*Config)) *host {
	t.Helper()
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	id, err := ParseIdentity(key)
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, name: name, disk: &disk{held: map[manifest.Sum][]byte{}}, log: &logged{}}
	cfg := Config{Identity: id, Chunks: h.disk, Group: "default", Limits: ample, BytesPerSecond: 1 << 40, Log: slog.New(slog.NewTextHandler(h.log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	for _, e := range edit {
		e(&cfg)
	}
	if h.Exchange, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	h.peer.Pin = id.Pin
	t.Cleanup(h.Close)
	return h
}

// serve begins to listen, and returns a function that ends it.
func (h *host) serve() (stop func()) {
	h.t.Helper()
	l, err := Listen(h.t.Context(), "127.0.0.1:0", loopback, h.cfg.Log)
	if err != nil {
		h.t.Fatal(err)
	}
	h.peer.Address = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Serve(ctx, l) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			h.t.Errorf("host %s served until %v", h.name, err)
		}
	})
	h.t.Cleanup(stop)
	return stop
}

func (h *host) claims() token.Claims {
	now := time.Now()
	return token.Claims{Site: site, Group: "default", Host: h.name, Pin: h.peer.Pin, NotBefore: now.Unix(), Expires: now.Add(10 * time.Minute).Unix()}
}

func (h *host) token(c token.Claims) secret.Text {
	h.t.Helper()
	text, err := token.Sign(controllerKey, c)
	if err != nil {
		h.t.Fatal(err)
	}
	return text
}

// know tells hosts of each other.
func know(hosts ...*host) {
	for _, h := range hosts {
		h.Learn(h.terms(hosts...))
	}
}

func (h *host) terms(hosts ...*host) Terms {
	t := Terms{Site: site, Keys: []ed25519.PublicKey{controllerKey.Public().(ed25519.PublicKey)}, Token: h.token(h.claims())}
	for _, o := range hosts {
		t.Peers = append(t.Peers, o.peer)
	}
	return t
}

// fetch gets a chunk, which must be right wherever it comes from.
func (h *host) fetch(f assemble.Fetcher, img image, i int) assemble.Fetched {
	h.t.Helper()
	c, size := img.chunk(i)
	got, err := f.Fetch(h.t.Context(), c, size)
	if err != nil {
		h.t.Fatalf("chunk %d: %v", i, err)
	}
	if !bytes.Equal(got.Content, img.content[c.Sum]) {
		h.t.Fatalf("chunk %d has another content", i)
	}
	return got
}

// pull fetches an image as package assemble does: several chunks at once, written to the
// disk in order. Once it is whole all of it is on the host's disk.
func (h *host) pull(img image, next assemble.Fetcher) error {
	dir := h.t.TempDir()
	file, err := os.Create(filepath.Join(dir, img.manifest.Files[0].Path))
	if err != nil {
		return err
	}
	defer file.Close()
	if err := file.Truncate(img.bytes); err != nil {
		return err
	}
	f, release := h.First(Pull{Manifest: img.manifest, Dir: dir, Next: next})
	defer release()
	const ahead = 6
	type fetched struct {
		got assemble.Fetched
		err error
	}
	n := len(img.manifest.Files[0].Chunks)
	results := make([]chan fetched, n)
	for i := range results {
		results[i] = make(chan fetched, 1)
	}
	begin := func(i int) {
		if i >= n {
			return
		}
		c, size := img.chunk(i)
		go func() {
			got, err := f.Fetch(h.t.Context(), c, size)
			results[i] <- fetched{got, err}
		}()
	}
	for i := range ahead {
		begin(i)
	}
	var first error
	for i := range n {
		r := <-results[i]
		begin(i + ahead)
		c, _ := img.chunk(i)
		switch {
		case r.err != nil:
			first = errors.Join(first, r.err)
		case !bytes.Equal(r.got.Content, img.content[c.Sum]):
			first = errors.Join(first, errors.New("a chunk has another content"))
		default:
			_, err := file.WriteAt(r.got.Content, int64(i)*chunkBytes)
			first = errors.Join(first, err)
		}
	}
	if first == nil {
		h.disk.putAll(img)
	}
	return first
}
