// SPDX-License-Identifier: MIT

package main

import (
	"io"
	"net"
	"strings"
	"testing"
)

// A controller that cannot start says what to do about it.
func TestServeRefuses(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for name, tc := range map[string]struct {
		change func(*site) // before the file is written
		edit   func(string) string
		want   []string
	}{
		"address in use": {
			func(s *site) { s.agents = `{address: "` + taken.Addr().String() + `"}` },
			func(text string) string { return text },
			[]string{"agents: listen tcp", "end the program that listens there", "agents.address"},
		},
		"no folder for the database": {
			func(*site) {},
			func(text string) string { return strings.Replace(text, "state.db", "none/state.db", 1) },
			[]string{"its folder is not there: make it"},
		},
		"a key that is none": {
			func(s *site) { s.file("app.pem", "text") },
			func(text string) string { return text },
			[]string{"private key", "give the file that GitHub offers"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			tc.change(s)
			s.config()
			config := s.file("controller.yaml", tc.edit(s.read("controller.yaml")))
			err := run(t.Context(), []string{"serve", "--config", config}, strings.NewReader(""), io.Discard, io.Discard, nothing)
			for _, want := range tc.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("error %v, want %q in it", err, want)
				}
			}
		})
	}
}
