// SPDX-License-Identifier: MIT

package emulator

import (
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

// metadata is what fake-gcs-server has not: an object's metageneration, which every change
// of its metadata raises without making a new generation of its content; and conditions on
// changes and deletions. It is kept in memory and forgotten with the server.
type metadata struct {
	next http.Handler

	mu      sync.Mutex // one change at a time
	changed map[string]change
	aged    []aging
}

// aging says that what was written before a moment is older than it is.
type aging struct {
	before time.Time
	by     time.Duration
}

// age makes all that there is older.
func (m *metadata) age(by time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.aged = append(m.aged, aging{time.Now(), by})
}

// change is what was made of an object's metadata since a generation of its content began.
type change struct {
	generation     string
	metageneration int64
	fields         map[string]any
}

func newMetadata(next http.Handler) *metadata {
	return &metadata{next: next, changed: map[string]change{}}
}

const objectsPath = "/storage/v1/b/"

// object splits the path of an object's resource; the name is "" for a list.
func object(r *http.Request) (bucket, name string, ok bool) {
	rest, ok := strings.CutPrefix(r.URL.EscapedPath(), objectsPath)
	if !ok {
		return "", "", false
	}
	bucket, rest, ok = strings.Cut(rest, "/o")
	if !ok || strings.Contains(bucket, "/") || strings.Contains(rest[min(1, len(rest)):], "/") {
		return "", "", false // also what is below an object
	}
	name, err := url.PathUnescape(strings.TrimPrefix(rest, "/"))
	return bucket, name, err == nil
}

func (m *metadata) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	bucket, name, ok := object(r)
	method := r.Method
	if o := r.Header.Get("X-HTTP-Method-Override"); o != "" {
		method = o
	}
	switch {
	case !ok || r.FormValue("alt") == "media":
		m.next.ServeHTTP(w, r)
	case method == http.MethodGet:
		m.read(w, r, bucket, name)
	case name != "" && (method == http.MethodPatch || method == http.MethodDelete):
		m.mu.Lock()
		defer m.mu.Unlock()
		m.write(w, r, bucket, name, method)
	default:
		m.next.ServeHTTP(w, r)
	}
}

// answer is one that is looked at before it goes on.
type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) WriteHeader(status int)      { a.status = status }
func (a *answer) Write(b []byte) (int, error) { return a.body.Write(b) }

func (m *metadata) ask(r *http.Request) (*answer, map[string]any) {
	a := &answer{header: http.Header{}, status: http.StatusOK}
	m.next.ServeHTTP(a, r)
	var resource map[string]any
	d := json.NewDecoder(bytes.NewReader(a.body.Bytes()))
	d.UseNumber()
	if a.status != http.StatusOK || d.Decode(&resource) != nil {
		return a, nil
	}
	return a, resource
}

// read answers with one object or a list of them.
func (m *metadata) read(w http.ResponseWriter, r *http.Request, bucket, name string) {
	m.mu.Lock()
	a, resource := m.ask(r)
	switch items, _ := resource["items"].([]any); {
	case resource == nil:
	case name != "":
		m.amend(bucket, resource)
	default:
		for _, item := range items {
			if one, ok := item.(map[string]any); ok {
				m.amend(bucket, one)
			}
		}
	}
	m.mu.Unlock()
	a.send(w, resource)
}

func (a *answer) send(w http.ResponseWriter, resource map[string]any) {
	body := a.body.Bytes()
	if resource != nil {
		body, _ = json.Marshal(resource) // it was JSON
	}
	maps.Copy(w.Header(), a.header)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(a.status)
	_, _ = w.Write(body) // the client is gone, or not
}

// amend puts into an object's resource what was changed of it, and how old it is. m.mu is
// held.
func (m *metadata) amend(bucket string, resource map[string]any) {
	name, _ := resource["name"].(string)
	if c, ok := m.changed[bucket+"/"+name]; ok && c.generation == resource["generation"] {
		maps.Copy(resource, c.fields)
		resource["metageneration"] = strconv.FormatInt(c.metageneration, 10)
	}
	text, _ := resource["updated"].(string)
	updated, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return // not asked for
	}
	shown := updated
	for _, a := range m.aged {
		if updated.Before(a.before) {
			shown = shown.Add(-a.by)
		}
	}
	resource["updated"] = shown.UTC().Format(time.RFC3339Nano)
}

// write changes an object's metadata, or deletes it, if the conditions hold. m.mu is held.
func (m *metadata) write(w http.ResponseWriter, r *http.Request, bucket, name, method string) {
	get := r.Clone(r.Context())
	get.Method, get.Body, get.ContentLength, get.URL.RawQuery = http.MethodGet, http.NoBody, 0, ""
	get.Header.Del("X-HTTP-Method-Override")
	get.Form, get.PostForm = nil, nil
	a, resource := m.ask(get)
	if resource == nil {
		a.send(w, nil)
		return
	}
	m.amend(bucket, resource)
	for condition, field := range map[string]string{"ifGenerationMatch": "generation", "ifMetagenerationMatch": "metageneration", "generation": "generation"} {
		if want := r.URL.Query().Get(condition); want != "" && want != resource[field] {
			http.Error(w, `{"error": {"code": 412, "message": "At least one of the pre-conditions you specified did not hold."}}`, http.StatusPreconditionFailed)
			return
		}
	}
	if method == http.MethodDelete {
		delete(m.changed, bucket+"/"+name)
		m.next.ServeHTTP(w, r)
		return
	}
	var fields map[string]any
	if err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&fields); err != nil {
		http.Error(w, `{"error": {"code": 400, "message": "no JSON"}}`, http.StatusBadRequest)
		return
	}
	delete(fields, "bucket")
	delete(fields, "name")
	generation, _ := resource["generation"].(string)
	was, _ := resource["metageneration"].(string)
	n, _ := strconv.ParseInt(was, 10, 64) // fake-gcs-server's own is 1
	c := m.changed[bucket+"/"+name]
	if c.generation != generation || c.fields == nil {
		c = change{generation: generation, fields: map[string]any{}}
	}
	maps.Copy(c.fields, fields)
	c.fields["updated"] = time.Now().UTC().Format(time.RFC3339Nano)
	c.metageneration = n + 1
	m.changed[bucket+"/"+name] = c
	m.amend(bucket, resource)
	a.send(w, resource)
}
