// SPDX-License-Identifier: MIT

package agent_test

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/imagecache/assemble"
	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/imagecache/peer"
	"github.com/minifleet/minifleet/imagecache/peer/token"
	"github.com/minifleet/minifleet/secret"
)

var (
	loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	onDisk   = []byte(strings.Repeat("of the host's disk ", 1000))
	onOther  = []byte(strings.Repeat("of another host's ", 1000))
)

// sharing is a host without VMs that has one chunk.
type sharing struct {
	*machines
	content []byte
	peers   chan *peer.Exchange // gets what the agent sets
}

func (s *sharing) OpenChunk(_ context.Context, sum manifest.Sum, _ func(int64) ([]byte, error)) ([]byte, error) {
	if sum != sumOf(s.content) {
		return nil, errors.New("not here")
	}
	return s.content, nil
}

func (s *sharing) SetPeers(x *peer.Exchange) { s.peers <- x }

func sumOf(b []byte) manifest.Sum { return sha256.Sum256(b) }

func imageOf(content []byte) *manifest.Manifest {
	return &manifest.Manifest{Schema: 1, ChunkBytes: 1 << 20, Files: []manifest.File{{Path: "disk.img", Size: int64(len(content)), Chunks: []manifest.Chunk{{Sum: sumOf(content)}}}}}
}

// noBucket brings nothing.
type noBucket struct{}

func (noBucket) Fetch(context.Context, manifest.Chunk, int64) (assemble.Fetched, error) {
	return assemble.Fetched{}, errors.New("there is no bucket")
}

func take(ctx context.Context, x *peer.Exchange, content []byte) error {
	f, release := x.First(peer.Pull{Manifest: imageOf(content), Next: noBucket{}})
	defer release()
	got, err := f.Fetch(ctx, manifest.Chunk{Sum: sumOf(content)}, int64(len(content)))
	if err == nil && (string(got.Content) != string(content) || !got.Peer) {
		err = fmt.Errorf("got %d bytes, from a peer: %t", len(got.Content), got.Peer)
	}
	return err
}

// TestAnAgentGivesAndTakes runs an agent beside another host that the test plays.
func TestAnAgentGivesAndTakes(t *testing.T) {
	c := newController(t)
	s := httptest.NewServer(c)
	t.Cleanup(s.Close)
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	store := &sharing{machines: newMachines(), content: onDisk, peers: make(chan *peer.Exchange, 2)}
	cfg := onLoopback(t, c, s.URL)
	cfg.Machines = store
	cfg.Peers = agent.PeersConfig{Address: "127.0.0.1:0", Group: "berlin", Allow: loopback}
	stop := run(t, cfg)
	var facts protocol.Facts
	c.await("the listener among the facts", func() bool {
		if len(c.reports) > 0 {
			facts = c.reports[len(c.reports)-1].Facts
		}
		return facts.PeerAddress != ""
	})
	if facts.PeerGroup != "berlin" || len(facts.PeerPin) != 64 {
		t.Errorf("facts: %+v", facts)
	}

	// The other host.
	raw, err := peer.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.ParseIdentity(raw)
	if err != nil {
		t.Fatal(err)
	}
	if pin := protocol.Pin(id.Certificate.Leaf); pin != id.Pin {
		t.Errorf("packages protocol and peer have two ideas of a pin: %s and %s", pin, id.Pin)
	}
	other, err := peer.New(peer.Config{
		Identity: id, Chunks: &sharing{content: onOther}, Group: "berlin",
		Limits: peer.Limits{Sign: time.Minute, Hold: time.Minute, Whole: time.Minute, Queue: time.Minute}, // of a busy machine
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(other.Close)
	l, err := peer.Listen(t.Context(), "127.0.0.1:0", loopback, cfg.Log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- other.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	sign := func(key ed25519.PrivateKey, host, pin string) string {
		t.Helper()
		now := time.Now()
		text, err := token.Sign(key, token.Claims{Site: c.site, Group: "berlin", Host: host, Pin: pin, NotBefore: now.Unix(), Expires: now.Add(time.Hour).Unix()})
		if err != nil {
			t.Fatal(err)
		}
		return text.Reveal()
	}
	public := func(key ed25519.PrivateKey) ed25519.PublicKey { return key.Public().(ed25519.PublicKey) }
	say := func(key ed25519.PrivateKey) {
		c.change(func() {
			c.words.Peers = []protocol.Peer{{Address: "no address", Pin: "x"}, {Address: l.Addr().String(), Pin: id.Pin}}
			c.words.PeerToken, c.words.PeerKey = sign(key, "h-agent", facts.PeerPin), base64.StdEncoding.EncodeToString(public(key))
			c.revision++
		})
		revision := c.revision
		c.await("the word is obeyed", func() bool { return c.reports[len(c.reports)-1].Revision >= revision })
	}
	learn := func(key ed25519.PrivateKey) {
		other.Learn(peer.Terms{
			Site: c.site, Keys: []ed25519.PublicKey{public(key)}, Token: secret.New(sign(key, "h-other", id.Pin)),
			Peers: []peer.Peer{{Address: facts.PeerAddress, Pin: facts.PeerPin}},
		})
	}
	say(key)
	learn(key)
	if err := take(t.Context(), <-store.peers, onOther); err != nil {
		t.Errorf("the agent takes: %v", err)
	}
	if err := take(t.Context(), other, onDisk); err != nil {
		t.Errorf("the agent gives: %v", err)
	}

	// The controller has another key, and the other host does not know it yet.
	_, next, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	say(next)
	if err := take(t.Context(), other, onDisk); err != nil {
		t.Errorf("with the key before: %v", err)
	}
	learn(next)
	if err := take(t.Context(), other, onDisk); err != nil {
		t.Errorf("with the next key: %v", err)
	}

	// It is the same host after a restart.
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(cfg.StateDir, "peer.key")
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key's file: %v, %v", info, err)
	}
	var n int
	c.change(func() { n = len(c.reports) })
	stop = run(t, cfg)
	c.await("the listener again", func() bool {
		return len(c.reports) > n && c.reports[len(c.reports)-1].Facts.PeerAddress != ""
	})
	c.change(func() {
		if again := c.reports[len(c.reports)-1].Facts.PeerPin; again != facts.PeerPin {
			t.Errorf("its pin was %s and is %s", facts.PeerPin, again)
		}
	})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("rot"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(t, cfg)(); err == nil || !strings.Contains(err.Error(), "peer.key") || !strings.Contains(err.Error(), "delete its file") {
		t.Errorf("with a damaged key: %v", err)
	}
}

// TestAnAddressThatIsNotThere has images come from the bucket, and nothing else happen.
func TestAnAddressThatIsNotThere(t *testing.T) {
	c := newController(t)
	s := httptest.NewServer(c)
	t.Cleanup(s.Close)
	store := &sharing{machines: newMachines(), content: onDisk, peers: make(chan *peer.Exchange, 1)}
	log := make(chan struct{}, 10)
	cfg := onLoopback(t, c, s.URL)
	cfg.Machines = store
	cfg.Peers = agent.PeersConfig{Address: "203.0.113.77:7443"} // of nobody
	var text strings.Builder
	cfg.Log = newTestLog(&text, func() { log <- struct{}{} })
	stop := run(t, cfg)
	<-log
	c.await("a report", func() bool { return len(c.reports) > 0 })
	c.change(func() {
		if f := c.reports[len(c.reports)-1].Facts; f.PeerAddress != "" || f.Degraded != "" {
			t.Errorf("facts: %+v", f)
		}
	})
	if err := take(t.Context(), <-store.peers, onDisk); err == nil || !strings.Contains(err.Error(), "no bucket") {
		t.Errorf("%v", err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if !strings.Contains(text.String(), "is no address of this host now") {
		t.Errorf("log: %s", &text)
	}
}

func TestPeersAreSetUpRight(t *testing.T) {
	c := newController(t)
	for want, p := range map[string]agent.PeersConfig{
		"every network": {Address: "0.0.0.0:7443"}, "no other host": {Address: "127.0.0.1:7443"}, "give one address": {Address: "en0"},
		"group": {Address: "en0:7443", Group: "No Group"}, "negative": {BytesPerSecond: -1},
	} {
		cfg := onLoopback(t, c, "http://127.0.0.1:1")
		cfg.Peers = p
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", p, err)
		}
	}
	cfg := onLoopback(t, c, "http://127.0.0.1:1")
	cfg.Peers = agent.PeersConfig{Address: "en0:7443", Group: "berlin"}
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
}
