// SPDX-License-Identifier: MIT

package agent

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/imagecache/peer"
	"github.com/minifleet/minifleet/secret"
)

// PeersConfig says with whom this host shares chunks of images.
type PeersConfig struct {
	// Address is where others get them, IP:PORT or INTERFACE:PORT. Empty means that this host
	// neither gives nor takes.
	Address string
	// Group names the hosts on the same local network. Empty means "default".
	Group string
	// Allow are networks from which others may come besides the address's own.
	Allow []netip.Prefix
	// BytesPerSecond is the most that is given. Zero means what package peer thinks best.
	BytesPerSecond int
}

// DefaultPeerGroup is the group of hosts that name none.
const DefaultPeerGroup = "default"

// Validate returns what is wrong with the configuration.
func (c PeersConfig) Validate() error {
	var errs []error
	if c.Address != "" {
		if err := peer.CheckAddress(c.Address, c.Allow); err != nil {
			errs = append(errs, fmt.Errorf("address: %w", err))
		}
	}
	if c.Group != "" && !fleet.ValidName(c.Group) {
		errs = append(errs, fmt.Errorf("group %.60q: want 1 to 32 lower-case letters, digits and dashes", c.Group))
	}
	if c.BytesPerSecond < 0 {
		errs = append(errs, errors.New("the limit must not be negative"))
	}
	return errors.Join(errs...)
}

// ChunkStore is what Machines are besides whose images are made of chunks.
type ChunkStore interface {
	peer.Chunks
	// SetPeers has chunks taken from other hosts first.
	SetPeers(*peer.Exchange)
}

// peersRetry is the pause until an address is tried again that cannot be listened at, and
// between two looks at whether one still is right.
const peersRetry = time.Minute

// peers are this host's dealings with others of its site.
type peers struct {
	agent    *Agent
	exchange *peer.Exchange
	pin      string

	mu      sync.Mutex // guards the rest
	address string     // where it listens now, "" if nowhere
	keys    []ed25519.PublicKey
}

// openPeers returns nil where there is nothing to share.
func (a *Agent) openPeers() (*peers, error) {
	store, ok := a.cfg.Machines.(ChunkStore)
	if !ok || a.cfg.Peers.Address == "" {
		return nil, nil
	}
	key, err := a.state.peerKey()
	if err != nil {
		return nil, fmt.Errorf("peers: %w", err)
	}
	id, err := peer.ParseIdentity(key)
	if err != nil {
		return nil, fmt.Errorf("peers: %s: %w", filepath.Join(a.cfg.StateDir, filePeerKey), err)
	}
	p := &peers{agent: a, pin: id.Pin}
	if p.exchange, err = peer.New(peer.Config{
		Identity: id, Chunks: store, Group: a.cfg.Peers.Group, BytesPerSecond: a.cfg.Peers.BytesPerSecond, Log: a.log,
	}); err != nil {
		return nil, err
	}
	store.SetPeers(p.exchange)
	return p, nil
}

// peerKey returns the key by which others know this host, made the first time.
func (s *state) peerKey() ([]byte, error) {
	if s.dir != "" {
		path := filepath.Join(s.dir, filePeerKey)
		key, err := os.ReadFile(path)
		if !errors.Is(err, fs.ErrNotExist) {
			return key, err
		}
		if key, err = peer.NewKey(); err != nil {
			return nil, err
		}
		return key, writeFile(path, key)
	}
	return peer.NewKey()
}

// run listens until ctx ends. An address that is not this host's now, or that guests are on,
// is looked at again and again: networks come and go, and images come from the bucket meanwhile.
func (p *peers) run(ctx context.Context) {
	cfg, last := p.agent.cfg.Peers, ""
	for {
		l, err := peer.Listen(ctx, cfg.Address, cfg.Allow, p.agent.log)
		if err == nil {
			last = ""
			err = p.serve(ctx, l)
		}
		if ctx.Err() != nil {
			return
		}
		if text := fmt.Sprint(err); text != last {
			last = text
			p.agent.log.Warn("other hosts get no chunks of images here for now", slog.String("address", cfg.Address), slog.Any("error", err))
		}
		if !sleep(ctx, around(peersRetry)) {
			return
		}
	}
}

// serve gives chunks at an address for as long as that is right.
func (p *peers) serve(ctx context.Context, l *peer.Listener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var watch sync.WaitGroup
	defer watch.Wait()
	watch.Go(func() {
		for sleep(ctx, around(peersRetry)) {
			if err := l.Stands(); err != nil {
				cancel(err)
			}
		}
	})
	p.listens(l.Addr().String())
	defer p.listens("")
	p.agent.log.Info("other hosts get chunks of images here", slog.String("address", l.Addr().String()), slog.String("group", p.agent.cfg.Peers.Group))
	err := p.exchange.Serve(ctx, l)
	cancel(err)
	return cmpErr(context.Cause(ctx), err)
}

// cmpErr returns the first that says something.
func cmpErr(errs ...error) error {
	for _, err := range errs {
		if err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
	}
	return errors.New("the listener ended")
}

func (p *peers) listens(address string) {
	p.mu.Lock()
	p.address = address
	p.mu.Unlock()
	p.agent.changed()
}

// facts adds where this host listens.
func (p *peers) facts(f *protocol.Facts) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.address != "" {
		f.PeerAddress, f.PeerPin, f.PeerGroup = p.address, p.pin, p.agent.cfg.Peers.Group
	}
}

// welcome takes in the key by which tokens are known.
func (p *peers) welcome(w protocol.Welcome) {
	if p != nil {
		p.learn(protocol.Desired{Site: w.Site, PeerKey: w.PeerKey})
	}
}

// learn takes in who the others are. What makes no sense is left out: images come from the
// bucket then.
func (p *peers) learn(d protocol.Desired) {
	if p == nil {
		return
	}
	t := peer.Terms{Site: d.Site}
	if len(d.PeerToken) <= maxPeerToken {
		t.Token = secret.New(d.PeerToken)
	}
	for _, o := range d.Peers[:min(len(d.Peers), maxPeersTold)] {
		if at, err := netip.ParseAddrPort(o.Address); err == nil && len(o.Pin) == 64 {
			t.Peers = append(t.Peers, peer.Peer{Address: at.String(), Pin: o.Pin})
		}
	}
	p.mu.Lock()
	if key, err := base64.StdEncoding.DecodeString(d.PeerKey); err == nil && len(key) == ed25519.PublicKeySize {
		// The one before counts for a while: not all hosts learn of another one at once.
		p.keys = slices.DeleteFunc(p.keys, func(k ed25519.PublicKey) bool { return k.Equal(ed25519.PublicKey(key)) })
		p.keys = append([]ed25519.PublicKey{key}, p.keys[:min(len(p.keys), 1)]...)
	}
	t.Keys = p.keys
	p.mu.Unlock()
	p.exchange.Learn(t)
}

// What a controller may say of peers.
const (
	maxPeerToken = 1000
	maxPeersTold = 64
)

// close lets go of the others.
func (p *peers) close() {
	if p != nil {
		p.exchange.Close()
	}
}
