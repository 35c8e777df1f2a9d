// SPDX-License-Identifier: MIT

package hosts

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/imagecache/peer/token"
	"github.com/minifleet/minifleet/internal/durable"
)

// Tokens for peers go out with every answer to a desired call, and so does who the peers
// are: nobody is woken because of them, no revision is raised, and nothing is stored. An
// agent calls at least every half deadline for hosts, long before its token ends.
const (
	minPeerToken = 10 * time.Minute
	deadlines    = 4  // a token lasts for so many deadlines for hosts
	maxPeers     = 32 // that one host is told of
)

// peerFacts is what a host says of its listener for others.
type peerFacts struct {
	address, pin, group string
	seen                time.Time
}

// peerOf reads it; all of it is empty where the host has none.
func peerOf(f protocol.Facts) (peerFacts, error) {
	if f.PeerAddress == "" {
		return peerFacts{}, nil
	}
	at, err := netip.ParseAddrPort(f.PeerAddress)
	if err != nil || at.Addr().IsUnspecified() || at.Port() == 0 {
		return peerFacts{}, fmt.Errorf("facts.peer_address %.60q: want an address and a port", f.PeerAddress)
	}
	if !hashPattern.MatchString(f.PeerPin) || !fleet.ValidName(f.PeerGroup) {
		return peerFacts{}, errors.New("facts.peer_pin and peer_group: want a hex SHA-256, and 1 to 32 lower-case letters, digits and dashes")
	}
	return peerFacts{address: at.String(), pin: f.PeerPin, group: f.PeerGroup}, nil
}

// directory knows the listeners of hosts that were heard of lately. It is in memory: each
// report says it again.
type directory struct {
	mu    sync.Mutex // guards hosts
	hosts map[fleet.HostID]peerFacts
}

func (d *directory) note(id fleet.HostID, p peerFacts, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p.address == "" {
		delete(d.hosts, id)
		return
	}
	p.seen = now
	d.hosts[id] = p
}

// heard notes that a host is there, whatever it says.
func (d *directory) heard(id fleet.HostID, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p, ok := d.hosts[id]; ok {
		p.seen = now
		d.hosts[id] = p
	}
}

// of returns a host's own listener, and the others of its group that are live. All are
// told of the same ones, so that they agree on who fetches what.
func (d *directory) of(id fleet.HostID, now time.Time, live time.Duration) (own peerFacts, others []protocol.Peer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	own, ok := d.hosts[id]
	if !ok {
		return own, nil
	}
	for other, p := range d.hosts {
		switch {
		case now.Sub(p.seen) >= live:
			delete(d.hosts, other) // a report brings it back
		case p.group == own.group && p.pin != own.pin:
			others = append(others, protocol.Peer{Address: p.address, Pin: p.pin})
		}
	}
	slices.SortFunc(others, func(a, b protocol.Peer) int {
		return strings.Compare(a.Pin+a.Address, b.Pin+b.Address)
	})
	return own, others[:min(len(others), maxPeers)]
}

// addPeers tells a host that has a listener of the others, with what lets it in there.
func (s *Server) addPeers(d *protocol.Desired, id fleet.HostID) {
	if s.c.PeerKey == nil {
		return
	}
	now := time.Now()
	own, others := s.peers.of(id, now, s.c.Live)
	if own.address == "" {
		return
	}
	life := max(minPeerToken, deadlines*s.c.Live)
	begin := now.Truncate(life / 2) // the same token for half of its life
	text, err := token.Sign(s.c.PeerKey, token.Claims{
		Site: s.c.Store.Site(), Group: own.group, Host: string(id), Pin: own.pin,
		NotBefore: begin.Unix(), Expires: begin.Add(life).Unix(),
	})
	if err != nil {
		s.c.Log.Error("a host gets no token for others", "host", id, "error", err)
		return
	}
	d.Peers, d.PeerToken, d.PeerKey = others, text.Reveal(), s.peerKey()
}

// peerKey is the public half, as the protocol has it.
func (s *Server) peerKey() string {
	if s.c.PeerKey == nil {
		return ""
	}
	return base64.StdEncoding.EncodeToString(s.c.PeerKey.Public().(ed25519.PublicKey)) //nolint:forcetypeassert // it is one
}

// LoadPeerKey returns the key that signs hosts' tokens for each other, from a file of mode
// 0600, which is made if it is missing or damaged. It is no part of the database, whose
// copies hold no secrets, and needs no copy itself: hosts learn a new one with the next
// answer that they get. So there is a key in any case; an error says that a file could
// not be read or written, and that the next start will have another key.
func LoadPeerKey(path string) (ed25519.PrivateKey, error) {
	const prefix = "minifleet-peer-key "
	raw, err := os.ReadFile(path)
	unread := err != nil && !errors.Is(err, fs.ErrNotExist)
	if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o077 == 0 {
		text, ok := bytes.CutPrefix(bytes.TrimSpace(raw), []byte(prefix))
		if seed, err := base64.StdEncoding.DecodeString(string(text)); ok && err == nil && len(seed) == ed25519.SeedSize {
			return ed25519.NewKeyFromSeed(seed), nil
		}
	}
	key := ed25519.NewKeyFromSeed(randomSeed())
	if unread { // it may be whole, and is its owner's
		return key, fmt.Errorf("the key for hosts' tokens: %w: give the controller's user that file, or delete it", err)
	}
	next := path + ".new" // one name: no key stays in what is left over
	err = durable.Create(next, []byte(prefix+base64.StdEncoding.EncodeToString(key.Seed())+"\n"), 0o600)
	if err == nil {
		err = durable.Place(next, path)
	}
	if err != nil {
		return key, fmt.Errorf("the key for hosts' tokens: %w: the folder of the database must be writable", err)
	}
	return key, nil
}

func randomSeed() []byte {
	seed := make([]byte, ed25519.SeedSize)
	_, _ = rand.Read(seed) // it never fails
	return seed
}
