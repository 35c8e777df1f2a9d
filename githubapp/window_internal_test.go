// SPDX-License-Identifier: MIT

package githubapp

import (
	"math/rand/v2"
	"testing"
	"time"
)

// Whatever is used when, a window says the very moment from which on there is room, by the
// plain rule: what is used counts while it is under way and for a span after its end.
func TestWindowAgainstTheRule(t *testing.T) {
	t.Parallel()
	const limit = 20
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 0))
		now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
		w := window{span: time.Minute}
		var open []int
		var over []use // by the rule
		counted := func(at time.Time) (n int) {
			for _, u := range over {
				if u.until.After(at) {
					n += u.points
				}
			}
			for _, p := range open {
				n += p
			}
			return n
		}
		for range 200 {
			switch points := 1 + r.IntN(5); r.IntN(3) {
			case 0:
				now = now.Add(time.Duration(r.IntN(20)) * time.Second)
			case 1:
				open = append(open, points)
				w.begin(points)
			case 2:
				if len(open) == 0 {
					continue
				}
				w.end(open[0], now)
				over = append(over, use{open[0], now.Add(time.Minute)})
				open = open[1:]
			}
			want := time.Time{}
			if counted(now)+3 > limit {
				want = now.Add(time.Minute) // once calls under way are over
				for _, u := range over {
					if u.until.After(now) && counted(u.until)+3 <= limit {
						want = u.until
						break
					}
				}
			}
			if got := w.room(3, limit, now); !got.Equal(want) {
				t.Fatalf("seed %d: room at %s, want %s", seed, got, want)
			}
		}
	}
}
