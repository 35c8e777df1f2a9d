// SPDX-License-Identifier: MIT

package remote

import (
	"path"
	"strings"
	"testing"
)

// FuzzSurvey: whatever a guest prints, what is taken of it goes into paths and commands
// only in a form that is harmless there.
func FuzzSurvey(f *testing.F) {
	f.Add([]byte("Last login\nminifleet:system Darwin arm64\nminifleet:boot 0A1B2C3D-1111-2222-3333-444455556666\nminifleet:home /Users/admin\n"))
	f.Add([]byte("minifleet:system Linux x86_64\r\nminifleet:boot --------------\nminifleet:home /\n"))
	f.Fuzz(func(t *testing.T, out []byte) {
		s, err := parseSurvey(out)
		if err != nil {
			if text := err.Error(); len(text) > 400 || strings.ContainsAny(text, "\x1b\r\n\x00") {
				t.Errorf("error %q", text)
			}
			return
		}
		for _, p := range []string{s.socket(), s.run(), s.within("runner")} {
			if !path.IsAbs(p) || len(p) > 103 || strings.ContainsAny(p, "'\"`$\\!\n\x00;&|") {
				t.Errorf("path %q", p)
			}
		}
		if s.goos == "" || s.goarch == "" {
			t.Errorf("survey %+v", s)
		}
	})
}

func TestSurvey(t *testing.T) {
	const good = "minifleet:system Linux aarch64\nminifleet:boot 01234567-89ab-cdef-0123-456789abcdef\nminifleet:home /home/runner\n"
	s, err := parseSurvey([]byte(good))
	if want := (survey{goos: "linux", goarch: "arm64", boot: "01234567-89ab-cdef-0123-456789abcdef", home: "/home/runner"}); err != nil || s != want {
		t.Errorf("%+v, %v", s, err)
	}
	if s.socket() != "/home/runner/.minifleet/01234567/guest.sock" || s.within("r") != "/home/runner/r" || s.within("/r") != "/r" {
		t.Errorf("paths %q %q %q", s.socket(), s.within("r"), s.within("/r"))
	}
	for name, tt := range map[string]struct{ old, now, words string }{
		"another system":   {"Linux", "SunOS", "uname -sm"},
		"another machine":  {"aarch64", "riscv64", "uname -sm"},
		"no boot":          {"01234567-89ab-cdef-0123-456789abcdef", "", "names its boot"},
		"boot of dashes":   {"01234567-89ab-cdef-0123-456789abcdef", "--------------------", "names its boot"},
		"no home":          {"/home/runner", "", "user's folder"},
		"home with quotes": {"/home/runner", "/home/it's", "user's folder"},
		"long home":        {"/home/runner", "/" + strings.Repeat("x", 61), "user's folder"},
		"nothing":          {good, "This account is not available", "login shell"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseSurvey([]byte(strings.Replace(good, tt.old, tt.now, 1)))
			if err == nil || !strings.Contains(err.Error(), tt.words) {
				t.Errorf("error %v, want %q", err, tt.words)
			}
		})
	}
}

func TestClean(t *testing.T) {
	if got := clean("a\x1b[2J\n b\x00c"+strings.Repeat("x", 100), 12); got != "a [2J b cxxx" {
		t.Errorf("%q", got)
	}
}
