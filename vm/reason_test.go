// SPDX-License-Identifier: MIT

package vm_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"testing"

	"github.com/minifleet/minifleet/vm"
)

// TestEveryReasonHasItsSentence reads the constants from the source, so that none can be
// forgotten.
func TestEveryReasonHasItsSentence(t *testing.T) {
	t.Parallel()
	f, err := parser.ParseFile(token.NewFileSet(), "reason.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]vm.Reason{}
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 {
			return true
		}
		value, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		r := vm.Reason(value)
		sentence := r.Sentence()
		if sentence == "" {
			t.Errorf("%s has no sentence for operators", spec.Names[0])
		}
		if other, ok := said[sentence]; ok {
			t.Errorf("%s and %s say the same", other, r)
		}
		said[sentence] = r
		return true
	})
	if len(said) < 12 {
		t.Errorf("only %d reasons were found", len(said))
	}
	if s := vm.Reason("of_a_newer_vmm").Sentence(); s != "" {
		t.Errorf("an unknown reason says %q", s)
	}
}
