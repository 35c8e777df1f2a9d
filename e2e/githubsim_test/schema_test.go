// SPDX-License-Identifier: MIT

package githubsim_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// schemas are GitHub's own descriptions of its REST API and its webhooks.
type schemas struct {
	spec   *openapi3.T
	router routers.Router

	mu    sync.Mutex // guards hooks, which is not safe for concurrent use
	hooks *jsonschema.Compiler
}

// loadSchemas finds the schemas beside the checkout, or skips. In CI they must be there.
func loadSchemas(t *testing.T) *schemas {
	t.Helper()
	s, err := schemasOnce()
	if errors.Is(err, fs.ErrNotExist) {
		message := fmt.Sprintf("GitHub's schemas are not there, so nothing is held to them; set GITHUB_SCHEMA_DIR to the folder with rest.json and webhooks.json: %v", err)
		if os.Getenv("CI") == "true" {
			t.Fatal(message)
		}
		t.Skip(message)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// schemasOnce reads the schemas once for all tests.
var schemasOnce = sync.OnceValues(func() (*schemas, error) {
	dir := os.Getenv("GITHUB_SCHEMA_DIR")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "github-schema")
	}
	spec, err := openapi3.NewLoader().LoadFromFile(filepath.Join(dir, "rest.json"))
	if err != nil {
		return nil, fmt.Errorf("load rest.json: %w", err)
	}
	spec.Servers = nil
	router, err := gorillamux.NewRouter(spec)
	if err != nil {
		return nil, fmt.Errorf("routes of rest.json: %w", err)
	}
	raw, err := os.Open(filepath.Join(dir, "webhooks.json"))
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	doc, err := jsonschema.UnmarshalJSON(raw)
	if err != nil {
		return nil, fmt.Errorf("webhooks.json: %w", err)
	}
	hooks := jsonschema.NewCompiler()
	// The library's own check takes templates apart at slashes, and so refuses the {/path} of GitHub's.
	hooks.RegisterFormat(&jsonschema.Format{Name: "uri-template", Validate: validTemplate})
	hooks.AssertFormat()
	if err := hooks.AddResource("webhooks.json", doc); err != nil {
		return nil, fmt.Errorf("webhooks.json: %w", err)
	}
	return &schemas{spec: spec, router: router, hooks: hooks}, nil
})

var templatePart = regexp.MustCompile(`\{[+#./;?&]?[A-Za-z0-9_]+(,[A-Za-z0-9_]+)*\}`)

// validTemplate accepts what is a URL once its well-formed expressions are taken out.
func validTemplate(v any) error {
	text, ok := v.(string)
	if !ok {
		return nil
	}
	u, err := url.Parse(templatePart.ReplaceAllString(text, ""))
	if err != nil || !u.IsAbs() || strings.ContainsAny(u.String(), "{}") {
		return fmt.Errorf("%q is not a template of a URL", text)
	}
	return nil
}

// recorder stands before the simulator and checks all that it answers.
type recorder struct {
	schemas *schemas
	next    http.Handler

	mu       sync.Mutex // guards everything below
	problems []string
	answers  map[string]int // by operation and status
	events   map[string]int // by event and action
}

func newRecorder(s *schemas, next http.Handler) *recorder {
	return &recorder{schemas: s, next: next, answers: map[string]int{}, events: map[string]int{}}
}

func (rec *recorder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, "/_") {
		rec.next.ServeHTTP(w, r) // what GitHub's schemas do not describe
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	copied := r.Clone(context.WithoutCancel(r.Context()))
	copied.Body = io.NopCloser(bytes.NewReader(body))
	got := httptest.NewRecorder()
	rec.next.ServeHTTP(got, r)
	rec.check(copied, got)
	for name, values := range got.Header() {
		w.Header()[name] = values
	}
	w.WriteHeader(got.Code)
	w.Write(got.Body.Bytes())
}

func (rec *recorder) check(r *http.Request, got *httptest.ResponseRecorder) {
	name, err := rec.validate(r, got)
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.answers[fmt.Sprintf("%s %d", name, got.Code)]++
	if err != nil {
		rec.problems = append(rec.problems, fmt.Sprintf("%s %s answered %d: %v\n%s", r.Method, r.URL.Path, got.Code, err, got.Body))
	}
}

// validate returns the operation of an answer, and what is wrong with it.
func (rec *recorder) validate(r *http.Request, got *httptest.ResponseRecorder) (string, error) {
	route, params, err := rec.schemas.router.FindRoute(r)
	if err != nil {
		name := r.Method + " (not described)"
		if got.Code >= 400 {
			return name, rec.basicError(got.Body.Bytes())
		}
		return name, nil
	}
	name := r.Method + " " + route.Path
	in := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{Request: r, PathParams: params, Route: route},
		Status:                 got.Code, Header: got.Header(),
		Options: &openapi3filter.Options{MultiError: true},
	}
	in.SetBodyBytes(got.Body.Bytes())
	if err := openapi3filter.ValidateResponse(r.Context(), in); err != nil {
		return name, err
	}
	if got.Code >= 400 && route.Operation.Responses.Status(got.Code) == nil {
		return name, rec.basicError(got.Body.Bytes())
	}
	if got.Code < 300 && route.Operation.Responses.Status(got.Code) == nil {
		return name, fmt.Errorf("status %d is not described", got.Code)
	}
	return name, nil
}

func (rec *recorder) basicError(body []byte) error {
	var v any
	if err := json.Unmarshal(body, &v); err != nil {
		return err
	}
	return rec.schemas.spec.Components.Schemas["basic-error"].Value.VisitJSON(v)
}

// receive is the webhook receiver: it checks the payload and always says yes.
func (rec *recorder) receive(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	event := r.Header.Get("X-GitHub-Event")
	action, err := rec.validateEvent(event, body)
	rec.mu.Lock()
	rec.events[event+"."+action]++
	if err != nil {
		rec.problems = append(rec.problems, fmt.Sprintf("webhook %s.%s: %v\n%s", event, action, err, body))
	}
	rec.mu.Unlock()
	w.WriteHeader(http.StatusAccepted)
}

func (rec *recorder) validateEvent(event string, body []byte) (string, error) {
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	payload, _ := v.(map[string]any)
	action, _ := payload["action"].(string)
	name := event + "$" + action
	if event == "ping" {
		name = "ping$event"
	}
	rec.schemas.mu.Lock()
	schema, err := rec.schemas.hooks.Compile("webhooks.json#/definitions/" + name)
	rec.schemas.mu.Unlock()
	if err != nil {
		return action, fmt.Errorf("no schema of this event and action: %w", err)
	}
	return action, schema.Validate(v)
}

// report fails the test for each problem, and for each of the wanted answers and events that did not occur.
func (rec *recorder) report(t *testing.T, answers, events []string) {
	t.Helper()
	rec.mu.Lock()
	defer rec.mu.Unlock()
	for _, p := range rec.problems {
		t.Errorf("against GitHub's schema: %s", p)
	}
	for _, want := range answers {
		if rec.answers[want] == 0 {
			t.Errorf("no answer %q among %v", want, rec.answers)
		}
	}
	for _, want := range events {
		if rec.events[want] == 0 {
			t.Errorf("no event %q among %v", want, rec.events)
		}
	}
}
