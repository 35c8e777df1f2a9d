// SPDX-License-Identifier: MIT

package imagecache_test

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/minifleet/minifleet/imagecache"
	"github.com/minifleet/minifleet/imagecache/peer"
	"github.com/minifleet/minifleet/imagecache/peer/token"
)

// site is several hosts on this machine that know each other.
type site struct {
	caches    []*imagecache.Cache
	exchanges []*peer.Exchange
}

func newSite(t *testing.T, b *bucket, hosts int) *site {
	t.Helper()
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	const whatever = time.Minute // nothing meets it
	s := &site{}
	loopback := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	var all []peer.Peer
	for range hosts {
		raw, err := peer.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		id, err := peer.ParseIdentity(raw)
		if err != nil {
			t.Fatal(err)
		}
		c := b.cache(t, imagecache.Config{})
		x, err := peer.New(peer.Config{
			Identity: id, Chunks: c, Group: "default", RecentBytes: 8 * mib, BytesPerSecond: 1 << 40,
			Limits: peer.Limits{Sign: whatever, Hold: whatever, Whole: whatever, Queue: whatever},
		})
		if err != nil {
			t.Fatal(err)
		}
		c.SetPeers(x)
		l, err := peer.Listen(t.Context(), "127.0.0.1:0", loopback, nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		served := make(chan error, 1)
		go func() { served <- x.Serve(ctx, l) }()
		t.Cleanup(func() {
			cancel()
			if err := <-served; err != nil {
				t.Error(err)
			}
			x.Close()
		})
		all = append(all, peer.Peer{Address: l.Addr().String(), Pin: id.Pin})
		s.caches, s.exchanges = append(s.caches, c), append(s.exchanges, x)
	}
	now := time.Now()
	for i, x := range s.exchanges {
		text, err := token.Sign(key, token.Claims{
			Site: "site", Group: "default", Host: fmt.Sprintf("h-%d", i), Pin: all[i].Pin, NotBefore: now.Unix(), Expires: now.Add(time.Hour).Unix(),
		})
		if err != nil {
			t.Fatal(err)
		}
		x.Learn(peer.Terms{Site: "site", Keys: []ed25519.PublicKey{public}, Peers: all, Token: text})
	}
	return s
}

// TestAnImageCrossesTheUplinkOnce has four hosts of a site fetch an image at the same time,
// a fifth one afterwards, and then an update of it.
func TestAnImageCrossesTheUplinkOnce(t *testing.T) {
	t.Parallel()
	const chunks = 40
	b := newBucket()
	ref, _ := b.image(t, "tahoe", 1, chunks)
	s := newSite(t, b, 5)
	together := func(ref string, want files, caches ...*imagecache.Cache) float64 {
		t.Helper()
		var work sync.WaitGroup
		for i, c := range caches {
			work.Go(func() {
				var last imagecache.Progress
				img, err := c.Ensure(t.Context(), ref, func(p imagecache.Progress) { last = p })
				if err != nil {
					t.Errorf("host %d: %v", i, err)
					return
				}
				defer img.Release()
				wantContent(t, img, want)
				if last.PeerBytes == 0 {
					t.Errorf("host %d has nothing of its peers: %+v", i, last)
				}
			})
		}
		work.Wait()
		return float64(b.chunks())
	}
	content := noise(1, chunks*mib)
	share := together(ref, files{"disk.img": content}, s.caches[:4]...) / chunks
	t.Logf("4 hosts at once: the bucket gave the image %.2f times", share)
	// What each has under way before it hears of the others may come twice: with forty chunks
	// some, with the ten thousand of a real image next to nothing.
	if share < 1 || share > 1.6 {
		t.Errorf("4 hosts at once: the bucket gave the image %.2f times", share)
	}
	if share := together(ref, files{"disk.img": content}, s.caches[4]) / chunks; share != 0 {
		t.Errorf("one that comes later: the bucket gave %.2f of the image", share)
	}
	for i := range 8 { // scattered
		copy(content[5*i*mib:], noise(byte(100+i), mib))
	}
	next := "gs://bucket/tahoe@" + b.push(t, "tahoe", files{"disk.img": content})
	// Nearly all of so few are under way before hosts hear of each other: on a busy machine
	// each may come twice, and without peers all would come five times.
	if n := together(next, files{"disk.img": content}, s.caches...); n < 8 || n > 16 {
		t.Errorf("an update of 8 chunks for 5 hosts: the bucket gave %v", n)
	}
}
