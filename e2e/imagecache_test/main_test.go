// SPDX-License-Identifier: MIT

// Package imagecache_test runs the cache of images on the file systems that hosts have,
// against the storage that images are published in.
package imagecache_test

import (
	"testing"

	"github.com/minifleet/minifleet/internal/leakcheck"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }
