// SPDX-License-Identifier: MIT

package tendays

import "regexp"

// numbers are what differs between two breaches of one law.
var numbers = regexp.MustCompile(`[0-9][^ ]*|".*`)

func sameLaw(a, b string) bool {
	return numbers.ReplaceAllString(a, "") == numbers.ReplaceAllString(b, "")
}

// Shrink returns a shorter script that breaks the law of a failure as well: of its parts, halves at first
// and single events at last, it tries each alone, and the script without it. What is left
// is the shortest in that no single event of it can be spared. It plays at most so many
// runs.
func Shrink(s Script, o Options, failure string, runs int) Script {
	o.Say = false
	broken := func(events ...[]Event) bool {
		less := s
		less.Events = nil
		for _, part := range events {
			less.Events = append(less.Events, part...)
		}
		if runs--; runs < 0 || !sameLaw(Run(less, o).Failure, failure) {
			return false
		}
		s = less
		return true
	}
	for parts := 2; runs > 0 && len(s.Events) > 1; {
		size := (len(s.Events) + parts - 1) / parts
		smaller := false
		for at := 0; at < len(s.Events) && !smaller; at += size {
			if smaller = parts <= 16 && broken(s.Events[at:min(at+size, len(s.Events))]); smaller {
				parts = 2
			}
		}
		for at := 0; at < len(s.Events) && len(s.Events) > 1 && runs > 0 && parts > 2; {
			if broken(s.Events[:at], s.Events[min(at+size, len(s.Events)):]) {
				smaller, parts = true, max(parts-1, 2)
			} else {
				at += size
			}
		}
		if !smaller {
			if size == 1 {
				break
			}
			parts *= 2
		}
	}
	return s
}
