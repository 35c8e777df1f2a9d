// SPDX-License-Identifier: MIT

package imagecache_test

import (
	"testing"

	"github.com/fsouza/fake-gcs-server/fakestorage"

	"github.com/minifleet/minifleet/imagecache/objects"
	"github.com/minifleet/minifleet/imagecache/objects/objectstest"
)

// fakeLacks is what fake-gcs-server v1.56.1 does not do: it says that every
// metageneration is 1, checks conditions on uploads only, and makes a new generation of
// an object whose metadata change. What rests on these is tested on objectstest's server.
var fakeLacks = objectstest.Lacks{Metageneration: true, DeleteConditions: true, TouchConditions: true, SteadyGeneration: true}

// TestObjectsOnFakeGCS runs the stores' suite with a foreign idea of what a bucket is.
func TestObjectsOnFakeGCS(t *testing.T) {
	t.Parallel()
	for name, root := range map[string]func(t *testing.T) string{
		"memory": func(*testing.T) string { return "" },
		"files":  func(t *testing.T) string { return t.TempDir() },
	} {
		t.Run(name, func(t *testing.T) {
			objectstest.Suite(t, fakeLacks, func(t *testing.T) objects.Store {
				server, err := fakestorage.NewServerWithOptions(fakestorage.Options{Scheme: "http", Host: "127.0.0.1", StorageRoot: root(t)})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(server.Stop)
				server.CreateBucketWithOpts(fakestorage.CreateBucketOpts{Name: "images"})
				s, err := objects.Open(t.Context(), objects.Options{Scheme: "gs", Location: "images/ci", Endpoint: server.URL()})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if err := s.Close(); err != nil {
						t.Error(err)
					}
				})
				return s
			})
		})
	}
}
