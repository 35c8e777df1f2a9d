// SPDX-License-Identifier: MIT

package tendays_test

import (
	"cmp"
	"flag"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minifleet/minifleet/autoscaler/tendays"
	"github.com/minifleet/minifleet/fleet"
)

var (
	seeds = flag.Int("seeds", 0, "how many seeds TestTenDays plays; 0: a few")
	first = flag.Uint64("seed", 0, "the first of them")
	jobs  = flag.Int("jobs", 0, "jobs of each; 0: 1,000, with the race detector 150")
	days  = flag.Int("days", 0, "days of each; 0: 10, with the race detector 2")
	bill  = flag.Bool("bill", false, "print the calls of GitHub that ten quiet days cost")
	tell  = flag.Bool("tell", false, "show the history of each")
)

func play(t *testing.T, s tendays.Script, o tendays.Options) (r tendays.Result) {
	t.Helper()
	synctest.Test(t, func(*testing.T) { r = tendays.Run(s, o) })
	return r
}

// check plays a script and, if it breaks a law, shows the shortest history that does.
func check(t *testing.T, seed uint64, size tendays.Size, o tendays.Options) tendays.Result {
	t.Helper()
	s := tendays.Generate(seed, size)
	r := play(t, s, o)
	if r.Failure == "" {
		return r
	}
	var short tendays.Script
	synctest.Test(t, func(*testing.T) { short = tendays.Shrink(s, o, r, 400) })
	o.Say = true
	shown := play(t, short, o)
	t.Errorf("%s\nrepeat it: go test ./autoscaler/tendays -run TestTenDays -seeds 1 -seed %d -jobs %d -days %d\n"+
		"Of its %d events these %d break a law:\n%s\nIts history:\n%s",
		r.Failure, seed, size.Jobs, size.Days, len(s.Events), len(short.Events), lines(short.Events), strings.Join(shown.History, "\n"))
	return r
}

func lines(events []tendays.Event) string {
	var b strings.Builder
	for _, e := range events {
		fmt.Fprintf(&b, "\t%s\n", e)
	}
	return b.String()
}

func size() tendays.Size {
	s := tendays.Size{Jobs: 1000, Days: 10}
	if raced { // on one goroutine the detector has nothing to find, and all takes ten times as long
		s = tendays.Size{Jobs: 150, Days: 2}
	}
	return tendays.Size{Jobs: cmp.Or(*jobs, s.Jobs), Days: cmp.Or(*days, s.Days)}
}

// Ten days of all that can go wrong: every job was served or has a reason, nothing is left,
// and no job was ended by us.
func TestTenDays(t *testing.T) {
	t.Parallel()
	n := max(*seeds, 4)
	if *seeds > 0 {
		n = *seeds
	}
	began := time.Now()
	for seed := *first; seed < *first+uint64(n); seed++ {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			t.Parallel()
			r := check(t, seed, size(), tendays.Options{Say: *tell})
			if *tell {
				t.Log(strings.Join(r.History, "\n"))
			}
			t.Logf("digest %016x; %s", r.Digest, r.Figures)
		})
	}
	t.Cleanup(func() { t.Logf("%d seeds, %s", n, time.Since(began).Round(time.Second)) })
}

// A run is bit-exact from its seed, and differs from that of another.
func TestSameSeedSameHistory(t *testing.T) {
	t.Parallel()
	few := tendays.Size{Jobs: 200, Days: 2}
	digests := map[uint64]bool{}
	for range 3 {
		digests[play(t, tendays.Generate(7, few), tendays.Options{}).Digest] = true
	}
	if len(digests) != 1 {
		t.Errorf("the same seed had %d histories", len(digests))
	}
	digests[play(t, tendays.Generate(8, few), tendays.Options{}).Digest] = true
	if len(digests) != 2 {
		t.Error("two seeds have the same history")
	}
}

// Rules that are broken on purpose are found, and the script that shows it is shrunk to a
// handful of events.
func TestShrinksToTheShortestHistory(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spoil func(*fleet.Plan)
		law   string
		most  int
	}{
		"no registration is ever deleted": {
			func(p *fleet.Plan) { p.Deletes = nil }, "registration", 3,
		},
		"nothing is placed": {
			func(p *fleet.Plan) { p.Places = nil }, "job", 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, o := tendays.Generate(1, tendays.Size{Jobs: 100, Days: 1}), tendays.Options{Sabotage: c.spoil}
			var short tendays.Script
			synctest.Test(t, func(*testing.T) { short = tendays.Shrink(s, o, tendays.Run(s, o), 200) })
			r := play(t, short, o)
			if !strings.Contains(r.Failure, c.law) || r.Failure == "" || len(short.Events) > c.most {
				t.Errorf("%q from %d events of %d:\n%s", r.Failure, len(short.Events), len(s.Events), lines(short.Events))
			}
			t.Logf("%s\n%s", r.Failure, lines(short.Events))
		})
	}
}

// The bill of ten days: what GitHub is asked, by kind, when all goes well and when all that
// can goes wrong.
func TestBill(t *testing.T) {
	if !*bill {
		t.Skip("prints figures: -bill")
	}
	for name, size := range map[string]tendays.Size{
		"quiet":               {Jobs: 50000, Days: 10, Quiet: true},
		"all that goes wrong": {Jobs: 50000, Days: 10},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := check(t, 0, size, tendays.Options{})
			t.Logf("%d jobs in %d days, %s\n%sfrom queued to running: %s\nof %d of which no delivery told: %s",
				r.Figures.Jobs, size.Days, name, r.Figures.Bill(), tendays.Percentiles(r.Figures.Waits), len(r.Figures.Untold), tendays.Percentiles(r.Figures.Untold))
		})
	}
}

// While GitHub answers nothing it is hardly asked anything, whatever waits.
func TestHardlyAsksWhileGitHubIsAway(t *testing.T) {
	t.Parallel()
	s := tendays.Script{Seed: 1, Hosts: 6, End: 4 * time.Hour, Events: []tendays.Event{{At: time.Hour, Kind: tendays.Outage, For: 2 * time.Hour}}}
	for n := range 40 {
		s.Events = append(s.Events, tendays.Event{At: time.Hour - time.Minute + time.Duration(n)*5*time.Second, Kind: tendays.Arrive, Job: n + 1, C: 1, For: time.Minute})
	}
	r := play(t, s, tendays.Options{})
	if r.Failure != "" || len(r.Figures.Waits) != 40 {
		t.Errorf("%q; of 40 jobs %d were taken", r.Failure, len(r.Figures.Waits))
	}
	if most := 2 * 60 * 2; r.Figures.Errors > most || r.Figures.Errors < 60 {
		t.Errorf("%d calls within two hours had no answer, want at most %d, one or two a minute", r.Figures.Errors, most)
	}
}
