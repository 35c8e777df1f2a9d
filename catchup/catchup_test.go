// SPDX-License-Identifier: MIT

package catchup_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minifleet/minifleet/catchup"
	"github.com/minifleet/minifleet/fleet"
)

// Of a delivery any attempt that succeeded settles it, and so does the store. What is
// left comes in GitHub's order, each once, whoever has been told of it how often.
func TestWhatNeverSucceededIsTaken(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.tried("a")
		w.tried("b", well)
		w.tried("c")
		w.tried("d")
		w.tried("stored")
		w.stored["stored"] = fleet.DeliveryProcessed
		w.tried("nothing")
		w.stored["nothing"] = fleet.DeliveryIgnored
		w.tried("half")
		w.stored["half"] = fleet.DeliveryFailed // it is processed again
		w.tried("s", func(a *attempt) { a.Event = "star" })
		w.tried("c", again, well)
		w.tried("a", again)
		w.tried("e", well)
		w.tried("e") // again by hand, and failed: it came before
		got := w.run(time.Minute)
		w.want("a", "d", "half")
		if got != (catchup.Counts{Looks: 1, Taken: 3}) {
			t.Errorf("%+v", got)
		}
		if n := w.count("get"); n != 3 {
			t.Errorf("%d were read", n)
		}
		if !w.caughtUp.Equal(w.attempts[len(w.attempts)-1].At) {
			t.Errorf("caught up to %s", w.caughtUp)
		}
		if !strings.Contains(w.log.String(), "deliveries caught up") {
			t.Error("nothing is said")
		}
	})
}

// Where nothing can be delivered to, what GitHub calls a success is one of somebody else's.
func TestAllAreTaken(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.all = true
		w.tried("a", well)
		w.tried("b")
		w.tried("odd") // cannot be understood, which another look does not change
		w.tried("c", again, well)
		w.tried("s", func(a *attempt) { a.Event = "star" })
		w.run(10*time.Minute, func(*catchup.Puller) {
			w.tried("odd", again) // unless it is another attempt
			time.Sleep(4 * time.Minute)
			synctest.Wait()
		})
		w.want("a", "b", "odd", "c", "odd")
	})
}

func TestNothingIsReadTwice(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		for i := range 10 {
			w.tried(fmt.Sprint("a", i))
		}
		w.run(10 * time.Minute)
		w.run(10 * time.Minute)
		if n := w.count("get"); n != 10 || len(w.taken) != 10 {
			t.Errorf("%d were read, %d taken", n, len(w.taken))
		}
		// With the overlap of a minute all of them are listed each time: 4 pages.
		if n := w.count("list"); n > 8*4 {
			t.Errorf("%d pages were read in 8 looks", n)
		}
	})
}

// A cursor that is old costs one page, not three days.
func TestOnlyWhatIsNewIsListed(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		for range 60 {
			w.tried("old", well)
		}
		w.run(time.Minute)
		time.Sleep(time.Hour)
		w.tried("new")
		before := w.count("list")
		w.run(time.Minute)
		w.want("new")
		if n := w.count("list") - before; n > 1+60/3 {
			t.Errorf("%d pages", n)
		}
		time.Sleep(time.Hour)
		w.tried("newer")
		before = w.count("list")
		w.run(time.Minute)
		w.want("new", "newer")
		if n := w.count("list") - before; n != 1 {
			t.Errorf("%d pages for one that is new", n)
		}
	})
}

// While pages are read more is delivered, and what was there moves on.
func TestPagesMove(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		for i := range 9 {
			w.tried(fmt.Sprint("a", i))
		}
		pages := 0
		w.onPage = func(string) {
			if pages++; pages < 4 {
				w.tried(fmt.Sprint("b", pages))
			}
		}
		w.run(10 * time.Minute)
		w.want("a0", "a1", "a2", "a3", "a4", "a5", "a6", "a7", "a8", "b1", "b2", "b3")
	})
}

func TestFailuresInTheMiddle(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		bad := errors.New("bad gateway")
		w.lists = []error{bad, nil, bad, bad} // each page is tried three times
		w.tried("a")
		w.tried("b", broken(3)) // of this look
		w.tried("c")
		w.tried("d", broken(1))
		w.run(time.Minute)
		w.want("a", "c", "d")
		if !w.caughtUp.Equal(w.attempts[1].At) {
			t.Errorf("caught up to %s beyond what could not be read", w.caughtUp)
		}
		w.run(time.Minute) // another life
		w.want("a", "c", "d", "b")
		if n := w.count("get a"); n != 1 {
			t.Errorf("a was read %d times", n)
		}
	})
}

// GitHub is down for an hour: nothing is given up, and all is said once.
func TestGitHubIsDown(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		for i := range 5 {
			w.tried(fmt.Sprint("a", i), broken(-1))
		}
		got := w.run(time.Hour, func(*catchup.Puller) {
			w.mu.Lock()
			for _, a := range w.attempts {
				a.fails = 0
			}
			w.mu.Unlock()
			time.Sleep(2 * time.Minute)
			synctest.Wait()
		})
		w.want("a0", "a1", "a2", "a3", "a4")
		if got.Redelivered != 0 || got.GivenUp != 0 {
			t.Errorf("%+v", got)
		}
		for _, text := range []string{"could not be worked through", "can be worked through again"} {
			if n := strings.Count(w.log.String(), text); n != 1 {
				t.Errorf("%q is said %d times", text, n)
			}
		}
	})
}

// One that GitHub never shows holds nobody up, and is asked for again in the end.
func TestOneThatAlwaysFails(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.tried("poison", broken(-1))
		w.tried("a")
		w.redone = func(guid string) { w.tried(guid, again) }
		got := w.run(20 * time.Minute)
		w.want("a", "poison")
		if got.Redelivered != 1 || w.count("again") != 1 {
			t.Errorf("%+v", got)
		}
	})
}

func TestVanished(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.tried("a")
		w.tried("lost", gone)
		w.tried("a", again, gone) // the attempt before has the payload too
		got := w.run(10 * time.Minute)
		w.want("a")
		if got.Vanished != 1 || w.count("again") != 0 {
			t.Errorf("%+v", got)
		}
	})
}

// GitHub is asked to deliver again only what it does not show, three times at most, whoever
// asks.
func TestNoPayload(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.tried("a")
		w.tried("once", bare)
		w.tried("never", bare)
		w.redone = func(guid string) {
			w.tried(guid, again, func(a *attempt) { a.bare = guid == "never" })
		}
		got := w.run(4 * time.Minute)
		w.want("a", "once")
		if got.Redelivered != 3 {
			t.Errorf("%+v", got)
		}
		got = w.run(20 * time.Minute)
		w.want("a", "once")
		if got.Redelivered != 1 || got.GivenUp != 1 || w.asked["never"] != 3 || w.count("again never") != 3 || w.count("again once") != 1 {
			t.Errorf("%+v, asked %v", got, w.asked)
		}
	})
}

func TestRateLimit(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.lists = []error{nil, &fleet.RateLimited{Until: time.Now().Add(10 * time.Minute)}}
		for i := range 5 {
			w.tried(fmt.Sprint("a", i))
		}
		w.run(9 * time.Minute)
		w.want()
		if n := w.count("list"); n != 2 {
			t.Errorf("%d calls", n)
		}
		w.run(2 * time.Minute)
		w.want("a0", "a1", "a2", "a3", "a4")
		if n := strings.Count(w.log.String(), "rate limit"); n != 1 {
			t.Errorf("the limit is told of %d times", n)
		}
	})
}

// During an outage it waits as it does for a limit, but there is none that anybody could
// do something about.
func TestOutageIsNoLimit(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.lists = []error{&fleet.RateLimited{Until: time.Now().Add(10 * time.Minute), Outage: time.Now()}}
		w.tried("a")
		w.run(9 * time.Minute)
		w.want()
		w.run(2 * time.Minute)
		w.want("a")
		if log := w.log.String(); strings.Contains(log, "rate limit") {
			t.Errorf("the log is\n%s", log)
		}
	})
}

// A fifth of the App's limit is for others.
func TestFloor(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.tried("a")
		w.rate = fleet.Rate{Limit: 5000, Remaining: 999, Reset: time.Now().Add(30 * time.Minute)}
		w.run(29 * time.Minute)
		w.want()
		if len(w.calls) != 1 { // that told
			t.Errorf("calls %v", w.calls)
		}
		w.run(2 * time.Minute)
		w.run(2 * time.Minute)
		w.want("a")
		w.rate.Reset = time.Now().Add(1000 * time.Hour) // a clock is wrong
		w.run(61 * time.Minute)
		w.tried("b")
		w.rate.Remaining = 4000
		w.run(time.Minute)
		w.want("a", "b")
	})
}

// The store fails, or the program dies before it has noted how far it came: nothing is
// left out, and what was stored is not read again.
func TestStoreFails(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(*world)
		gets int
	}{
		"while it takes":                 {func(w *world) { w.takes = []error{nil, errors.New("disk full")} }, 9}, // four are read at once
		"after it has taken everything":  {func(w *world) { w.notes = []error{errors.New("disk full")} }, 6},
		"not to be stored, now or later": {func(w *world) { w.takes = []error{fleet.ErrRefused, nil, nil, nil, nil, nil, fleet.ErrRefused} }, 7},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, w *world) {
				for i := range 6 {
					w.tried(fmt.Sprint("a", i))
				}
				c.edit(w)
				w.run(30 * time.Second)
				w.run(30 * time.Second)
				all := []string{"a0", "a1", "a2", "a3", "a4", "a5"}
				if strings.HasPrefix(name, "not") {
					all = all[1:]
				}
				w.want(all...)
				if n := w.count("get"); n != c.gets {
					t.Errorf("%d were read, want %d", n, c.gets)
				}
			})
		})
	}
}

// No clock that is wrong hides what comes.
func TestClocks(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.tried("odd-time", func(a *attempt) { a.At = a.At.Add(50 * 365 * 24 * time.Hour) })
		w.tried("a")
		w.run(time.Minute)
		w.tried("b")
		w.run(time.Minute)
		w.tried("odd-soon", func(a *attempt) { a.At = a.At.Add(30 * time.Minute) })
		w.run(time.Minute)
		w.tried("d")
		w.run(time.Minute)
		if !slices.Contains(w.taken, "d") {
			t.Error("what came after a time in the future is left out")
		}
		w.caughtUp = time.Now().Add(1000 * time.Hour)
		w.tried("c")
		w.notes = slices.Repeat([]error{nil}, 3)
		w.run(time.Minute)
		if got := slices.DeleteFunc(slices.Clone(w.taken), func(s string) bool { return strings.HasPrefix(s, "odd") }); !slices.Equal(got, []string{"a", "b", "d", "c"}) {
			t.Errorf("taken %v", got)
		}
	})
}

// After a long time all comes in order; who was never there takes the newest.
func TestManyDeliveries(t *testing.T) {
	for name, c := range map[string]struct {
		caughtUp time.Duration
		taken    int
	}{
		"down for a day": {-25 * time.Hour, 10_000},
		"a first start":  {0, 2_000},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, w *world) {
				w.size, w.caughtUp = 100, time.Time{}
				if c.caughtUp != 0 {
					w.caughtUp = time.Now().Add(c.caughtUp)
				}
				for i := range 10_000 {
					w.attempts = append(w.attempts, &attempt{Attempt: fleet.Attempt{
						ID: int64(i + 1), GUID: fmt.Sprintf("g%05d", i), Event: "workflow_job", At: time.Now().Add(time.Duration(i-10_000) * 8 * time.Second),
					}})
				}
				w.run(time.Hour)
				if len(w.taken) != c.taken || !slices.IsSorted(w.taken) || w.taken[len(w.taken)-1] != "g09999" {
					t.Errorf("%d taken, in order %t", len(w.taken), slices.IsSorted(w.taken))
				}
				if n := w.count("list"); n > 125 {
					t.Errorf("%d pages", n)
				}
				if !w.caughtUp.Equal(w.attempts[9_999].At) {
					t.Errorf("caught up to %s", w.caughtUp)
				}
			})
		})
	}
}
