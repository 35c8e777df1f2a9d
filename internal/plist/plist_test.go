// SPDX-License-Identifier: MIT

package plist_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/internal/leakcheck"
	"github.com/minifleet/minifleet/internal/plist"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

const head = `<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
`

func TestParse(t *testing.T) {
	got, err := plist.Parse([]byte(head + `<!-- words --><plist version="1.0"><dict>
		<key>yes</key><true/><key>no</key><false/>
		<key>text</key><string>a &amp; b</string> <!-- more words -->
		<key>list</key><array><integer>-3</integer><real>0.5</real><array/></array>
		<key>when</key><date>2026-02-09T10:11:12Z</date>
		<key>bytes</key><data>
			AQ ID
		</data>
		<key>deep</key><dict><key></key><string></string></dict>
	</dict></plist>
`))
	want := plist.Dict{
		"yes": true, "no": false, "text": "a & b", "list": []any{int64(-3), 0.5, []any{}},
		"when": time.Date(2026, 2, 9, 10, 11, 12, 0, time.UTC), "bytes": []byte{1, 2, 3}, "deep": plist.Dict{"": ""},
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
}

func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                          "EOF",
		"<dict/>":                   "does not begin with <plist>",
		"bplist00":                  "outside of a value",
		"<plist></plist>":           "empty",
		"<plist><dict>":             "EOF",
		"<plist><true/><true/>":     "more than one value",
		"<plist><true/></plist>x":   "follows </plist>",
		"<plist><yes/></plist>":     "<yes> is no value",
		"<plist><true>1</true>":     "holds text",
		"<plist><integer>x":         "EOF",
		"<plist><integer/></plist>": "<integer>",
		"<plist><dict><string>a</string></dict></plist>":                             "where a key belongs",
		"<plist><dict><key>a</key></dict></plist>":                                   `"a" has no value`,
		"<plist><dict><key>a</key><true/><key>a</key><true/></dict></plist>":         "twice",
		"<plist><string>a<true/></string></plist>":                                   "inside of <string>",
		"<plist>" + strings.Repeat("<array>", 100) + strings.Repeat("</array>", 100): "deep",
		"<plist><data>*</data></plist>":                                              "<data>",
		"<plist><string>" + strings.Repeat("a", 1<<20) + "</string></plist>":         "bytes",
		"<plist><dict><key>a<b/></key></dict></plist>":                               "inside of <key>",
		"<plist><dict>stray</dict></plist>":                                          "stray",
	} {
		if v, err := plist.Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: %v, %v; want %q", text, v, err, want)
		}
	}
}

// FuzzParse: whatever is read ends, and what is a value holds only the types it may.
func FuzzParse(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := plist.Parse(b)
		if (v == nil) == (err == nil) {
			t.Errorf("%v, %v", v, err)
		}
		check(t, v)
	})
}

func check(t *testing.T, v any) {
	switch v := v.(type) {
	case plist.Dict:
		for _, e := range v {
			check(t, e)
		}
	case []any:
		for _, e := range v {
			check(t, e)
		}
	case nil, string, bool, int64, float64, time.Time, []byte:
	default:
		t.Errorf("a value of type %T", v)
	}
}
