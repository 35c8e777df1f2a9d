// SPDX-License-Identifier: MIT

// Package objectstest holds what tests of stores share: one suite that every store
// passes, and a bucket on a server of its own that keeps generations and preconditions as
// Cloud Storage documents them, and misbehaves when it is told to. Nothing but tests
// imports it.
package objectstest

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Server answers the part of the JSON API that a store uses, for one bucket in memory.
type Server struct {
	Bucket string
	// Fault, if set, gets each request first, with what would answer it. It may be changed
	// only while there are no requests.
	Fault func(w http.ResponseWriter, r *http.Request, answer http.Handler)
	// PageObjects is how many objects a page of a list has. Zero means 1000.
	PageObjects int

	mu      sync.Mutex // guards the rest
	objects map[string]*object
	last    int64 // generation
}

type object struct {
	content                    []byte
	generation, metageneration int64
	updated                    time.Time
	metadata                   map[string]string
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.Fault != nil {
		s.Fault(w, r, http.HandlerFunc(s.answer))
		return
	}
	s.answer(w, r)
}

// Names are the objects that there are, in order.
func (s *Server) Names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.objects))
}

// Refuse answers as Cloud Storage does to what went wrong.
func Refuse(w http.ResponseWriter, code int, reason, message string) {
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	w.WriteHeader(code)
	fmt.Fprintf(w, `{"error":{"code":%d,"message":%q,"errors":[{"message":%[2]q,"domain":"global","reason":%q}]}}`, code, message, reason)
}

// answer holds the lock for no longer than it takes, whatever the other side does.
func (s *Server) answer(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		Refuse(w, http.StatusBadRequest, "badRequest", err.Error())
		return
	}
	r = r.WithContext(r.Context()) // a copy
	r.Body = io.NopCloser(bytes.NewReader(body))
	made := httptest.NewRecorder()
	s.mu.Lock()
	s.make(made, r)
	s.mu.Unlock()
	maps.Copy(w.Header(), made.Header())
	w.WriteHeader(made.Code)
	w.Write(made.Body.Bytes())
}

func (s *Server) make(w http.ResponseWriter, r *http.Request) {
	rest, upload := strings.CutPrefix(r.URL.EscapedPath(), "/upload")
	rest, ok := strings.CutPrefix(rest, "/storage/v1/b/")
	bucket, rest, _ := strings.Cut(rest, "/")
	escaped, one := strings.CutPrefix(rest, "o/")
	name, err := url.PathUnescape(escaped)
	if !ok || err != nil || bucket != s.Bucket {
		Refuse(w, http.StatusNotFound, "notFound", "The specified bucket does not exist.")
		return
	}
	if s.objects == nil {
		s.objects = map[string]*object{}
	}
	q := r.URL.Query()
	switch {
	case upload && r.Method == http.MethodPost:
		s.insert(w, r)
	case !one && r.Method == http.MethodGet:
		s.list(w, q)
	case !one:
		Refuse(w, http.StatusMethodNotAllowed, "methodNotAllowed", r.Method)
	default:
		s.one(w, r, name, q)
	}
}

func (s *Server) one(w http.ResponseWriter, r *http.Request, name string, q url.Values) {
	o := s.objects[name]
	if o == nil || q.Get("generation") != "" && q.Get("generation") != strconv.FormatInt(o.generation, 10) {
		Refuse(w, http.StatusNotFound, "notFound", "No such object: "+s.Bucket+"/"+name)
		return
	}
	if !holds(q, o) {
		Refuse(w, http.StatusPreconditionFailed, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")
		return
	}
	switch r.Method {
	case http.MethodGet:
		if q.Get("alt") != "media" {
			s.show(w, name, o)
			return
		}
		sum := binary.BigEndian.AppendUint32(nil, crc32.Checksum(o.content, crc32.MakeTable(crc32.Castagnoli)))
		h := w.Header()
		h.Set("Content-Type", "application/octet-stream")
		h.Set("X-Goog-Generation", strconv.FormatInt(o.generation, 10))
		h.Set("X-Goog-Metageneration", strconv.FormatInt(o.metageneration, 10))
		h.Set("X-Goog-Hash", "crc32c="+base64.StdEncoding.EncodeToString(sum))
		http.ServeContent(w, r, "", o.updated, strings.NewReader(string(o.content)))
	case http.MethodPatch:
		var change struct{ Metadata map[string]string }
		if err := json.NewDecoder(r.Body).Decode(&change); err != nil {
			Refuse(w, http.StatusBadRequest, "parseError", err.Error())
			return
		}
		maps.Copy(o.metadata, change.Metadata)
		o.metageneration++
		o.updated = time.Now()
		s.show(w, name, o)
	case http.MethodDelete:
		delete(s.objects, name)
		w.WriteHeader(http.StatusNoContent)
	default:
		Refuse(w, http.StatusMethodNotAllowed, "methodNotAllowed", r.Method)
	}
}

// holds reports whether the conditions of a request do; o may be nil.
func holds(q url.Values, o *object) bool {
	has := func(key string, value int64) bool {
		return !q.Has(key) || q.Get(key) == strconv.FormatInt(value, 10)
	}
	if o == nil {
		return has("ifGenerationMatch", 0) && !q.Has("ifMetagenerationMatch")
	}
	return has("ifGenerationMatch", o.generation) && has("ifMetagenerationMatch", o.metageneration)
}

func (s *Server) insert(w http.ResponseWriter, r *http.Request) {
	var meta struct {
		Name, Crc32c string
		Metadata     map[string]string
	}
	content, err := func() ([]byte, error) {
		_, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
		if err != nil {
			return nil, err
		}
		parts := multipart.NewReader(r.Body, params["boundary"])
		first, err := parts.NextPart()
		if err != nil {
			return nil, err
		}
		if err := json.NewDecoder(first).Decode(&meta); err != nil {
			return nil, err
		}
		second, err := parts.NextPart()
		if err != nil {
			return nil, err
		}
		return io.ReadAll(second)
	}()
	if err != nil {
		Refuse(w, http.StatusBadRequest, "badRequest", err.Error())
		return
	}
	if !holds(r.URL.Query(), s.objects[meta.Name]) {
		Refuse(w, http.StatusPreconditionFailed, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")
		return
	}
	s.last = max(s.last+1, time.Now().UnixMicro())
	o := &object{content: content, generation: s.last, metageneration: 1, updated: time.Now(), metadata: map[string]string{}}
	maps.Copy(o.metadata, meta.Metadata)
	s.objects[meta.Name] = o
	s.show(w, meta.Name, o)
}

type resource struct {
	Kind           string            `json:"kind"`
	Name           string            `json:"name"`
	Bucket         string            `json:"bucket"`
	Generation     int64             `json:"generation,string"`
	Metageneration int64             `json:"metageneration,string"`
	Size           int               `json:"size,string"`
	Updated        time.Time         `json:"updated"`
	Crc32c         string            `json:"crc32c"`
	Etag           string            `json:"etag"`
	Metadata       map[string]string `json:"metadata,omitempty"`
}

func (s *Server) resource(name string, o *object) resource {
	sum := binary.BigEndian.AppendUint32(nil, crc32.Checksum(o.content, crc32.MakeTable(crc32.Castagnoli)))
	return resource{
		Kind: "storage#object", Name: name, Bucket: s.Bucket, Generation: o.generation, Metageneration: o.metageneration,
		Size: len(o.content), Updated: o.updated.UTC(), Crc32c: base64.StdEncoding.EncodeToString(sum), Etag: rand.Text(), Metadata: o.metadata,
	}
}

func (s *Server) show(w http.ResponseWriter, name string, o *object) {
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	_ = json.NewEncoder(w).Encode(s.resource(name, o))
}

func (s *Server) list(w http.ResponseWriter, q url.Values) {
	most := s.PageObjects
	if n, err := strconv.Atoi(q.Get("maxResults")); most == 0 && err == nil {
		most = n
	}
	var page struct {
		Kind          string     `json:"kind"`
		Items         []resource `json:"items,omitempty"`
		NextPageToken string     `json:"nextPageToken,omitempty"`
	}
	page.Kind = "storage#objects"
	for _, name := range slices.Sorted(maps.Keys(s.objects)) {
		if !strings.HasPrefix(name, q.Get("prefix")) || name <= q.Get("pageToken") {
			continue
		}
		if most > 0 && len(page.Items) == most {
			page.NextPageToken = page.Items[most-1].Name
			break
		}
		page.Items = append(page.Items, s.resource(name, s.objects[name]))
	}
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	_ = json.NewEncoder(w).Encode(page)
}
