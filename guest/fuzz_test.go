// SPDX-License-Identifier: MIT

package guest

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

func FuzzDecodeStatus(f *testing.F) {
	f.Fuzz(func(t *testing.T, body []byte) {
		s, err := decodeStatus(body)
		if err != nil {
			return
		}
		if s.check() != nil {
			t.Fatalf("taken in spite of its check: %+v", s)
		}
		if r := s.Runner.Reason; len(r) > maxReasonBytes || !utf8.ValidString(r) || strings.ContainsAny(r, "\n\r\x1b") {
			t.Fatalf("reason %q", r)
		}
		// What was taken once is taken again, and means the same.
		again, err := json.Marshal(s)
		if err != nil {
			t.Skip(err) // a year that JSON cannot carry
		}
		if _, err := decodeStatus(again); err != nil {
			t.Fatalf("%s: %v", again, err)
		}
	})
}

func FuzzParseLine(f *testing.F) {
	f.Fuzz(func(t *testing.T, line string) {
		e := parseLine(line)
		if (e.result != "") != (e.kind == eventResult) || (e.text != "") != (e.kind == eventVersion) {
			t.Fatalf("%q: %+v", line, e)
		}
		if e.kind == eventVersion && !versionPattern.MatchString(e.text) {
			t.Fatalf("version %q", e.text)
		}
		// Whatever the author of a workflow names a job, the runner's own words around
		// the name mean what they mean.
		if got := parseLine("Running job: " + line); got.kind != eventRunning {
			t.Fatalf("a job named %q is begun: %+v", line, got)
		}
		if got := parseLine("2026-11-21 20:43:10Z: Job " + line + " completed with result: Failed"); got.result != ResultFailed {
			t.Fatalf("a job named %q has failed: %+v", line, got)
		}
	})
}

func FuzzReadLines(f *testing.F) {
	f.Fuzz(func(t *testing.T, text []byte, pad int) {
		text = append(bytes.Repeat([]byte{'p'}, max(pad, 0)%(3*maxLine)), text...)
		var got, want []string
		readLines(bytes.NewReader(text), func(line []byte, cut bool) {
			if len(line) > maxLine || cut != (len(line) == maxLine) {
				t.Fatalf("line of %d bytes, cut %t", len(line), cut)
			}
			got = append(got, string(line))
		})
		for line := range bytes.Lines(text) {
			line = bytes.TrimSuffix(line[:min(len(line), maxLine)], []byte("\n"))
			want = append(want, string(line))
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") || len(got) != len(want) {
			t.Fatalf("%d lines, want %d", len(got), len(want))
		}
	})
}

func FuzzTail(f *testing.F) {
	f.Fuzz(func(t *testing.T, size, count int) {
		size, count = max(size, 0)%(maxLine+1), max(count, 0)%64
		var tl tail
		var all []byte
		for i := range count {
			line := bytes.Repeat([]byte{byte('a' + i%26)}, size)
			tl.add(line)
			all = append(append(all, line...), '\n')
		}
		got := tl.bytes()
		if len(got) > maxTailBytes || !bytes.HasSuffix(all, got) {
			t.Fatalf("%d bytes are not the end of %d", len(got), len(all))
		}
		if len(all) <= maxTailBytes && len(got) != len(all) || len(all)-len(got) > 0 && len(got) < maxTailBytes-size-1 {
			t.Fatalf("%d bytes of %d", len(got), len(all))
		}
	})
}
