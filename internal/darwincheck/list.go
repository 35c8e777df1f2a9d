// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// listed is what go list tells of one package.
type listed struct {
	ImportPath string
	Name       string
	Dir        string
	GoFiles    []string
	CgoFiles   []string // as written, not what cgo makes of them
	ImportMap  map[string]string
	DepOnly    bool
	Module     *struct{ GoVersion string }
	Error      *struct{ Pos, Err string }
}

// path is the import path without the note of the test that it was rebuilt for.
func (p *listed) path() string {
	path, _, _ := strings.Cut(p.ImportPath, " ")
	return path
}

// files are the absolute paths of what the package is built from.
func (p *listed) files() []string {
	var all []string
	for _, names := range [][]string{p.GoFiles, p.CgoFiles} {
		for _, name := range names {
			if !filepath.IsAbs(name) {
				name = filepath.Join(p.Dir, name)
			}
			all = append(all, name)
		}
	}
	return all
}

// list returns the packages with their tests and all that they import, each after what it
// imports. go list finds files and modules for the Mac, and never runs cgo.
func list(ctx context.Context, dir, overlay string, patterns []string) ([]*listed, error) {
	args := []string{"list", "-e", "-deps", "-test", "-overlay=" + overlay, "-json=ImportPath,Name,Dir,GoFiles,CgoFiles,ImportMap,DepOnly,Module,Error", "--"}
	cmd := exec.CommandContext(ctx, "go", append(args, patterns...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOOS=darwin", "GOARCH=arm64", "CGO_ENABLED=1")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("go list: %w: %s", err, bytes.TrimSpace(errs.Bytes()))
	}
	var packages []*listed
	for dec := json.NewDecoder(&out); ; {
		p := new(listed)
		if err := dec.Decode(p); errors.Is(err, io.EOF) {
			return packages, nil
		} else if err != nil {
			return nil, fmt.Errorf("output of go list: %w", err)
		}
		if p.ImportPath == "unsafe" || strings.HasSuffix(p.ImportPath, ".test") {
			continue // known to go/types; a test's main, which go list does not write out
		}
		packages = append(packages, p)
	}
}

// readOverlay returns which file stands for which.
func readOverlay(file string) (map[string]string, error) {
	if file == "" {
		return nil, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	var o struct{ Replace map[string]string }
	if err := json.Unmarshal(b, &o); err != nil {
		return nil, fmt.Errorf("overlay %s: %w", file, err)
	}
	return o.Replace, nil
}
