// SPDX-License-Identifier: MIT

package site_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// oddListener puts a listener before the image's own that does what the file next says, once,
// and writes down which config it was given where.
func (s *site) oddListener() {
	s.t.Helper()
	bin := s.path("images", "demo", "root", "runner", "bin")
	if err := os.Rename(filepath.Join(bin, "Runner.Listener"), filepath.Join(bin, "client")); err != nil {
		s.t.Fatal(err)
	}
	script := fmt.Sprintf(`#!/bin/sh
root=${0%%/*}/..
if [ -n "$ACTIONS_RUNNER_INPUT_JITCONFIG" ]; then
	echo "$(cd "$root" && pwd) $(printf %%s "$ACTIONS_RUNNER_INPUT_JITCONFIG" | cksum)" >>'%s'
	if mv '%s' "$root/next" 2>/dev/null; then . "$root/next"; fi
fi
exec "$root/bin/client" "$@"
`, s.path("starts"), s.path("next"))
	if err := os.WriteFile(filepath.Join(bin, "Runner.Listener"), []byte(script), 0o755); err != nil {
		s.t.Fatal(err)
	}
}

// nextListener says what the next listener does, after it was online if that is said first.
func (s *site) nextListener(lines ...string) {
	s.t.Helper()
	if err := os.Rename(s.file("next.new", strings.Join(lines, "\n")+"\n"), s.path("next")); err != nil {
		s.t.Fatal(err)
	}
}

// online is what the official listener says when it is.
const online = `printf '%s\n' '' '√ Connected to GitHub' '' "Current runner version: '2.300.0'" '2026-11-22 10:00:00Z: Listening for Jobs'`

// starts are the machine and the config of each start of a listener.
func (s *site) starts() []string {
	s.t.Helper()
	b, err := os.ReadFile(s.path("starts"))
	if err != nil && !os.IsNotExist(err) {
		s.t.Fatal(err)
	}
	return slices.Collect(strings.Lines(string(b)))
}

// oneConfigEach checks that no machine had two configs, and no config two machines.
func (s *site) oneConfigEach() {
	s.t.Helper()
	configs, machines := map[string]string{}, map[string]string{}
	for _, start := range s.starts() {
		machine, config, _ := strings.Cut(strings.TrimSpace(start), " ")
		if had, ok := configs[machine]; ok && had != config {
			s.t.Errorf("%s was given two configs", machine)
		}
		if had, ok := machines[config]; ok && had != machine {
			s.t.Errorf("%s was given the config of %s", machine, had)
		}
		configs[machine], machines[config] = config, machine
	}
	if len(configs) == 0 {
		s.t.Error("no machine has started a listener: nothing was tested")
	}
}
