// SPDX-License-Identifier: MIT

package store_test

import (
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/store"
)

func testCatchUp(t *testing.T, open opener) {
	t.Run("how far it came", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		for _, at := range []time.Time{{}, epoch, epoch.Add(1500 * time.Microsecond)} {
			if !at.IsZero() {
				w.must(w.s.SetCaughtUp(w.ctx(), 7, at))
			}
			got, err := w.s.CaughtUp(w.ctx(), 7)
			w.must(err)
			if !got.Equal(at) || got.IsZero() != at.IsZero() {
				t.Errorf("got %s, want %s", got, at)
			}
		}
		if got, err := w.s.CaughtUp(w.ctx(), 8); err != nil || !got.IsZero() {
			t.Errorf("of another App: %s, %v", got, err)
		}
	})
	t.Run("what is settled", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		guids := []string{"unknown"}
		for _, status := range []fleet.DeliveryStatus{fleet.DeliveryProcessed, fleet.DeliveryIgnored, fleet.DeliveryFailed} {
			_, err := w.s.Ingest(w.ctx(), fleet.Ingest{Delivery: w.delivery(string(status), status)})
			w.must(err)
			guids = append(guids, string(status))
		}
		for len(guids) < 500 {
			guids = append(guids, fmt.Sprint("more-", len(guids)))
		}
		got, err := w.s.SettledDeliveries(w.ctx(), guids)
		w.must(err)
		if want := map[string]bool{"processed": true, "ignored": true}; !maps.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		got, err = w.s.SettledDeliveries(w.ctx(), nil)
		w.must(err)
		if len(got) != 0 {
			t.Errorf("got %v", got)
		}
	})
	t.Run("what was asked for again", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		is := func(guid string, want int) {
			t.Helper()
			got, err := w.s.Redeliveries(w.ctx(), guid)
			w.must(err)
			if got != want {
				t.Errorf("%s was asked for %d times, want %d", guid, got, want)
			}
		}
		is("a", 0)
		for range 2 {
			w.must(w.s.CountRedelivery(w.ctx(), "a"))
		}
		w.Add(time.Hour)
		w.must(w.s.CountRedelivery(w.ctx(), "b"))
		is("a", 2)
		is("b", 1)
		w.must(w.s.Prune(w.ctx(), store.Retention{History: time.Minute}))
		is("a", 0)
		is("b", 1)
	})
}
