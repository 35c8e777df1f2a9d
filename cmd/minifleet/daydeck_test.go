// SPDX-License-Identifier: MIT

package main

import (
	"cmp"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// What happens on a virtual day.
const (
	restarted   = "agents restarted"
	cutShort    = "hosts cut off for minutes"
	cutLong     = "hosts cut off for long"
	powerless   = "hosts without power"
	ended       = "controllers restarted"
	killed      = "controllers killed"
	outage      = "outages"
	stormOf5xx  = "storms of 5xx"
	stormOf429  = "storms of 429"
	stormOfLost = "storms of lost deliveries"
	suspended   = "suspensions"
	removed     = "idle registrations removed"
	cancelled   = "runs cancelled"
	rerun       = "runs run again"
	stolen      = "jobs stolen"
)

// wholeDay is how long a day has to be for everything to happen.
const wholeDay = 20 * time.Hour

// whole complains about what did not happen on a whole day. The caller holds mu.
func (d *day) whole() {
	if d.length < wholeDay {
		return
	}
	must := []string{
		restarted, cutShort, cutLong, powerless, ended, killed, outage, stormOf5xx, stormOf429, stormOfLost, suspended, removed, cancelled, rerun, stolen,
		"deliveries sent twice",
	}
	for f := flawless + 1; f < flaws; f++ {
		must = append(must, "VMs with "+f.String())
	}
	for _, k := range []githubsim.FaultKind{
		githubsim.FaultStatus, githubsim.FaultRetryAfter, githubsim.FaultTimeoutAfterSuccess, githubsim.FaultDrop, githubsim.FaultDelay,
		githubsim.DeliveryLost, githubsim.DeliveryFailed, githubsim.DeliveryLate,
	} {
		must = append(must, "faults "+string(k))
	}
	for _, what := range must {
		if d.counts[what] == 0 {
			d.wrong = append(d.wrong, "the day had no "+what)
		}
	}
}

// deck deals what is in it in an order of chance, all of it before anything comes again
// more often than it is in there.
type deck[T cmp.Ordered] struct {
	mu    sync.Mutex // guards the rest
	rng   *rand.Rand
	cards []T
	next  int
}

func newDeck[T cmp.Ordered](r *rand.Rand, times map[T]int) *deck[T] {
	d := &deck[T]{rng: rand.New(rand.NewPCG(r.Uint64(), r.Uint64()))}
	for _, what := range slices.Sorted(maps.Keys(times)) {
		d.cards = append(d.cards, slices.Repeat([]T{what}, times[what])...)
	}
	d.next = len(d.cards)
	return d
}

func (d *deck[T]) deal() T {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.next == len(d.cards) {
		d.rng.Shuffle(len(d.cards), func(i, j int) { d.cards[i], d.cards[j] = d.cards[j], d.cards[i] })
		d.next = 0
	}
	d.next++
	return d.cards[d.next-1]
}
