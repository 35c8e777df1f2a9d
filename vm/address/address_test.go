// SPDX-License-Identifier: MIT

package address_test

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/internal/leakcheck"
	"github.com/minifleet/minifleet/vm/address"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

var (
	mac = net.HardwareAddr{0x6e, 0x09, 0x02, 0x00, 0xa1, 0x0f}
	now = time.Unix(0x6a2f0000, 0)
)

const (
	fresh   = "{\n\tname=admins-Virtual-Machine\n\tip_address=192.168.64.5\n\thw_address=1,6e:9:2:0:a1:f\n\tidentifier=1,6e:9:2:0:a1:f\n\tlease=0x6a2f1b30\n}\n"
	newer   = "{\n\tip_address=192.168.64.6\n\thw_address=1,6e:9:2:0:a1:f\n\tlease=0x6a2f1b31\n}\n"
	expired = "{\n\tip_address=192.168.64.7\n\thw_address=1,6e:9:2:0:a1:f\n\tlease=0x6a2effff\n}\n"
	other   = "{\n\tip_address=192.168.64.8\n\thw_address=1,6e:9:2:0:a1:10\n\tlease=0x6a2f2000\n}\n"
)

func TestFromLeases(t *testing.T) {
	for name, tt := range map[string]struct{ file, want string }{
		"one":                     {fresh, "192.168.64.5"},
		"the newest, first":       {newer + fresh, "192.168.64.6"},
		"the newest, last":        {fresh + other + newer, "192.168.64.6"},
		"expired":                 {expired, ""},
		"expired beside a fresh":  {expired + fresh, "192.168.64.5"},
		"another card":            {other, ""},
		"empty":                   {"", ""},
		"cut off":                 {fresh[:len(fresh)-2], ""},
		"carriage returns":        {strings.ReplaceAll(fresh, "\n", "\r\n"), "192.168.64.5"},
		"leading zeros":           {strings.Replace(fresh, "6e:9:2:0:a1:f", "6e:09:02:00:a1:0f", 1), "192.168.64.5"},
		"another kind of card":    {strings.Replace(fresh, "hw_address=1,", "hw_address=ff,", 1), ""},
		"no address":              {strings.Replace(fresh, "192.168.64.5", "", 1), ""},
		"an address of this host": {strings.Replace(fresh, "192.168.64.5", "127.0.0.1", 1), ""},
		"IPv6":                    {strings.Replace(fresh, "192.168.64.5", "fd00::5", 1), ""},
		"a lease in decimal":      {strings.Replace(fresh, "0x", "", 1), ""},
		"a negative lease":        {strings.Replace(fresh, "0x6a", "0x-6a", 1), ""},
		"keys twice":              {strings.Replace(fresh, "\tlease", "\tip_address=192.168.64.99\n\tlease", 1), "192.168.64.5"},
		"no block":                {"ip_address=192.168.64.5\nhw_address=1,6e:9:2:0:a1:f\nlease=0x6a2f1b30\n}\n", ""},
	} {
		t.Run(name, func(t *testing.T) { check(t, tt.want)(address.FromLeases([]byte(tt.file), mac, now)) })
	}
}

func TestFromARP(t *testing.T) {
	const line = "? (192.168.64.5) at 6e:9:2:0:a1:f on bridge100 ifscope [bridge]\n"
	const before = "? (192.168.64.1) at 3e:22:fb:0:0:64 on bridge100 ifscope permanent [bridge]\n? (192.168.64.3) at (incomplete) on bridge100 ifscope [bridge]\n"
	for name, tt := range map[string]struct{ table, want string }{
		"found":        {before + line, "192.168.64.5"},
		"not found":    {before, ""},
		"with a name":  {strings.Replace(line, "?", "guest.local", 1), "192.168.64.5"},
		"the last one": {line + strings.Replace(line, "64.5", "64.6", 1), "192.168.64.6"},
		"empty":        {"", ""},
		"no brackets":  {strings.Replace(line, "(192.168.64.5)", "192.168.64.5", 1), ""},
		"cut off":      {line[:20], ""},
	} {
		t.Run(name, func(t *testing.T) { check(t, tt.want)(address.FromARP([]byte(tt.table), mac)) })
	}
}

func check(t *testing.T, want string) func(got interface{ String() string }, ok bool) {
	return func(got interface{ String() string }, ok bool) {
		t.Helper()
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("got %v, %v, want %q", got, ok, want)
		}
	}
}

func FuzzFromLeases(f *testing.F) {
	f.Add([]byte(fresh + newer + expired + other))
	f.Fuzz(func(t *testing.T, file []byte) {
		if a, ok := address.FromLeases(file, mac, now); ok != a.IsValid() || ok && (!a.Is4() || a.IsLoopback()) {
			t.Errorf("got %v, %v", a, ok)
		}
	})
}

func FuzzFromARP(f *testing.F) {
	f.Add([]byte("? (192.168.64.5) at 6e:9:2:0:a1:f on bridge100 ifscope [bridge]\n"))
	f.Fuzz(func(t *testing.T, table []byte) {
		if a, ok := address.FromARP(table, mac); ok != a.IsValid() || ok && (!a.Is4() || a.IsLoopback()) {
			t.Errorf("got %v, %v", a, ok)
		}
	})
}
