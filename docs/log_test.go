// SPDX-License-Identifier: MIT

package docs_test

import (
	"cmp"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/docs/page"
)

// message is one thing that a product's program says in its log.
type message struct{ text, level, pkg string }

// notProduct are folders whose logs no operator of a site reads.
var notProduct = []string{"docs", "e2e", "dev", "githubapp/githubsim", "vm/vmtest", "admin/admintest"}

// messages finds every constant message at info, warn and error in the product.
func messages(t *testing.T, root string) []message {
	t.Helper()
	var all []message
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		pkg := filepath.ToSlash(strings.TrimPrefix(strings.TrimPrefix(path, root), "/"))
		if d.IsDir() {
			if strings.HasPrefix(d.Name(), ".") && d.Name() != ".." || d.Name() == "testdata" || slices.Contains(notProduct, pkg) {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		all = append(all, said(f, filepath.ToSlash(filepath.Dir(pkg)))...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// said returns what one file says. The place of the message among the arguments, and
// the level, follow from the method.
func said(f *ast.File, pkg string) []message {
	var all []message
	ast.Inspect(f, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		method, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		level, at := "", 0
		switch name := strings.TrimSuffix(method.Sel.Name, "Context"); name {
		case "Info", "Warn", "Error":
			level = strings.ToLower(name)
			if name != method.Sel.Name {
				at = 1
			}
		case "Log", "LogAttrs":
			level, at = "varies", 2
			if len(call.Args) > 1 {
				if l, ok := call.Args[1].(*ast.SelectorExpr); ok && strings.HasPrefix(l.Sel.Name, "Level") {
					level = strings.ToLower(strings.TrimPrefix(l.Sel.Name, "Level"))
				}
			}
		}
		if level == "" || level == "debug" || len(call.Args) <= at {
			return true
		}
		if text, ok := call.Args[at].(*ast.BasicLit); ok && text.Kind == token.STRING {
			words, err := strconv.Unquote(text.Value)
			if err == nil {
				all = append(all, message{words, level, pkg})
			}
		}
		return true
	})
	return all
}

// TestLogPage holds the table of log messages in docs/operations.md to the code.
func TestLogPage(t *testing.T) {
	all := messages(t, "..")
	if len(all) < 50 {
		t.Fatalf("only %d messages found: the search is broken", len(all))
	}
	slices.SortFunc(all, func(a, b message) int {
		return cmp.Or(cmp.Compare(strings.ToLower(a.text), strings.ToLower(b.text)), cmp.Compare(a.level, b.level), cmp.Compare(a.pkg, b.pkg))
	})
	table := page.Table{Name: "log messages", Columns: []string{"message", "level", "from"}, Written: "what it means, what to do"}
	for same := range chunks(all) {
		var levels, pkgs []string
		for _, m := range same {
			levels, pkgs = append(levels, m.level), append(pkgs, m.pkg)
		}
		slices.Sort(levels)
		table.Rows = append(table.Rows, []string{same[0].text, strings.Join(slices.Compact(levels), ", "), strings.Join(slices.Compact(pkgs), ", ")})
	}
	if err := table.Keep("operations.md"); err != nil {
		t.Error(err)
	}
}

// chunks yields the messages of equal text together.
func chunks(all []message) func(func([]message) bool) {
	return func(yield func([]message) bool) {
		for len(all) > 0 {
			n := 1
			for n < len(all) && all[n].text == all[0].text {
				n++
			}
			if !yield(all[:n]) {
				return
			}
			all = all[n:]
		}
	}
}

// TestWaitPage holds the table of reasons to wait to the constants of package fleet.
func TestWaitPage(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "../fleet/plan.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	table := page.Table{Name: "reasons to wait", Columns: []string{"reason"}, Written: "what it means, what to do"}
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if kind, ok := spec.Type.(*ast.Ident); ok && kind.Name == "WaitCode" {
			code, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			table.Rows = append(table.Rows, []string{"`" + code + "`"})
		}
		return true
	})
	if len(table.Rows) < 10 {
		t.Fatalf("only %d reasons found: the search is broken", len(table.Rows))
	}
	if err := table.Keep("operations.md"); err != nil {
		t.Error(err)
	}
}
