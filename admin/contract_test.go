// SPDX-License-Identifier: MIT

package admin_test

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/admin/admintest"
	"github.com/minifleet/minifleet/fleet"
)

// contract is openapi.yaml as far as the tests look into it.
type contract struct{ doc map[string]any }

func readContract(t testing.TB) contract {
	t.Helper()
	text, err := os.ReadFile("openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var c contract
	if err := yaml.Unmarshal(text, &c.doc); err != nil {
		t.Fatal(err)
	}
	return c
}

// at follows keys, and references on the way.
func (c contract) at(v any, keys ...string) any {
	for _, key := range append(keys, "") {
		for {
			m, _ := v.(map[string]any)
			ref, ok := m["$ref"].(string)
			if !ok {
				break
			}
			v = c.at(c.doc, strings.Split(strings.TrimPrefix(ref, "#/"), "/")...)
		}
		if key != "" {
			m, _ := v.(map[string]any)
			v = m[key]
		}
	}
	return v
}

type operation struct {
	method, path string
	spec         map[string]any
}

func (c contract) operations() []operation {
	var out []operation
	paths := c.at(c.doc, "paths").(map[string]any)
	for _, path := range slices.Sorted(maps.Keys(paths)) {
		for method, spec := range paths[path].(map[string]any) {
			out = append(out, operation{strings.ToUpper(method), path, spec.(map[string]any)})
		}
	}
	return out
}

func (o operation) name() string { return o.spec["operationId"].(string) }

// example returns the path with the ids of rows that exist.
func (o operation) example() string {
	id := map[string]string{"jobs": "15", "runners": "r-busy", "hosts": "h1", "pools": "macos-15"}[strings.Split(o.path, "/")[min(3, strings.Count(o.path, "/"))]]
	return strings.NewReplacer("{id}", id, "{name}", id).Replace(o.path)
}

// check returns what about a JSON value is not as the schema has it. Fields that
// the schema does not have count as well, so that nothing is sent undocumented.
func (c contract) check(where string, schema, value any) []string {
	s, _ := c.at(schema).(map[string]any)
	if enum, ok := s["enum"].([]any); ok && !slices.Contains(enum, value) {
		return []string{fmt.Sprintf("%s: %v is not one of %v", where, value, enum)}
	}
	switch s["type"] {
	case "object":
		return c.checkObject(where, s, value)
	case "array":
		list, ok := value.([]any)
		if !ok {
			return []string{fmt.Sprintf("%s: %v is no list", where, value)}
		}
		var wrong []string
		for i, v := range list {
			wrong = append(wrong, c.check(where+"["+strconv.Itoa(i)+"]", s["items"], v)...)
		}
		return wrong
	case "string":
		text, ok := value.(string)
		if ok && s["format"] == "date-time" {
			at, err := time.Parse(time.RFC3339, text)
			ok = err == nil && strings.HasSuffix(text, "Z") && !at.IsZero()
		} else if ok {
			ok = text != "" // what has no value is left out
		}
		if !ok {
			return []string{fmt.Sprintf("%s: %v is no %v %v", where, value, s["type"], s["format"])}
		}
	case "integer":
		if n, ok := value.(float64); !ok || n != math.Trunc(n) {
			return []string{fmt.Sprintf("%s: %v is no integer", where, value)}
		}
	case "boolean":
		if _, ok := value.(bool); !ok {
			return []string{fmt.Sprintf("%s: %v is no boolean", where, value)}
		}
	default:
		return []string{fmt.Sprintf("%s: the contract has no type for it", where)}
	}
	return nil
}

func (c contract) checkObject(where string, s map[string]any, value any) []string {
	object, ok := value.(map[string]any)
	if !ok {
		return []string{fmt.Sprintf("%s: %v is no object", where, value)}
	}
	var wrong []string
	properties, _ := s["properties"].(map[string]any)
	required, _ := s["required"].([]any)
	for _, name := range required {
		if _, ok := object[name.(string)]; !ok {
			wrong = append(wrong, fmt.Sprintf("%s: %v is missing", where, name))
		}
	}
	for name, v := range object {
		schema, known := properties[name]
		if !known {
			schema, known = s["additionalProperties"].(map[string]any)
		}
		if !known {
			wrong = append(wrong, fmt.Sprintf("%s: %s is not in the contract", where, name))
			continue
		}
		wrong = append(wrong, c.check(where+"."+name, schema, v)...)
	}
	return wrong
}

// TestEveryOperationIsServed asks for each operation of the contract as it says,
// and holds the answer to the schema that it gives.
func TestEveryOperationIsServed(t *testing.T) {
	t.Parallel()
	c := readContract(t)
	h := start(t, admintest.Sample())
	if len(c.operations()) < 15 {
		t.Fatalf("the contract has only %d operations", len(c.operations()))
	}
	for _, op := range c.operations() {
		t.Run(op.name(), func(t *testing.T) {
			t.Parallel()
			got := h.send(t, op.method, op.example(), "")
			response := c.at(op.spec["responses"], strconv.Itoa(got.status))
			if response == nil || got.status >= 400 {
				t.Fatalf("%s %s: status %d is not in the contract: %s", op.method, op.example(), got.status, got.body)
			}
			if content, ok := c.at(response, "content").(map[string]any); ok {
				media, ok := content[got.header.Get("Content-Type")]
				if !ok {
					t.Fatalf("content type %q is not in the contract", got.header.Get("Content-Type"))
				}
				var body any = got.body
				if got.header.Get("Content-Type") == "application/json" {
					if err := json.Unmarshal([]byte(got.body), &body); err != nil {
						t.Fatal(err)
					}
				}
				for _, wrong := range c.check("", c.at(media, "schema"), body) {
					t.Error(wrong)
				}
			} else if got.body != "" {
				t.Errorf("the contract has no body, the answer has %q", got.body)
			}
			unknown := h.send(t, op.method, op.example(), "", "Authorization", "")
			if _, open := op.spec["security"]; open != (unknown.status != http.StatusUnauthorized) {
				t.Errorf("without a token the status is %d, and the contract says open=%v", unknown.status, open)
			}
		})
	}
}

// TestEveryExplanationIsInTheContract covers the rows with few fields too, and the
// explanation of each.
func TestEveryExplanationIsInTheContract(t *testing.T) {
	t.Parallel()
	c := readContract(t)
	store := admintest.Sample()
	h := start(t, store)
	for _, job := range store.Jobs {
		got := h.get(t, fmt.Sprintf("/api/v1/jobs/%d/explain", job.ID))
		var body any
		if err := json.Unmarshal([]byte(got.body), &body); err != nil {
			t.Fatal(err)
		}
		for _, wrong := range c.check("", c.at(c.doc, "components", "schemas", "Explanation"), body) {
			t.Errorf("job %d: %s", job.ID, wrong)
		}
	}
}

// TestQueryParameters sends each parameter of the contract to each operation: it
// is taken where the contract has it, and named where it has not.
func TestQueryParameters(t *testing.T) {
	t.Parallel()
	c := readContract(t)
	h := start(t, admintest.Sample())
	values := map[string]string{
		"limit": "5", "cursor": "1", "repository": "acme/app", "run_id": "5", "pool": "linux", "host": "h1", "phase": "busy,idle", "all": "true",
		"status": "failed", "state": "queued", "surprise": "1",
	}
	query := map[string][]string{}
	for _, op := range c.operations() {
		if list, ok := op.spec["parameters"].([]any); ok {
			for _, p := range list {
				if c.at(p, "in") == "query" {
					name := c.at(p, "name").(string)
					query[op.name()] = append(query[op.name()], name)
					if values[name] == "" {
						t.Errorf("the test has no value for parameter %s", name)
					}
				}
			}
		}
	}
	for _, op := range c.operations() {
		for name, value := range values {
			if op.name() == "listHosts" && name == "state" {
				value = "online"
			}
			if op.name() == "listPools" && name == "cursor" {
				value = "linux"
			}
			got := h.send(t, op.method, op.example()+"?"+name+"="+value, "")
			taken := slices.Contains(query[op.name()], name)
			if taken != (got.status < 400) || (!taken && !strings.Contains(got.errorText(), strconv.Quote(name))) {
				t.Errorf("%s with %s=%s: status %d %s; in the contract: %v", op.name(), name, value, got.status, got.body, taken)
			}
		}
	}
}

func TestTheContractIsServedAsItStands(t *testing.T) {
	t.Parallel()
	want, err := os.ReadFile("openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	got := start(t, admintest.Sample()).get(t, "/api/v1/openapi.yaml")
	if got.body != string(want) {
		t.Error("the served contract is not openapi.yaml")
	}
}

// TestEnumerationsFollowTheDomain compares the values in the contract with the
// constants of package fleet.
func TestEnumerationsFollowTheDomain(t *testing.T) {
	t.Parallel()
	c := readContract(t)
	files, err := filepath.Glob("../fleet/*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	constants := map[string][]string{}
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if spec, ok := n.(*ast.ValueSpec); ok && len(spec.Values) == 1 {
				kind, isNamed := spec.Type.(*ast.Ident)
				value, isLiteral := spec.Values[0].(*ast.BasicLit)
				if isNamed && isLiteral && value.Kind == token.STRING && value.Value != `""` { // "" is left out of the JSON
					constants[kind.Name] = append(constants[kind.Name], strings.Trim(value.Value, `"`))
				}
			}
			return true
		})
	}
	for _, step := range fleet.Steps() {
		constants["Step"] = append(constants["Step"], step.String())
	}
	for _, name := range []string{"JobState", "Phase", "Step", "WaitCode", "CacheState", "DeliveryStatus", "Wanted", "Observed", "Registration"} {
		var values []string
		for _, v := range c.at(c.doc, "components", "schemas", name, "enum").([]any) {
			values = append(values, v.(string))
		}
		slices.Sort(values)
		slices.Sort(constants[name])
		if diff := cmp.Diff(constants[name], values); diff != "" {
			t.Errorf("%s (-fleet +contract):\n%s", name, diff)
		}
		description := c.at(c.doc, "components", "schemas", name, "description").(string)
		for _, v := range values {
			if name != "Observed" && !strings.Contains(description, "`"+v+"`:") {
				t.Errorf("the description of %s does not say what %s means", name, v)
			}
		}
	}
}

// TestNoTextIsTakenForAKey finds a sentence with a comma that lacks its quotes:
// YAML makes the rest of it a key without a value.
func TestNoTextIsTakenForAKey(t *testing.T) {
	t.Parallel()
	var walk func(where string, v any)
	walk = func(where string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for key, inner := range v {
				if strings.Contains(key, " ") || inner == nil {
					t.Errorf("%s: %q is no key", where, key)
				}
				walk(where+"/"+key, inner)
			}
		case []any:
			for i, inner := range v {
				walk(where+"/"+strconv.Itoa(i), inner)
			}
		}
	}
	walk("", readContract(t).doc)
}
