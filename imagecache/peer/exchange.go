// SPDX-License-Identifier: MIT

package peer

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/minifleet/minifleet/imagecache/assemble"
	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/secret"
)

// Chunks is what this host has on its disk of images that are whole.
type Chunks interface {
	// OpenChunk returns the content of a chunk in a slice that room made, or an error if it
	// is not there, or room's. What it returns is not believed.
	OpenChunk(ctx context.Context, sum manifest.Sum, room func(size int64) ([]byte, error)) ([]byte, error)
}

// Peer is another host that gives out chunks.
type Peer struct {
	Address string // host:port
	Pin     string // of the key that it shows there
}

// Terms are what the controller says of this host and others. They change as it goes on.
type Terms struct {
	Site string
	// Keys are those with which tokens may be signed, the newest and the one before.
	Keys  []ed25519.PublicKey
	Peers []Peer
	Token secret.Text // lets this host in at its peers
}

// Config says with what a host gives and takes.
type Config struct {
	Identity Identity // Required.
	Chunks   Chunks   // Required.
	Group    string   // of the hosts with which it does; Required.
	// BytesPerSecond is the most that is given to all others together. Zero means 200 MB/s.
	BytesPerSecond int
	// Readers is how many chunks are read for others at once. Zero means 4.
	Readers int
	// RecentBytes is how much of what was fetched last is kept in memory, for others who
	// need it too and for chunks that were fetched for them. Zero means 32 MiB.
	RecentBytes int64
	// GivenBytes is how much is held in memory of what is being given to others. Zero means
	// 32 MiB.
	GivenBytes int64
	Limits     Limits
	// Wall is the clock by which tokens expire. Nil means the system's.
	Wall func() time.Time
	// Log receives what happens. Nil means nowhere.
	Log *slog.Logger
}

// Limits are how long a peer may take. Zeros mean the defaults.
type Limits struct {
	Sign  time.Duration // to the first sign of life: a connection and any answer; 2 s
	Hold  time.Duration // for one that fetches the chunk itself; 20 s
	Whole time.Duration // for a chunk's content, once it comes; 5 s
	Queue time.Duration // for memory or the disk of this host; 2 s
	Aside time.Duration // for which one that failed is left alone the first time; 5 s
	Shun  time.Duration // for which one that lied is; 1 h
}

func (c Config) withDefaults() Config {
	c.BytesPerSecond = cmp.Or(c.BytesPerSecond, 200_000_000)
	c.Readers = cmp.Or(c.Readers, 4)
	c.RecentBytes = cmp.Or(c.RecentBytes, 32<<20)
	c.GivenBytes = max(cmp.Or(c.GivenBytes, 32<<20), manifest.MaxChunkBytes)
	c.Limits.Sign = cmp.Or(c.Limits.Sign, 2*time.Second)
	c.Limits.Hold = cmp.Or(c.Limits.Hold, 20*time.Second)
	c.Limits.Whole = cmp.Or(c.Limits.Whole, 5*time.Second)
	c.Limits.Queue = cmp.Or(c.Limits.Queue, 2*time.Second)
	c.Limits.Aside = cmp.Or(c.Limits.Aside, 5*time.Second)
	c.Limits.Shun = cmp.Or(c.Limits.Shun, time.Hour)
	c.Log = cmp.Or(c.Log, slog.New(slog.DiscardHandler))
	if c.Wall == nil {
		c.Wall = time.Now
	}
	return c
}

// Exchange gives chunks to other hosts and takes them from there.
type Exchange struct {
	cfg     Config
	log     *slog.Logger
	out     *rate.Limiter
	readers chan struct{}
	recent  *recent
	given   *semaphore.Weighted // bytes

	mu      sync.Mutex // guards the rest
	terms   Terms
	others  map[Peer]*other
	pulls   []*pull
	flights map[manifest.Sum]*flight
	visits  map[string]*visitor // by host
}

// New returns an exchange. It gives nothing before Serve, and takes nothing before Learn.
func New(cfg Config) (*Exchange, error) {
	if cfg.Chunks == nil || cfg.Identity.Pin == "" || cfg.Group == "" {
		return nil, errors.New("peer: chunks, identity and group are required")
	}
	cfg = cfg.withDefaults()
	return &Exchange{
		cfg: cfg, log: cfg.Log, out: rate.NewLimiter(rate.Limit(cfg.BytesPerSecond), piece), readers: make(chan struct{}, cfg.Readers),
		recent: newRecent(cfg.RecentBytes), given: semaphore.NewWeighted(cfg.GivenBytes), others: map[Peer]*other{}, flights: map[manifest.Sum]*flight{}, visits: map[string]*visitor{},
	}, nil
}

// maxPeers bounds whom a host knows.
const maxPeers = 64

// Learn takes in the newest terms. What is known of peers that stay is kept.
func (x *Exchange) Learn(t Terms) {
	t.Peers = slices.DeleteFunc(slices.Clone(t.Peers), func(p Peer) bool { return p.Pin == x.cfg.Identity.Pin || p.Pin == "" })
	t.Peers = t.Peers[:min(len(t.Peers), maxPeers)]
	x.mu.Lock()
	defer x.mu.Unlock()
	x.terms = t
	for p, o := range x.others {
		if !slices.Contains(t.Peers, p) {
			o.transport.CloseIdleConnections()
			delete(x.others, p)
		}
	}
	for _, p := range t.Peers {
		if x.others[p] == nil {
			x.others[p] = x.newOther(p)
		}
	}
}

// Close drops the connections to peers that nobody uses.
func (x *Exchange) Close() { x.Learn(Terms{}) }

// First returns a fetcher that asks peers for an image's chunks before p.Next, and lets
// them have what it fetches, until release is called. What it returns is shared: nobody
// may write to it.
func (x *Exchange) First(p Pull) (f assemble.Fetcher, release func()) {
	ctx, cancel := context.WithCancel(context.Background())
	mine := newPull(ctx, p)
	x.mu.Lock()
	x.pulls = append(x.pulls, mine)
	x.mu.Unlock()
	return fetcher{x, mine}, sync.OnceFunc(func() {
		x.mu.Lock()
		x.pulls = slices.DeleteFunc(x.pulls, func(q *pull) bool { return q == mine })
		last := len(x.pulls) == 0
		cancel() // under the lock: nobody begins another flight of it now
		x.mu.Unlock()
		mine.work.Wait()
		if last {
			x.recent.clear() // all of it is on the disk
		}
	})
}

// pulling returns the pulls that need the chunk.
func (x *Exchange) pulling(sum manifest.Sum) []*pull {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(x.pulls), func(p *pull) bool { return p.where[sum].size == 0 })
}

// flight is a chunk on its way to this host, however many wait for it.
type flight struct {
	done chan struct{} // closed once the rest is set
	got  assemble.Fetched
	err  error
}

// bring fetches a chunk as the one whose turn it is: from those that have it, or from the
// bucket. It goes on when the caller gives up, for as long as the pull lasts.
func (x *Exchange) bring(ctx context.Context, p *pull, c manifest.Chunk, size int64, besides []*other) (assemble.Fetched, error) {
	x.mu.Lock()
	f := x.flights[c.Sum]
	if f == nil {
		if p.ctx.Err() != nil {
			x.mu.Unlock()
			return assemble.Fetched{}, context.Cause(p.ctx)
		}
		f = &flight{done: make(chan struct{})}
		x.flights[c.Sum] = f
		p.work.Go(func() {
			f.got, f.err = x.fly(p, c, size, besides)
			if f.err == nil {
				x.recent.add(c.Sum, f.got)
			}
			x.mu.Lock()
			delete(x.flights, c.Sum)
			x.mu.Unlock()
			close(f.done)
		})
	}
	x.mu.Unlock()
	select {
	case <-f.done:
		return f.got, f.err
	case <-ctx.Done():
		return assemble.Fetched{}, context.Cause(ctx)
	}
}

func (x *Exchange) fly(p *pull, c manifest.Chunk, size int64, besides []*other) (assemble.Fetched, error) {
	if got, ok := x.recent.get(c.Sum); ok { // of a flight that has just ended
		return got, nil
	}
	for _, o := range x.holders(c.Sum, besides) {
		if content, err := o.ask(p.ctx, c.Sum, size, holding); err == nil {
			return assemble.Fetched{Content: content, Network: size, Peer: true}, nil
		}
	}
	got, err := p.Next.Fetch(p.ctx, c, size)
	return got, err
}

// fetcher is what First returns.
type fetcher struct {
	x *Exchange
	p *pull
}

// Fetch returns a chunk that was fetched already, or asks those whose turn it is before
// this host's, or fetches it.
func (f fetcher) Fetch(ctx context.Context, c manifest.Chunk, size int64) (assemble.Fetched, error) {
	if c.Zero() {
		return f.p.Next.Fetch(ctx, c, size)
	}
	if got, ok := f.x.recent.get(c.Sum); ok {
		return got, nil
	}
	how := fetching
	if !f.p.Patient() {
		how = fetchingSoon
	}
	var asked []*other
	for _, o := range f.x.before(c.Sum) {
		content, err := o.ask(ctx, c.Sum, size, how)
		if err == nil {
			got := assemble.Fetched{Content: content, Network: size, Peer: true}
			f.x.recent.add(c.Sum, got)
			return got, nil
		}
		if ctx.Err() != nil {
			return assemble.Fetched{}, context.Cause(ctx)
		}
		asked = append(asked, o)
	}
	return f.x.bring(ctx, f.p, c, size, asked)
}
