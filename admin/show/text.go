// SPDX-License-Identifier: MIT

package show

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
)

// maxCell bounds a cell, so that one long text does not break a table.
const maxCell = 100

// table prints rows under a heading, columns aligned. Cells come from GitHub and
// from inside VMs, so nothing in them may steer the terminal.
func table(w io.Writer, heading []string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, strings.Join(heading, "\t"))
	for _, row := range rows {
		for i, cell := range row {
			if row[i] = clean(cell, maxCell); row[i] == "" {
				row[i] = "-"
			}
		}
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	return t.Flush() // returns the first error of all writes
}

// clean returns s on one line and without anything but printable characters, cut
// to at most limit characters if limit is not 0.
func clean(s string, limit int) string {
	s = strings.Join(strings.FieldsFunc(s, unicode.IsSpace), " ")
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
	if runes := []rune(s); limit > 0 && len(runes) > limit {
		return string(runes[:limit-1]) + "…"
	}
	return s
}

// age is the time from then to now in its largest unit, "" if then is not known.
func age(then, now time.Time) string {
	if then.IsZero() {
		return ""
	}
	return span(now.Sub(then))
}

func span(d time.Duration) string {
	d = max(0, d) // two clocks need not agree
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	default:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	}
}

// firstOf returns the first text that is not empty.
func firstOf(texts ...string) string {
	for _, t := range texts {
		if t != "" {
			return t
		}
	}
	return ""
}

// joined joins the texts that are not empty.
func joined(sep string, texts ...string) string {
	var kept []string
	for _, t := range texts {
		if t != "" {
			kept = append(kept, t)
		}
	}
	return strings.Join(kept, sep)
}
