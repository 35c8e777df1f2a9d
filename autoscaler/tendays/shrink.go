// SPDX-License-Identifier: MIT

package tendays

import (
	"cmp"
	"regexp"
	"slices"
	"time"
)

// numbers are what differs between two breaches of one law.
var numbers = regexp.MustCompile(`[0-9][^ ]*|".*`)

func sameLaw(a, b string) bool {
	return numbers.ReplaceAllString(a, "") == numbers.ReplaceAllString(b, "")
}

const (
	// mostEvents bounds what is played: large scripts are shrunk in fewer steps.
	mostEvents = 500_000
	// A shorter script may break the law later than the whole.
	afterwards = 6 * time.Hour
)

// until counts the events up to a moment.
func (s Script) until(at time.Duration) int {
	n, _ := slices.BinarySearchFunc(s.Events, at+1, func(e Event, t time.Duration) int { return cmp.Compare(e.At, t) })
	return n
}

// Shrink returns a shorter script that breaks the law of a failure as well: of its parts,
// halves at first and single events at last, it tries each alone, and the script without it.
// What is left is the shortest in that no single event of it can be spared. What comes after
// the failure is dropped first of all. It plays at most so many runs, and mostEvents in all.
func Shrink(s Script, o Options, failed Result, runs int) Script {
	o.Say = false
	s.Events = slices.Clone(s.Events[:s.until(failed.At)])
	s.End = min(s.End, failed.At+afterwards)
	x := shrinker{Script: s, o: o, law: failed.Failure, runs: runs, played: mostEvents}
	x.parts()
	return x.Script
}

// shrinker is the shortest script so far.
type shrinker struct {
	Script
	o            Options
	law          string
	runs, played int // that are left, the latter of events
}

func (x *shrinker) spent() bool { return x.runs <= 0 || x.played <= 0 }

// broken plays some of the events, and keeps to them if they break the law.
func (x *shrinker) broken(events ...[]Event) bool {
	less := x.Script
	less.Events = slices.Concat(events...)
	if x.spent() {
		return false
	}
	x.runs--
	if x.played -= len(less.Events); !sameLaw(Run(less, x.o).Failure, x.law) {
		return false
	}
	x.Script = less
	return true
}

// parts leaves out ever smaller ones, down to single events.
func (x *shrinker) parts() {
	for parts := 2; !x.spent() && len(x.Events) > 1; {
		size := (len(x.Events) + parts - 1) / parts
		smaller := false
		for at := 0; at < len(x.Events) && !smaller; at += size {
			if smaller = parts <= 16 && x.broken(x.Events[at:min(at+size, len(x.Events))]); smaller {
				parts = 2
			}
		}
		for at := 0; at < len(x.Events) && len(x.Events) > 1 && !x.spent() && parts > 2; {
			if x.broken(x.Events[:at], x.Events[min(at+size, len(x.Events)):]) {
				smaller, parts = true, max(parts-1, 2)
			} else {
				at += size
			}
		}
		if !smaller {
			if size == 1 {
				return
			}
			parts *= 2
		}
	}
}
