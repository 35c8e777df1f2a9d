// SPDX-License-Identifier: MIT

// Package emulator is Google Cloud Storage on this machine: fake-gcs-server behind what it
// lacks and images need (metagenerations, and preconditions on changes and deletions), and
// behind a network that is as unkind and as slow as a test wants it.
package emulator

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fsouza/fake-gcs-server/fakestorage"
)

// Options say what a server is like. The zero Options keep objects in memory.
type Options struct {
	// Dir is the folder of the objects, "" for memory.
	Dir string
	// Buckets are those there are, beside what Dir has.
	Buckets []string
	// BytesPerSecond is what the line carries to all clients together, 0 for no limit.
	BytesPerSecond int64
}

// Server is a server on loopback.
type Server struct {
	// URL is where it listens: a client's endpoint is below it.
	URL string
	// Faults are what is wrong with it.
	Faults *Faults

	sent  atomic.Int64
	line  *line
	store *fakestorage.Server
	meta  *metadata
	http  *http.Server
	done  chan error

	mu    sync.Mutex // guards asked
	asked []request
}

// request is one that came.
type request struct{ Method, Path string }

// Start begins to serve, at any free port.
func Start(o Options) (*Server, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it never waits
	if err != nil {
		return nil, err
	}
	s := &Server{URL: "http://" + l.Addr().String(), Faults: newFaults(), done: make(chan error, 1)}
	if o.Dir != "" {
		for _, b := range o.Buckets {
			if err := os.MkdirAll(filepath.Join(o.Dir, b), 0o700); err != nil {
				return nil, errors.Join(err, l.Close())
			}
		}
	}
	s.store, err = fakestorage.NewServerWithOptions(fakestorage.Options{
		StorageRoot: o.Dir, NoListener: true, Scheme: "http", ExternalURL: s.URL, PublicHost: l.Addr().String(),
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the storage: %w", err), l.Close())
	}
	if o.Dir == "" {
		for _, b := range o.Buckets {
			s.store.CreateBucketWithOpts(fakestorage.CreateBucketOpts{Name: b})
		}
	}
	s.line = newLine(o.BytesPerSecond, &s.sent)
	s.meta = newMetadata(s.store.HTTPHandler())
	handler := s.Faults.before(s.meta)
	s.http = &http.Server{
		ReadHeaderTimeout: time.Minute,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s.mu.Lock()
			s.asked = append(s.asked, request{r.Method, r.URL.Path})
			s.mu.Unlock()
			handler.ServeHTTP(w, r)
		}),
	}
	go func() { s.done <- s.http.Serve(limited{l, s.line}) }()
	return s, nil
}

// Sent returns how many bytes went over the line to clients, headers included.
func (s *Server) Sent() int64 { return s.sent.Load() }

// Asked counts the requests so far of a method, with a part in their path.
func (s *Server) Asked(method, part string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.asked {
		if r.Method == method && strings.Contains(r.Path, part) {
			n++
		}
	}
	return n
}

// Age makes all objects that are there older than they are, by the store's clock.
func (s *Server) Age(by time.Duration) { s.meta.age(by) }

// Objects counts a bucket's objects with a prefix.
func (s *Server) Objects(bucket, prefix string) int {
	all, _, err := s.store.ListObjectsWithOptions(bucket, fakestorage.ListOptions{Prefix: prefix})
	if err != nil {
		return 0 // there is no such bucket
	}
	return len(all)
}

// Limit sets what the line carries from now on; 0 sets no limit.
func (s *Server) Limit(bytesPerSecond int64) { s.line.limit(bytesPerSecond) }

// Stop ends the server and whatever it does, in the middle of it.
func (s *Server) Stop() {
	s.Faults.Clear()
	s.http.Close()
	<-s.done
	s.store.Stop()
}
