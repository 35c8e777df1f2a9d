// SPDX-License-Identifier: MIT

package imagecache_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/imagecache"
)

// savedStates are sizes, those of idle ones first.
type savedStates struct {
	idle, used []int64
}

func sum(list []int64) (n int64) {
	for _, s := range list {
		n += s
	}
	return n
}

func (s *savedStates) Bytes() int64 { return sum(s.idle) + sum(s.used) }
func (s *savedStates) Idle() int64  { return sum(s.idle) }

func (s *savedStates) DeleteOldest() bool {
	if len(s.idle) == 0 {
		return false
	}
	s.idle = s.idle[1:]
	return true
}

// TestOneBudget has saved states and images under one limit: images that nothing keeps go
// first, then states that nobody uses, and nothing goes in vain.
func TestOneBudget(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]imagecache.Config{"bytes": {MaxBytes: 10 * mib}, "free": {MinFree: 100 * mib}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBucket()
			refs, digests := b.images(t, 4)
			large, _ := b.image(t, "large", 50, 6)
			c := b.cache(t, cfg)
			states := &savedStates{idle: []int64{1 * mib, 2 * mib}, used: []int64{2 * mib}}
			c.CountToo(states)
			if cfg.MinFree > 0 {
				c.SetFree(func() int64 { return 110*mib - 2*mib*int64(len(entriesOf(t, c))) - states.Bytes() })
			}
			fetch(t, c, refs[0])
			fetch(t, c, refs[1])
			fetch(t, c, refs[2])
			wantCached(t, c, digests[1], digests[2])
			if len(states.idle) != 2 {
				t.Errorf("states went before an image that nothing keeps: %v", states.idle)
			}
			for _, d := range digests[1:3] {
				if err := c.Pin(d); err != nil {
					t.Fatal(err)
				}
			}
			_, err := c.Ensure(t.Context(), large, nil)
			if !errors.As(err, new(*imagecache.NoRoomError)) || !strings.Contains(err.Error(), "saved states (5 MiB, ") || len(states.idle) != 2 {
				t.Errorf("%v, and these states stay: %v", err, states.idle)
			}
			fetch(t, c, refs[3])
			wantCached(t, c, digests[1], digests[2], digests[3])
			if !slices.Equal(states.idle, []int64{2 * mib}) {
				t.Errorf("these states stay: %v; one was enough", states.idle)
			}
		})
	}
}

// TestRoomForAMachine has a machine take the room of what nobody uses.
func TestRoomForAMachine(t *testing.T) {
	t.Parallel()
	b := newBucket()
	refs, digests := b.images(t, 4)
	c := b.cache(t, imagecache.Config{MaxBytes: 20 * mib})
	states := &savedStates{idle: []int64{mib}, used: []int64{mib}}
	c.CountToo(states)
	for _, ref := range refs[1:] {
		fetch(t, c, ref)
	}
	used := ensure(t, c, refs[0])
	if err := c.Hold(digests[3:]); err != nil {
		t.Fatal(err)
	}
	if left := c.Left(); left != 12*mib {
		t.Errorf("%d bytes are left to states", left)
	}
	for _, want := range [][]string{{digests[0], digests[2], digests[3]}, {digests[0], digests[3]}} {
		if !c.EvictOldest(t.Context()) || len(states.idle) != 1 {
			t.Error("want one image gone, and no state")
		}
		wantCached(t, c, want...)
	}
	if !c.EvictOldest(t.Context()) || len(states.idle) != 0 {
		t.Error("want a state gone")
	}
	if c.EvictOldest(t.Context()) {
		t.Error("what is in use went")
	}
	used.Release()
	if !c.EvictOldest(t.Context()) {
		t.Error("what is in use no more did not go")
	}
	wantCached(t, c, digests[3])
	if left := trash(t, c); len(left) > 0 {
		t.Errorf("still on the disk: %v", left)
	}
}
