// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/scanner"
	"go/token"
	"go/types"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// findings is what a check found. The packages named are ours; what they import is others.
type findings struct {
	ours, others int
	mistakes     []string // file:line:column: what is wrong
}

// check type-checks the packages that the patterns name, and for their sake declares
// what they import.
func check(ctx context.Context, dir, overlay string, patterns []string) (findings, error) {
	root, err := filepath.Abs(dir)
	if err != nil {
		return findings{}, err
	}
	if overlay != "" { // go list runs in dir
		if overlay, err = filepath.Abs(overlay); err != nil {
			return findings{}, err
		}
	}
	replaced, err := readOverlay(overlay)
	if err != nil {
		return findings{}, err
	}
	packages, err := list(ctx, root, overlay, patterns)
	if err != nil {
		return findings{}, err
	}
	c := checker{root: root, replaced: replaced, fset: token.NewFileSet(), known: map[string]*types.Package{}}
	for _, p := range packages {
		if p.Error != nil && len(p.files()) == 0 {
			return findings{}, fmt.Errorf("package %s: %s", p.ImportPath, p.Error.Err)
		}
		c.check(p)
	}
	if c.ours == 0 {
		return findings{}, fmt.Errorf("no package matches %s", strings.Join(patterns, " "))
	}
	return c.findings, nil
}

type checker struct {
	findings
	root     string
	replaced map[string]string
	fset     *token.FileSet
	known    map[string]*types.Package // by the path of go list, with its note of a test
}

func (c *checker) check(p *listed) {
	if p.Error != nil && !p.DepOnly {
		c.mistakes = append(c.mistakes, fmt.Sprintf("%s: %s", p.Error.Pos, p.Error.Err))
	}
	var files []*ast.File
	for _, name := range p.files() {
		f, err := c.parse(name)
		if err != nil && !p.DepOnly {
			c.note(err)
		}
		if f != nil {
			files = append(files, f)
		}
	}
	conf := types.Config{
		Importer:    importer{c, p},
		Sizes:       types.SizesFor("gc", "arm64"),
		FakeImportC: true,
		// What we import need not be right, only declared; this is also what makes it quick.
		IgnoreFuncBodies: p.DepOnly,
		Error: func(err error) {
			if !p.DepOnly {
				c.note(err)
			}
		},
	}
	if p.Module != nil && p.Module.GoVersion != "" {
		conf.GoVersion = "go" + p.Module.GoVersion
	}
	if p.DepOnly {
		c.others++
	} else {
		c.ours++
	}
	pkg, _ := conf.Check(p.path(), c.fset, files, nil) // its errors went to conf.Error
	c.known[p.ImportPath] = pkg
}

// parse reads a file, or what the overlay has in its place.
func (c *checker) parse(name string) (*ast.File, error) {
	path := name
	if r, ok := c.replaced[name]; ok {
		path = r
	}
	src, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parser.ParseFile(c.fset, name, src, parser.SkipObjectResolution)
}

// note adds a mistake. A package is checked once alone and once with its tests, so the
// same may come twice.
func (c *checker) note(err error) {
	if list, ok := errors.AsType[scanner.ErrorList](err); ok {
		for _, e := range list {
			c.add(e.Pos, e.Msg)
		}
		return
	}
	if e, ok := errors.AsType[types.Error](err); ok {
		c.add(e.Fset.Position(e.Pos), e.Msg)
		return
	}
	c.add(token.Position{}, err.Error())
}

func (c *checker) add(at token.Position, text string) {
	if rel, err := filepath.Rel(c.root, at.Filename); err == nil && filepath.IsLocal(rel) {
		at.Filename = rel
	}
	if text = fmt.Sprintf("%s: %s", at, text); !slices.Contains(c.mistakes, text) {
		c.mistakes = append(c.mistakes, text)
	}
}

// importer finds what package p imports among the packages checked before it.
type importer struct {
	c *checker
	p *listed
}

func (i importer) Import(path string) (*types.Package, error) {
	if path == "unsafe" {
		return types.Unsafe, nil
	}
	if mapped, ok := i.p.ImportMap[path]; ok { // what is vendored, or rebuilt for a test
		path = mapped
	}
	if pkg := i.c.known[path]; pkg != nil {
		return pkg, nil
	}
	return nil, fmt.Errorf("go list did not list %q", path)
}
