// SPDX-License-Identifier: MIT

package fleet_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/fleet"
)

// table reads "state: event→next event→next", one state a line; what is not named
// leaves the state as it is. "none" stands for the empty word.
func table[S, E ~string](t *testing.T, text string) map[S]map[E]S {
	t.Helper()
	word := func(s string) S {
		if s == "none" {
			return ""
		}
		return S(s)
	}
	out := map[S]map[E]S{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		state, moves, ok := strings.Cut(line, ":")
		if !ok {
			t.Fatalf("no state in %q", line)
		}
		row := map[E]S{}
		for _, m := range strings.Fields(moves) {
			event, next, ok := strings.Cut(m, "→")
			if !ok {
				t.Fatalf("no arrow in %q", m)
			}
			if event == "none" {
				event = ""
			}
			row[E(event)] = word(next)
		}
		out[word(state)] = row
	}
	return out
}

// everyPair checks a Next function against a table, over all states and events.
func everyPair[S, E ~string](t *testing.T, want map[S]map[E]S, states []S, events []E, next func(S, E) S) {
	t.Helper()
	if len(want) != len(states) {
		t.Fatalf("the expectation has %d states, the domain %d", len(want), len(states))
	}
	for s, row := range want {
		for e, to := range row {
			if !slices.Contains(states, s) || !slices.Contains(events, e) || !slices.Contains(states, to) {
				t.Fatalf("expectation %q on %q → %q is not of the domain", s, e, to)
			}
		}
	}
	for _, s := range states {
		for _, e := range events {
			expected, moves := want[s][e]
			if !moves {
				expected = s
			}
			if got := next(s, e); got != expected {
				t.Errorf("%q on %q: got %q, want %q", s, e, got, expected)
			}
		}
		if got := next(s, "no such event"); got != s {
			t.Errorf("%q moves to %q on an unknown event", s, got)
		}
	}
}

func TestWantedEveryPair(t *testing.T) {
	t.Parallel()
	want := table[fleet.Wanted, fleet.WantedEvent](t, `
		up:    arm→armed drain→drain retire→gone
		armed: disarm→up drain→drain retire→gone
		drain: retire→gone resume→armed
		gone:
	`)
	next := func(w fleet.Wanted, e fleet.WantedEvent) fleet.Wanted { return w.Next(e) }
	everyPair(t, want, fleet.Wanteds(), fleet.WantedEvents(), next)
	for _, w := range fleet.Wanteds() {
		for _, e := range fleet.WantedEvents() {
			if once := w.Next(e); once.Next(e) != once {
				t.Errorf("%q on %s twice is not once", w, e)
			}
		}
		if w.Next(fleet.DoRetire) != fleet.WantGone {
			t.Errorf("%q does not heed retire", w)
		}
	}
}

func TestObservedEveryPair(t *testing.T) {
	t.Parallel()
	// Rows are what is known, columns what is newly reported, in this order.
	order := []fleet.Observed{"", "preparing", "booting", "standby", "registering", "idle", "busy", "finished", "failed", "destroying", "gone"}
	if !slices.Equal(order, fleet.Observeds()) {
		t.Fatalf("observations: %q", fleet.Observeds())
	}
	const takes, keeps = '+', '.'
	rows := []string{
		".++++++++++",
		"..+++++++++",
		"...++++++++",
		"....+++++++",
		".....++++++",
		"....+.+++++", // idle: a listener that restarts itself registers again
		".......++++",
		"........+++",
		"..........+", // failed stays visible until gone
		"..........+", // destroying does not fail any more
		"...........",
	}
	for i, from := range order {
		for j, reported := range order {
			want := from
			switch rows[i][j] {
			case takes:
				want = reported
			case keeps:
			}
			if got := from.Next(reported); got != want {
				t.Errorf("%q, reported %q: got %q, want %q", from, reported, got, want)
			}
			if once := from.Next(reported); once.Next(reported) != once {
				t.Errorf("%q, reported %q twice is not once", from, reported)
			}
		}
		if from.Next("unheard of") != from {
			t.Errorf("%q moves on an unknown word", from)
		}
		if from.Next(fleet.ObservedGone) != fleet.ObservedGone {
			t.Errorf("%q does not become gone", from)
		}
	}
}

func TestRegistrationEveryPair(t *testing.T) {
	t.Parallel()
	want := table[fleet.Registration, fleet.RegEvent](t, `
		none:     mint→minting
		minting:  granted→minted refused→gone started→busy finished→gone delete→deleting deleted→gone vetoed→busy
		minted:                               started→busy finished→gone delete→deleting deleted→gone vetoed→busy
		busy:                                              finished→gone delete→deleting deleted→gone
		deleting:                refused→gone started→busy finished→gone                 deleted→gone vetoed→busy
		gone:     mint→minting granted→deleting
	`)
	next := func(s fleet.Registration, e fleet.RegEvent) fleet.Registration { return s.Next(e) }
	everyPair(t, want, fleet.Registrations(), fleet.RegEvents(), next)
}

func TestRegistrationLaws(t *testing.T) {
	t.Parallel()
	mayExist := func(s fleet.Registration) bool { return s != fleet.RegNone && s != fleet.RegGone }
	for _, s := range fleet.Registrations() {
		for _, e := range fleet.RegEvents() {
			next := s.Next(e)
			if e != fleet.RegGranted && next.Next(e) != next {
				t.Errorf("%q on %s twice is not once", s, e)
			}
			certain := e == fleet.RegRefused || e == fleet.RegFinished || e == fleet.RegDeleted
			if mayExist(s) && !mayExist(next) && !certain {
				t.Errorf("%q on %s forgets a registration that may exist", s, e)
			}
			if !mayExist(s) && mayExist(next) && e != fleet.RegMint && e != fleet.RegGranted {
				t.Errorf("%q on %s makes up a registration", s, e)
			}
		}
		if mayExist(s) {
			if s.Next(fleet.RegDelete) != fleet.RegDeleting {
				t.Errorf("%q cannot be deleted", s)
			}
			if next := s.Next(fleet.RegMint); next != s {
				t.Errorf("%q: a new attempt begins beside a registration that may exist: %q", s, next)
			}
		}
	}
}

// The words of the phases, from the three parts, checked over every combination.
func TestPhaseEveryCombination(t *testing.T) {
	t.Parallel()
	seen := map[fleet.Phase]bool{}
	for _, placed := range []bool{false, true} {
		for _, w := range fleet.Wanteds() {
			for _, o := range fleet.Observeds() {
				for _, reg := range fleet.Registrations() {
					want := phaseByRules(placed, w, o, reg)
					if got := fleet.PhaseOf(placed, w, o, reg); got != want {
						t.Errorf("placed %t, wanted %q, observed %q, registration %q: got %q, want %q", placed, w, o, reg, got, want)
					}
					seen[want] = true
					host := fleet.HostID("")
					if placed {
						host = "h-1"
					}
					r := fleet.Runner{Host: host, Wanted: w, Observed: o, Registration: reg}
					if r.Phase() != want {
						t.Errorf("the runner's phase differs: %q", r.Phase())
					}
				}
			}
		}
	}
	for _, p := range []fleet.Phase{
		"requested", "placed", "preparing", "booting", "standby", "armed", "registering", "idle", "busy", "finished", "failed", "destroying", "gone",
	} {
		if !seen[p] {
			t.Errorf("no combination gives %q", p)
		}
	}
	if len(seen) != 13 {
		t.Errorf("%d phases, want 13", len(seen))
	}
}

// phaseByRules states the same as sentences, the first that holds.
func phaseByRules(placed bool, w fleet.Wanted, o fleet.Observed, reg fleet.Registration) fleet.Phase {
	listening := o == "standby" || o == "registering" || o == "idle"
	for _, rule := range []struct {
		holds bool
		phase fleet.Phase
	}{
		{o == "gone" || o == "failed" || o == "finished" || o == "destroying", fleet.Phase(o)}, // the agent saw the end
		{o == "busy", "busy"}, // the guest works, whatever anybody wants
		{w == "drain" || w == "gone", "destroying"},
		{listening && reg == "busy", "busy"}, // GitHub knows first
		{o == "idle", "idle"},
		{o == "registering", "registering"},
		{o == "standby" && (reg == "minting" || reg == "minted"), "registering"},
		{o == "standby" && w == "armed", "armed"},
		{o == "standby", "standby"},
		{o == "booting", "booting"},
		{o == "preparing", "preparing"},
		{placed, "placed"},
	} {
		if rule.holds {
			return rule.phase
		}
	}
	return "requested"
}

func TestRunnerOver(t *testing.T) {
	t.Parallel()
	for _, o := range fleet.Observeds() {
		for _, reg := range fleet.Registrations() {
			want := o == "gone" && (reg == "" || reg == "gone")
			if got := (&fleet.Runner{Observed: o, Registration: reg}).Over(); got != want {
				t.Errorf("observed %q, registration %q: over %t, want %t", o, reg, got, want)
			}
		}
	}
}

func TestRunnerTakesSlot(t *testing.T) {
	t.Parallel()
	for _, holds := range []bool{false, true} {
		for _, o := range fleet.Observeds() {
			var want bool
			switch o {
			case "", "preparing", "booting", "standby", "registering", "idle", "busy":
				want = true // reserved from the placing on
			case "finished", "failed", "destroying":
				want = holds // the lock decides
			}
			if got := (&fleet.Runner{Observed: o, HoldsSlot: holds}).TakesSlot(); got != want {
				t.Errorf("observed %q, holds the slot %t: %t, want %t", o, holds, got, want)
			}
		}
	}
}

func TestRunnerVouched(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		r                  fleet.Runner
		adopted, unvouched bool
	}{
		"placed":                  {fleet.Runner{Reason: "for job x"}, false, false},
		"armed":                   {fleet.Runner{ArmedAt: began, HasConfig: true}, false, false},
		"adopted with a config":   {fleet.Runner{Reason: fleet.AdoptedReason, HasConfig: true}, true, true},
		"adopted without one":     {fleet.Runner{Reason: fleet.AdoptedReason}, true, false},
		"a config never granted":  {fleet.Runner{HasConfig: true}, false, true},
		"adopted, and armed then": {fleet.Runner{Reason: fleet.AdoptedReason, HasConfig: true, ArmedAt: began}, true, false},
	} {
		if c.r.Adopted() != c.adopted || c.r.Unvouched() != c.unvouched {
			t.Errorf("%s: adopted %t, unvouched %t", name, c.r.Adopted(), c.r.Unvouched())
		}
	}
}
