// SPDX-License-Identifier: MIT

package webhook

import (
	"fmt"
	"strings"
	"unicode"
)

// address returns a web address, and "" for what is none: it is shown as a link.
func address(s string) string {
	if len(s) > maxURL || !(strings.HasPrefix(s, "https://") || strings.HasPrefix(s, "http://")) {
		return ""
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || unicode.IsControl(r) || r == unicode.ReplacementChar }) {
		return ""
	}
	return s
}

func positive(name string, id int64) error {
	if id <= 0 {
		return fmt.Errorf("%s %d is not an id", name, id)
	}
	return nil
}

func notNegative(name string, n int) error {
	if n < 0 {
		return fmt.Errorf("%s %d is negative", name, n)
	}
	return nil
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// number returns what a field that may be null holds, 0 for nothing.
func number(n *int64) int64 {
	if n == nil {
		return 0
	}
	return *n
}

// clean makes a foreign string fit for a database, a log and a terminal: valid
// UTF-8 without control characters, at most limit bytes.
func clean(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	if len(s) <= limit {
		return s
	}
	cut := 0
	for i, r := range s {
		if i+len(string(r)) > limit {
			break
		}
		cut = i + len(string(r))
	}
	return s[:cut]
}
