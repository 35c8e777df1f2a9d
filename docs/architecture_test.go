// SPDX-License-Identifier: MIT

// Package docs_test holds the code to what the documents say of it.
package docs_test

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/minifleet/minifleet/"

// drawn reads the list of permissions from the architecture page.
func drawn(t *testing.T) map[string][]string {
	t.Helper()
	page, err := os.ReadFile("architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(page), "```imports\n")
	block, _, closed := strings.Cut(rest, "```")
	if !ok || !closed {
		t.Fatal("architecture.md has no block of imports")
	}
	out := map[string][]string{}
	for line := range strings.Lines(block) {
		name, may, ok := strings.Cut(line, ":")
		if !ok {
			t.Fatalf("line %q: want a package, a colon and what it may import", line)
		}
		out[name] = strings.Fields(may)
	}
	return out
}

// rule finds the permission of a package: its own or that of the nearest above.
func rule(all map[string][]string, pkg string) ([]string, bool) {
	for p := pkg; p != ""; {
		if may, ok := all[p]; ok {
			return may, true
		}
		at := strings.LastIndexByte(p, '/')
		if at < 0 {
			break
		}
		p = p[:at]
	}
	return nil, false
}

func TestImportsAreAsDrawn(t *testing.T) {
	rules := drawn(t)
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(p.ImportPath, module)
		seen[name] = true
		if strings.HasPrefix(name, "cmd/") || name == "docs" {
			continue // cmd wires anything
		}
		may, ok := rule(rules, name)
		if !ok {
			t.Errorf("package %s is not in the list of docs/architecture.md", name)
		}
		for _, i := range p.Imports {
			ours, ok := strings.CutPrefix(i, module)
			// A tree may import within itself, and what is permitted with all below it.
			within := func(tree string) bool { return ours == tree || strings.HasPrefix(ours, tree+"/") }
			if ok && !slices.Contains(may, ours) && !within(name) {
				t.Errorf("%s imports %s, which docs/architecture.md does not draw", name, ours)
			}
		}
	}
	for name := range rules {
		if !seen[name] {
			t.Errorf("docs/architecture.md lists %s, and there is no such package", name)
		}
	}
}

// TestAgentStaysSmall: what runs on every host has no business with GitHub's API,
// a database or a hypervisor's framework.
func TestAgentStaysSmall(t *testing.T) {
	for program, refused := range map[string][]string{
		"minifleet":       {"Code-Hex/vz", module + "vm/vz"},
		"minifleet-agent": {"Code-Hex/vz", "go-github", "ghinstallation", "database/sql", "modernc.org", module + "store", module + "githubapp", module + "autoscaler"},
		"minifleet-guest": {"Code-Hex/vz", "go-github", "database/sql", "modernc.org", module + "fleet", module + "hosts", module + "vm"},
		"minifleet-vmm":   {"go-github", "database/sql", "modernc.org", module + "fleet", module + "hosts", module + "guest"},
	} {
		for _, system := range []string{"linux", "darwin"} { // what is refused may come in on a Mac only
			t.Run(program+" on "+system, func(t *testing.T) {
				cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "./cmd/"+program)
				cmd.Dir, cmd.Env = "..", append(os.Environ(), "GOOS="+system, "GOARCH=arm64", "CGO_ENABLED=1")
				out, err := cmd.Output()
				if err != nil {
					t.Fatal(err)
				}
				for dep := range strings.Lines(string(out)) {
					for _, r := range refused {
						// The interface of drivers, of which the client of the bucket has one type,
						// is no database.
						if strings.Contains(dep, r) && strings.TrimSpace(dep) != "database/sql/driver" {
							t.Errorf("%s is built with %s", program, strings.TrimSpace(dep))
						}
					}
				}
			})
		}
	}
}
