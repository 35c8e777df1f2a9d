// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"go/build"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// maxMacLines bounds the Go code of the VMs that only a Mac compiles: nobody without one
// can run it, so what can be decided elsewhere has to be decided elsewhere.
const maxMacLines = 600

// TestMacOnlyCodeStaysSmall counts that code, and finds no C of ours anywhere, which the
// check of types could not see into.
func TestMacOnlyCodeStaysSmall(t *testing.T) {
	t.Parallel()
	mac, linux := build.Default, build.Default
	mac.GOOS, mac.GOARCH, mac.CgoEnabled = "darwin", "arm64", true
	linux.GOOS, linux.GOARCH, linux.CgoEnabled = "linux", "arm64", true
	total := 0
	err := filepath.WalkDir(repository, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == ".git" || d.Name() == "bin") {
			return fs.SkipDir
		}
		if d.IsDir() || filepath.Ext(path) != ".go" {
			return nil
		}
		refuseC(t, path)
		name, _ := filepath.Rel(repository, path)
		if strings.HasSuffix(path, "_test.go") || !strings.HasPrefix(name, "vm/") && !strings.HasPrefix(name, "cmd/minifleet-vmm/") {
			return nil
		}
		onMac, err := mac.MatchFile(filepath.Split(path))
		if err != nil {
			return err
		}
		onLinux, err := linux.MatchFile(filepath.Split(path))
		if err != nil || !onMac || onLinux {
			return err
		}
		b, err := os.ReadFile(path)
		lines := bytes.Count(b, []byte("\n"))
		t.Logf("%4d %s", lines, name)
		total += lines
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if total == 0 || total > maxMacLines {
		t.Errorf("%d lines are compiled on a Mac only: from 1 to %d are allowed; move what is no call of the framework to where it is tested", total, maxMacLines)
	}
}

func refuseC(t *testing.T, path string) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
	if err != nil {
		t.Error(err)
		return
	}
	for _, i := range f.Imports {
		if i.Path.Value == `"C"` {
			t.Errorf("%s imports \"C\": the only cgo is that of the bindings", path)
		}
	}
}
