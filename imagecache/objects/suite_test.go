// SPDX-License-Identifier: MIT

package objects_test

import (
	"net/http/httptest"
	"testing"
	"time"

	"github.com/minifleet/minifleet/imagecache/objects"
	"github.com/minifleet/minifleet/imagecache/objects/objectstest"
)

func open(t *testing.T, o objects.Options) objects.Store {
	t.Helper()
	s, err := objects.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestFolder(t *testing.T) {
	t.Parallel()
	objectstest.Suite(t, objectstest.Lacks{}, func(t *testing.T) objects.Store {
		return open(t, objects.Options{Scheme: "file", Location: t.TempDir()})
	})
}

func TestBucket(t *testing.T) {
	t.Parallel()
	for name, location := range map[string]string{"bucket": "images", "prefix": "images/ci/mac"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			objectstest.Suite(t, objectstest.Lacks{}, func(t *testing.T) objects.Store {
				server := httptest.NewServer(&objectstest.Server{Bucket: "images", PageObjects: 3})
				t.Cleanup(server.Close)
				return open(t, objects.Options{Scheme: "gs", Location: location, Endpoint: server.URL, Patience: time.Minute})
			})
		})
	}
}
